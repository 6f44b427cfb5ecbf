"""What a search shows at its end: the best cell, how sure one can be of it, and files with all the rest."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

from memdist import rundir
from memdist.errors import printable
from memdist.search import cells, counterfactual, effects, importance, leaderboard, levels, parallel
from memdist.search.cells import Space
from memdist.search.objective import Mode
from memdist.search.rows import Row, ranked, sound

LEADERBOARD = "leaderboard.csv"
EFFECTS = "effects.csv"
IMPORTANCE = "importance.csv"
PARALLEL = "parallel.svg"
"""Files in the folder of a search."""

_FIRST = 5
_LONGEST = 110
_LITTLE = 0.2
"""R^2 below which importances are said to mean little."""
_MANY = 20
"""Rounds after which a descent is not followed further."""


def write(folder: Path, space: Space, rows: Sequence[Row], *, mode: Mode, metric: str, epochs: int) -> str:
    """Write the files of what came of a search; gives what a person is shown.

    `metric`: name of the objective, which is taken on val; `epochs`: at which trials end. Raises CheckpointError where the
    folder cannot be written.
    """
    rows = sound(rows)
    mattered = importance.importances(space, rows)
    rundir.write_text(folder / LEADERBOARD, leaderboard.text(space, rows, mode))
    rundir.write_text(folder / EFFECTS, effects.text(effects.effects(space, rows, mode)))
    rundir.write_text(folder / IMPORTANCE, importance.text(mattered))
    rundir.write_text(folder / PARALLEL, parallel.draw(space, rows, mode, metric))
    order = [row for row in ranked(rows, mode) if row.value is not None]
    paragraphs = [
        _best(folder, order, rows, metric, epochs),
        _counts(rows, epochs),
        _table(space, order[:_FIRST], metric) if len(order) > 1 else "",
        _mattered(space, mattered, metric, rows),
        _descent(space, rows, mode, metric, epochs),
        f"In {printable(folder)}: {LEADERBOARD}, {EFFECTS}, {IMPORTANCE}, {PARALLEL}.",
    ]
    return "\n\n".join(filter(None, paragraphs))


def _best(folder: Path, order: Sequence[Row], rows: Sequence[Row], metric: str, epochs: int) -> str:
    """The chosen cell with all its settings."""
    if not order:
        why = next((f", the first because {printable(row.why)}" for row in rows if row.why), "")
        return f"No trial of {len(rows)} has a {metric}{why}."
    row = order[0]
    early = "" if row.epochs >= epochs else f" (of {epochs}: no trial has come further)"
    assert row.value is not None
    so_far = " so far" if any(one.state == "running" for one in rows) else ""
    lines = [
        f"Best{so_far}: trial {row.trial} with {metric} {row.value:.6g} after {row.epochs} epochs{early}, chosen on val."
    ]
    lines += [f"  {name} = {levels.said(value)}" for name, value in row.cell.values.items()]
    run = shlex.quote(printable(folder / row.folder))
    lines.append(f"The value is the best of many on val, and so too good: `memdist evaluate {run}` scores it on test.")
    return "\n".join(lines)


def _counts(rows: Sequence[Row], epochs: int) -> str:
    """How many trials there are, and what became of them."""
    finished = sum(row.value is not None and row.epochs >= epochs for row in rows)
    earlier = sum(row.value is not None and row.epochs < epochs and row.state == "ok" for row in rows)
    words = [f"{finished} with {epochs} epochs"]
    words += [f"{earlier} stopped earlier"] if earlier else []
    states = [row.state for row in rows]
    words += [f"{count} {state}" for state in ("diverged", "failed", "running") if (count := states.count(state))]
    return f"{len(rows)} {'trial' if len(rows) == 1 else 'trials'}: {', '.join(words)}."


def _table(space: Space, first: Sequence[Row], metric: str) -> str:
    """The first few, with those settings in which they differ."""
    differ = [one for one in space.parameters if len({repr(row.cell.values.get(one.name)) for row in first}) > 1]
    lines = [["rank", "trial", "epochs", metric, "where they differ"]]
    for rank, row in enumerate(first, 1):
        there = [one for one in differ if one.name in row.cell.values]
        said = ", ".join(f"{space.short[one.name]}={levels.label(one, row)}" for one in there)
        said = said if len(said) <= _LONGEST else f"{said[: _LONGEST - 3]}..."
        lines.append([str(rank), str(row.trial), str(row.epochs), f"{row.value:.6g}", said])
    return _aligned(lines)


def _mattered(space: Space, found: importance.Importances, metric: str, rows: Sequence[Row]) -> str:
    """Importances, and whether they mean anything."""
    if found.r2 is None:
        return f"What mattered cannot be said: {found.why}."
    lines = [["parameter", "importance", "+-"]]
    lines += [[space.short[line.parameter], f"{line.drop:.3f}", f"{line.spread:.3f}"] for line in found.lines]
    judged = f"all {found.used} trials"
    if found.used < len(rows):
        judged = f"{found.used} of {len(rows)} trials, those that have come to epoch {found.epochs}"
    if any(row.value is not None and row.epochs > found.epochs for row in rows):
        judged += " and were stopped there, while better ones went on"
    doubt = "; so little that importances mean next to nothing" if found.r2 < _LITTLE else ""
    return (
        f"What mattered, by {judged}: a random forest predicts {metric} with an out-of-bag R^2 of {found.r2:.2f}{doubt}.\n"
        f"{_aligned(lines)}\nImportance is by how much R^2 falls when a parameter's values are dealt out anew."
    )


def _descent(space: Space, rows: Sequence[Row], mode: Mode, metric: str, epochs: int) -> str:
    """What coordinate descent would have found, where all cells are there to tell."""
    if space.drawn or len({row.cell.number for row in rows}) < 2 or len(rows) < cells.count(space):
        return ""
    once = counterfactual.descent(space, rows, mode, epochs)
    lines = [_descended(once, metric, "Coordinate descent, once through the parameters,")]
    if not once.why:
        often = counterfactual.descent(space, rows, mode, epochs, _MANY)
        if often.why or often.cell != once.cell:
            lines.append(_descended(often, metric, "Repeated until nothing changes it"))
    return "\n".join(lines)


def _descended(found: counterfactual.Descended, metric: str, who: str) -> str:
    if found.value is None:
        return f"{who} could not be followed: {found.why}."
    end = "the best of the grid" if found.rank == 1 else f"rank {found.rank}; the best of the grid has {found.best:.6g}"
    return f"{who} would have found {metric} {found.value:.6g} in {found.needed} of the {found.cells} cells: {end}."


def _aligned(lines: Sequence[Sequence[str]]) -> str:
    """Columns side by side; the first and last to the left, figures to the right."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    numbers = [all(_is_number(line[at]) for line in lines[1:]) for at in range(len(widths))]
    told = []
    for line in lines:
        parts = [
            cell.rjust(wide) if number else cell.ljust(wide)
            for cell, wide, number in zip(line, widths, numbers, strict=True)
        ]
        told.append(("  " + "  ".join(parts)).rstrip())
    return "\n".join(told)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
