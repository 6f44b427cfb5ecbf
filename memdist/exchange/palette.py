"""The public Palette (Janspiry/Palette-Image-to-Image-Diffusion-Models): its two U-Nets and its noise table.

State dict -> settings and our state dict. What weights do not show is assumed as the public configurations have it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from memdist.diffusion import schedule
from memdist.errors import CheckpointError
from memdist.exchange import read
from memdist.nets.palette_unet import GuidedUNet
from memdist.nets.sr3_unet import SR3UNet

PREFIXES = ("module.", "netG.", "denoise_fn.")
EMA_DECAY = 0.9999
"""Of the public configurations' ema_scheduler."""

_BUFFERS = (
    "gammas",
    "sqrt_recip_gammas",
    "sqrt_recipm1_gammas",
    "posterior_log_variance_clipped",
    "posterior_mean_coef1",
    "posterior_mean_coef2",
)

# Ours -> theirs, in order; each is tried on the whole name.
_GUIDED = (
    (r"^embed\.", "cond_embed."),
    (r"^stem\.", "input_blocks.0.0."),
    (r"^encoder\.(\d+)\.", lambda m: f"input_blocks.{int(m[1]) + 1}."),
    (r"^middle\.", "middle_block."),
    (r"^decoder\.", "output_blocks."),
    (r"^norm\.", "out.0."),
    (r"^output\.", "out.2."),
    (r"\.norm_in\.", ".in_layers.0."),
    (r"\.conv_in\.", ".in_layers.2."),
    (r"\.modulation\.", ".emb_layers.1."),
    (r"\.norm_out\.", ".out_layers.0."),
    (r"\.conv_out\.", ".out_layers.3."),
    (r"\.skip\.", ".skip_connection."),
    (r"\.project\.", ".proj_out."),
)
_SR3 = (
    (r"^embed\.(\d+)\.", lambda m: f"noise_level_mlp.{int(m[1]) + 1}."),
    (r"^stem\.", "downs.0."),
    (r"^encoder\.(\d+)\.(?=weight|bias)", lambda m: f"downs.{int(m[1]) + 1}.conv."),
    (r"^encoder\.(\d+)\.", lambda m: f"downs.{int(m[1]) + 1}."),
    (r"^middle\.", "mid."),
    (r"^decoder\.(\d+)\.1\.", r"ups.\1.conv."),
    (r"^decoder\.", "ups."),
    (r"^norm\.", "final_conv.block.0."),
    (r"^output\.", "final_conv.block.3."),
    (r"\.norm_in\.", ".res_block.block1.block.0."),
    (r"\.conv_in\.", ".res_block.block1.block.3."),
    (r"\.shift\.", ".res_block.noise_func.noise_func.0."),
    (r"\.norm_out\.", ".res_block.block2.block.0."),
    (r"\.conv_out\.", ".res_block.block2.block.3."),
    (r"\.skip\.", ".res_block.res_conv."),
    (r"\.attention\.project\.", ".attn.out."),
    (r"\.attention\.", ".attn."),
)


def default_size(state: Mapping[str, Tensor]) -> int:
    """Side of the pictures in pixels that the public code takes unless told otherwise: 256, or 128 for SR3's network."""
    return 256 if "cond_embed.0.weight" in state else 128


def clean(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Weights and noise tables of a state dict, without prefixes."""
    whole = read.stripped(state, PREFIXES)
    return {k: v for k, v in whole.items() if k not in _BUFFERS}, {k: v for k, v in whole.items() if k in _BUFFERS}


def convert(state: Mapping[str, Tensor], size: int) -> read.Converted:
    """Settings and weights of a cleaned state dict, for pictures of `size` pixels.

    Attention stands in the settings by side length: which levels attend is seen, their size follows from `size`. Raises
    CheckpointError for what is no U-Net of the public code.
    """
    if "cond_embed.0.weight" in state:
        guided, layout = True, _guided(state)
    elif "noise_level_mlp.1.weight" in state:
        guided, layout = False, _sr3(state)
    else:
        raise CheckpointError(
            "holds neither of Palette's U-Nets: it has neither cond_embed.0.weight (guided) nor noise_level_mlp.1.weight "
            f"(sr3), but {', '.join(sorted(state)[:3])}"
        )
    inside, outside, channels, multipliers, blocks, attends = layout
    net = denoiser(guided, inside, outside, channels, multipliers, blocks, attends)
    shapes = {name: value.shape for name, value in net.state_dict().items()}
    what = f"{'guided' if guided else 'sr3'} U-Net"
    weights = read.match(state, shapes, {name: foreign_name(guided, name) for name in shapes}, what)
    derived = {
        "model.name": "palette",
        "model.net": "guided" if guided else "sr3",
        "model.channels": channels,
        "model.multipliers": multipliers,
        "model.blocks": blocks,
        "model.attention": [size // 2**level for level in attends],
        "data.image_channels": inside - outside,
        "data.map_channels": outside,
    }
    assumed: dict[str, Any] = {"data.size": size, "model.dropout": 0.2 if guided else 0.0}
    assumed["model.head_channels" if guided else "model.norm_groups"] = 32
    return read.Converted(derived, assumed, weights)


def denoiser(
    guided: bool, inside: int, outside: int, channels: int, multipliers: list[int], blocks: int, attends: list[int]
) -> nn.Module:
    """Our network of such a layout without storage: only its names and shapes are asked for."""
    size = 2 ** (len(multipliers) - 1)
    common: dict[str, Any] = {
        "image_size": size,
        "channels": channels,
        "multipliers": multipliers,
        "blocks": blocks,
        "attention": [size // 2**level for level in attends],
    }
    with torch.device("meta"):
        # Neither heads nor groups change a shape.
        if guided:
            return GuidedUNet(inside, outside, heads=1, **common)
        return SR3UNet(inside, outside, norm_groups=1, **common)


def foreign_name(guided: bool, name: str) -> str:
    """What the public code calls one of our tensors."""
    for pattern, replacement in _GUIDED if guided else _SR3:
        name = re.sub(pattern, replacement, name)
    return name


def noise_schedule(tables: Mapping[str, Tensor]) -> dict[str, Any]:
    """Settings of the trained noise table; raises CheckpointError when it is not one of linearly growing variances.

    The two ends are fitted to the table's differences, and then taken with as few digits as give the same table in
    float32.
    """
    gammas = tables["gammas"].double()
    steps = len(gammas) if gammas.ndim == 1 else 0
    if steps >= 3 and bool((gammas > 0).all()) and bool((gammas < 1).all()):
        for start, end in _candidates(gammas):
            fits = 0 < start < end < 1
            if fits and torch.allclose(
                schedule.linear_beta(steps, start, end).float(), gammas.float(), rtol=3e-7, atol=0
            ):
                return {
                    "model.schedule.name": "linear_beta",
                    "model.schedule.steps": steps,
                    "model.schedule.start": start,
                    "model.schedule.end": end,
                }
    raise CheckpointError(
        f"has a noise table of {steps} levels that is not one of linearly growing variances: say which it is, for example "
        "model.schedule.name=cosine model.schedule.steps=2000"
    )


def _candidates(gammas: Tensor) -> list[tuple[float, float]]:
    steps = len(gammas)
    kept = gammas / torch.cat((torch.ones(1, dtype=torch.float64), gammas[:-1]))
    place = torch.linspace(0, 1, steps, dtype=torch.float64)
    both = torch.stack((1 - place, place), dim=1)
    ends = torch.linalg.lstsq(both, (1 - kept)[:, None]).solution.flatten()
    for _ in range(20):  # Gauss-Newton on log gamma, where errors of rounding do not add up
        beta = both @ ends
        if not bool(((beta > 0) & (beta < 1)).all()):
            break
        slope = torch.cumsum(-both / (1 - beta)[:, None], dim=0)
        ends = (
            ends + torch.linalg.lstsq(slope, (gammas.log() - torch.log1p(-beta).cumsum(0))[:, None]).solution.flatten()
        )
    start, end = ends.tolist()
    rounded = [(float(f"{start:.{d}g}"), float(f"{end:.{d}g}")) for d in range(1, 8)]
    return [*rounded, (start, end)]


def _guided(state: Mapping[str, Tensor]) -> tuple[int, int, int, list[int], int, list[int]]:
    """Input and output channels, base width, multipliers, blocks a level, and the levels that attend."""
    plain = [key for key in state if re.match(r"input_blocks\.\d+\.0\.op\.|output_blocks\.\d+\.\d\.conv\.", key)]
    if plain:
        raise CheckpointError(
            f"resamples by plain convolutions ({plain[0]}, resblock_updown=false), which is not known here: only residual "
            "blocks that resample are, as in the public configurations"
        )
    channels = read.width(state, "cond_embed.0.weight", 1)
    entries = _count(state, "output_blocks")
    # Only the last entry of a level that is not the top one ends in a second residual block, which doubles the picture.
    ups = {m[1] for k in state if (m := re.match(r"output_blocks\.(\d+)\.[12]\.in_layers\.2\.weight$", k))}
    levels = len(ups) + 1
    blocks = entries // levels - 1
    if blocks < 1 or entries % levels:
        raise CheckpointError(f"has {entries} decoder entries for {levels} levels, which is no guided U-Net")
    first = [1 + level * (blocks + 1) for level in range(levels)]
    widths = [read.width(state, f"input_blocks.{entry}.0.in_layers.2.weight", 0) for entry in first]
    attends = [level for level, entry in enumerate(first) if f"input_blocks.{entry}.1.qkv.weight" in state]
    inside = read.width(state, "input_blocks.0.0.weight", 1)
    outside = read.width(state, "out.2.weight", 0)
    return inside, outside, channels, read.multiples(widths, channels), blocks, attends


def _sr3(state: Mapping[str, Tensor]) -> tuple[int, int, int, list[int], int, list[int]]:
    """The same of the network of SR3."""
    channels = read.width(state, "noise_level_mlp.1.weight", 1)
    entries = _count(state, "downs")
    levels = 1 + sum(f"downs.{entry}.conv.weight" in state for entry in range(1, entries))
    blocks = (entries - levels) // levels
    if blocks < 1 or (entries - levels) % levels:
        raise CheckpointError(f"has {entries} encoder entries for {levels} levels, which is no sr3 U-Net")
    first = [1 + level * (blocks + 1) for level in range(levels)]
    widths = [read.width(state, f"downs.{entry}.res_block.block1.block.3.weight", 0) for entry in first]
    attends = [level for level, entry in enumerate(first) if f"downs.{entry}.attn.qkv.weight" in state]
    inside = read.width(state, "downs.0.weight", 1)
    outside = read.width(state, "final_conv.block.3.weight", 0)
    return inside, outside, channels, read.multiples(widths, channels), blocks, attends


def _count(state: Mapping[str, Tensor], name: str) -> int:
    """How many entries a list of modules has."""
    return len({key.split(".")[1] for key in state if key.startswith(name + ".")})
