"""Checkpoints as the public programs save them, made of our own networks' random weights."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from memdist.exchange import palette, pix2pix
from memdist.nets.palette_unet import GuidedUNet
from memdist.nets.patchgan import PatchGAN
from memdist.nets.sr3_unet import SR3UNet
from memdist.nets.unet import UNet


def denoiser(
    net: str = "guided", seed: int = 0, prefix: str = "denoise_fn.", image: int = 3, channels: int = 8, **more: Any
) -> dict[str, Tensor]:
    """State dict of a small U-Net of Palette: 8 channels, levels 1 and 2, the second attends; no layer is zero."""
    torch.manual_seed(seed)
    shape = {"image_size": 16, "channels": channels, "multipliers": (1, 2), "blocks": 1, "attention": (8,)} | more
    kind: type[GuidedUNet | SR3UNet] = GuidedUNet if net == "guided" else SR3UNet
    made = kind(3 + image, 3, **shape, **({"heads": 1} if net == "guided" else {"norm_groups": 4}))  # type: ignore[arg-type]
    state = {}
    for name, value in made.state_dict().items():
        value = value + 0.02 * torch.randn_like(value)
        if net == "guided" and ("qkv.weight" in name or "project.weight" in name):
            value = value[..., 0]
        state[prefix + palette.foreign_name(net == "guided", name)] = value
    return state


def tables(steps: int = 50, start: float = 1e-4, end: float = 0.05) -> dict[str, Tensor]:
    """The noise table, and one of the buffers that come with it."""
    gammas = torch.cumprod(1 - torch.linspace(start, end, steps, dtype=torch.float64), 0)
    return {"gammas": gammas.float(), "sqrt_recip_gammas": (1 / gammas).sqrt().float()}


def generator(norm: str = "batch", seed: int = 0, prefix: str = "", image: int = 3) -> dict[str, Tensor]:
    """State dict of a U-Net generator of 3 levels."""
    torch.manual_seed(seed)
    net = UNet(image, 3, (4, 8, 16), norm=norm, bias=False if norm == "none" else None)
    return {prefix + pix2pix.generator_name(3, k): v for k, v in net.state_dict().items()}


def discriminator(norm: str = "batch", seed: int = 1, prefix: str = "", channels: int = 6) -> dict[str, Tensor]:
    """State dict of a PatchGAN with n_layers=1."""
    torch.manual_seed(seed)
    net = PatchGAN(channels, (4, 8), norm=norm, flat_kernel=4, bias=False if norm == "none" else None)
    return {prefix + pix2pix.discriminator_name(2, k): v for k, v in net.state_dict().items()}


def save_palette(folder: Path, net: str = "guided", ema: bool = True) -> Path:
    """10_Network.pth with its tables, and 10_Network_ema.pth."""
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(denoiser(net) | tables(), folder / "10_Network.pth")
    if ema:
        torch.save(denoiser(net, seed=9), folder / "10_Network_ema.pth")
    return folder / "10_Network.pth"


def save_pix2pix(folder: Path, norm: str = "batch", judge: bool = True) -> Path:
    """A folder with latest_net_G.pth and latest_net_D.pth."""
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(generator(norm), folder / "latest_net_G.pth")
    if judge:
        torch.save(discriminator(norm), folder / "latest_net_D.pth")
    return folder
