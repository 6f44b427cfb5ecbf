"""The public pix2pix (junyanz/pytorch-CycleGAN-and-pix2pix, and its relatives): U-Net generator, PatchGAN.

State dict -> settings and our state dict. What weights do not show is assumed as the public options have it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from memdist.errors import CheckpointError
from memdist.exchange import read
from memdist.nets.patchgan import PatchGAN
from memdist.nets.unet import UNet

PREFIXES = ("module.", "_orig_mod.", "netG.", "netD.", "generator.", "discriminator.")
ASSUMED = {"model.loss": "vanilla", "model.l1_weight": 100.0, "model.adversarial_weight": 1.0}
"""Of `--model pix2pix`: gan_mode vanilla, lambda_L1 100."""


def split(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Generator and discriminator of a file that may hold both; the discriminator is empty where there is none."""
    belongs = ("discriminator.", "netD.")
    bare = read.stripped(state, ("module.",))
    discriminator = {k: v for k, v in bare.items() if k.startswith(belongs)}
    generator = {k: v for k, v in bare.items() if k not in discriminator}
    return read.stripped(generator, PREFIXES), read.stripped(discriminator, PREFIXES)


def default_size(state: Mapping[str, Tensor]) -> int:
    """Side of the pictures in pixels: the public 256, or more where the generator is deeper."""
    return max(256, 2 ** _depth(state))


def convert_generator(state: Mapping[str, Tensor]) -> read.Converted:
    """Settings and weights of a U-Net generator.

    Raises CheckpointError for a ResNet generator, a discriminator and whatever else is no U-Net of the public code.
    """
    _refuse_others(state)
    depth = _depth(state)
    if depth < 2:
        raise CheckpointError(f"has {depth} levels, where a U-Net generator has at least 2")
    downs = [f"{_prefix(level)}{0 if level == 0 else 1}.weight" for level in range(depth)]
    widths = [read.width(state, key, 0) for key in downs]
    inside, outside = read.width(state, downs[0], 1), read.width(state, "model.model.3.weight", 1)
    norm, bias = _normalisation(state, f"{_prefix(depth - 1)}4", f"{downs[0].removesuffix('weight')}bias")
    state = _without_statistics(state, norm)
    channels, multipliers = _in_units(widths)
    with torch.device("meta"):
        net = UNet(inside, outside, widths, norm=norm, bias=False if bias == "never" else None)
    shapes = {name: value.shape for name, value in net.state_dict().items()}
    weights = read.match(state, shapes, {name: generator_name(depth, name) for name in shapes}, "U-Net generator")
    derived = {
        "model.name": "pix2pix",
        "model.generator.channels": channels,
        "model.generator.multipliers": multipliers,
        "model.generator.norm": norm,
        "model.generator.bias": bias,
        "model.generator.prior": "none",
        "data.image_channels": inside,
        "data.map_channels": outside,
    }
    dropped = list(range(1, depth - 4))
    assumed: dict[str, Any] = {"model.generator.dropout": 0.5 if dropped else 0.0}
    assumed["model.generator.dropout_levels"] = dropped
    return read.Converted(derived, assumed, weights)


def convert_discriminator(state: Mapping[str, Tensor], image_channels: int, map_channels: int) -> read.Converted:
    """Settings and weights of a PatchGAN on picture and map together."""
    channels = image_channels + map_channels
    if "net.0.weight" in state:
        raise CheckpointError("is a pixel discriminator: only PatchGANs (netD basic or n_layers) are known here")
    last = max((int(k.split(".")[1]) for k in state if k.startswith("model.") and k.split(".")[1].isdigit()), default=0)
    layers, rest = divmod(last + 1, 3)
    if layers < 2 or rest:
        raise CheckpointError(f"is no PatchGAN (netD basic or n_layers): it has {', '.join(sorted(state)[:3])}")
    convolutions = ["model.0"] + [f"model.{3 * index - 1}" for index in range(1, layers)]
    widths = [read.width(state, f"{name}.weight", 0) for name in convolutions]
    given = read.width(state, "model.0.weight", 1)
    if given != channels:
        raise CheckpointError(
            f"judges {given} channels, where the generator's picture and map have {channels} together: give its own"
        )
    norm, bias = _normalisation(state, "model.3", "model.2.bias")
    state = _without_statistics(state, norm)
    with torch.device("meta"):
        net = PatchGAN(channels, widths, norm=norm, bias=False if bias == "never" else None, flat_kernel=4)
    shapes = {name: value.shape for name, value in net.state_dict().items()}
    names = {name: discriminator_name(layers, name) for name in shapes}
    weights = read.match(state, shapes, names, "PatchGAN")
    base, multipliers = _in_units(widths)
    settings = {"channels": base, "multipliers": multipliers, "norm": norm, "bias": bias, "flat_kernel": 4}
    derived = {f"model.discriminator.{name}": value for name, value in settings.items()}
    return read.Converted(derived, {}, weights)


def generator_name(depth: int, name: str) -> str:
    """What the public code calls one of our generator's tensors: its blocks lie within one another."""
    part, *place, parameter = name.split(".")
    if part == "output":
        return f"{_prefix(0)}3.{parameter}"
    level, index = int(place[0]), int(place[1])
    if part == "encoder":
        return f"{_prefix(level)}{index}.{parameter}"
    inner = level == 0
    return f"{_prefix(depth - 1 - level)}{index + (2 if inner else 4)}.{parameter}"


def discriminator_name(layers: int, name: str) -> str:
    """What the public code calls one of our discriminator's tensors."""
    part, *place, parameter = name.split(".")
    if part == "output":
        return f"model.{3 * layers - 1}.{parameter}"
    layer, index = int(place[0]), int(place[1])
    return f"model.{3 * layer - 1 + index if layer else 0}.{parameter}"


def _prefix(level: int) -> str:
    """Where the layers of a level lie, 0 the outermost."""
    return "model.model." if level == 0 else "model.model.1." + "model.3." * (level - 1) + "model."


def _depth(state: Mapping[str, Tensor]) -> int:
    depth = 1 if "model.model.0.weight" in state else 0
    while depth and f"{_prefix(depth)}1.weight" in state:
        depth += 1
    return depth


def _normalisation(state: Mapping[str, Tensor], norm: str, bias: str) -> tuple[str, str]:
    """Normalisation, and whether convolutions have a bias, from one place where both are seen."""
    if f"{norm}.weight" in state:
        return "batch", "auto"
    return ("instance", "auto") if bias in state else ("none", "never")


def _without_statistics(state: Mapping[str, Tensor], norm: str) -> dict[str, Tensor]:
    """Old instance normalisation kept running statistics, which the public code throws away when it loads them."""
    if norm != "instance":
        return dict(state)
    kept = ("running_mean", "running_var", "num_batches_tracked")
    return {key: value for key, value in state.items() if key.rpartition(".")[2] not in kept}


def _in_units(widths: list[int]) -> tuple[int, list[int]]:
    """Base width and multipliers; a CheckpointError when levels are no multiples of the first."""
    base = widths[0]
    if any(width % base for width in widths):
        raise CheckpointError(
            f"has levels of {', '.join(map(str, widths))} channels, which are no multiples of its base of {base}"
        )
    return base, [width // base for width in widths]


def _refuse_others(state: Mapping[str, Tensor]) -> None:
    some = ", ".join(sorted(state)[:3])
    if any(".conv_block." in key for key in state):
        raise CheckpointError(f"is a ResNet generator ({some}): only U-Nets (netG unet_128 or unet_256) are known here")
    if "model.0.weight" in state or "net.0.weight" in state:
        raise CheckpointError(f"is a discriminator ({some}): give the generator's file, and this one beside it")
    if "model.model.0.weight" not in state:
        raise CheckpointError(f"holds no U-Net generator of pix2pix: it has {some}")
