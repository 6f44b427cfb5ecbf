"""Predictors that have learned nothing of pictures, fitted on the training split: what a model has to beat."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from memdist.data import cache
from memdist.model import Pair
from memdist.train.score import Predictor, Rows

NAMES = ("black", "mean", "median", "centre", "nearest")
_CHUNK = 256
_THUMBNAIL = 16


def mean_map(pixels: cache.Pixels, rows: Rows) -> Tensor:
    """Mean of the rows' maps: float32 [C, S, S] in [-1, 1], the same bits in any process."""
    total = np.zeros(pixels.maps.shape[1:], dtype=np.int64)
    for start in range(0, len(rows), _CHUNK):
        total += pixels.maps[np.sort(rows[start : start + _CHUNK])].sum(axis=0, dtype=np.int64)
    return torch.from_numpy(total / len(rows) / 127.5 - 1).float()


def fit(pixels: cache.Pixels, rows: Rows, device: torch.device) -> dict[str, Predictor]:
    """Fit all trivial predictors on the rows of the training split.

    black: -1 everywhere. mean and median: of the maps, pixel by pixel. centre: a Gaussian in the middle, its widths and the
    height of each channel fitted to the mean map by least squares. nearest: the map of the training picture whose 16 x 16
    thumbnail is nearest (L2); a training picture is not its own neighbour.
    """
    mean = mean_map(pixels, rows)
    return {
        "black": _constant(torch.full_like(mean, -1), device),
        "mean": _constant(mean, device),
        "median": _constant(_median(pixels, rows), device),
        "centre": _constant(_centre(mean), device),
        "nearest": _nearest(pixels, rows, device),
    }


def _constant(maps: Tensor, device: torch.device) -> Predictor:
    kept = maps.to(device)

    def predict(batch: Pair, _: Rows) -> Tensor:
        return kept.expand(len(batch.image), *kept.shape)

    return predict


def _median(pixels: cache.Pixels, rows: Rows) -> Tensor:
    channels, height, width = pixels.maps.shape[1:]
    median = np.empty((channels, height, width))
    ordered = np.sort(rows)
    for top in range(height):  # a line of all maps at a time: the whole may not fit in memory
        median[:, top] = np.median(pixels.maps[ordered, :, top], axis=0)
    return torch.from_numpy(median / 127.5 - 1).float()


def _centre(mean: Tensor) -> Tensor:
    """Best of 32 x 32 pairs of widths; heights follow from least squares in closed form."""
    channels, height, width = mean.shape
    y = torch.linspace(-1, 1, height, dtype=torch.float64)
    x = torch.linspace(-1, 1, width, dtype=torch.float64)
    wanted = (mean.double() + 1).flatten(1)
    best, error = torch.zeros(channels, height * width, dtype=torch.float64), float("inf")
    for down in torch.logspace(-1, 0.6, 32, dtype=torch.float64):
        for across in torch.logspace(-1, 0.6, 32, dtype=torch.float64):
            shape = (torch.exp(-0.5 * (y / down) ** 2)[:, None] * torch.exp(-0.5 * (x / across) ** 2)).flatten()
            heights = wanted @ shape / shape.square().sum()
            fitted = heights[:, None] * shape
            rest = float((fitted - wanted).square().sum())
            if rest < error:
                best, error = fitted, rest
    return (best - 1).reshape(channels, height, width).clamp(-1, 1).float()


def _nearest(pixels: cache.Pixels, rows: Rows, device: torch.device) -> Predictor:
    parts = []
    for start in range(0, len(rows), _CHUNK):
        images = torch.from_numpy(pixels.images[rows[start : start + _CHUNK]]).to(device).float() / 127.5 - 1
        parts.append(_thumbnail(images))
    known = torch.cat(parts)
    index = torch.from_numpy(rows).to(device)

    def predict(batch: Pair, these: Rows) -> Tensor:
        distance = torch.cdist(_thumbnail(batch.image), known)
        distance = distance.masked_fill(torch.from_numpy(these).to(device)[:, None] == index, float("inf"))
        neighbours = index[distance.argmin(dim=1)].cpu().numpy()
        return torch.from_numpy(pixels.maps[neighbours]).to(device).float() / 127.5 - 1

    return predict


def _thumbnail(images: Tensor) -> Tensor:
    return F.adaptive_avg_pool2d(images, _THUMBNAIL).flatten(1)
