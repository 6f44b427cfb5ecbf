"""Counter-based random numbers: every draw is a pure function of an item's seed, the name of a stream and a position.

There is no state to save and nothing that depends on rank, world size, batch or order: the noise of an item is the same
alone and in any batch. The generator is SplitMix64 (Steele, Lea and Flood 2014, "Fast splittable pseudorandom number
generators") started at a hash of (seed, stream); normals come from it by the Box-Muller transform.

The numbers are drawn eagerly, never inside a compiled graph: fused kernels round differently.
"""

from __future__ import annotations

import hashlib
import math
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from torch import Tensor

_GOLDEN = 0x9E3779B97F4A7C15
_FIRST = 0xBF58476D1CE4E5B9
_SECOND = 0x94D049BB133111EB


def key(*parts: int | str | bytes) -> int:
    """Hash any parts to a signed 64-bit integer, stable between machines and versions."""
    digest = hashlib.blake2b(digest_size=8)
    for part in parts:
        raw = part if isinstance(part, bytes) else str(part).encode()
        digest.update(len(raw).to_bytes(8, "little") + type(part).__name__.encode() + raw)
    return int.from_bytes(digest.digest(), "little", signed=True)


def seeds(start: int, positions: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Give each position of a stream its own seed.

    `start` is the hash of what names the stream (see `key`), `positions` int64 of any shape; the seeds are int64 of that
    shape.
    """
    counter = positions.astype(np.int64).view(np.uint64)
    with np.errstate(over="ignore"):
        x = np.uint64(start & (2**64 - 1)) + (counter + np.uint64(1)) * np.uint64(_GOLDEN)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(_FIRST)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(_SECOND)
    return (x ^ (x >> np.uint64(31))).view(np.int64)


def permutation(start: int, n: int) -> npt.NDArray[np.int64]:
    """Permutation of 0..n-1, a pure function of `start`: the order in which their hashes sort."""
    return np.argsort(seeds(start, np.arange(n)), kind="stable")


def uniform(seed: Tensor, stream: str, shape: tuple[int, ...] = ()) -> Tensor:
    """Draw uniform numbers in [0, 1): float32 [N, *shape] from int64 seeds [N], on their device."""
    count = math.prod(shape)
    return ((_bits(seed, stream, count) >> 40) & 0xFFFFFF).float().mul_(2.0**-24).reshape(-1, *shape)


def integers(seed: Tensor, stream: str, high: int, shape: tuple[int, ...] = ()) -> Tensor:
    """Draw integers in 0..high-1 (high at most 2**20): int64 [N, *shape] from int64 seeds [N]."""
    assert 0 < high <= 2**20, high
    # 31 bits of the state leave a bias below high / 2**31, which no use here can see.
    return (((_bits(seed, stream, math.prod(shape)) >> 33) & 0x7FFFFFFF) * high >> 31).reshape(-1, *shape)


def normal(seed: Tensor, stream: str, shape: tuple[int, ...] = ()) -> Tensor:
    """Draw standard normal numbers, at most 6.7 in size: float32 [N, *shape] from int64 seeds [N], on their device."""
    import torch

    count = math.prod(shape)
    bits = _bits(seed, stream, (count + 1) // 2)
    radius = (((bits >> 32) & 0xFFFFFFFF) + 1).float().mul_(2.0**-32).log_().mul_(-2).sqrt_()
    angle = (bits & 0xFFFFFFFF).float().mul_(2.0**-32 * 2 * math.pi)
    both = torch.cat((radius * angle.cos(), radius * angle.sin()), dim=1)
    return both[:, :count].reshape(-1, *shape)


def _bits(seed: Tensor, stream: str, count: int) -> Tensor:
    """64 random bits as int64 [N, count]; shifts are made logical by masks, products wrap round."""
    import torch

    start = _finish(seed ^ key("stream", stream))
    counter = torch.arange(1, count + 1, device=seed.device) * _signed(_GOLDEN)
    return _finish(start[:, None] + counter)


def _finish(x: Tensor) -> Tensor:
    x = (x ^ ((x >> 30) & (2**34 - 1))) * _signed(_FIRST)
    x = (x ^ ((x >> 27) & (2**37 - 1))) * _signed(_SECOND)
    return x ^ ((x >> 31) & (2**33 - 1))


def _signed(x: int) -> int:
    return x - 2**64 if x >= 2**63 else x
