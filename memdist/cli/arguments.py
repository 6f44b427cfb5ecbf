"""What commands take: arguments, flags, and the settings that they stand for."""

from __future__ import annotations

import re
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from memdist.errors import ConfigError

PLAIN: dict[str, Any] = {"no_args_is_help": True, "rich_markup_mode": None}
"""Plain help text: drawing boxes round it would cost a third of the time in which --help must answer."""

SETTING = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*=")
"""How a setting begins."""


class Split(StrEnum):
    """What `--split` takes."""

    train = "train"
    val = "val"
    test = "test"
    all = "all"


def _choice(value: str) -> str:
    if value not in ("best", "last") and not (value.isascii() and value.isdigit()):
        raise ConfigError(f"--checkpoint {value!r} cannot be: it should be best, last or the number of a step")
    return value


def place(text: str) -> Path:
    """A path; nothing, as an unset variable of a shell gives it, is none, though a Path would take it for this folder."""
    if not text:
        raise ConfigError("a path that was given is empty: name a file or folder; . is the current one")
    return Path(text)


Config = Annotated[
    str,
    typer.Argument(metavar="CONFIG", help="A YAML file, or the name of a shipped configuration (unet, quick/unet)."),
]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="KEY=VALUE", help="Settings over those of CONFIG: optim.generator.lr=1e-4", show_default=False
    ),
]
RuntimeOverrides = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="KEY=VALUE", help="Runtime settings for this time: device=cpu, eval.steps=100", show_default=False
    ),
]
RunFolder = Annotated[Path, typer.Argument(metavar="RUN", help="A run folder that `memdist train` made.")]
Choice = Annotated[
    str, typer.Option("--checkpoint", metavar="best|last|STEP", help="Which weights of the run.", callback=_choice)
]
Sampler = Annotated[
    str | None, typer.Option(metavar="NAME", help="Sampler of a diffusion model, as eval.sampler.", show_default=False)
]
Steps = Annotated[
    str | None,
    typer.Option(metavar="N", help="Network evaluations of a map at most, as eval.steps.", show_default=False),
]
Samples = Annotated[
    str | None,
    typer.Option(metavar="K", help="Maps sampled for a picture, as eval.samples.", show_default=False),
]
SearchSpace = Annotated[
    str, typer.Argument(metavar="SPACE", help="A YAML file, or the name of a shipped space (quick, unet, pix2pix).")
]
Budget = Annotated[
    str | None,
    typer.Option(
        "--budget",
        metavar="TIME",
        help="Pick what fits into 8h, 2d12h ...: the whole grid, or settings of ASHA, by timing a few cells.",
        show_default=False,
    ),
]
SearchSettings = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="KEY=VALUE",
        help="How to search (search.method=asha), and settings of all its runs.",
        show_default=False,
    ),
]
NoEma = Annotated[bool, typer.Option("--no-ema", help="Take the trained weights, not their moving average.")]


def sampling(sampler: str | None, steps: str | None, samples: str | None) -> list[str]:
    """Flags as the settings that they stand for."""
    flags = {"sampler": sampler, "steps": steps, "samples": samples}
    return [f"eval.{key}={value}" for key, value in flags.items() if value is not None]


def parted(inputs: Sequence[str]) -> tuple[list[str], list[Path]]:
    """Settings and pictures that stand beside each other; raises ConfigError where there are no pictures."""
    # A picture may be named a=b.png; what is no file and looks like a setting is one.
    settings = [text for text in inputs if SETTING.match(text) and not Path(text).exists()]
    paths = [place(text) for text in inputs if text not in settings]
    if not paths:
        raise ConfigError(f"there are only settings ({', '.join(settings)}) and no pictures: name pictures or folders")
    return settings, paths


def resolve(config: str, overrides: Sequence[str] | None) -> Any:
    """Settings of CONFIG with those of the command line over them."""
    from memdist import config as settings
    from memdist import models as registry

    return registry.resolve(settings.read(settings.find(config), overrides or []))


def launch(config: str, overrides: Sequence[str], flags: Sequence[str], ranks: int, restarts: int) -> int | None:
    """Train in ranks of their own processes; gives the exit code, or None where this process can do it alone."""
    from memdist import config as settings
    from memdist.launch import gpus

    # As it is written, not checked: the ranks do that, with torch, which this process never loads.
    device = str(settings.read(settings.find(config), overrides).get("device", "auto"))
    words = ["train", config, *overrides, *flags]
    return gpus.start(words, ranks, restarts, device)
