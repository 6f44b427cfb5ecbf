"""Means over areas, exact: a pixel counts by the share that a cell covers of it; for Pillow's BOX, wholly or not at all."""

from __future__ import annotations

import functools
import math
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

Span = tuple[float, float]
"""From where to where, in pixels and eighths of them, which is what a JPEG that is decoded small ends in."""
_PARTS = 8
_AT_ONCE = 2**20


class _Cells(NamedTuple):
    """Which pixels each cell covers."""

    pixels: npt.NDArray[np.int64]
    """[cells, most pixels of a cell]; beyond the last pixel, the last."""
    weights: npt.NDArray[np.int64]
    """Of the same shape: how much of each is covered, in units in which all edges are whole; 0 for what is not."""
    total: int
    """Of the weights of a cell."""


def shrunk(pixels: npt.NDArray[np.uint8], rows: Span, height: int, columns: Span, width: int) -> npt.NDArray[np.uint8]:
    """Mean over each of `height` x `width` equal cells of a region of uint8 [H, W] or [H, W, C], rounded half up.

    The region is `rows` x `columns`, of at least as many pixels as there are cells.
    """
    tall, wide = pixels.shape[:2]
    down, across = _cells(height, tall, *rows), _cells(width, wide, *columns)
    channels = pixels[0, 0].size
    lines = _sums(pixels.reshape(tall, -1), down, 255)  # the long way first, along the memory
    sums = _sums(_turned(lines, channels), across, 255 * down.total).astype(np.float64)
    means = np.floor(sums / (down.total * across.total) + 0.5).astype(np.uint8)
    return _turned(means, channels).reshape(height, width, *pixels.shape[2:])


def _turned(lines: npt.NDArray[Any], channels: int) -> npt.NDArray[Any]:
    """Exchange rows and columns: [a, b * channels] to [b, a * channels]."""
    whole = lines.view(np.dtype((np.void, channels * lines.itemsize)))  # moved pixel by pixel: twice as fast
    return np.ascontiguousarray(whole.T).view(lines.dtype)


def means(values: npt.NDArray[np.float64], cells: int) -> npt.NDArray[np.float64]:
    """Mean over each of `cells` equal parts of the first dimension of [n, m]: [cells, m]."""
    parts = _cells(cells, len(values), 0, len(values))
    return _sums(values, parts, math.inf) / parts.total


@functools.lru_cache(256)
def _cells(cells: int, side: int, low: float, high: float) -> _Cells:
    """Cut the pixels from `low` to `high`, of `side`, into equal cells."""
    start, end = round(low * _PARTS), round(high * _PARTS)
    assert (start, end) == (low * _PARTS, high * _PARTS), "no eighths"
    assert 0 <= start < end <= side * _PARTS
    unit = math.gcd(_PARTS * cells, start * cells, end - start)
    pixel, total = _PARTS * cells // unit, (end - start) // unit
    edges = start * cells // unit + np.arange(cells + 1) * total
    left, right = edges[:-1, None], edges[1:, None]
    first = left // pixel
    most = int((-(-right // pixel) - first).max())
    pixels = first + np.arange(most)
    weights = np.clip(np.minimum(right, (pixels + 1) * pixel) - np.maximum(left, pixels * pixel), 0, None)
    return _Cells(np.minimum(pixels, side - 1), weights, total)


def _sums(values: npt.NDArray[np.generic], cells: _Cells, peak: float) -> npt.NDArray[np.floating]:
    """Weighted sums [cells, m] of the rows of `values` [n, m], which are at most `peak`: exact for whole numbers."""
    if cells.total == 1 and cells.weights.shape[1] == 1:  # pixels as they are
        return values[cells.pixels[:, 0]].astype(np.float64 if peak > 2**24 else np.float32)
    kind = np.float32 if peak * cells.total <= 2**24 else np.float64
    weights = cells.weights.astype(kind)[:, None]
    found = np.empty((len(cells.pixels), values.shape[1]), kind)
    step = max(1, _AT_ONCE // (cells.pixels.shape[1] * values.shape[1]))  # some megabytes at once
    for at in range(0, len(found), step):
        rows = values[cells.pixels[at : at + step]].astype(kind)  # [step, most, m]
        np.matmul(weights[at : at + step], rows, out=found[at : at + step, None])
    return found
