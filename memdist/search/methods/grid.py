"""Full grid: every cell, exactly once, up to the last epoch."""

from __future__ import annotations

from memdist.search.candidates import InOrder
from memdist.search.cells import Space
from memdist.search.methods.method import Ask, Method
from memdist.search.objective import Mode


class Grid(Method):
    """All cells in the order of the space; place and trial and cell are one number, so that none is left out or repeated."""

    name = "grid"

    def __init__(self, space: Space, epochs: int, mode: Mode = "min") -> None:
        super().__init__(InOrder(space), epochs, mode)

    def ask(self) -> Ask:
        """The next cell."""
        return self._begin(self.epochs) or self._rest()
