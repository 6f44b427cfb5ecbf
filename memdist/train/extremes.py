"""The best and the worst predictions of a split, as strips to look at."""

from __future__ import annotations

import heapq
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from memdist import rundir
from memdist.data import cache as cache_
from memdist.data import loader
from memdist.distributed.strategy import Strategy
from memdist.train import validate
from memdist.train.score import Rows

EXTREMES = 8
"""How many of the best and of the worst pictures, by L1, are kept to look at."""


class Extremes:
    """The best and the worst predictions by L1, kept while a split goes by in constant memory."""

    def __init__(self, pixels: cache_.Pixels) -> None:
        """Nothing seen yet."""
        self._pixels = pixels
        self._best: list[tuple[float, int, Tensor]] = []
        self._worst: list[tuple[float, int, Tensor]] = []

    def see(self, part: loader.Part, maps: Tensor, errors: Tensor) -> None:
        """Take note of a batch; padding is passed over."""
        for at, error in enumerate(errors[: part.valid].tolist()):
            if error != error:
                continue
            for heap, sign in ((self._best, -1.0), (self._worst, 1.0)):
                # Among equals the lower row stays, as in `strips`; rows differ, so that maps are never compared.
                entry = (sign * error, -int(part.rows[at]))
                if len(heap) < EXTREMES or entry > heap[0][:2]:
                    put = heapq.heappush if len(heap) < EXTREMES else heapq.heapreplace
                    put(heap, (*entry, maps[at].cpu()))

    def strips(self, rows: Rows, errors: np.ndarray, strategy: Strategy) -> dict[str, Tensor]:
        """Strips picture | map | prediction by the name of their file: best-01-<stem>.png is the best of all.

        uint8 [3, H, 3 W] each. `errors` are those of all ranks' `rows`; every rank calls it, and all have the same.
        """
        defined = [(float(error), int(row)) for error, row in zip(errors, rows, strict=True) if error == error]
        orders = {"best": sorted(defined), "worst": sorted(defined, key=lambda e: (-e[0], e[1]))}
        made: dict[str, Tensor] = {}
        for kind, heap in (("best", self._best), ("worst", self._worst)):
            seen = {-row: predicted for _, row, predicted in heap}
            for place, (_, row) in enumerate(orders[kind][:EXTREMES], 1):
                predicted = _from_any(seen.get(row), self._pixels.maps.shape[1:], strategy)
                name = rundir.file_name(self._pixels.stems[row])
                made[f"{kind}-{place:02d}-{name}.png"] = validate.strip(
                    self._pixels.images[row], self._pixels.maps[row], predicted
                )
        return made


def _from_any(mine: Tensor | None, shape: Sequence[int], strategy: Strategy) -> Tensor:
    """A map [C, H, W] on the CPU, from whichever rank has it."""
    have = strategy.gather(torch.tensor([mine is not None], device=strategy.device).int())
    ours = torch.zeros(*shape) if mine is None else mine
    return strategy.gather(ours[None].to(strategy.device))[int(have.argmax())].cpu()
