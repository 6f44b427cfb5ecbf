"""The cells of a space in an order in which they are begun."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Any

from memdist import draws
from memdist.errors import SearchError
from memdist.search import cells
from memdist.search.cells import Cell, Space

_REPEATS = 1000


class Candidates(ABC):
    """Cells by their places in an order, which is a pure function of the space and a seed; no cell has two places."""

    count: float
    """How many there are: a whole number, or infinity."""

    def __init__(self, space: Space) -> None:
        self.space = space

    @abstractmethod
    def at(self, place: int) -> int | None:
        """Number of the cell at a place, counted from 0; None after the last."""

    def cell(self, number: int) -> Cell:
        """The cell of a number."""
        return cells.cell(self.space, number)

    def settings(self) -> dict[str, Any]:
        """What the order depends on, as JSON's own types."""
        return {"space": self.space.fingerprint, "order": type(self).__name__.lower()}


class InOrder(Candidates):
    """All cells as the space has them."""

    def __init__(self, space: Space) -> None:
        super().__init__(space)
        self.count = cells.count(space)

    def at(self, place: int) -> int | None:
        """The place itself."""
        return place if place < self.count else None


class Shuffled(Candidates):
    """All cells in an order of chance."""

    def __init__(self, space: Space, seed: int) -> None:
        super().__init__(space)
        self.count, self._seed = cells.count(space), seed

    def at(self, place: int) -> int | None:
        """A permutation of the places."""
        return shuffled(place, int(self.count), self._seed) if place < self.count else None

    def settings(self) -> dict[str, Any]:
        """The space and the seed."""
        return super().settings() | {"seed": self._seed}


class Drawn(Candidates):
    """Cells with values drawn at random; the end comes when a thousand draws in a row bring nothing new."""

    def __init__(self, space: Space, seed: int) -> None:
        super().__init__(space)
        self._seed = seed
        self._numbers: list[int] = []
        self._names: set[str] = set()
        self._next = 0
        self.count = math.inf

    def at(self, place: int) -> int | None:
        """Number of the draw that is the place-th new cell."""
        last = self._numbers[-1] if self._numbers else -1
        while len(self._numbers) <= place and self._next - last <= _REPEATS:
            found = self.cell(self._next).name
            if found not in self._names:
                self._names.add(found)
                self._numbers.append(self._next)
                last = self._next
            self._next += 1
        return self._numbers[place] if place < len(self._numbers) else None

    def cell(self, number: int) -> Cell:
        """The cell of a draw."""
        return cells.draw(self.space, self._seed, number)

    def settings(self) -> dict[str, Any]:
        """The space and the seed."""
        return super().settings() | {"seed": self._seed}


def of(space: Space, order: str, seed: int = 0) -> Candidates:
    """Cells in an order: `grid` as the space has them, `random` by chance. Raises ConfigError or SearchError."""
    if order == "grid":
        return InOrder(space)
    if order != "random":
        raise SearchError(f"there is no order {order!r} of cells: it is grid or random")
    return Drawn(space, seed) if space.drawn else Shuffled(space, seed)


def shuffled(place: int, count: int, seed: int) -> int:
    """Permutation of 0 .. count - 1, computed for one place alone.

    Four rounds of a Feistel network (Luby and Rackoff 1988) permute the numbers below a power of 4; whoever is led to one
    that is not below `count` goes on from there (Black and Rogaway 2002, "Ciphers with arbitrary finite domains").
    """
    assert 0 <= place < count, place
    half = max(1, ((count - 1).bit_length() + 1) // 2)
    mask = (1 << half) - 1
    while True:
        left, right = place >> half, place & mask
        for turn in range(4):
            left, right = right, left ^ (draws.key("shuffle", seed, count, turn, right) & mask)
        place = left << half | right
        if place < count:
            return place
