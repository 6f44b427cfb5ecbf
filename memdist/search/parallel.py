"""The figure of a search: an axis for each parameter and one for the objective, a line for each trial, as SVG."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from html import escape
from typing import NamedTuple

from memdist.axes import Axis
from memdist.errors import printable
from memdist.search import levels, scale
from memdist.search.cells import Space
from memdist.search.objective import Mode
from memdist.search.parameter import Parameter
from memdist.search.rows import Row, ranked

BEST = 10
"""Lines that are drawn thicker."""
_TOP, _LEFT, _RIGHT, _STEP, _BELOW = 84, 180, 110, 150, 44
_LOWEST, _HIGHEST, _TICK = 340, 900, 30
"""Height of the axes, at least and at most; and what a value takes."""
_LETTERS = 24
_NOWHERE = 26
"""Height below a drawn parameter's axis for trials that do not have it."""
_GREY = "#c3c8cd"
_STYLE = """
text { font: 11px system-ui, "DejaVu Sans", sans-serif; fill: #4a525a; } .title { font-size: 14px; fill: #1d2126; }
.name { font-size: 12px; fill: #1d2126; } .axis { stroke: #1d2126; }
.tick { fill: #1d2126; paint-order: stroke; stroke: #fff; stroke-width: 4px; stroke-linejoin: round; }
.line { fill: none; stroke-linejoin: round; }
"""


class Ruler(NamedTuple):
    """An axis of the figure: its name, what stands beside it where, and the height of each row's line on it."""

    name: str
    ticks: list[tuple[float, str]]
    heights: dict[int, float]
    """By the number of the trial."""


def draw(space: Space, rows: Sequence[Row], mode: Mode, metric: str) -> str:
    """The figure as a file of its own; `metric` is the objective's name.

    Trials of most epochs are coloured by the objective, those that were stopped earlier are grey and end before it; the better
    lie above the others. At a listed value the lines are spread, the best on top, so that none hides another.
    """
    order = [row for row in ranked(rows, mode) if row.value is not None]
    most = order[0].epochs if order else 0
    full = [row for row in order if row.epochs == most]
    values = [row.value for row in full if row.value is not None]
    ticks = max(len(parameter.options) for parameter in space.parameters)
    bottom = _TOP + min(max(_LOWEST, _TICK * ticks), _HIGHEST)
    rulers = [_ruler(parameter, space.short[parameter.name], order, bottom) for parameter in space.parameters]
    better, worse = scale.ends(values or [0.0], mode)
    goal = scale.objective(better, worse, _TOP, bottom)
    width = _LEFT + _STEP * len(rulers) + _RIGHT
    xs = [_LEFT + _STEP * at for at in range(len(rulers) + 1)]

    def path(row: Row) -> str:
        points = [f"{x},{ruler.heights[row.trial]:.1f}" for x, ruler in zip(xs, rulers, strict=False)]
        if row.epochs == most and row.value is not None:
            points.append(f"{xs[-1]},{goal.at(scale.within(row.value, better, worse)):.1f}")
        return "M" + " ".join(points) if len(points) > 1 else ""

    def colour(row: Row) -> str:
        assert row.value is not None
        height = goal.at(scale.within(row.value, better, worse))
        return scale.colour((height - _TOP) / (bottom - _TOP))

    parts = _lines(order[len(full) :], full, path, colour)
    parts += _thick(space, full[:BEST], path, colour)
    for x, ruler in zip(xs, rulers, strict=False):
        parts.append(f'<path class="axis" d="M{x},{_TOP} V{bottom}"/>')
        parts.append(_text(x, _TOP - 14, _cut(ruler.name), "middle", "name"))
        parts += [_text(x - 5, y + 4, _cut(words), "end", "tick") for y, words in ruler.ticks]
    parts += _goal(goal, xs[-1], bottom, metric, mode, clipped=bool(values) and max(values, key=_from(better)) != worse)
    shown = escape(printable(f"{space.base}: {metric} of {len(full)} trials after {most} epochs"))
    height = bottom + _BELOW
    note = _note(rows, order, full)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img" aria-label="{shown}">\n'
        f'<style>{_STYLE}</style>\n<rect width="{width}" height="{height}" fill="#fff"/>\n'
        f'<text class="title" x="16" y="24">{shown}</text>\n'
        f"{_text(16, 44, note, 'start')}\n" + "\n".join(filter(None, parts)) + "\n</svg>\n"
    )


def _ruler(parameter: Parameter, name: str, order: Sequence[Row], bottom: float) -> Ruler:
    """Where each row, best first, crosses a parameter's axis."""
    if parameter.span is None:
        places = levels.listed(parameter, order)
        names = [levels.NONE] * (levels.NOWHERE in places) + [option.label for option in parameter.options]
        first = 0 if levels.NOWHERE not in places else levels.NOWHERE
        room = (bottom - _TOP) / len(names)
        ticks = [(bottom - room * (at + 0.5), words) for at, words in enumerate(names)]
        apart = max(1, -(-len(names) * 14 // int(bottom - _TOP)))  # where there is no room for all of them
        return Ruler(name, ticks[::apart], _spread(order, [ticks[place - first][0] for place in places], 0.62 * room))
    numbers = levels.drawn(parameter, order)
    low, high = parameter.span.low, parameter.span.high
    axis = Axis(low, high, parameter.span.log, bottom - _NOWHERE * (None in numbers), _TOP)
    ticks = [(axis.at(tick), f"{tick:.6g}") for tick in scale.round_ticks(axis)]
    heights = [bottom - 6 if number is None else axis.at(number) for number in numbers]
    if None in numbers:
        ticks.append((bottom - 6, levels.NONE))
        return Ruler(name, ticks, _spread(order, heights, 10, only=bottom - 6))
    return Ruler(name, ticks, {row.trial: height for row, height in zip(order, heights, strict=True)})


def _spread(order: Sequence[Row], heights: Sequence[float], room: float, only: float | None = None) -> dict[int, float]:
    """Rows at one height spread over `room` around it, the first on top; `only` those at that height."""
    there: dict[float, list[int]] = {}
    for row, height in zip(order, heights, strict=True):
        there.setdefault(height, []).append(row.trial)
    found = {}
    for height, trials in there.items():
        band = room if only is None or height == only else 0.0
        for at, trial in enumerate(trials):
            found[trial] = height + band * ((at + 0.5) / len(trials) - 0.5)
    return found


def _lines(
    stopped: Sequence[Row], full: Sequence[Row], path: Callable[[Row], str], colour: Callable[[Row], str]
) -> list[str]:
    """All lines, the better above the worse; those of one colour are one element, as there may be thousands of them."""
    many = len(stopped) + len(full)
    pen = f'class="line" stroke-width="{min(1.4, max(0.35, 40 / max(many, 1))):.2f}"'
    found = [_path(pen, _GREY, [path(row) for row in reversed(stopped)])]
    strokes: list[tuple[str, list[str]]] = []
    for row in reversed(full):
        stroke = colour(row)
        if not strokes or strokes[-1][0] != stroke:
            strokes.append((stroke, []))
        strokes[-1][1].append(path(row))
    opacity = 0.9 if many < 100 else 0.6
    return found + [_path(f'{pen} stroke-opacity="{opacity}"', stroke, paths) for stroke, paths in strokes]


def _path(pen: str, stroke: str, paths: Sequence[str]) -> str:
    shape = "".join(paths)
    return f'<path {pen} stroke="{stroke}" d="{shape}"/>' if shape else ""


def _thick(space: Space, best: Sequence[Row], path: Callable[[Row], str], colour: Callable[[Row], str]) -> list[str]:
    """The best, each with a white rim and with what it is."""
    found = []
    for row in reversed(best):
        assert row.value is not None
        settings = ", ".join(f"{space.short[name]}={levels.said(value)}" for name, value in row.cell.values.items())
        told = escape(printable(f"trial {row.trial}: {row.value:.6g}; {settings}"))
        shape = path(row)
        found.append(
            f'<g class="best"><title>{told}</title>'
            f'<path class="line" stroke="#fff" stroke-width="4.4" stroke-opacity="0.7" d="{shape}"/>'
            f'<path class="line" stroke="{colour(row)}" stroke-width="2.4" d="{shape}"/></g>'
        )
    return found


def _goal(goal: Axis, x: float, bottom: float, metric: str, mode: Mode, *, clipped: bool) -> list[str]:
    """The objective's axis, which is the legend of colours as well."""
    steps = scale.STEPS
    high = (bottom - _TOP) / steps
    found = [
        f'<rect x="{x + 4}" y="{_TOP + at * high:.2f}" width="14" height="{high + 0.3:.2f}" '
        f'fill="{scale.colour((at + 0.5) / steps)}"/>'
        for at in range(steps)
    ]
    found.append(f'<path class="axis" d="M{x},{_TOP} V{bottom}"/>')
    found.append(_text(x, _TOP - 14, _cut(metric), "middle", "name"))
    found += [_text(x + 24, goal.at(tick) + 4, f"{tick:.6g}", "start", "tick") for tick in scale.round_ticks(goal)]
    words = "lower is better" if mode == "min" else "higher is better"
    found.append(_text(x + 24, bottom + 18, words, "start"))
    if clipped:
        found.append(_text(x, bottom + 32, "the lowest point stands for all that are worse", "end"))
    return found


def _note(rows: Sequence[Row], order: Sequence[Row], full: Sequence[Row]) -> str:
    words = [f"thick: the best {min(BEST, len(full))}"] if full else ["no trial has a value"]
    if len(order) > len(full):
        words.append(f"grey: {len(order) - len(full)} trials of fewer epochs")
    counts = {s: sum(row.state == s and row.value is None for row in rows) for s in ("diverged", "failed", "running")}
    missing = ", ".join(f"{count} {state}" for state, count in counts.items() if count)
    words += [f"not shown: {missing}"] if missing else []
    return "; ".join(words)


def _from(better: float) -> Callable[[float], float]:
    return lambda value: abs(value - better)


def _cut(words: str) -> str:
    return words if len(words) <= _LETTERS else f"{words[: _LETTERS - 1]}…"


def _text(x: float, y: float, words: str, anchor: str, kind: str = "") -> str:
    style = f' class="{kind}"' if kind else ""
    return f'<text{style} x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(printable(words))}</text>'
