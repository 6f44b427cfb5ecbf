"""What has become of the trials of a search, one row each: all that is shown at its end is made of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

from memdist.search.cells import Cell
from memdist.search.objective import Mode


class Row(NamedTuple):
    """A trial as far as it has come."""

    trial: int
    """Its number, in the order in which trials were begun."""
    cell: Cell
    epochs: int
    """That it has reached; of one that has stopped early for good those that were asked of it, as its value stands for them."""
    state: Literal["ok", "diverged", "failed", "running"]
    value: float | None
    """The objective at `epochs`."""
    folder: str
    """Its run folder, relative to the search's."""
    why: str = ""
    """Of one that failed or diverged."""


LARGEST = 1e100
"""A value beyond it, either way, is that of a trial that diverged: sums of squares of such values are no numbers."""


def sound(rows: Sequence[Row]) -> list[Row]:
    """Rows in which a value is small enough to reckon with; others have diverged."""
    return [row if row.value is None or abs(row.value) <= LARGEST else _lost(row) for row in rows]


def ranked(rows: Sequence[Row], mode: Mode) -> list[Row]:
    """Those with a value: the furthest epochs first, then the best values, then the first trials; the others behind them."""
    return sorted(rows, key=lambda row: (row.value is None, *_place(row, mode), row.trial))


def by_epochs(rows: Sequence[Row]) -> dict[int, list[Row]]:
    """Rows with a value by the epochs they have reached, the most epochs first: others are no fair comparison."""
    found: dict[int, list[Row]] = {}
    for row in sorted(rows, key=lambda row: (-row.epochs, row.trial)):
        if row.value is not None:
            found.setdefault(row.epochs, []).append(row)
    return found


def _place(row: Row, mode: Mode) -> tuple[int, float]:
    if row.value is None:
        return 0, 0.0
    return -row.epochs, row.value if mode == "min" else -row.value


def _lost(row: Row) -> Row:
    return row._replace(state="diverged", value=None, why=f"its value, {row.value:g}, is beyond {LARGEST:g}")
