"""Batches of decoded pairs on the device, each a pure function of the seed and the step.

Positions count the pairs of a run from 0, epochs end to end; an epoch is a permutation of the training rows, a batch
may cross its end. Step s of global batch B takes positions sB .. (s+1)B - 1; neither the ranks nor the micro-batches
among which they are dealt change which pairs a step sees, nor their seeds.
"""

from __future__ import annotations

import functools
import math
import os
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from memdist import draws
from memdist.data.cache import Pixels
from memdist.model import Pair

Rows = npt.NDArray[np.int64]

AHEAD = 3
"""Steps that are read ahead where pictures stay in host memory."""


def order(seed: int, n: int, positions: Rows) -> Rows:
    """Which of n training pairs stands at each position: int64 0..n-1 of the shape of `positions` (>= 0)."""
    epochs, places = np.divmod(positions, n)
    found = np.empty_like(positions)
    for epoch in np.unique(epochs):
        here = epochs == epoch
        found[here] = _permutation(seed, int(epoch), n)[places[here]]
    return found


@functools.lru_cache(maxsize=4)
def _permutation(seed: int, epoch: int, n: int) -> Rows:
    return draws.permutation(draws.key("order", seed, epoch), n)


def epoch_end(epoch: int, n: int, batch_size: int) -> int:
    """Steps after which `epoch` whole epochs of n pairs have been seen: ceil(epoch x n / batch_size)."""
    return -(-epoch * n // batch_size)


def picture_seed(seed: int, image_hash: str, replicate: int = 0) -> int:
    """Seed of a picture that is predicted: a hash of the run's seed, the content of its file and the replicate."""
    return draws.key("picture", seed, image_hash, replicate)


def floats(pixels: Tensor) -> Tensor:
    """Bring uint8 0..255 to float32 in [-1, 1]: x / 127.5 - 1."""
    return pixels.float().div_(127.5).sub_(1)


class Loader:
    """Training batches of one rank, for ever.

    Close it, or use it as a context, so that its thread ends. Errors of the thread are raised where the batch is.
    """

    def __init__(
        self,
        pixels: Pixels,
        indices: Sequence[int] | Rows,
        *,
        seed: int,
        batch_size: int,
        micro: int,
        rank: int = 0,
        world: int = 1,
        device: torch.device | str = "cpu",
        resident: Literal["auto", "device", "host"] = "auto",
    ) -> None:
        """Deal the rows `indices` of `pixels` in batches of `batch_size` over `world` ranks, `micro` pairs at once.

        `batch_size` is a multiple of micro x world. Where `resident` is device, the pictures are copied to the device
        (a CPU reads them from the cache's mapped pages); host reads them ahead in a thread; auto is device if they fit
        in a quarter of its free memory. The batches are the same.
        """
        assert batch_size % (micro * world) == 0, (batch_size, micro, world)
        assert 0 <= rank < world and len(indices) > 0
        self._pixels = pixels
        self._rows = np.asarray(indices, dtype=np.int64)
        self._seed = seed
        self._batch_size, self._micro, self._rank, self._world = batch_size, micro, rank, world
        self._device = torch.device(device)
        if self._device.type == "cuda" and self._device.index is None:
            self._device = torch.device("cuda", torch.cuda.current_device())
        if resident == "auto":
            resident = "device" if self._bytes() <= free_memory(self._device) / 4 else "host"
        self.resident: Literal["device", "host"] = resident
        """Where the pictures live: what auto came to."""
        self._copies: tuple[Tensor, Tensor] | None = None
        if resident == "device" and self._device.type != "cpu":
            self._copies = (self._upload(pixels.images), self._upload(pixels.maps))
        self._thread: ThreadPoolExecutor | None = None
        if resident == "host":
            self._thread = ThreadPoolExecutor(1, thread_name_prefix="loader", initializer=self._enter_thread)
        self._ahead: deque[tuple[int, Future[_Step]]] = deque()

    def micro_batches(self, step: int) -> list[Pair]:
        """Micro-batches of this rank in step `step` (>= 0), on the device; nothing waits for the device."""
        got = self._read(step) if self._thread is None else self._next(step)
        keys = got.keys.to(self._device, non_blocking=True)
        if self._copies is not None:
            images, maps = (copy.index_select(0, keys[0]) for copy in self._copies)
        else:
            assert got.images is not None and got.maps is not None
            images = got.images.to(self._device, non_blocking=True)
            maps = got.maps.to(self._device, non_blocking=True)
        parts = (torch.split(t, self._micro) for t in (floats(images), floats(maps), keys[1]))
        return [Pair(*part) for part in zip(*parts, strict=True)]

    def close(self) -> None:
        """End the thread."""
        if self._thread is not None:
            self._thread.shutdown(wait=True, cancel_futures=True)
        self._ahead.clear()

    def __enter__(self) -> Loader:
        """Use as a context."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close."""
        self.close()

    def _enter_thread(self) -> None:
        """Page-lock memory for this rank's GPU: a new thread begins on the first."""
        if self._device.type == "cuda":
            torch.cuda.set_device(self._device)

    def _positions(self, step: int) -> Rows:
        """Positions of this rank in a step, micro-batch after micro-batch."""
        whole = np.arange(self._batch_size, dtype=np.int64).reshape(-1, self._world, self._micro)
        return step * self._batch_size + whole[:, self._rank].reshape(-1)

    def _read(self, step: int) -> _Step:
        positions = self._positions(step)
        places = order(self._seed, len(self._rows), positions)
        seeds = draws.seeds(draws.key("item", self._seed), positions)
        pin = self._device.type == "cuda"
        keys = torch.from_numpy(np.stack((places, seeds)))
        keys = keys.pin_memory() if pin else keys
        if self._copies is not None:
            return _Step(keys, None, None)
        rows = self._rows[places]
        return _Step(keys, _taken(self._pixels.images, rows, pin), _taken(self._pixels.maps, rows, pin))

    def _next(self, step: int) -> _Step:
        """Take a step that was read ahead, or start anew from it, and read on."""
        assert self._thread is not None
        if not self._ahead or self._ahead[0][0] != step:
            for _, future in self._ahead:
                future.cancel()
            self._ahead.clear()
        first = step + len(self._ahead)
        for later in range(first, step + AHEAD + 1):
            self._ahead.append((later, self._thread.submit(self._read, later)))
        return self._ahead.popleft()[1].result()

    def _bytes(self) -> int:
        return len(self._rows) * (self._pixels.images[0].nbytes + self._pixels.maps[0].nbytes)

    def _upload(self, array: npt.NDArray[np.uint8], chunk: int = 1024) -> Tensor:
        copy = torch.empty((len(self._rows), *array.shape[1:]), dtype=torch.uint8, device=self._device)
        for i in range(0, len(self._rows), chunk):
            part = _taken(array, self._rows[i : i + chunk], pin=False)
            copy[i : i + chunk].copy_(part)
        return copy


class _Step(NamedTuple):
    """What a step takes from the host."""

    keys: Tensor
    """int64 [2, N]: place among the training rows; seed."""
    images: Tensor | None
    """uint8 [N, 3, size, size]; None where they are on the device."""
    maps: Tensor | None


class Part(NamedTuple):
    """One rank's share of an evaluation batch; its shape is the same in all of them."""

    pair: Pair
    rows: Rows
    """Rows of `pixels`, int64 [N], padding included."""
    valid: int
    """How many of the first are no padding, 0..N."""


def batches(
    pixels: Pixels,
    rows: Sequence[int] | Rows,
    *,
    seed: int,
    batch: int,
    rank: int = 0,
    world: int = 1,
    device: torch.device | str = "cpu",
    replicate: int = 0,
) -> Iterator[Part]:
    """Deal rows once, in order, over the ranks: equally many batches of one shape on every rank.

    Batches hold `batch` pairs, fewer where the rows are fewer than batch x world. What is missing at the end is filled
    up with rows from the start, which `Part.valid` tells apart. Seeds are `picture_seed`s.
    """
    rows = np.asarray(rows, dtype=np.int64)
    device = torch.device(device)
    if not len(rows):
        return
    batch = min(batch, math.ceil(len(rows) / world))
    pin = device.type == "cuda"
    for turn in range(math.ceil(len(rows) / (batch * world))):
        start = (turn * world + rank) * batch
        here = rows[np.arange(start, start + batch) % len(rows)]
        keys = [picture_seed(seed, pixels.image_hashes[row], replicate) for row in here]
        host = (_taken(pixels.images, here, pin), _taken(pixels.maps, here, pin), torch.tensor(keys, pin_memory=pin))
        images, maps, seeds = (t.to(device, non_blocking=True) for t in host)
        yield Part(Pair(floats(images), floats(maps), seeds), here, min(max(len(rows) - start, 0), batch))


def free_memory(device: torch.device) -> int:
    """Bytes that could be allocated on a device now."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    if device.type == "mps":
        return torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory()
    assert device.type == "cpu", device
    table = Path("/proc/meminfo")
    if not table.is_file():  # not Linux
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
    fields = dict(line.split(":", 1) for line in table.read_text().splitlines())
    return int(fields["MemAvailable"].split()[0]) * 1024


def _taken(array: npt.NDArray[np.uint8], rows: Rows, pin: bool) -> Tensor:
    """Copy rows into new host memory, page-locked for a GPU."""
    taken = torch.empty((len(rows), *array.shape[1:]), dtype=torch.uint8, pin_memory=pin)
    np.take(array, rows, axis=0, out=taken.numpy(), mode="clip")  # other modes make one more copy
    return taken
