"""Tiny data and tiny runs of every model, for tests that train."""

import copy
from pathlib import Path
from typing import Any

from memdist import models
from memdist.data import example

SIZE = 16
PAIRS = 30

_UNET = {"channels": 4, "multipliers": [1, 2, 2], "norm": "instance"}
_CRITIC = {"channels": 4, "multipliers": [1, 2, 2], "norm": "instance"}
_PALETTE = {"channels": 8, "multipliers": [1, 2], "blocks": 1, "attention": [8], "head_channels": 8, "norm_groups": 4}
_PALETTE |= {"schedule": {"name": "cosine", "steps": 50}}

# Every branch of every model's settings that changes a step; the first part of a name is the model's.
VARIANTS: dict[str, dict[str, Any]] = {
    "unet": {"model": {"name": "unet", **_UNET}},
    "unet batch prior": {"model": {"name": "unet", **_UNET, "norm": "batch", "prior": "mean"}, "ema": {"decay": 0.9}},
    "unet dropout": {
        "model": {"name": "unet", **_UNET, "dropout": 0.5},
        "optim": {"unet": {"name": "adadelta", "lr": 1.0}},
    },
    "pix2pix": {"model": {"name": "pix2pix", "l1_weight": 20, "generator": _UNET, "discriminator": _CRITIC}},
    "pix2pix vanilla batch": {
        "model": {
            "name": "pix2pix",
            "l1_weight": 20,
            "loss": "vanilla",
            "generator": {**_UNET, "norm": "batch"},
            "discriminator": {**_CRITIC, "norm": "batch"},
        },
        "optim": {
            "generator": {"name": "sgd", "lr": 0.05, "momentum": 0.9, "clip": 1.0},
            "discriminator": {"name": "adamw"},
        },
    },
    "pix2pix clip": {
        "model": {
            "name": "pix2pix",
            "l1_weight": 200,
            "loss": "wasserstein",
            "constraint": "clip",
            "critic_steps": 2,
            "generator": _UNET,
            "discriminator": _CRITIC,
        }
    },
    "pix2pix penalty": {
        "model": {
            "name": "pix2pix",
            "l1_weight": 200,
            "loss": "wasserstein",
            "constraint": "penalty",
            "critic_steps": 2,
            "generator": _UNET,
            "discriminator": _CRITIC,
        }
    },
    "palette": {"model": {"name": "palette", **_PALETTE}, "ema": {"decay": 0.9}, "select": {"metric": "val/loss"}},
    "palette sr3 v": {
        "model": {"name": "palette", **_PALETTE, "net": "sr3", "prediction": "v", "scale": 0.5},
        "ema": {"decay": 0.9},
    },
    "palette x0": {"model": {"name": "palette", **_PALETTE, "prediction": "x0"}},
}


def data(folder: Path) -> Path:
    """PAIRS example pairs."""
    example.make(folder, PAIRS, SIZE, 0, 1)
    return folder


def raw(variant: str, folder: Path, **settings: Any) -> dict[str, Any]:
    """Settings of a run of three short epochs that ends in seconds; dotted `settings` lie over them."""
    from memdist import config

    basic: dict[str, Any] = {
        "epochs": 3,
        "data": {"images": str(folder / "images"), "maps": str(folder / "maps"), "size": SIZE, "val": 6, "test": 4},
        "augment": {"flip": 0.5, "translation": 0.5, "cutout": 0.5, "colour": 0.5},
        "batch": {"size": 4},
        "validate": {"steps": 3, "images": 4, "train_images": 4, "batch": 4},
        "eval": {"steps": 3},
        "log": {"every": 2, "tensorboard": False, "images": 2},
        "device": "cpu",
        "workers": 1,
    }
    basic["data"] |= {"val": 0.2, "test": 0.2}
    whole = basic | copy.deepcopy(VARIANTS[variant])  # overrides are written into it
    return config.override(whole, [f"{key}={value}" for key, value in settings.items()])


def run(variant: str, folder: Path, **settings: Any) -> Any:
    """Resolved settings of `raw`."""
    return models.resolve(raw(variant, folder, **settings))
