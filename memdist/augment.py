"""Changes of training pairs on the device: pure, batched, differentiable, each item's a function of its own seed.

DiffAugment's translation, cutout and colour are those of Zhao et al. 2020, "Differentiable Augmentation for
Data-Efficient GAN Training" (arXiv 2006.10738, section 3), with a probability an item before each.
"""

from __future__ import annotations

import torch
from torch import Tensor

from memdist import draws
from memdist.config import Augment
from memdist.model import Pair

SHIFT = 1 / 8
"""Largest translation, as a fraction of height and width."""
HOLE = 1 / 2
"""Side of the square that is cut out, as a fraction of height and width."""


def augment(pair: Pair, settings: Augment) -> Pair:
    """Change each pair of a batch, with the probabilities of `settings`, by its seed alone.

    Picture and map, NCHW float32 of one height and width, undergo one geometry: flip, then translation, then cutout;
    what translation and cutout leave empty is 0 in both. Colour touches the picture only, and may take it out of
    [-1, 1], as in the paper. Seeds go through unchanged. An item that chance passes over leaves bit for bit as it
    came. Drawn eagerly: call it outside compiled graphs.
    """
    image, map_, seed = pair
    assert image.shape[2:] == map_.shape[2:], (image.shape, map_.shape)
    if settings.colour:
        image = torch.where(_chosen(seed, "colour", settings.colour), _recoloured(image, seed), image)
    source, keep = _geometry(seed, image.shape[2], image.shape[3], settings)
    return Pair(_moved(image, source, keep), _moved(map_, source, keep), seed)


def _chosen(seed: Tensor, name: str, probability: float) -> Tensor:
    """Bool [N, 1, 1, 1]: whether an item undergoes a change."""
    return draws.uniform(seed, f"augment/{name}", (1, 1, 1)) < probability


def _recoloured(x: Tensor, seed: Tensor) -> Tensor:
    """Brightness + U(-0.5, 0.5), saturation x U(0, 2) about a pixel's mean, contrast x U(0.5, 1.5) about the mean."""
    u = draws.uniform(seed, "augment/colours", (3, 1, 1, 1))
    x = x + (u[:, 0] - 0.5)
    grey = x.mean(dim=1, keepdim=True)
    x = (x - grey) * (2 * u[:, 1]) + grey
    mean = x.mean(dim=(1, 2, 3), keepdim=True)
    return (x - mean) * (u[:, 2] + 0.5) + mean


def _geometry(seed: Tensor, height: int, width: int, settings: Augment) -> tuple[Tensor | None, Tensor | None]:
    """Where each pixel comes from, int64 [N, 1, H x W], and whether it is kept, bool [N, 1, H, W]; None: no change."""
    source = keep = None
    if settings.flip or settings.translation:
        y, x = (torch.arange(length, device=seed.device).expand(len(seed), -1) for length in (height, width))
        if settings.translation:
            chosen = _chosen(seed, "translation", settings.translation)[:, 0, 0]
            y, x = y + chosen * _shift(seed, "y", height), x + chosen * _shift(seed, "x", width)
            keep = _both((y >= 0) & (y < height), (x >= 0) & (x < width))
            # Indices wrap round, so that each pixel is read once: the gradient is one sum in one order on any device.
            y, x = y % height, x % width
        if settings.flip:
            x = torch.where(_chosen(seed, "flip", settings.flip)[:, 0, 0], width - 1 - x, x)
        source = (y[:, :, None] * width + x[:, None, :]).flatten(1)[:, None]
    if settings.cutout:
        hole = _both(_covered(seed, "y", height), _covered(seed, "x", width))
        rest = ~(hole & _chosen(seed, "cutout", settings.cutout))
        keep = rest if keep is None else keep & rest
    return source, keep


def _moved(x: Tensor, source: Tensor | None, keep: Tensor | None) -> Tensor:
    """Rearrange pixels and blank those that are not kept; both by what a CPU does fastest."""
    if source is not None:
        x = x.flatten(2).gather(2, source.expand(-1, x.shape[1], -1)).view(x.shape)
    return x if keep is None else x * keep


def _shift(seed: Tensor, axis: str, length: int) -> Tensor:
    """Whole pixels, int64 [N, 1], evenly from -SHIFT .. SHIFT of the length."""
    most = int(length * SHIFT + 0.5)
    return draws.integers(seed, f"augment/shift {axis}", 2 * most + 1, (1,)) - most


def _covered(seed: Tensor, axis: str, length: int) -> Tensor:
    """Bool [N, length]: the stretch that is cut out, HOLE of the length about a centre that lies anywhere."""
    side = int(length * HOLE + 0.5)
    start = draws.integers(seed, f"augment/hole {axis}", length + (1 - side % 2), (1,)) - side // 2
    place = torch.arange(length, device=seed.device)
    return (place >= start) & (place < start + side)


def _both(y: Tensor, x: Tensor) -> Tensor:
    """Bool [N, 1, H, W] from bool [N, H] and [N, W]."""
    return (y[:, :, None] & x[:, None, :])[:, None]
