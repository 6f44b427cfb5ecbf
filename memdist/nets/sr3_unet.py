"""The U-Net of SR3, Palette's older network: plain residual blocks, the noise level added to their features."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from memdist.errors import ConfigError
from memdist.nets.attention import SelfAttention
from memdist.nets.blocks import resolutions, waves, widths, zeroed


class SR3Block(nn.Module):
    """[N, in_channels, H, W] and the embedded level [N, embedding] to [N, out_channels, H, W].

    The level is added to the features between the two convolutions. Dropout stands before the second. With
    `attends`, self-attention follows.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        embedding: int,
        *,
        groups: int,
        dropout: float = 0.0,
        attends: bool = False,
    ) -> None:
        super().__init__()
        self.norm_in = nn.GroupNorm(groups, in_channels)
        self.conv_in = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.shift = nn.Linear(embedding, out_channels)
        self.norm_out = nn.GroupNorm(groups, out_channels)
        self.dropout = nn.Dropout(dropout)
        self.conv_out = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.skip = nn.Identity() if in_channels == out_channels else nn.Conv2d(in_channels, out_channels, 1)
        self.attention = (
            SelfAttention(out_channels, groups=groups, bias=False, zero=False) if attends else nn.Identity()
        )

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        """Apply the block to x [N, C, H, W], given the embedded level [N, E]."""
        h = self.conv_in(F.silu(self.norm_in(x))) + self.shift(embedding)[:, :, None, None]
        h = self.conv_out(self.dropout(F.silu(self.norm_out(h))))
        return self.attention(self.skip(x) + h)


class SR3UNet(nn.Module):
    """Noisy map and picture [N, in_channels, H, W] with levels [N] to a prediction [N, out_channels, H, W].

    The network of SR3 (Saharia et al. 2021, arXiv 2104.07636): the same function of the same weights as the
    public Janspiry implementation with noise-level embedding.

    `channels` is the base width and `multipliers` the widths of the levels in units of it, from the full
    picture down; each level has `blocks` residual blocks on the way down and one more on the way up.
    `attention` lists the side lengths in pixels, for pictures of `image_size`, of the levels that attend (one
    head); the middle always does. `norm_groups`, the groups of every group norm, divides `channels`.

    The output layer starts at zero, so that an untrained net predicts zero; the rest has torch's own
    initialisation. H and W are multiples of `stride`. Raises ConfigError for an `image_size`, an `attention`
    or a `norm_groups` that does not fit.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        image_size: int,
        channels: int = 64,
        multipliers: Sequence[float] = (1, 2, 4, 8, 8),
        blocks: int = 2,
        attention: Sequence[int] = (8,),
        norm_groups: int = 32,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if channels % norm_groups:
            raise ConfigError(
                f"norm_groups is {norm_groups}, which does not divide the base width of {channels} channels: "
                f"choose a divisor of {channels}."
            )
        sizes = resolutions(image_size, len(multipliers), attention)
        levels = list(enumerate(zip(widths(channels, multipliers), sizes, strict=True)))
        self.stride = 2 ** (len(multipliers) - 1)
        self.channels = channels
        self.embed = nn.Sequential(
            nn.Linear(2 * (channels // 2), 4 * channels), nn.SiLU(), nn.Linear(4 * channels, channels)
        )

        def block(before: int, after: int, attends: bool) -> SR3Block:
            return SR3Block(before, after, channels, groups=norm_groups, dropout=dropout, attends=attends)

        width = channels
        self.stem = nn.Conv2d(in_channels, width, 3, padding=1)
        skips = [width]

        # Blocks and the convolutions between levels stand in one list; each gives a skip connection.
        self.encoder = nn.ModuleList()
        for index, (wide, size) in levels:
            for _ in range(blocks):
                self.encoder.append(block(width, wide, size in attention))
                width = wide
                skips.append(width)
            if index < len(multipliers) - 1:
                self.encoder.append(nn.Conv2d(width, width, 3, stride=2, padding=1))
                skips.append(width)

        self.middle = nn.ModuleList([block(width, width, True), block(width, width, False)])

        self.decoder = nn.ModuleList()
        for index, (wide, size) in reversed(levels):
            for _ in range(blocks + 1):
                self.decoder.append(block(width + skips.pop(), wide, size in attention))
                width = wide
            if index > 0:
                self.decoder.append(
                    nn.Sequential(nn.Upsample(scale_factor=2, mode="nearest"), nn.Conv2d(width, width, 3, padding=1))
                )

        self.norm = nn.GroupNorm(norm_groups, width)
        self.output = zeroed(nn.Conv2d(width, out_channels, 3, padding=1))

    def forward(self, x: Tensor, level: Tensor) -> Tensor:
        """Predict from x [N, in_channels, H, W] at noise levels gamma (alpha-bar) [N] in [0, 1]."""
        cosines, sines = waves(level, self.channels // 2)
        embedding = self.embed(torch.cat((sines, cosines), dim=1))
        x = self.stem(x)
        skips = [x]
        for layer in self.encoder:
            x = layer(x, embedding) if isinstance(layer, SR3Block) else layer(x)
            skips.append(x)
        for layer in self.middle:
            x = layer(x, embedding)
        for layer in self.decoder:
            if isinstance(layer, SR3Block):
                x = layer(torch.cat((x, skips.pop()), dim=1), embedding)
            else:
                x = layer(x)
        return self.output(F.silu(self.norm(x)))
