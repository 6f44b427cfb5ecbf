"""Pictures that are nearly the same: perceptual hashes, pairs of near duplicates, groups of them.

A picture's mark is 128 bits of a small grey copy: 64 say which of two neighbours is brighter, 64 which of the lowest
cosine frequencies are above their median. Resizing, recompression and a change of brightness or contrast turn few of
them over. Two pictures are near duplicates when at most RADIUS bits differ and the grey copies correlate by at least
ALIKE. A mirrored picture is a duplicate too: trained on with its left and right exchanged, it would be the same one.
Crops and rotations are not found.
"""

from __future__ import annotations

import functools
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from memdist.data import area

SIDE = 32
"""Height and width of the grey copies."""
RADIUS = 15
"""Bits of 128 that may differ: two for each of the 8 words but one, so that one word differs by one bit at most."""
ALIKE = 0.97
"""Least correlation of the grey copies."""
FEATURELESS = 4.0
"""Standard deviation of the grey copy, of 255, below which a picture has too little in it to be told from others."""
_BANDS, _BITS = 8, 16
_AT_ONCE = 2_000_000

Bits = npt.NDArray[np.uint64]
Rows = npt.NDArray[np.int64]


class Mark(NamedTuple):
    """What is kept of a picture to find those like it."""

    bits: tuple[int, int]
    """Neighbours, frequencies; 64 bits each."""
    mirrored: tuple[int, int]
    """Of the picture with left and right exchanged."""
    grey: bytes
    """The grey copy, SIDE x SIDE."""
    plain: bool
    """Featureless: compared with no other."""


def fingerprint(grey: npt.NDArray[np.uint8]) -> Mark:
    """Mark of a picture from its grey copy uint8 [SIDE, SIDE], shrunk by the mean over areas."""
    assert grey.shape == (SIDE, SIDE), grey.shape
    exact = grey.astype(np.float64)
    return Mark(_bits(exact), _bits(exact[:, ::-1]), grey.tobytes(), bool(exact.std() < FEATURELESS))


def _bits(grey: npt.NDArray[np.float64]) -> tuple[int, int]:
    across = area.means(area.means(grey, 8).T, 9)  # [9, 8]: columns, rows
    neighbours = across[1:] > across[:-1]
    waves = _cosines() @ grey @ _cosines().T
    waves[0, 0] = 0  # the brightness
    frequencies = waves > np.sort(waves, axis=None)[31]  # the upper half of 64
    first, second = (int.from_bytes(np.packbits(bits).tobytes(), "big") for bits in (neighbours, frequencies))
    return first, second


@functools.cache
def _cosines() -> npt.NDArray[np.float64]:
    """Lowest 8 rows of the cosine transform of type II: [8, SIDE]."""
    wave = np.cos(np.pi * np.arange(8)[:, None] * (2 * np.arange(SIDE) + 1) / (2 * SIDE))
    wave[0] /= np.sqrt(2)
    return wave * np.sqrt(2 / SIDE)


def near(marks: Sequence[Mark]) -> list[tuple[int, int]]:
    """Pairs (i < j) of near duplicates among pictures, sorted; near linear in their number.

    Of pictures with the very same bits each is compared with the first alone, so that copies of one picture by the thousand
    cost no more than others; `groups` brings them together.
    """
    rows = np.array([i for i, mark in enumerate(marks) if not mark.plain], dtype=np.int64)
    if len(rows) < 2:
        return []
    greys = np.stack([np.frombuffer(marks[i].grey, np.uint8) for i in rows]).astype(np.float32)
    greys -= greys.mean(axis=1, keepdims=True)
    greys /= np.linalg.norm(greys, axis=1, keepdims=True)
    upright = np.array([marks[i].bits for i in rows], dtype=np.uint64)
    mirrored = np.array([marks[i].mirrored for i in rows], dtype=np.uint64)
    _, first, inverse = np.unique(upright, axis=0, return_index=True, return_inverse=True)
    first = first.astype(np.int64)
    inverse = inverse.reshape(-1)
    pairs: set[tuple[int, int]] = set()

    def keep(left: Rows, right: Rows, flip: bool) -> None:
        for start in range(0, len(left), 65536):
            a, b = left[start : start + 65536], right[start : start + 65536]
            other = greys[b].reshape(-1, SIDE, SIDE)[:, :, ::-1].reshape(len(b), -1) if flip else greys[b]
            alike = np.einsum("np,np->n", greys[a], other) >= ALIKE
            pairs.update((int(min(x, y)), int(max(x, y))) for x, y in zip(rows[a[alike]], rows[b[alike]], strict=True))

    same = np.flatnonzero(first[inverse] != np.arange(len(rows)))
    keep(first[inverse][same], same, False)
    for flip, others in ((False, upright[first]), (True, mirrored[first])):
        for left, right in _candidates(upright[first], others):
            keep(first[left], first[right], flip)
    return sorted(pairs)


def _candidates(known: Bits, others: Bits) -> Iterator[tuple[Rows, Rows]]:
    """Pairs (row of `known` < row of `others`) within RADIUS bits; both uint64 [n, 2].

    If at most 15 of 128 bits differ, then in one of 8 words of 16 bits at most one does: only pairs that share a word up
    to one bit are looked at.
    """
    masks = [0, *(1 << bit for bit in range(_BITS))]
    for band in range(_BANDS):
        half, shift = divmod(band, 64 // _BITS)
        words = (known[:, half] >> np.uint64(shift * _BITS) & np.uint64(0xFFFF)).astype(np.int64)
        sought = (others[:, half] >> np.uint64(shift * _BITS) & np.uint64(0xFFFF)).astype(np.int64)
        order = np.argsort(words, kind="stable")
        starts = np.searchsorted(words[order], np.arange(2**_BITS + 1))
        for mask in masks:
            key = sought ^ mask
            counts = starts[key + 1] - starts[key]
            ends = np.cumsum(counts)
            at = 0
            while at < len(key):
                # As many rows at once as their candidates fit; one at least.
                before = int(ends[at - 1]) if at else 0
                stop = max(at + 1, int(np.searchsorted(ends, before + _AT_ONCE, side="right")))
                part = counts[at:stop]
                right = np.repeat(np.arange(at, stop), part)
                offset = np.arange(len(right)) - np.repeat(np.cumsum(part) - part, part)
                left = order[np.repeat(starts[key[at:stop]], part) + offset]
                fits = left < right
                left, right = left[fits], right[fits]
                apart = np.bitwise_count(known[left] ^ others[right]).sum(axis=1, dtype=np.int64)
                close = apart <= RADIUS
                if close.any():
                    yield left[close], right[close]
                at = stop


def groups(n: int, pairs: Iterable[tuple[int, int]]) -> list[list[int]]:
    """Sets of more than one of 0..n-1 that `pairs` connect, each sorted, in order of their first."""
    parent = list(range(n))

    def root(i: int) -> int:
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = parent[i]
        return i

    for i, j in pairs:
        a, b = sorted((root(i), root(j)))
        parent[b] = a  # the first member names the group
    members: defaultdict[int, list[int]] = defaultdict(list)
    for i in range(n):
        members[root(i)].append(i)
    return [group for group in members.values() if len(group) > 1]
