"""The U-Net of pix2pix: an autoencoder with skip connections, fully convolutional."""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from memdist.nets.blocks import biased, initialise_normal, normalisation, zeroed

PRIOR_LIMIT = 0.999
"""Prior maps are clamped to this absolute value, since tanh reaches 1 only at infinity."""

DROPPED = (0, 1, 2)
"""Decoder levels with dropout, from the deepest (pix2pix, section 6.1.1: CD512-CD512-CD512)."""


class UNet(nn.Module):
    """Picture [N, in_channels, H, W] to map [N, out_channels, H, W]; H and W are multiples of `stride`.

    The encoder halves the picture once for each entry of `channels` (4x4 convolutions, LeakyReLU 0.2), the
    decoder doubles it back (4x4 transposed convolutions, ReLU); each decoder level sees its encoder level as
    well. Channels (c, 2c, 4c, 8c, 16c) are the dissertation's autoencoder; (g, 2g, 4g, 8g, 8g, 8g) is
    pix2pix's `UnetGenerator` with num_downs=6, ngf=g, the same function of the same weights (Isola et al.
    2017, arXiv 1611.07004, section 6.1.1). Neither the first nor the deepest convolution nor the output is
    normalised. Convolutions have a bias only where the normalisation has none, the output layer always;
    `bias` False leaves it to the output layer alone, as the public pix2pix does without normalisation.

    `dropout` is the probability in the decoder levels `dropout_levels`, counted from the deepest, 0 (never in
    the last one; the public pix2pix has it in 1 .. depth - 5). `final` is the output's activation. `init` is
    `normal` (pix2pix: N(0, 0.02^2)) or `torch` (torch's own); both draw from torch's global generator.

    `prior`, float [out_channels, H, W] in [-1, 1], is a map to start from, say the training split's mean: the
    output is tanh(logits + atanh(prior)), with the output layer at zero in the beginning, so that an
    untrained net predicts the prior itself (clamped to +-0.999). It is kept in the state dict, and a net that
    has one takes pictures of that size only.
    """

    prior_logits: Tensor | None

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        channels: Sequence[int],
        *,
        norm: str = "batch",
        final: Literal["tanh", "none"] = "tanh",
        bias: bool | None = None,
        dropout: float = 0.0,
        dropout_levels: Sequence[int] = DROPPED,
        prior: Tensor | None = None,
        init: Literal["normal", "torch"] = "normal",
    ) -> None:
        super().__init__()
        assert prior is None or final == "tanh", "a prior is a logit of tanh"
        depth = len(channels)
        bias = biased(norm) if bias is None else bias

        self.encoder = nn.ModuleList()
        for index, width in enumerate(channels):
            before = channels[index - 1] if index else in_channels
            level: list[nn.Module] = [nn.LeakyReLU(0.2)] if index else []
            level.append(nn.Conv2d(before, width, 4, stride=2, padding=1, bias=bias))
            if 0 < index < depth - 1:
                level.append(normalisation(norm, width))
            self.encoder.append(nn.Sequential(*level))

        self.decoder = nn.ModuleList()
        for index in range(depth - 1, 0, -1):
            before = channels[index] if index == depth - 1 else 2 * channels[index]
            width = channels[index - 1]
            level = [
                nn.ReLU(),
                nn.ConvTranspose2d(before, width, 4, stride=2, padding=1, bias=bias),
                normalisation(norm, width),
            ]
            if dropout > 0 and depth - 1 - index in dropout_levels:
                level.append(nn.Dropout(dropout))
            self.decoder.append(nn.Sequential(*level))

        before = channels[0] if depth == 1 else 2 * channels[0]
        self.activation = nn.ReLU()
        self.output = nn.ConvTranspose2d(before, out_channels, 4, stride=2, padding=1)
        self.final = nn.Tanh() if final == "tanh" else nn.Identity()
        self.stride = 2**depth

        if init == "normal":
            initialise_normal(self)
        logits = None
        if prior is not None:
            zeroed(self.output)
            logits = prior.double().clamp(-PRIOR_LIMIT, PRIOR_LIMIT).atanh().float()
        self.register_buffer("prior_logits", logits)

    def forward(self, x: Tensor) -> Tensor:
        """Map pictures [N, in_channels, H, W] to [N, out_channels, H, W], in (-1, 1) after tanh."""
        skips: list[Tensor] = []
        for level in self.encoder:
            x = level(x)
            skips.append(x)
        x = skips.pop()
        for level in self.decoder:
            x = torch.cat((skips.pop(), level(x)), dim=1)
        logits = self.output(self.activation(x))
        if self.prior_logits is not None:
            logits = logits + self.prior_logits
        return self.final(logits)
