"""Coordinate descent, the dissertation's search (Khan 2023).

One parameter at a time takes all its values, the others standing at the best that is known, and keeps the best of them.
Over the dissertation's GAN one round is 37 cells (42 trainings, if the defaults were trained anew for each parameter).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from memdist.errors import SearchError
from memdist.search.candidates import InOrder
from memdist.search.cells import Space
from memdist.search.methods.method import Ask, Method, Trial
from memdist.search.objective import Mode
from memdist.search.tree import Chosen


class Step(NamedTuple):
    """One parameter, varied."""

    parameter: str
    cells: tuple[int, ...]
    """Cells that were compared, in the order of the parameter's values."""
    kept: int
    """The best of them."""


class Path(NamedTuple):
    """Where a descent has come to."""

    steps: tuple[Step, ...]
    """What has been decided."""
    needed: tuple[int, ...]
    """Cells whose values the next decision needs; none at the end."""
    at: int
    """The cell at which all parameters stand at the best that is known."""


def descend(
    space: Space, score: Callable[[int], float | None], rounds: int = 1, order: Sequence[str] | None = None
) -> Path:
    """Follow a descent as far as scores of cells are known (less is better, infinity is failed, None is not known yet).

    `order`: names of parameters, else the space's. A round that changes nothing is the last. Where nothing is better than the
    value that a parameter has, it keeps it. Raises SearchError.
    """
    wanted = list(space.defaults)
    now = space.tree.along(wanted)
    if now is None:
        raise SearchError(f"the defaults of {space.source} break its constraints: give others")
    steps: list[Step] = []
    levels = _levels(space, order)
    for _ in range(rounds):
        before = now
        for level in levels:
            if now[level] == -1:  # it does not exist beside what has been kept
                continue
            tried = _varied(space, wanted, level)
            needed = tuple(cell for _, cell in tried if score(cell) is None)
            if needed:
                return Path(tuple(steps), needed, space.tree.index(now))
            kept, cell = min(tried, key=lambda one: (_known(score, one[1]), one[0] != wanted[level], one[0]))
            wanted[level] = kept
            steps.append(Step(space.parameters[level].name, tuple(c for _, c in tried), cell))
            now = space.tree.at(cell)
        if now == before:
            break
    return Path(tuple(steps), (), space.tree.index(now))


def _levels(space: Space, order: Sequence[str] | None) -> list[int]:
    names = [parameter.name for parameter in space.parameters]
    for name in order or ():
        if name not in names:
            raise SearchError(f"{space.source} has no parameter {name!r}; it has {', '.join(names)}")
    return list(range(len(names))) if order is None else [names.index(name) for name in order]


def _varied(space: Space, wanted: Sequence[int], level: int) -> list[tuple[int, int]]:
    """Options of a parameter and the cells that they make; those that constraints refuse are left out."""
    found: list[tuple[int, int]] = []
    for option in range(len(space.parameters[level].options)):
        chosen: Chosen | None = space.tree.along([*wanted[:level], option, *wanted[level + 1 :]])
        if chosen is not None:
            found.append((option, space.tree.index(chosen)))
    return found


def _known(score: Callable[[int], float | None], cell: int) -> float:
    found = score(cell)
    assert found is not None, cell
    return found


class Descent(Method):
    """All values of one parameter at once, then the next parameter's; a cell that was trained already is not again."""

    name = "descent"

    def __init__(
        self, space: Space, epochs: int, mode: Mode = "min", rounds: int = 1, order: Sequence[str] | None = None
    ) -> None:
        super().__init__(InOrder(space), epochs, mode)
        if rounds < 1:
            raise SearchError(f"search.rounds = {rounds} cannot be: give at least 1")
        self.space, self.rounds, self.order = space, rounds, list(order) if order is not None else None
        self.path()

    def ask(self) -> Ask:
        """A cell that the next decision needs."""
        begun = {trial.cell for trial in self.trials}
        cell = next((cell for cell in self.path().needed if cell not in begun), None)
        if cell is None:
            return self._rest()
        self.trials.append(Trial(len(self.trials), cell, self.epochs))
        return self.trials[-1].ask

    def path(self) -> Path:
        """What has been decided, and what is needed next."""
        told = {trial.cell: self.score(trial, self.epochs) for trial in self.trials if not trial.running}
        return descend(self.space, told.get, self.rounds, self.order)

    def best(self) -> Trial | None:
        """The trial at which the descent stands; the best so far before the first decision."""
        at = self.path().at
        here = (trial for trial in self.trials if trial.cell == at and self.score(trial, self.epochs) < math.inf)
        return next(here, None) or super().best()

    def settings(self) -> dict[str, Any]:
        """Those of every method, the rounds, the order and the defaults."""
        mine = {"rounds": self.rounds, "parameters": self.order, "defaults": list(self.space.defaults)}
        return super().settings() | mine

    def _nothing_left(self) -> bool:
        return not self.path().needed
