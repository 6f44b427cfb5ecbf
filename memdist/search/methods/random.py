"""Random search (Bergstra and Bengio 2012): cells by chance, none twice, each up to the last epoch."""

from __future__ import annotations

from memdist.search import candidates
from memdist.search.cells import Space
from memdist.search.methods.method import Ask, Method
from memdist.search.objective import Mode


class Random(Method):
    """Cells in an order that the seed fixes; more samples begin with the same ones."""

    name = "random"

    def __init__(
        self, space: Space, epochs: int, mode: Mode = "min", seed: int = 0, samples: int | None = None
    ) -> None:
        super().__init__(candidates.of(space, "random", seed), epochs, mode, samples)

    def ask(self) -> Ask:
        """The next cell of the order."""
        return self._begin(self.epochs) or self._rest()
