"""The U-Net of guided diffusion as Palette uses it: the noise level in every block, attention at chosen sizes."""

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from memdist.errors import ConfigError
from memdist.nets.attention import SelfAttention
from memdist.nets.blocks import normalisation, resolutions, waves, widths, zeroed


class ResidualBlock(nn.Module):
    """[N, in_channels, H, W] and the embedded noise level [N, embedding] to [N, out_channels, H', W'].

    The level scales and shifts the features after the second normalisation or, without `scale_shift`, is added
    to them before it. With `resample` the block halves (mean of 2x2) or doubles (nearest) the picture on both
    its branches (Dhariwal & Nichol 2021, arXiv 2105.05233, section 3). The second convolution starts at zero, so
    that the block starts as its skip connection.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        embedding: int,
        *,
        dropout: float = 0.0,
        scale_shift: bool = True,
        resample: Literal["none", "up", "down"] = "none",
    ) -> None:
        super().__init__()
        self.resample = resample
        self.scale_shift = scale_shift
        self.norm_in = normalisation("group", in_channels)
        self.conv_in = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.modulation = nn.Linear(embedding, (1 + scale_shift) * out_channels)
        self.norm_out = normalisation("group", out_channels)
        self.dropout = nn.Dropout(dropout)
        self.conv_out = zeroed(nn.Conv2d(out_channels, out_channels, 3, padding=1))
        self.skip = nn.Identity() if in_channels == out_channels else nn.Conv2d(in_channels, out_channels, 1)

    def _resampled(self, x: Tensor) -> Tensor:
        if self.resample == "up":
            return F.interpolate(x, scale_factor=2, mode="nearest")
        return F.avg_pool2d(x, 2) if self.resample == "down" else x

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        """Apply the block to x [N, C, H, W], given the embedded level [N, E]."""
        h = self.conv_in(self._resampled(F.silu(self.norm_in(x))))
        level = self.modulation(F.silu(embedding))[:, :, None, None]
        if self.scale_shift:
            scale, shift = level.chunk(2, dim=1)
            h = self.norm_out(h) * (1 + scale) + shift
        else:
            h = self.norm_out(h + level)
        return self.skip(self._resampled(x)) + self.conv_out(self.dropout(F.silu(h)))


class Chain(nn.Sequential):
    """Layers in a row, of which residual blocks get the noise level as well."""

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:  # type: ignore[override]
        """Apply the layers one after the other."""
        for layer in self:
            x = layer(x, embedding) if isinstance(layer, ResidualBlock) else layer(x)
        return x


class GuidedUNet(nn.Module):
    """Noisy map and picture [N, in_channels, H, W] with levels [N] to a prediction [N, out_channels, H, W].

    The guided-diffusion network with Palette's conditioning (Dhariwal & Nichol 2021, arXiv 2105.05233;
    Saharia et al. 2021, arXiv 2111.05826): the same function of the same weights as the public Janspiry
    implementation.

    `channels` is the base width and `multipliers` the widths of the levels in units of it, which need not be
    whole, from the full picture down; each level has `blocks` residual blocks on the way down and one more on the way up.
    `attention` lists the side lengths IN PIXELS, for pictures of `image_size`, of the levels that attend (the
    public code takes down-sampling rates here: its 2 at 32 pixels is 16); the middle of the network always
    does. A head has `head_channels` channels; with `heads` each attention has that many heads instead, however
    wide it is. Between levels the picture is halved and doubled by residual blocks, by strided and by upsampled
    3x3 convolutions, or by mean and repetition alone (`resample` block, conv or pool: the public
    resblock_updown, conv_resample and neither); `scale_shift` is the blocks' own (use_scale_shift_norm).

    The second convolution of every block, the projection of every attention and the output layer start at
    zero and nothing initialises them again (the public code does, with kaiming weights), so that an untrained
    net predicts zero. Group norms have 32 groups, or the largest divisor of a width below. H and W are
    multiples of `stride`. Raises ConfigError for an `image_size`, an `attention` or a `head_channels` that
    does not fit.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        image_size: int,
        channels: int = 64,
        multipliers: Sequence[float] = (1, 2, 4, 8),
        blocks: int = 2,
        attention: Sequence[int] = (16,),
        head_channels: int = 32,
        heads: int | None = None,
        dropout: float = 0.0,
        scale_shift: bool = True,
        resample: Literal["block", "conv", "pool"] = "block",
    ) -> None:
        super().__init__()
        sizes = resolutions(image_size, len(multipliers), attention)
        levels = list(enumerate(zip(widths(channels, multipliers), sizes, strict=True)))
        self.stride = 2 ** (len(multipliers) - 1)
        self.channels = channels
        embedding = 4 * channels
        self.embed = nn.Sequential(
            nn.Linear(2 * (channels // 2), embedding), nn.SiLU(), nn.Linear(embedding, embedding)
        )

        def attend(width: int) -> SelfAttention:
            if heads is not None:
                if width % heads:
                    raise ConfigError(
                        f"heads is {heads}, which does not divide the {width} channels of a level that attends: choose a "
                        f"divisor of {width}."
                    )
                return SelfAttention(width, heads=heads)
            if width % head_channels:
                raise ConfigError(
                    f"head_channels is {head_channels}, which does not divide the {width} channels of a level "
                    f"that attends: choose a divisor of {width}."
                )
            return SelfAttention(width, heads=width // head_channels)

        def block(before: int, after: int, way: Literal["none", "up", "down"] = "none") -> ResidualBlock:
            return ResidualBlock(before, after, embedding, dropout=dropout, scale_shift=scale_shift, resample=way)

        def halved(width: int) -> nn.Module:
            if resample == "block":
                return block(width, width, "down")
            return nn.AvgPool2d(2) if resample == "pool" else nn.Conv2d(width, width, 3, stride=2, padding=1)

        def doubled(width: int) -> nn.Module:
            if resample == "block":
                return block(width, width, "up")
            larger = nn.Upsample(scale_factor=2, mode="nearest")
            return larger if resample == "pool" else nn.Sequential(larger, nn.Conv2d(width, width, 3, padding=1))

        width = levels[0][1][0]
        self.stem = nn.Conv2d(in_channels, width, 3, padding=1)
        skips = [width]

        self.encoder = nn.ModuleList()
        for index, (wide, size) in levels:
            for _ in range(blocks):
                chain = Chain(block(width, wide))
                width = wide
                if size in attention:
                    chain.append(attend(width))
                self.encoder.append(chain)
                skips.append(width)
            if index < len(multipliers) - 1:
                self.encoder.append(Chain(halved(width)))
                skips.append(width)

        self.middle = Chain(block(width, width), attend(width), block(width, width))

        self.decoder = nn.ModuleList()
        for index, (wide, size) in reversed(levels):
            for number in range(blocks + 1):
                chain = Chain(block(width + skips.pop(), wide))
                width = wide
                if size in attention:
                    chain.append(attend(width))
                if index > 0 and number == blocks:
                    chain.append(doubled(width))
                self.decoder.append(chain)

        self.norm = normalisation("group", width)
        self.output = zeroed(nn.Conv2d(width, out_channels, 3, padding=1))

    def forward(self, x: Tensor, level: Tensor) -> Tensor:
        """Predict from x [N, in_channels, H, W] at noise levels gamma (alpha-bar) [N] in [0, 1]."""
        embedding = self.embed(torch.cat(waves(level, self.channels // 2), dim=1))
        x = self.stem(x)
        skips = [x]
        for chain in self.encoder:
            x = chain(x, embedding)
            skips.append(x)
        x = self.middle(x, embedding)
        for chain in self.decoder:
            x = chain(torch.cat((x, skips.pop()), dim=1), embedding)
        return self.output(F.silu(self.norm(x)))
