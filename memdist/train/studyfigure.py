"""The figure of a study: L1, CC and seconds over the evaluations that a picture takes, a curve for each sampler, as SVG."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from html import escape

from memdist.axes import Axis, axis
from memdist.errors import printable
from memdist.train.studytable import Setting, Study

# Okabe and Ito's colours, which colour-blind readers tell apart, without their black and yellow.
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
_DASHED = "6 4"
_DOTTED = "1 4"
_WIDTH, _LEFT, _RIGHT, _HEIGHT, _GAP, _LINE = 900, 70, 16, 240, 34, 18
# On white of its own: it is read wherever it is put.
_STYLE = """
text { font: 12px system-ui, "DejaVu Sans", sans-serif; fill: #4a525a; } .title { font-size: 14px; fill: #1d2126; }
.grid { stroke: #e3e6e9; } .curve { fill: none; stroke-width: 2; } .reference { fill: none; stroke: #1d2126; }
.chosen { fill: none; stroke: #1d2126; stroke-width: 2; }
"""


def draw(study: Study, title: str) -> str:
    """The figure as a file of its own."""
    samplers = list(dict.fromkeys(one.recipe.sampling.sampler for one in study.settings))
    colours = {name: _COLOURS[at % len(_COLOURS)] for at, name in enumerate(sorted(samplers))}
    legend, top = _legend(study, colours)
    panels: tuple[tuple[str, Callable[[Setting], float | None]], ...] = (
        ("L1 (lower is better)", lambda one: one.l1),
        ("CC (higher is better)", lambda one: one.cc),
        ("seconds for all pictures", lambda one: one.seconds),
    )
    parts = []
    for at, (name, value) in enumerate(panels):
        parts.append(_panel(study, colours, name, value, top + at * (_HEIGHT + _GAP), limit=at == 0))
    height = top + len(panels) * (_HEIGHT + _GAP) + 16
    middle = (_LEFT + _WIDTH - _RIGHT) / 2
    parts.append(_text(middle, height - 12, "network evaluations of a picture in all", "middle"))
    shown = escape(printable(title))
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" role="img" aria-label="{shown}">\n'
        f'<style>{_STYLE}</style>\n<rect width="{_WIDTH}" height="{height}" fill="#fff"/>\n'
        f'<text class="title" x="{_LEFT}" y="22">{shown}</text>\n{legend}\n' + "\n".join(parts) + "\n</svg>\n"
    )


def _panel(
    study: Study,
    colours: dict[str, str],
    name: str,
    value: Callable[[Setting], float | None],
    top: float,
    *,
    limit: bool,
) -> str:
    """One figure over evaluations; with `limit` the largest that is good enough stands in it."""
    curves = {False: list(study.alone().values()), True: list(study.together().values())}
    shown = [y for ones in curves.values() for one in ones if (y := value(one)) is not None]
    chosen, reference = study.chosen, value(study.reference)
    shown += [y for y in (value(chosen), reference, study.limit if limit else None) if y is not None]
    xs = axis([one.cost for one in study.settings], _LEFT, _WIDTH - _RIGHT)
    ys = axis(shown or [0.0], top + _HEIGHT, top)
    marks = [f"<g><title>{escape(name)}</title>"]
    for tick in ys.ticks():
        y = ys.at(tick)
        marks.append(f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        marks.append(_text(_LEFT - 8, y + 4, f"{tick:.6g}", "end"))
    for tick in xs.ticks():
        marks.append(_text(xs.at(tick), top + _HEIGHT + 16, f"{tick:.6g}", "middle"))
    scale = f"{name}, logarithmic" if ys.logarithmic else name
    marks.append(
        f'<text transform="translate(14 {top + _HEIGHT / 2:.1f}) rotate(-90)" text-anchor="middle">{escape(scale)}</text>'
    )
    for level, dash in ((reference, "none"), (study.limit if limit else None, _DOTTED)):
        if level is not None:
            y = ys.at(level)
            marks.append(f'<path class="reference" stroke-dasharray="{dash}" d="M{_LEFT},{y:.1f} H{_WIDTH - _RIGHT}"/>')
    for sampler, colour in colours.items():
        for several, ones in curves.items():
            own = sorted((one for one in ones if one.recipe.sampling.sampler == sampler), key=lambda one: one.cost)
            points = [(one, y) for one in own if (y := value(one)) is not None]
            marks += _curve(points, xs, ys, colour, _DASHED if several else "none")
    y_chosen = value(chosen)
    if y_chosen is not None:
        x, y = xs.at(chosen.cost), ys.at(y_chosen)
        marks.append(f'<circle class="chosen" cx="{x:.1f}" cy="{y:.1f}" r="8"><title>chosen</title></circle>')
    return "".join(marks) + "</g>"


def _curve(points: Sequence[tuple[Setting, float]], xs: Axis, ys: Axis, colour: str, dash: str) -> list[str]:
    if not points:
        return []
    places = [(xs.at(one.cost), ys.at(y)) for one, y in points]
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
    marks = [f'<polyline class="curve" stroke="{colour}" stroke-dasharray="{dash}" points="{path}"/>']
    for (x, y), (one, figure) in zip(places, points, strict=True):
        told = escape(printable(f"{one.said()}: {figure:.4g}"))
        marks.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colour}"><title>{told}</title></circle>')
    return marks


def _legend(study: Study, colours: dict[str, str]) -> tuple[str, float]:
    """What the lines are, in as many lines as it takes, and where the first panel begins."""
    assert study.reference.l1 is not None
    entries = [(f'class="curve" stroke="{colour}"', name) for name, colour in colours.items()]
    grey = 'class="curve" stroke="#4a525a"'
    entries.append((grey, "one sample"))
    if study.together():
        entries.append(
            (f'{grey} stroke-dasharray="{_DASHED}"', "mean or median of several, whichever has the lowest L1")
        )
    entries.append(('class="reference"', f"reference: {study.reference.said()} (L1 {study.reference.l1:.4f})"))
    entries.append((f'class="reference" stroke-dasharray="{_DOTTED}"', f"{1 + study.tolerance:g} of its L1"))
    marks, x, y = [], float(_LEFT), 44.0
    for pen, words in [*entries, ("", f"ring: chosen, {study.chosen.said()}")]:
        wide = 48 + 7.2 * len(words)
        if x + wide > _WIDTH - _RIGHT and x > _LEFT:
            x, y = float(_LEFT), y + _LINE
        marks.append(f'<path {pen} d="M{x:.0f},{y - 4:.0f} h24"/>' if pen else _ring(x + 12, y - 4))
        marks.append(_text(x + 30, y, words, "start"))
        x += wide
    return "".join(marks), y + 2 * _LINE


def _ring(x: float, y: float) -> str:
    return f'<circle class="chosen" cx="{x:.0f}" cy="{y:.0f}" r="6"/>'


def _text(x: float, y: float, words: str, anchor: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(printable(words))}</text>'
