"""The tree of all choices: a level for each parameter, a leaf for each cell; counted without being walked.

How many cells lie below a place depends only on those choices above it that a later condition or constraint looks back at:
each such combination is counted once.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from memdist.errors import ConfigError
from memdist.search.constraint import Constraint
from memdist.search.parameter import ABSENT, Parameter, same

MOST = 1_000_000
"""Combinations that are told apart while counting, at most."""

Chosen = tuple[int, ...]
"""For each parameter, from the first, the number of its option; -1 where it does not exist."""


class Tree:
    """All choices; `ends`: a span has its two ends for options, else the one that is drawn later.

    `only` gives parameters an option that they have to take.
    """

    def __init__(
        self,
        parameters: Sequence[Parameter],
        constraints: Sequence[Constraint],
        *,
        ends: bool = False,
        only: Mapping[int, int] | None = None,
    ) -> None:
        self._parameters = parameters
        self._ends = ends
        self._only = only or {}
        self.owners: dict[str, tuple[int, ...]] = {}
        """Parameters that may set a key, or are called so."""
        for at, parameter in enumerate(parameters):
            for key in dict.fromkeys((parameter.name, *parameter.owned)):
                self.owners[key] = (*self.owners.get(key, ()), at)
        self._due: list[list[Constraint]] = [[] for _ in parameters]
        reach: dict[int, int] = {}  # the last level that looks back at a parameter
        for at, parameter in enumerate(parameters):
            for key in parameter.when:
                reach |= {i: max(at, reach.get(i, 0)) for i in self.owners.get(key, ())}
        for constraint in constraints:
            involved = [i for key in constraint.keys for i in self.owners.get(key, ())]
            if not involved or (not ends and any(parameters[i].span for i in involved)):
                continue  # what is drawn is judged when it has been drawn
            self._due[max(involved)].append(constraint)
            reach |= {i: max(*involved, reach.get(i, 0)) for i in involved}
        self._back = [[i for i in range(at) if reach.get(i, -1) >= at] for at in range(len(parameters))]
        self._counts: dict[tuple[int, Chosen], int] = {}

    def branches(self, chosen: Chosen) -> list[int]:
        """Options of the next parameter."""
        at = len(chosen)
        parameter = self._parameters[at]
        if all(self._is_one_of(chosen, key, values) for key, values in parameter.when.items()):
            options = [0] if parameter.span and not self._ends else list(range(len(parameter.options)))
        else:
            options = [-1]
        if at in self._only:
            options = [option for option in options if option == self._only[at]]
        for constraint in self._due[at]:
            options = [o for o in options if constraint.holds(lambda key, o=o: self._look((*chosen, o), key))]  # type: ignore[misc]
        return options

    def below(self, chosen: Chosen = ()) -> int:
        """How many cells begin with these choices."""
        at = len(chosen)
        if at == len(self._parameters):
            return 1
        seen = (at, tuple(chosen[i] for i in self._back[at]))
        if seen not in self._counts:
            found = sum(self.below((*chosen, option)) for option in self.branches(chosen))
            if len(self._counts) >= MOST:
                raise ConfigError(
                    "the conditions and constraints of this space tie too many parameters together to count its cells: "
                    "write parameters that belong together below one another, or as one"
                )
            self._counts[seen] = found
        return self._counts[seen]

    def at(self, index: int) -> Chosen:
        """The cell of an index, 0 <= index < below(); the last parameter changes fastest."""
        chosen: Chosen = ()
        while len(chosen) < len(self._parameters):
            for option in self.branches(chosen):
                many = self.below((*chosen, option))
                if index < many:
                    chosen = (*chosen, option)
                    break
                index -= many
            else:
                raise IndexError(index)
        return chosen

    def index(self, chosen: Chosen) -> int:
        """The index of a cell."""
        before = 0
        for at, taken in enumerate(chosen):
            for option in self.branches(chosen[:at]):
                if option == taken:
                    break
                before += self.below((*chosen[:at], option))
            else:
                raise IndexError(taken)
        return before

    def along(self, wanted: Sequence[int]) -> Chosen | None:
        """The cell in which each parameter that exists has the wanted option; None where constraints refuse it."""
        chosen: Chosen = ()
        for option in wanted:
            found = self.branches(chosen)
            if found != [-1] and option not in found:
                return None
            chosen = (*chosen, option if found != [-1] else -1)
        return chosen

    def first(self, liked: Collection[tuple[int, int]] = ()) -> Chosen | None:
        """A cell that takes options that are liked (level, option) wherever one can; None where there is no cell."""
        chosen: Chosen = ()
        while len(chosen) < len(self._parameters):
            found = sorted(self.branches(chosen), key=lambda option: (len(chosen), option) not in liked)
            step = next((option for option in found if self.below((*chosen, option))), None)
            if step is None:
                return None
            chosen = (*chosen, step)
        return chosen

    def _is_one_of(self, chosen: Chosen, key: str, values: Collection[Any]) -> bool:
        found = self._look(chosen, key)
        return any(same(found, value) for value in values)

    def _look(self, chosen: Chosen, key: str) -> Any:
        for i in self.owners.get(key, ()):
            if i < len(chosen) and chosen[i] >= 0:
                found = self._parameters[i].find(self._parameters[i].options[chosen[i]], key)
                if found is not ABSENT:
                    return found
        return ABSENT
