"""Run folders, read: settings, and networks with the weights of one of their checkpoints."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from memdist import config, models, rundir
from memdist.errors import CheckpointError, ConfigError
from memdist.model import Model, Task
from memdist.train import checkpoint


@dataclass(frozen=True)
class Restored:
    """A trained model, ready to predict."""

    run: Any
    model: Model
    nets: dict[str, nn.Module]
    """In evaluation mode, on the device."""
    step: int
    averaged: bool
    """Whether the weights are moving averages."""


def settings(folder: Path) -> Any:
    """Settings of a run folder; raises CheckpointError where there is none."""
    path = folder / rundir.CONFIG
    if not path.is_file():
        what = "has no config.yaml" if folder.is_dir() else "does not exist"
        raise CheckpointError(f"{folder} is no run folder: it {what}; give a folder that `memdist train` made")
    try:
        return models.resolve(config.read(path))
    except ConfigError as error:
        raise CheckpointError(f"{path} cannot be used: {error}; restore it") from error


def chosen_step(folder: Path, choice: str) -> int:
    """Step of the checkpoint that `best`, `last` or a number names."""
    steps = checkpoint.steps(folder)
    if not steps:
        raise CheckpointError(f"{folder} has no checkpoint yet: train it first")
    if choice == "last":
        return steps[-1]
    if choice == "best":
        best = checkpoint.read_state(folder, steps[-1])["selection"]["step"]
        if best is None:
            raise CheckpointError(
                f"{folder} has not been validated yet, so that no checkpoint is its best; use --checkpoint last"
            )
        if best not in steps:
            raise CheckpointError(f"{folder} has lost its best checkpoint, of step {best}; use --checkpoint last")
        return int(best)
    if not choice.isdigit() or int(choice) not in steps:
        raise CheckpointError(
            f"{folder} has no checkpoint {choice!r}; there are best, last and {', '.join(str(s) for s in steps)}"
        )
    return int(choice)


def restore(folder: Path, choice: str, *, ema: bool, device: torch.device) -> Restored:
    """Rebuild the networks that predict; averaged weights where the run keeps them, unless `ema` is False."""
    run = settings(folder)
    step = chosen_step(folder, choice)
    checkpoint.read_state(folder, step)
    shape = (run.data.map_channels, run.data.size, run.data.size)
    # A mean map that belongs to the network comes with its weights; here it only has to have the right shape.
    task = Task(size=run.data.size, image_channels=3, map_channels=shape[0], mean_map=torch.zeros(shape))
    model = models.load(run.model.name)(run.model, task)
    # Built on the CPU under a forked generator: nobody's random numbers change.
    with torch.random.fork_rng(devices=[]):
        built = model.stage().nets
    nets = {name: built[name].to(device).eval().requires_grad_(False) for name in model.averaged()}
    averaged = ema and run.ema.decay is not None
    checkpoint.load_weights(folder, step, nets, averages=averaged)
    return Restored(run, model, nets, step, averaged)


def start_from(folder: Path, nets: Mapping[str, nn.Module], averages: Mapping[str, nn.Module]) -> None:
    """Copy the best weights of another run into new networks, averaged ones where it has them, and into their averages."""
    former = settings(folder)
    step = chosen_step(folder, "best")
    checkpoint.read_state(folder, step)
    kept = models.load(former.model.name)
    predicting = set(nets) & set(_averaged(kept, former)) if former.ema.decay is not None else set()
    checkpoint.load_weights(folder, step, {n: net for n, net in nets.items() if n not in predicting}, averages=False)
    checkpoint.load_weights(folder, step, {n: nets[n] for n in predicting}, averages=True)
    for name, average in averages.items():
        average.load_state_dict(nets[name].state_dict())


def _averaged(kind: type[Model], run: Any) -> tuple[str, ...]:
    return kind(run.model, Task(size=run.data.size, image_channels=3, map_channels=run.data.map_channels)).averaged()
