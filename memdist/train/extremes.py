"""The best and the worst predictions of a split, as strips to look at."""

from __future__ import annotations

import heapq
from pathlib import Path

import numpy as np
from torch import Tensor

from memdist import rundir
from memdist.data import cache as cache_
from memdist.data import loader
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
                # Among equals the lower row stays, as in `write`; rows differ, so that maps are never compared.
                entry = (sign * error, -int(part.rows[at]))
                if len(heap) < EXTREMES or entry > heap[0][:2]:
                    put = heapq.heappush if len(heap) < EXTREMES else heapq.heapreplace
                    put(heap, (*entry, maps[at].cpu()))

    def write(self, folder: Path, rows: Rows, errors: np.ndarray) -> None:
        """Write strips picture | map | prediction: best-01-<stem>.png is the best of all.

        `errors` are those of all ranks' `rows`; each rank writes what it has seen itself.
        """
        rundir.make_folder(folder)
        defined = [(float(error), int(row)) for error, row in zip(errors, rows, strict=True) if error == error]
        orders = {"best": sorted(defined), "worst": sorted(defined, key=lambda e: (-e[0], e[1]))}
        for kind, heap in (("best", self._best), ("worst", self._worst)):
            seen = {-row: predicted for _, row, predicted in heap}
            for place, (_, row) in enumerate(orders[kind][:EXTREMES], 1):
                if row in seen:
                    strip = validate.strip(self._pixels.images[row], self._pixels.maps[row], seen[row])
                    name = rundir.file_name(self._pixels.stems[row])
                    validate.write_png(folder / f"{kind}-{place:02d}-{name}.png", strip)
