"""Small parts that several networks share: normalisation, initialisation, waves of the noise level, sizes."""

import math
from collections.abc import Sequence
from typing import TypeVar

import torch
from torch import Tensor, nn

from memdist.errors import ConfigError

Layer = TypeVar("Layer", bound=nn.Module)

NORMALISATIONS = ("batch", "instance", "group", "none")
"""The names that `normalisation` knows."""

GROUPS = 32
"""The number of groups that group normalisation aims for (Wu & He 2018, arXiv 1803.08494)."""


def groups(channels: int) -> int:
    """Return the largest divisor of `channels` that is at most 32."""
    return max(count for count in range(1, min(GROUPS, channels) + 1) if channels % count == 0)


def normalisation(name: str, channels: int) -> nn.Module:
    """Make the normalisation layer `name` for feature maps [N, channels, H, W].

    `batch`: batch normalisation with affine weights and running statistics. `instance`: neither affine
    weights nor running statistics, as in pix2pix. `group`: affine, with the largest divisor of `channels` up
    to 32 as the number of groups. `none`: identity. Raises ConfigError for any other name.
    """
    match name:
        case "batch":
            return nn.BatchNorm2d(channels)
        case "instance":
            return nn.InstanceNorm2d(channels, affine=False, track_running_stats=False)
        case "group":
            return nn.GroupNorm(groups(channels), channels)
        case "none":
            return nn.Identity()
    raise ConfigError(f"normalisation is {name!r}, but must be one of {', '.join(NORMALISATIONS)}: choose one of them.")


def biased(name: str) -> bool:
    """Whether a convolution before the normalisation `name` has a bias: not where the norm adds one itself."""
    return name in ("instance", "none")


def initialise_normal(module: nn.Module, deviation: float = 0.02) -> None:
    """Draw all weights in `module` as pix2pix does (Isola et al. 2017, arXiv 1611.07004, section 6.2).

    Convolutions N(0, deviation^2), scales of norms N(1, deviation^2), every bias 0. It draws from torch's
    global generator: the caller forks and seeds that. Call it before layers are zeroed, never after.
    """
    for part in module.modules():
        if isinstance(part, nn.Conv2d | nn.ConvTranspose2d):
            nn.init.normal_(part.weight, 0.0, deviation)
        elif isinstance(part, nn.BatchNorm2d | nn.GroupNorm):
            nn.init.normal_(part.weight, 1.0, deviation)
        else:
            continue
        if part.bias is not None:
            nn.init.zeros_(part.bias)


def zeroed(layer: Layer) -> Layer:
    """Set all parameters of `layer` to zero and return it: the last layer of a branch that starts as nothing."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer


def waves(level: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Return cosines and sines, float32 [N, count] each, of the noise levels [N] at `count` frequencies.

    The frequencies fall geometrically from 1 to almost 1e-4 (Vaswani et al. 2017, section 3.5, on a
    continuous level as in WaveGrad, arXiv 2009.00713, appendix A). Always in float32: half precision cannot
    tell neighbouring levels apart.
    """
    steps = torch.arange(count, dtype=torch.float32, device=level.device) / count
    angles = level.float()[:, None] * torch.exp(-math.log(1e4) * steps)[None]
    return angles.cos(), angles.sin()


def widths(channels: int, multipliers: Sequence[float]) -> list[int]:
    """Return the channels of each level, `channels` times its multiplier, cut to a whole number.

    Raises ConfigError for a level without channels.
    """
    found = [int(channels * multiplier) for multiplier in multipliers]
    if min(found) < 1:
        raise ConfigError(
            f"multipliers are {', '.join(map(str, multipliers))} with {channels} base channels, which leaves a level without "
            f"channels: choose multipliers of at least {1 / channels:g}."
        )
    return found


def resolutions(image_size: int, levels: int, attention: Sequence[int]) -> list[int]:
    """Return the side lengths in pixels at which a U-Net of so many levels works, largest first.

    Raises ConfigError when `image_size` cannot be halved so often, or when `attention` asks for a size that
    is not among them.
    """
    stride = 2 ** (levels - 1)
    if image_size % stride:
        raise ConfigError(
            f"image_size is {image_size}, but a network of {levels} levels halves pictures {levels - 1} times: "
            f"choose a multiple of {stride}, or fewer multipliers."
        )
    sizes = [image_size // 2**level for level in range(levels)]
    for size in attention:
        if size not in sizes:
            raise ConfigError(
                f"attention is asked for at {size} pixels, but this network works at "
                f"{', '.join(map(str, sizes))} pixels: name some of those (sizes, not down-sampling rates)."
            )
    return sizes
