"""The public Palette (Janspiry/Palette-Image-to-Image-Diffusion-Models): its two U-Nets and its noise table.

State dict -> settings and our state dict. What weights do not show is assumed as the public configurations have it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from memdist.diffusion import schedule
from memdist.errors import CheckpointError, ConfigError
from memdist.exchange import read
from memdist.nets.palette_unet import GuidedUNet
from memdist.nets.sr3_unet import SR3UNet

PREFIXES = ("module.", "_orig_mod.", "netG.", "denoise_fn.")
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
    (r"^encoder\.(\d+)\.0\.(?=weight|bias)", lambda m: f"input_blocks.{int(m[1]) + 1}.0.op."),
    (r"^encoder\.(\d+)\.", lambda m: f"input_blocks.{int(m[1]) + 1}."),
    (r"^middle\.", "middle_block."),
    (r"^decoder\.(\d+)\.(\d)\.1\.(?=weight|bias)", r"output_blocks.\1.\2.conv."),
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


class Layout(NamedTuple):
    """What names and shapes tell of one of the two networks."""

    guided: bool
    """The network of guided diffusion; else that of SR3."""
    inside: int
    """Input channels: the picture's and the map's."""
    outside: int
    channels: int
    multipliers: list[float]
    blocks: int
    attends: list[int]
    """Levels that attend, from 0."""
    scale_shift: bool = True
    resample: Literal["block", "conv", "pool"] = "block"

    @property
    def net(self) -> str:
        """As the setting `model.net` names it."""
        return "guided" if self.guided else "sr3"


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
        layout = _guided(state)
    elif "noise_level_mlp.1.weight" in state:
        layout = _sr3(state)
    else:
        raise CheckpointError(
            "holds neither of Palette's U-Nets: it has neither cond_embed.0.weight (guided) nor noise_level_mlp.1.weight "
            f"(sr3), but {', '.join(sorted(state)[:3])}"
        )
    halvings = len(layout.multipliers) - 1
    if size % 2**halvings:
        raise ConfigError(
            f"data.size = {size} cannot be: these weights halve pictures {halvings} times; give a multiple of {2**halvings}"
        )
    net = denoiser(layout)
    shapes = {name: value.shape for name, value in net.state_dict().items()}
    weights = read.match(
        state, shapes, {name: foreign_name(layout.guided, name) for name in shapes}, f"{layout.net} U-Net"
    )
    derived = {
        "model.name": "palette",
        "model.net": layout.net,
        "model.channels": layout.channels,
        "model.multipliers": layout.multipliers,
        "model.blocks": layout.blocks,
        "model.attention": [size // 2**level for level in layout.attends],
        "data.image_channels": layout.inside - layout.outside,
        "data.map_channels": layout.outside,
    }
    assumed: dict[str, Any] = {"data.size": size, "model.dropout": 0.2 if layout.guided else 0.0}
    if layout.guided:
        derived |= {"model.scale_shift": layout.scale_shift, "model.resample": layout.resample}
    assumed["model.head_channels" if layout.guided else "model.norm_groups"] = 32
    return read.Converted(derived, assumed, weights)


def denoiser(layout: Layout) -> nn.Module:
    """Our network of such a layout without storage: only its names and shapes are asked for."""
    size = 2 ** (len(layout.multipliers) - 1)
    common: dict[str, Any] = {
        "image_size": size,
        "channels": layout.channels,
        "multipliers": layout.multipliers,
        "blocks": layout.blocks,
        "attention": [size // 2**level for level in layout.attends],
    }
    with torch.device("meta"):
        # Neither heads nor groups change a shape.
        if not layout.guided:
            return SR3UNet(layout.inside, layout.outside, norm_groups=1, **common)
        common |= {"scale_shift": layout.scale_shift, "resample": layout.resample}
        return GuidedUNet(layout.inside, layout.outside, heads=1, **common)


def foreign_name(guided: bool, name: str) -> str:
    """What the public code calls one of our tensors."""
    for pattern, replacement in _GUIDED if guided else _SR3:
        name = re.sub(pattern, replacement, name)
    return name


def noise_schedule(tables: Mapping[str, Tensor]) -> dict[str, Any]:
    """Settings of the trained noise table: linear_beta, quad_beta or cosine_beta; raises CheckpointError for another.

    The two ends are fitted to the table's differences, and then taken with as few digits as give the same table in
    float32.
    """
    gammas = tables["gammas"].double()
    steps = len(gammas) if gammas.ndim == 1 else 0
    if steps >= 3 and bool((gammas > 0).all()) and bool((gammas < 1).all()):
        found: dict[str, Any] = {"model.schedule.steps": steps}
        if _same(schedule.cosine_beta(steps), gammas):
            return {"model.schedule.name": "cosine_beta", **found}
        for name, table, power in (("linear_beta", schedule.linear_beta, 1), ("quad_beta", schedule.quad_beta, 2)):
            for start, end in _candidates(gammas, power):
                if 0 < start < end < 1 and _same(table(steps, start, end), gammas):
                    ends = {"model.schedule.start": start, "model.schedule.end": end}
                    return {"model.schedule.name": name, **found, **ends}
    raise CheckpointError(
        f"has a noise table of {steps} levels that is none of linear, quad or cosine variances: say which it is nearest to, for "
        "example model.schedule.name=cosine model.schedule.steps=2000"
    )


def _same(table: Tensor, gammas: Tensor) -> bool:
    return torch.allclose(table.float(), gammas.float(), rtol=3e-7, atol=0)


def _candidates(gammas: Tensor, power: int) -> list[tuple[float, float]]:
    """Ends of variances whose `power`-th roots grow linearly, with more and more digits."""
    steps = len(gammas)
    kept = gammas / torch.cat((torch.ones(1, dtype=torch.float64), gammas[:-1]))
    place = torch.linspace(0, 1, steps, dtype=torch.float64)
    both = torch.stack((1 - place, place), dim=1)
    roots = torch.linalg.lstsq(both, (1 - kept).clamp_min(0)[:, None] ** (1 / power)).solution.flatten()
    for _ in range(20):  # Gauss-Newton on log gamma, where errors of rounding do not add up
        root = both @ roots
        beta = root**power
        if not bool(((beta > 0) & (beta < 1)).all()):
            break
        slope = torch.cumsum(-power * root[:, None] ** (power - 1) * both / (1 - beta)[:, None], dim=0)
        missing = (gammas.log() - torch.log1p(-beta).cumsum(0))[:, None]
        roots = roots + torch.linalg.lstsq(slope, missing).solution.flatten()
    start, end = (roots**power).tolist()
    rounded = [(float(f"{start:.{d}g}"), float(f"{end:.{d}g}")) for d in range(1, 8)]
    return [*rounded, (start, end)]


def _guided(state: Mapping[str, Tensor]) -> Layout:
    """Layout of the network of guided diffusion."""
    channels = read.width(state, "cond_embed.0.weight", 1)
    encoder = {int(key.split(".")[1]) for key in state if re.match(r"input_blocks\.\d+\.", key)}
    entries = _count(state, "output_blocks")
    # What halves by pooling has no weights, and so leaves a gap in the numbers. Of residual blocks only the last entry of a
    # level that is not the top one ends in a second one, which doubles the picture.
    pools = set(range(max(encoder, default=0) + 1)) - encoder
    convolutions = {key for key in state if re.match(r"input_blocks\.\d+\.0\.op\.weight$", key)}
    ups = {m[1] for k in state if (m := re.match(r"output_blocks\.(\d+)\.[12]\.in_layers\.2\.weight$", k))}
    resample: Literal["block", "conv", "pool"] = "conv" if convolutions else "pool" if pools else "block"
    levels = 1 + {"block": len(ups), "conv": len(convolutions), "pool": len(pools)}[resample]
    blocks = entries // levels - 1
    if blocks < 1 or entries % levels:
        raise CheckpointError(f"has {entries} decoder entries for {levels} levels, which is no guided U-Net")
    first = [1 + level * (blocks + 1) for level in range(levels)]
    widths = [read.width(state, f"input_blocks.{entry}.0.in_layers.2.weight", 0) for entry in first]
    attends = [level for level, entry in enumerate(first) if f"input_blocks.{entry}.1.qkv.weight" in state]
    inside = read.width(state, "input_blocks.0.0.weight", 1)
    outside = read.width(state, "out.2.weight", 0)
    scale_shift = read.width(state, "input_blocks.1.0.emb_layers.1.weight", 0) != widths[0]
    multipliers = _multipliers(widths, channels)
    return Layout(True, inside, outside, channels, multipliers, blocks, attends, scale_shift, resample)


def _sr3(state: Mapping[str, Tensor]) -> Layout:
    """Layout of the network of SR3."""
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
    return Layout(False, inside, outside, channels, _multipliers(widths, channels), blocks, attends)


def _multipliers(widths: Sequence[int], base: int) -> list[float]:
    """Widths in units of the base: the roundest numbers that give them again when cut to whole channels."""

    def of(width: int) -> float:
        if width % base == 0:
            return width // base
        rounded = [float(f"{width / base:.{digits}g}") for digits in range(2, 17)]
        # Half a channel more can be cut, whatever is lost in rounding.
        return next(m for m in (*rounded, (width + 0.5) / base) if int(base * m) == width)

    return [of(width) for width in widths]


def _count(state: Mapping[str, Tensor], name: str) -> int:
    """How many entries a list of modules has."""
    return len({key.split(".")[1] for key in state if key.startswith(name + ".")})
