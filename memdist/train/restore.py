"""Run folders, read: settings, and networks with the weights of one of their checkpoints."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from memdist import config, models, rundir
from memdist.errors import CheckpointError, ConfigError
from memdist.model import Model, Task
from memdist.train import checkpoint, whole

_ATTEMPTS = 5


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


def former_run(run: Any, out: Path, extend: bool) -> Any:
    """Settings with which a run folder was last started, None for a new one; raises when this run is not that one."""
    path = out / rundir.CONFIG
    with rundir.naming(out):
        there = path.is_file()
        # A start that was killed leaves what `_record` writes before the configuration; jobs are there before their run is.
        begun = {rundir.SPLIT, rundir.PROVENANCE, rundir.JOBS}
        present = [f for f in (out.iterdir() if out.is_dir() else ()) if f.name not in begun and f.suffix != ".tmp"]
        strange = [f for f in present if not f.name.startswith(rundir.LOCK)]
    if not there:
        if strange:
            raise CheckpointError(f"{out} holds other files and is no run folder; choose another folder with --out")
        return None
    former = settings(out)
    if former.model.name != run.model.name:
        raise CheckpointError(
            f"{out} belongs to a {former.model.name} run, not to {run.model.name}; choose another folder with --out"
        )
    then, now = config.identity(former), config.identity(run)
    changed = [key for key in now if now[key] != then.get(key)]
    if changed:
        lines = [
            f"{key} = {now[key]!r} differs from the {then.get(key)!r} that {out} was started with" for key in changed
        ]
        lines[-1] += "; use the same value, or another folder with --out"
        raise CheckpointError("\n".join(lines))
    decays = [name for name in type(run.optim).model_fields if getattr(run.optim, name).schedule.name != "constant"]
    if run.epochs != former.epochs and decays and not extend:
        raise ConfigError(
            f"epochs = {run.epochs} instead of {former.epochs} changes the learning rate of {' and '.join(decays)}, which decays "
            "towards the end: give --extend to do so, or the former number"
        )
    return former


def chosen_step(folder: Path, choice: str) -> int:
    """Step of the checkpoint that `best`, `last` or a number names; torn ones are passed over for `last` alone."""
    steps = checkpoint.steps(folder)
    if not steps:
        raise CheckpointError(f"{folder} has no checkpoint yet: train it first")
    if choice in ("best", "last"):
        # What was best stands in the state of the last one; its weights are not looked at for that.
        only = (checkpoint.STATE,)
        whole_files = (checkpoint.NETS, checkpoint.AVERAGES, checkpoint.OPTIM, *only)
        newest = whole.newest(folder, whole_files if choice == "last" else only)
        if newest is None:
            raise CheckpointError(
                f"none of the checkpoints of {folder} is whole: restore one from a copy, or train anew with --out"
            )
        if choice == "last":
            return newest
        best = whole.state(folder, newest)["selection"]["step"]
        if best is None:
            raise CheckpointError(
                f"{folder} has not been validated yet, so that no checkpoint is its best; use --checkpoint last"
            )
        if best not in checkpoint.steps(folder):
            raise CheckpointError(f"{folder} has lost its best checkpoint, of step {best}; use --checkpoint last")
        return int(best)
    # Compared as text: a number may have more digits than Python reads.
    named = {str(step): step for step in steps}
    number = choice.lstrip("0") or "0"
    if number not in named:
        said = repr(choice) if len(choice) <= 40 else f"{choice[:37]!r}..."
        raise CheckpointError(f"{folder} has no checkpoint {said}; there are best, last and {', '.join(named)}")
    return named[number]


def restore(folder: Path, choice: str, *, ema: bool, device: torch.device, step: int | None = None) -> Restored:
    """Rebuild the networks that predict; averaged weights where the run keeps them, unless `ema` is False.

    `step` is what `chosen_step` gave, where that was asked already. A checkpoint that a training process lets go of while
    it is read is chosen again.
    """
    for _ in range(_ATTEMPTS - 1):
        chosen = chosen_step(folder, choice) if step is None else step
        try:
            return _restored(folder, chosen, ema, device)
        except CheckpointError:
            if step is not None or checkpoint.folder(folder, chosen).is_dir():
                raise
    return _restored(folder, chosen_step(folder, choice), ema, device)


def _restored(folder: Path, step: int, ema: bool, device: torch.device) -> Restored:
    run = settings(folder)
    checkpoint.read_state(folder, step)
    model = model_of(run)
    affordable(model)
    # Built on the CPU under a forked generator: nobody's random numbers change.
    with torch.random.fork_rng(devices=[]):
        built = model.stage().nets
    nets = {name: built[name].to(device).eval().requires_grad_(False) for name in model.averaged()}
    averaged = ema and run.ema.decay is not None
    checkpoint.load_weights(folder, step, nets, averages=averaged)
    return Restored(run, model, nets, step, averaged)


def digest(nets: Mapping[str, nn.Module]) -> str:
    """SHA-256 of the weights and buffers of networks, by their names."""
    sums = hashlib.sha256()
    for name in sorted(nets):
        for key, value in nets[name].state_dict().items():
            sums.update(f"{name}.{key} {value.dtype} {list(value.shape)}\0".encode())
            sums.update(value.cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return sums.hexdigest()


def model_of(run: Any) -> Model:
    """The model of a run whose weights come from elsewhere."""
    data = run.data
    shape = (data.map_channels, data.size, data.size)
    # A mean map that belongs to the network comes with its weights; here it only has to have the right shape.
    task = Task(size=data.size, image_channels=data.image_channels, map_channels=shape[0], mean_map=torch.zeros(shape))
    return models.load(run.model.name)(run.model, task)


def affordable(model: Model) -> None:
    """Raise a ConfigError for networks whose weights alone are more than this machine has memory."""
    with torch.device("meta"):
        nets = model.stage().nets
    weights = sum(t.numel() * t.element_size() for net in nets.values() for t in net.state_dict().values())
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if weights > memory:
        raise ConfigError(
            f"the networks of {model.config.name} have {weights / 2**30:.0f} GiB of weights, and this machine has "
            f"{memory / 2**30:.0f} GiB of memory: choose a smaller network (channels, multipliers, blocks)"
        )


def parent(folder: Path) -> tuple[Any, int]:
    """Settings of a run to start from, and the step of its best checkpoint; a CheckpointError where it has none."""
    return settings(folder), chosen_step(folder, "best")


def start_from(folder: Path, nets: Mapping[str, nn.Module], averages: Mapping[str, nn.Module]) -> None:
    """Copy the best weights of another run into new networks, averaged ones where it has them, and into their averages."""
    former, step = parent(folder)
    checkpoint.read_state(folder, step)
    predicting = set(nets) & set(model_of(former).averaged()) if former.ema.decay is not None else set()
    checkpoint.load_weights(folder, step, {n: net for n, net in nets.items() if n not in predicting}, averages=False)
    checkpoint.load_weights(folder, step, {n: nets[n] for n in predicting}, averages=True)
    for name, average in averages.items():
        average.load_state_dict(nets[name].state_dict())
