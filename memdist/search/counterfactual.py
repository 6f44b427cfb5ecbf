"""What coordinate descent would have found, had it been asked instead of a grid whose cells are all trained."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from memdist.errors import SearchError
from memdist.search.cells import Space
from memdist.search.methods.descent import descend
from memdist.search.objective import Mode
from memdist.search.rows import Row


class Descended(NamedTuple):
    """Where a descent over known cells ends, beside the best of all; `why`, and no cell, where it could not be told."""

    cell: int | None = None
    """Its number."""
    value: float | None = None
    rank: int | None = None
    """1 + how many cells are better."""
    needed: int = 0
    """Cells that the descent compared, each counted once."""
    cells: int = 0
    """Of which it is known what became of them by the last epoch."""
    best: float | None = None
    """The value of the best of them."""
    why: str = ""


def descent(space: Space, rows: Sequence[Row], mode: Mode, epochs: int, rounds: int = 1) -> Descended:
    """Follow `descend` from the space's defaults over the values at the last epoch; cells that failed or diverged are worst.

    `rounds`: how often it goes through all parameters; the dissertation's went once. The space has listed values only.
    """
    scores: dict[int, float] = {}
    for row in rows:
        if row.value is not None and row.epochs >= epochs:
            scores[row.cell.number] = row.value if mode == "min" else -row.value
        elif row.state in ("diverged", "failed"):
            scores[row.cell.number] = math.inf
    finite = [score for score in scores.values() if score < math.inf]
    sign = 1 if mode == "min" else -1
    about = Descended(cells=len(scores), best=sign * min(finite) if finite else None)
    try:
        path = descend(space, scores.get, rounds)
    except SearchError as error:
        return about._replace(why=str(error))
    compared = {cell for step in path.steps for cell in step.cells}
    about = about._replace(needed=len(compared | set(path.needed)))
    if path.needed:
        missing = f"{len(path.needed)} cells" if len(path.needed) > 1 else f"cell {path.needed[0]}"
        return about._replace(why=f"it would have needed {missing} that no trial has brought to epoch {epochs}")
    score = scores.get(path.at, math.inf)
    if score == math.inf:
        return about._replace(why="all cells that it would have compared last failed or diverged")
    rank = 1 + sum(other < score for other in finite)
    return about._replace(cell=path.at, value=sign * score, rank=rank)
