"""The comparison as one HTML file that needs nothing else: the table, the curves, the pictures, the settings.

Pictures are embedded, curves are inline SVG, all text is escaped, and a content policy forbids what is not in the file.
"""

from __future__ import annotations

import base64
import csv
import math
import re
import shlex
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

from memdist import rundir, saliency
from memdist.compare import LARGEST, Comparison, Group, Run, looks
from memdist.compare.table import APART, DASH, columns, footnotes, rows, title
from memdist.errors import CheckpointError, ConfigError
from memdist.metrics import METRICS

PICTURES = 6
"""Best and worst pictures shown of each run."""

SMALLEST = 1e-9
"""What is less, of an epoch or an error, is drawn as nothing."""

_SAMPLE = re.compile(r"(best|worst)-(\d+)-(.+)\.png")
# Okabe and Ito's colours, which colour-blind readers tell apart, without their black and yellow.
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
_DASHES = ("none", "7 4", "2 3", "10 3 2 3")
_STYLE = """
:root { color-scheme: light dark; --ink: #1d2126; --dim: #5c6670; --paper: #fbfbfa; --card: #fff; --line: #dfe2e5; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e4e6e8; --dim: #9aa3ac; --paper: #16181b; --card: #1e2125; --line: #353a40; }
}
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 2rem 1.5rem 4rem; max-width: 84rem; background: var(--paper); color: var(--ink);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; }
h1 { font-size: 1.6rem; margin: 0 0 .2rem; } h2 { font-size: 1.2rem; margin: 2.8rem 0 .6rem; }
h3 { font-size: 1rem; margin: 1.6rem 0 .4rem; } h4 { font-size: .85rem; font-weight: 600; margin: .8rem 0 .4rem; }
p { margin: .3rem 0; max-width: 60rem; } .dim, .notes { color: var(--dim); } .notes { font-size: .87rem; }
.wide { overflow-x: auto; border: 1px solid var(--line); border-radius: 8px; background: var(--card); margin: .6rem 0; }
table { border-collapse: collapse; width: 100%; font-size: .87rem; font-variant-numeric: tabular-nums; }
th, td { padding: .45rem .7rem; text-align: right; vertical-align: top; border-bottom: 1px solid var(--line); }
tr:last-child > * { border-bottom: 0; } thead th { color: var(--dim); font-weight: 600; vertical-align: bottom; }
tbody th, .text { text-align: left; } tbody th { font-weight: 600; min-width: 9rem; overflow-wrap: anywhere; }
small { display: block; font-weight: 400; color: var(--dim); }
.text { min-width: 9rem; overflow-wrap: anywhere; } .figures .text { min-width: 11rem; }
.trivial > * { color: var(--dim); font-weight: 400; } .first > * { border-top: 2px solid var(--line); }
.figures td { white-space: nowrap; } .figures td.text { white-space: normal; }
figure { margin: 0; }
.plot { border: 1px solid var(--line); border-radius: 8px; background: var(--card); padding: .8rem; }
svg { display: block; width: 100%; height: auto; font: 12px system-ui, "DejaVu Sans", sans-serif; }
svg text { fill: var(--dim); } .grid { stroke: var(--line); } .curve { fill: none; stroke-width: 2; }
.legend { display: flex; flex-wrap: wrap; gap: .2rem 1.4rem; font-size: .87rem; margin-top: .5rem; }
.legend svg { display: inline-block; width: 28px; height: 10px; margin-right: .4rem; vertical-align: middle; }
.strips { display: grid; grid-template-columns: repeat(auto-fill, minmax(22rem, 1fr)); gap: .9rem; }
.strips img { display: block; width: 100%; border-radius: 4px; border: 1px solid var(--line); }
figcaption { font-size: .8rem; color: var(--dim); overflow-wrap: anywhere; } code { overflow-wrap: anywhere; }
"""


def write(comparison: Comparison, out: Path) -> Path:
    """Write the comparison to the HTML file `out`, whole or not at all, and return its path."""
    if not out.name or out.is_dir():
        raise ConfigError(f"--html {out} is no name of a file: name one, such as comparison.html")
    rundir.make_folder(out.parent)
    # Half of a character, which a name of a file may hold, has no place in UTF-8.
    rundir.write_bytes(out, _page(comparison).encode("utf-8", "backslashreplace"))
    return out


def _page(comparison: Comparison) -> str:
    names = ", ".join(run.label for run in comparison.runs)
    several = len(comparison.groups) > 1
    parts = [_group(group, several) for group in comparison.groups]
    if several:
        parts.insert(0, f"<p><strong>{escape(APART)}</strong></p>")
    parts += ["<h2>Best and worst pictures</h2>", *(_pictures(run) for run in comparison.runs)]
    parts += [_settings(comparison), _definitions(any(looks.has_fixations(group) for group in comparison.groups))]
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>memdist: {escape(names)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n"
        f'<h1>Runs compared</h1>\n<p class="dim">{escape(names)}</p>\n' + "\n".join(parts) + "\n</body>\n</html>\n"
    )


def _group(group: Group, several: bool) -> str:
    heading = "Scores: " + ", ".join(run.label for run in group.runs) if several else "Scores"
    shown = columns(page=True, group=group)
    head = "".join(f"<th{_text(c.title == 'weights')}>{escape(c.title)}</th>" for c in shown)
    lines = rows(group, page=True)
    body = []
    for line, before in zip(lines, [None, *lines], strict=False):
        first = " first" if line.trivial and before and not before.trivial else ""
        cells = "".join(
            f"<td{_text(c.title == 'weights')}>{_cell(cell)}</td>" for c, cell in zip(shown, line.cells, strict=True)
        )
        model = "" if line.trivial else f"<small>{escape(line.model)}</small>"
        name = f'<th scope="row">{escape(line.label)}{model}</th>'
        body.append(f'<tr class="{"trivial" if line.trivial else "run"}{first}">{name}{cells}</tr>')
    notes = "".join(f"<p>{_code(note)}</p>" for note in footnotes(group))
    return (
        f'<h2>{escape(heading)}</h2>\n<p class="dim">{escape(title(group))}</p>\n'
        f'<div class="wide"><table class="figures">'
        f"<thead><tr><th></th>{head}</tr></thead>\n<tbody>{''.join(body)}</tbody></table></div>\n"
        f'<div class="notes">{notes}</div>\n<h3>Validation L1 in training</h3>\n{_curves(group)}'
    )


def _cell(cell: str) -> str:
    """Escaped, with the count of undefined values on a line of its own."""
    return re.sub(r" (\(\d+ undefined\))$", r" <small>\1</small>", escape(cell))


def _code(note: str) -> str:
    """Escaped, with what stands between backquotes as code."""
    return re.sub("`([^`]+)`", r"<code>\1</code>", escape(note))


def _text(is_text: bool) -> str:
    return ' class="text"' if is_text else ""


def _history(run: Run) -> list[tuple[float, float]]:
    """(epoch, val/l1) of every line of metrics.jsonl that has both."""
    path = run.path / rundir.METRICS
    points: list[tuple[float, float]] = []
    for line in rundir.read_lines(path):
        point: list[Any] = [line.get(key) for key in ("epoch", "val/l1")]
        if None in point:
            continue
        for value in point:
            if type(value) not in (int, float) or not 0 <= value <= LARGEST:
                said = repr(value) if len(repr(value)) <= 40 else "a value"
                raise CheckpointError(
                    f"{path} has {said} where an epoch or a val/l1 should stand; restore the file or delete it"
                )
        points.append((point[0], point[1]))
    return points


def _ticks(low: float, high: float, logarithmic: bool) -> list[float]:
    """Round values that cover low to high: 1, 2, 5 of each decade, or about five equal steps."""
    if logarithmic:
        decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        return [tick for d in decades for m in (1, 2, 5) if low <= (tick := m * 10.0**d) <= high]
    step = 10.0 ** math.floor(math.log10((high - low) / 4))
    step *= next(m for m in (1, 2, 5, 10) if (high - low) / (m * step) <= 6)
    return [k * step for k in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]


def _curves(group: Group) -> str:
    """val/l1 over epochs of all the group's runs; logarithmic where the values span more than a factor of three."""
    histories = [(run, points) for run in group.runs if (points := _history(run))]
    if not histories:
        return '<p class="dim">No run of this table has validated yet.</p>'
    best = group.best_trivial("val")
    ys = [y for _, points in histories for _, y in points] + ([best[1]] if best else [])
    x_max = max(x for _, points in histories for x, _ in points)
    x_max = x_max if x_max > SMALLEST else 1.0
    logarithmic = min(ys) > SMALLEST and max(ys) > 3 * min(ys)
    pad = max(0.01, SMALLEST * max(map(abs, ys)))  # more than rounding, or the axis would have no length
    low, high = (min(ys) / 1.1, max(ys) * 1.1) if logarithmic else (min(ys) - pad, max(ys) + pad)
    width, height, left, right, top, bottom = 900, 320, 62, 12, 14, 42

    def at(x: float, y: float) -> tuple[float, float]:
        part = math.log(y / low) / math.log(high / low) if logarithmic else (y - low) / (high - low)
        return left + x / x_max * (width - left - right), height - bottom - part * (height - top - bottom)

    marks = []
    for tick in _ticks(low, high, logarithmic):
        y = at(0, tick)[1]
        marks.append(f'<line class="grid" x1="{left}" x2="{width - right}" y1="{y:.1f}" y2="{y:.1f}"/>')
        marks.append(f'<text x="{left - 8}" y="{y + 4:.1f}" text-anchor="end">{tick:.6g}</text>')
    for tick in _ticks(0, x_max, False):
        x = at(tick, low)[0]
        marks.append(f'<text x="{x:.1f}" y="{height - bottom + 18}" text-anchor="middle">{tick:.6g}</text>')
    marks.append(f'<text x="{(left + width) / 2}" y="{height - 6}" text-anchor="middle">epoch</text>')
    scale = "val/l1, logarithmic" if logarithmic else "val/l1"
    marks.append(f'<text transform="translate(12 {height / 2 - 10}) rotate(-90)" text-anchor="middle">{scale}</text>')
    legend = []
    if best:
        y = at(0, best[1])[1]
        pen = 'class="curve" stroke="currentColor" stroke-dasharray="1 5" stroke-linecap="round"'
        marks.append(f'<path {pen} d="M{left},{y:.1f} H{width - right}"/>')
        legend.append(_entry(pen, f"best trivial predictor on val, as scored ({best[1]:.4f})"))
    for i, (run, points) in enumerate(histories):
        colour, dash = _COLOURS[i % len(_COLOURS)], _DASHES[i // len(_COLOURS) % len(_DASHES)]
        pen = f'class="curve" stroke="{colour}" stroke-dasharray="{dash}"'
        places = [at(x, y) for x, y in points]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
        marks.append(f"<polyline {pen} points='{path}'><title>{escape(run.label)}</title></polyline>")
        if len(places) <= 40:
            marks += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colour}"/>' for x, y in places]
        legend.append(_entry(pen, f"{run.label} (lowest {min(y for _, y in points):.4f})"))
    return (
        f'<figure class="plot"><svg viewBox="0 0 {width} {height}" role="img" aria-label="val/l1 over epochs">'
        f'{"".join(marks)}</svg><div class="legend">{"".join(legend)}</div></figure>'
    )


def _entry(pen: str, text: str) -> str:
    return f'<span><svg viewBox="0 0 28 10"><path {pen} d="M1,5 H27"/></svg>{escape(text)}</span>'


def _pictures(run: Run) -> str:
    name = f"<h3>{escape(run.label)} <span class='dim'>{escape(run.model)}</span></h3>"
    for split in ("test", "val"):
        found = [
            (m, path)
            for path in sorted((run.path / rundir.SAMPLES / split).glob("*.png"))
            # The page may be handed on: nothing gets into it that a link leads to.
            if (m := _SAMPLE.fullmatch(path.name)) and path.is_file() and not path.is_symlink()
        ]
        if found:
            break
    else:
        command = f"`memdist evaluate {shlex.quote(str(run.path))} --split all`"
        return f'{name}<p class="dim">{_code(f"{DASH} no pictures yet; {command} draws them.")}</p>'
    l1 = _per_picture(run, split)
    stems = {rundir.file_name(stem): stem for stem in l1}
    parts = [name]
    for kind in ("best", "worst"):
        strips = sorted(((int(m[2]), m[3], path) for m, path in found if m[1] == kind), key=lambda strip: strip[0])
        more = f", {PICTURES} of {len(strips)}" if len(strips) > PICTURES else ""
        parts.append(f"<h4>{kind.capitalize()} by L1 on {split}{more}: image, true map, prediction</h4>")
        figures = "".join(
            _strip(p, stems.get(name, name), l1.get(stems.get(name, name))) for _, name, p in strips[:PICTURES]
        )
        parts.append(f'<div class="strips">{figures}</div>')
    return "\n".join(parts)


def _strip(path: Path, stem: str, l1: str | None) -> str:
    data = base64.b64encode(path.read_bytes()).decode()
    caption = escape(stem) + (f" &middot; L1 {l1}" if l1 else "")
    alt = escape(f"{stem}: image, true map, prediction")
    return f'<figure><img alt="{alt}" src="data:image/png;base64,{data}"><figcaption>{caption}</figcaption></figure>'


def _per_picture(run: Run, split: str) -> dict[str, str]:
    """L1 of the model's prediction by stem, from scores.csv."""
    path = run.path / rundir.SCORES_CSV
    if not path.is_file():
        return {}
    try:
        with open(path, newline="", encoding="utf-8") as file:
            lines = [line for line in csv.DictReader(file) if (line["split"], line["predictor"]) == (split, "model")]
        if any(line["stem"] is None for line in lines):
            raise ValueError("a line has no stem")
        return {line["stem"]: f"{float(line['l1']):.4f}" if line["l1"] else "" for line in lines}
    except (KeyError, TypeError, ValueError, csv.Error) as error:
        raise CheckpointError(f"{path} is no table of scores ({error}): score the run anew") from error


def _settings(comparison: Comparison) -> str:
    runs = comparison.runs
    keys = dict.fromkeys(key for run in runs for key in run.settings)
    differing = [key for key in keys if len({run.settings.get(key) for run in runs}) > 1]
    heading = "<h2>Settings that differ</h2>"
    if not differing:
        return f'{heading}<p class="dim">{"None." if len(runs) > 1 else "There is one run only."}</p>'
    head = ["", *(run.label for run in runs)]
    return heading + _listing(head, [[key, *(run.settings.get(key, DASH) for run in runs)] for key in differing])


def _definitions(fixations: bool) -> str:
    head = ["", "formula", "channels", "range", "better", ""]
    lines = [
        [
            m.name.upper(),
            m.formula,
            m.channels,
            f"{m.range[0]:g} to {m.range[1]:.4g}",
            m.better,
            "primary" if m.primary else "secondary, in scores.csv",
        ]
        for m in (*METRICS.values(), *(saliency.METRICS.values() if fixations else ()))
    ]
    return (
        "<h2>Metrics</h2><p class='dim'>Each is one value a picture; the tables show means over pictures.</p>"
        + _listing(head, lines)
    )


def _listing(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    top = "".join(f'<th class="text">{escape(cell)}</th>' for cell in head)
    body = "".join(
        f'<tr><th scope="row">{escape(first)}</th>'
        + "".join(f'<td class="text">{escape(cell)}</td>' for cell in rest)
        + "</tr>"
        for first, *rest in lines
    )
    return f'<div class="wide"><table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>'
