"""The discriminator of pix2pix: one logit for each patch of the picture."""

from collections.abc import Sequence
from typing import Literal

from torch import Tensor, nn

from memdist.nets.blocks import biased, initialise_normal, normalisation


class PatchGAN(nn.Module):
    """Pictures [N, in_channels, H, W] to logits [N, 1, cells(H), cells(W)]; no sigmoid.

    One convolution (LeakyReLU 0.2) for each entry of `channels`, with the stride at the same place in
    `strides` (default: 2, and 1 for the last), then one convolution to a single channel. The first is not
    normalised. The first and the output have a bias, the others only where the normalisation has none; `bias`
    False leaves it to those two, as the public pix2pix does without normalisation. Strided convolutions are
    4x4; those of stride 1, the output included, are `flat_kernel` wide: 3 keeps the grid, 4 takes one cell off
    each side length.

    - The dissertation's: channels (c, 2c, 4c, 8c, 16c): 64x64 to 4x4, a cell for each 16x16 patch.
    - pix2pix's `NLayerDiscriminator(n_layers=3)`: channels (c, 2c, 4c, 8c), flat_kernel=4: 256x256 to 30x30,
      cells that see 70x70 pixels (Isola et al. 2017, arXiv 1611.07004, section 6.1.2).

    `init` is `normal` (pix2pix: N(0, 0.02^2)) or `torch`; both draw from torch's global generator.
    """

    def __init__(
        self,
        in_channels: int,
        channels: Sequence[int],
        *,
        norm: str = "batch",
        bias: bool | None = None,
        strides: Sequence[int] | None = None,
        flat_kernel: Literal[3, 4] = 3,
        init: Literal["normal", "torch"] = "normal",
    ) -> None:
        super().__init__()
        strides = (2,) * (len(channels) - 1) + (1,) if strides is None else tuple(strides)
        assert len(strides) == len(channels), f"{len(strides)} strides for {len(channels)} layers"
        bias = biased(norm) if bias is None else bias
        self.layers = nn.ModuleList()
        self.stride = 1
        before = in_channels
        for index, (width, stride) in enumerate(zip(channels, strides, strict=True)):
            kernel = flat_kernel if stride == 1 else 4
            layer: list[nn.Module] = [
                nn.Conv2d(before, width, kernel, stride=stride, padding=1, bias=index == 0 or bias)
            ]
            if index > 0:
                layer.append(normalisation(norm, width))
            layer.append(nn.LeakyReLU(0.2))
            self.layers.append(nn.Sequential(*layer))
            self.stride *= stride
            before = width
        self.output = nn.Conv2d(before, 1, flat_kernel, padding=1)
        self._flat = 3 - flat_kernel
        self._strides = strides
        if init == "normal":
            initialise_normal(self)

    def cells(self, size: int) -> int:
        """Return how many logits there are along a side of `size` pixels; below 1 the picture is too small."""
        for stride in (*self._strides, 1):
            size = size + self._flat if stride == 1 else (size - 2) // stride + 1
        return size

    def forward(self, x: Tensor) -> Tensor:
        """Judge x [N, in_channels, H, W]; returns logits [N, 1, cells(H), cells(W)]."""
        for layer in self.layers:
            x = layer(x)
        return self.output(x)
