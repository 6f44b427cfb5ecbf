"""What each value of a parameter did to the objective, whatever the others were: its marginal effect.

Trials are compared at equal epochs only. Where a method stops trials early, those that have reached most epochs are the
good ones, and those that have stayed behind the bad ones: each group is told by its own epochs.
"""

from __future__ import annotations

import bisect
import csv
import io
import statistics
from collections.abc import Sequence
from typing import NamedTuple

from memdist.search import levels
from memdist.search.cells import Space
from memdist.search.objective import Mode
from memdist.search.parameter import Parameter
from memdist.search.rows import Row, by_epochs

_FEW = 4
"""Drawn numbers of which each has a line of its own, at most."""


class Effect(NamedTuple):
    """What became of the trials with one value."""

    parameter: str
    value: str
    """As in the space; `low to high` of a quarter of what was drawn; `(none)` where the parameter does not exist."""
    trials: int
    """That were begun with it, however far they came."""
    diverged: int
    failed: int
    epochs: int
    """At which they are compared."""
    used: int
    """That have a value there: mean, median and best are of these."""
    mean: float | None
    median: float | None
    best: float | None


def effects(space: Space, rows: Sequence[Row], mode: Mode) -> list[Effect]:
    """A line for each value of each parameter, and for each number of epochs at which trials have stopped, most first."""
    groups = by_epochs(rows) or {max((row.epochs for row in rows), default=0): []}
    best_of = min if mode == "min" else max
    found = []
    for parameter in space.parameters:
        names, places = _levels(parameter, rows)
        place_of = {row.trial: place for row, place in zip(rows, places, strict=True)}
        states: list[list[str]] = [[] for _ in names]
        for row, place in zip(rows, places, strict=True):
            states[place].append(row.state)
        for epochs, group in groups.items():
            values: list[list[float]] = [[] for _ in names]
            for row in group:
                assert row.value is not None
                values[place_of[row.trial]].append(row.value)
            for name, state, ones in zip(names, states, values, strict=True):
                lost = state.count("diverged"), state.count("failed")
                about = (statistics.fmean(ones), statistics.median(ones), best_of(ones)) if ones else (None, None, None)
                found.append(Effect(parameter.name, name, len(state), *lost, epochs, len(ones), *about))
    return found


def text(found: Sequence[Effect]) -> str:
    """effects.csv; figures are in the units of the objective, and empty where no trial has a value."""
    lines = io.StringIO()
    writer = csv.writer(lines, lineterminator="\n")
    writer.writerow(Effect._fields)
    for one in found:
        figures = ("" if figure is None else f"{figure:.9g}" for figure in one[-3:])
        writer.writerow([*one[:-3], *figures])
    return lines.getvalue()


def _levels(parameter: Parameter, rows: Sequence[Row]) -> tuple[list[str], list[int]]:
    """Names of a parameter's values, and for each row which of them it has."""
    if parameter.span is None:
        names = [levels.said(option.value) for option in parameter.options]
        places = levels.listed(parameter, rows)
    else:
        numbers = levels.drawn(parameter, rows)
        names, cuts = _quarters(sorted(number for number in numbers if number is not None))
        places = [levels.NOWHERE if one is None else bisect.bisect_right(cuts, one) for one in numbers]
    if levels.NOWHERE not in places:
        return names, places
    return [*names, levels.NONE], [place if place >= 0 else len(names) for place in places]


def _quarters(numbers: Sequence[float]) -> tuple[list[str], list[float]]:
    """Names of quarters of sorted numbers, and at which number each but the first begins."""
    distinct = sorted(set(numbers))
    if len(distinct) <= _FEW:
        return [levels.said(number) for number in distinct], distinct[1:]
    # Equal numbers stay together: a quarter begins at the first of those that a quartile falls among.
    firsts = {numbers[len(numbers) * quarter // 4] for quarter in range(4)} | {distinct[0]}
    begins = sorted(firsts)
    ends = [distinct[bisect.bisect_left(distinct, begin) - 1] for begin in begins[1:]] + [distinct[-1]]
    pairs = zip(begins, ends, strict=True)
    names = [levels.said(low) if low == high else f"{levels.said(low)} to {levels.said(high)}" for low, high in pairs]
    return names, begins[1:]
