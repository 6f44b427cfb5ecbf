"""Cells spread over a space: what differs in speed is timed, a few cells of it, and what all cells take is reckoned from them.

Parameters multiply: a width that takes twice as long does so beside either normalisation. Options between two that were
timed lie on a line over the number of weights, both in logarithms. What does not change a network, its batch or its
precision (rates, optimisers, noise schedules) counts as equally fast.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from memdist.search import cells
from memdist.search.candidates import shuffled
from memdist.search.cells import Cell, Space
from memdist.search.measure import Look
from memdist.search.tree import Chosen, Tree

TIMED = 8
"""Cells that are timed, at most."""
_LOOKED = 16
"""Options of a parameter that are looked at, at most."""
_MEAN = 2000
"""Cells of whose times the mean is taken, at most: by chance, where there are more."""


@dataclass(frozen=True)
class Spread:
    """What cells of a space take."""

    space: Space
    base: float
    """Seconds of the cell where all parameters stand at their defaults."""
    factors: Mapping[tuple[int, int], float]
    """By parameter and option: how many times as long."""
    timed: tuple[tuple[str, float], ...]
    """Names and seconds of the cells that were timed."""
    largest: Cell
    """The cell with the largest checkpoint."""
    stored: int
    """Bytes of that."""
    _all: list[float] = field(default_factory=list, repr=False)

    def of(self, chosen: Chosen) -> float:
        """Seconds of a cell."""
        found = self.base
        for level, option in enumerate(chosen):
            if option < 0:
                continue
            if self.space.parameters[level].span:  # drawn between its two ends
                found *= sum(self.factors.get((level, end), 1.0) for end in (0, 1)) / 2
            else:
                found *= self.factors.get((level, option), 1.0)
        return found

    @property
    def mean(self) -> float:
        """Seconds of a cell, on average."""
        return sum(self._some()) / len(self._some())

    @property
    def longest(self) -> float:
        """Seconds of the slowest."""
        return max(self._some())

    def _some(self) -> list[float]:
        if not self._all:
            many = self.space.tree.below()
            places = range(many) if many <= _MEAN else [shuffled(place, many, 0) for place in range(_MEAN)]
            self._all.extend(self.of(self.space.tree.at(place)) for place in places)
        return self._all


def base(space: Space) -> Chosen:
    """The cell where all parameters stand at their defaults, or as near to them as constraints allow."""
    found = _near(space)
    assert found is not None, "a space that has been read has cells"
    return found


def _near(space: Space, only: Mapping[int, int] | None = None) -> Chosen | None:
    liked = set(enumerate(space.defaults))
    return Tree(space.parameters, space.constraints, ends=True, only=only).first(liked)


def made(space: Space, chosen: Chosen) -> Cell:
    """The cell of some choices."""
    return cells.made(space, 0, cells.options(space, chosen))


def spread(
    space: Space, look: Callable[[Cell], Look], time: Callable[[Cell], float] | None, most: int = TIMED
) -> Spread:
    """Look at what each option changes, and time what changes the speed, `most` cells at most; None: nothing is timed."""
    start = base(space)
    first = look(made(space, start))
    seen: dict[int, dict[int, tuple[Chosen, Look]]] = {}
    for level, parameter in enumerate(space.parameters):
        seen[level] = {}
        for option in _some(len(parameter.options)):
            chosen = start if option == start[level] else _near(space, {level: option})
            if chosen is not None:
                seen[level][option] = (chosen, first if chosen == start else look(made(space, chosen)))
    largest = _largest(space, seen, start)
    stored = max(look(made(space, largest)).stored, first.stored)
    if time is None:
        return Spread(space, 0.0, {}, (), made(space, largest), stored)
    seconds: dict[str, float] = {first.kind: time(made(space, start))}
    timed = [(made(space, start).name, seconds[first.kind])]
    for chosen, found in _order(seen):
        if found.kind not in seconds and len(seconds) < most:
            seconds[found.kind] = time(made(space, chosen))
            timed.append((made(space, chosen).name, seconds[found.kind]))
    factors: dict[tuple[int, int], float] = {}
    known = Spread(space, seconds[first.kind], factors, tuple(timed), made(space, largest), stored)
    for level, options in seen.items():
        found_here = {
            option: seconds[found.kind]
            / (known.base * math.prod(factors.get(above, 1.0) for above in _above(chosen, level)))
            for option, (chosen, found) in options.items()
            if found.kind in seconds
        }
        points = sorted({(options[o][1].weights, factor) for o, factor in found_here.items()})
        for option, (_, found) in options.items():
            factors[level, option] = found_here.get(option) or between(points, found.weights)
        for option in range(len(space.parameters[level].options)):
            near = min(options, key=lambda o: abs(o - option), default=None)
            if near is not None:
                factors.setdefault((level, option), factors[level, near])
    return known


def _above(chosen: Chosen, level: int) -> list[tuple[int, int]]:
    """Choices above a parameter, whose factors are known."""
    return list(enumerate(chosen))[:level]


def _some(count: int) -> list[int]:
    """Places among so many options, both ends among them."""
    if count <= _LOOKED:
        return list(range(count))
    return sorted({round(i * (count - 1) / (_LOOKED - 1)) for i in range(_LOOKED)})


def _order(seen: Mapping[int, Mapping[int, tuple[Chosen, Look]]]) -> list[tuple[Chosen, Look]]:
    """Of each parameter the option with most weights, then that with fewest, then all others in turn."""
    turns: list[list[tuple[Chosen, Look]]] = []
    for options in seen.values():
        by_weight = sorted(options.values(), key=lambda one: one[1].weights)
        turns.append([by_weight[i // 2] if i % 2 else by_weight[-1 - i // 2] for i in range(len(by_weight))])
    longest = max(map(len, turns), default=0)
    return [turn[i] for i in range(longest) for turn in turns if i < len(turn)]


def _largest(space: Space, seen: Mapping[int, Mapping[int, tuple[Chosen, Look]]], start: Chosen) -> Chosen:
    liked = {(level, max(options, key=lambda o: options[o][1].stored)) for level, options in seen.items() if options}
    return Tree(space.parameters, space.constraints, ends=True).first(liked) or start


def between(points: Sequence[tuple[int, float]], weights: int) -> float:
    """The factor of a network with so many weights: on the line between those that are known, as the nearest beyond them."""
    below = [point for point in points if point[0] <= weights]
    above = [point for point in points if point[0] >= weights]
    if not below or not above:
        return (above or below)[0 if above else -1][1] if points else 1.0
    (low, slow), (high, fast) = below[-1], above[0]
    if low == high or low <= 0:
        return slow
    share = (math.log(weights) - math.log(low)) / (math.log(high) - math.log(low))
    return math.exp(math.log(slow) + share * (math.log(fast) - math.log(slow)))
