"""The network of the Fréchet inception distance: Inception v3 as its authors released it in December 2015.

Szegedy, Vanhoucke, Ioffe, Shlens and Wojna 2016, "Rethinking the Inception architecture"; the FID (Heusel, Ramsauer,
Unterthiner, Nessler and Hochreiter 2017) is defined by this release, which differs from later ones: averages exclude what is
padded, the last block pools by the maximum, pictures are enlarged as TensorFlow 1 did, and there are 1008 classes. Modules
are named as in the file that carries the weights in PyTorch, pt_inception-2015-12-05-6726825d.pth.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

SIDE = 299
"""Height and width in pixels to which pictures are brought."""
FEATURES = 2048
"""Features of a picture."""
LAYER = "pool3"
"""Where they stand, by the release's name: the mean over the last block."""


class C(NamedTuple):
    """One convolution: its name, channels that it gives, kernel, stride."""

    name: str
    channels: int
    kernel: tuple[int, int]
    stride: int = 1


Chain = Sequence[C | str | tuple[C, ...]]
"""Steps one after the other: a convolution, a pool ("average", "maximum", "shrink"), or convolutions side by side."""


class Convolution(nn.Module):
    """Convolution without bias, batch norm with epsilon 0.001, ReLU."""

    def __init__(self, channels: int, made: C, padded: bool = True) -> None:
        """Make it from `channels`; where it is padded and has no stride, pictures keep their size."""
        super().__init__()
        height, width = made.kernel
        padding = (height // 2, width // 2) if padded and made.stride == 1 else (0, 0)
        self.conv = nn.Conv2d(channels, made.channels, made.kernel, made.stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(made.channels, eps=0.001)

    def forward(self, x: Tensor) -> Tensor:
        """NCHW float."""
        return F.relu(self.bn(self.conv(x)))


class Block(nn.Module):
    """Chains side by side, whose outputs are laid end to end."""

    def __init__(self, channels: int, chains: Sequence[Chain]) -> None:
        """Make every convolution of the chains, by its name, from a map of `channels`."""
        super().__init__()
        self._chains = chains
        self.channels = 0
        for chain in chains:
            last = channels
            for step in chain:
                if isinstance(step, str):
                    continue
                group = (step,) if isinstance(step, C) else step
                for one in group:
                    self.add_module(one.name, Convolution(last, one))
                last = sum(one.channels for one in group)
            self.channels += last

    def forward(self, x: Tensor) -> Tensor:
        """NCHW float -> N, `channels`, H, W; half the size where the block has strides."""
        return torch.cat([self._through(x, chain) for chain in self._chains], dim=1)

    def _through(self, x: Tensor, chain: Chain) -> Tensor:
        for step in chain:
            if isinstance(step, str):
                x = _pool(x, step)
            elif isinstance(step, C):
                x = self.get_submodule(step.name)(x)
            else:
                x = torch.cat([self.get_submodule(one.name)(x) for one in step], dim=1)
        return x


def _pool(x: Tensor, kind: str) -> Tensor:
    if kind == "average":
        return F.avg_pool2d(x, 3, 1, 1, count_include_pad=False)
    return F.max_pool2d(x, 3, 1, 1) if kind == "maximum" else F.max_pool2d(x, 3, 2)


def _a(pooled: int) -> list[Chain]:
    return [
        [C("branch1x1", 64, (1, 1))],
        [C("branch5x5_1", 48, (1, 1)), C("branch5x5_2", 64, (5, 5))],
        [C("branch3x3dbl_1", 64, (1, 1)), C("branch3x3dbl_2", 96, (3, 3)), C("branch3x3dbl_3", 96, (3, 3))],
        ["average", C("branch_pool", pooled, (1, 1))],
    ]


def _b() -> list[Chain]:
    double = [C("branch3x3dbl_1", 64, (1, 1)), C("branch3x3dbl_2", 96, (3, 3)), C("branch3x3dbl_3", 96, (3, 3), 2)]
    return [[C("branch3x3", 384, (3, 3), 2)], double, ["shrink"]]


def _c(inner: int) -> list[Chain]:
    across, down = (1, 7), (7, 1)
    double = [C("branch7x7dbl_1", inner, (1, 1)), C("branch7x7dbl_2", inner, down), C("branch7x7dbl_3", inner, across)]
    return [
        [C("branch1x1", 192, (1, 1))],
        [C("branch7x7_1", inner, (1, 1)), C("branch7x7_2", inner, across), C("branch7x7_3", 192, down)],
        [*double, C("branch7x7dbl_4", inner, down), C("branch7x7dbl_5", 192, across)],
        ["average", C("branch_pool", 192, (1, 1))],
    ]


def _d() -> list[Chain]:
    seven = [C("branch7x7x3_1", 192, (1, 1)), C("branch7x7x3_2", 192, (1, 7)), C("branch7x7x3_3", 192, (7, 1))]
    return [
        [C("branch3x3_1", 192, (1, 1)), C("branch3x3_2", 320, (3, 3), 2)],
        [*seven, C("branch7x7x3_4", 192, (3, 3), 2)],
        ["shrink"],
    ]


def _e(pool: str) -> list[Chain]:
    across, down = (1, 3), (3, 1)
    return [
        [C("branch1x1", 320, (1, 1))],
        [C("branch3x3_1", 384, (1, 1)), (C("branch3x3_2a", 384, across), C("branch3x3_2b", 384, down))],
        [
            C("branch3x3dbl_1", 448, (1, 1)),
            C("branch3x3dbl_2", 384, (3, 3)),
            (C("branch3x3dbl_3a", 384, across), C("branch3x3dbl_3b", 384, down)),
        ],
        [pool, C("branch_pool", 192, (1, 1))],
    ]


_STEM = (
    (C("Conv2d_1a_3x3", 32, (3, 3), 2), False),
    (C("Conv2d_2a_3x3", 32, (3, 3)), False),
    (C("Conv2d_2b_3x3", 64, (3, 3)), True),
    "shrink",
    (C("Conv2d_3b_1x1", 80, (1, 1)), False),
    (C("Conv2d_4a_3x3", 192, (3, 3)), False),
    "shrink",
)
_BLOCKS = {
    "Mixed_5b": _a(32),
    "Mixed_5c": _a(64),
    "Mixed_5d": _a(64),
    "Mixed_6a": _b(),
    "Mixed_6b": _c(128),
    "Mixed_6c": _c(160),
    "Mixed_6d": _c(160),
    "Mixed_6e": _c(192),
    "Mixed_7a": _d(),
    "Mixed_7b": _e("average"),
    "Mixed_7c": _e("maximum"),
}


class Inception(nn.Module):
    """Pictures to FEATURES numbers each; in evaluation mode, as its weights are never trained here."""

    num_features = FEATURES

    def __init__(self) -> None:
        """Make it with random weights: `load_state_dict` gives it those of the release."""
        super().__init__()
        channels = 3
        for step in _STEM:
            if not isinstance(step, str):
                self.add_module(step[0].name, Convolution(channels, *step))
                channels = step[0].channels
        for name, chains in _BLOCKS.items():
            block = Block(channels, chains)
            self.add_module(name, block)
            channels = block.channels
        assert channels == FEATURES, channels
        # Classes: in the file, and no part of the features.
        self.fc = nn.Linear(FEATURES, 1008)
        self.eval().requires_grad_(False)

    def forward(self, pictures: Tensor) -> Tensor:
        """Uint8 [N, 3, H, W], or floats of 0..255 -> float32 [N, FEATURES]."""
        x = (enlarge(pictures.float(), SIDE) - 128) / 128
        for step in _STEM:
            x = _pool(x, step) if isinstance(step, str) else self.get_submodule(step[0].name)(x)
        for name in _BLOCKS:
            x = self.get_submodule(name)(x)
        return x.mean(dim=(2, 3))


def enlarge(x: Tensor, side: int) -> Tensor:
    """Bilinear resize of NCHW floats to `side` x `side` as TensorFlow 1 has it: pixel i of n lies at i n / side, unsmoothed."""
    for axis in (2, 3):
        size = x.shape[axis]
        place = torch.arange(side, device=x.device, dtype=torch.float32) * (size / side)
        low = place.long().clamp(max=size - 1)
        part = (place - low).to(x.dtype)
        part = part[:, None] if axis == 2 else part
        below, above = x.index_select(axis, low), x.index_select(axis, (low + 1).clamp(max=size - 1))
        x = below + (above - below) * part
    return x
