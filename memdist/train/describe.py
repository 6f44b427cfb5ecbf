"""What a run would be, before it is one: sizes, steps and memory."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch

from memdist import config, rundir
from memdist.data import loader as loader_
from memdist.data import sources as sources_
from memdist.data import split as split_
from memdist.distributed import strategy as strategy_
from memdist.launch import place
from memdist.model import Model
from memdist.train import footprint, restore, shares
from memdist.train.start import build, micro_batch


def describe(run: Any, out: Path, world: int | None = None) -> Any:
    """What a run would train into `out`, for --dry-run: settings, sizes, steps and memory; nothing is written or decoded.

    `world`: how many ranks would share it; default: as many as there are.
    """
    from rich.console import Group
    from rich.text import Text

    strategy_.check_precision(run.precision, strategy_.device_of(run.device))
    model = build(run)
    with torch.device("meta"):
        stage = model.stage()
    if run.init.from_ is not None and not (out / rundir.CONFIG).is_file():
        restore.start_from(run.init.from_, stage.nets, {})
    lines = [config.dump(run)]
    for name, net in stage.nets.items():
        lines.append(f"{name}: {sum(p.numel() for p in net.parameters()):,} parameters")
    world = place.read(os.environ).world if world is None else world
    if not sources_.given(run.data):
        lines.append("no data are given: the number of steps is not known")
        pairs = run.batch.size
    else:
        stems, notes = split_.deal(sources_.find(run.data).pairs, run.data)
        lines += notes
        counts, pairs = ", ".join(f"{name} {len(part)}" for name, part in stems.items()), len(stems["train"])
        steps = loader_.epoch_end(run.epochs, pairs, run.batch.size)
        lines.append(f"pairs: {counts}; {steps} steps of {run.batch.size} pictures in {run.epochs} epochs")
    micro = micro_batch(run, world, pairs)
    need = memory(run, model, world, micro)
    kept = need.total - need.activations - need.passing
    lines.append(
        f"memory a process: {kept / 2**20:.0f} MiB for weights, gradients, optimisers and averages, about "
        f"{(need.activations + need.passing) / 2**20:.0f} MiB for activations at {micro} pictures; `memdist plan` says more"
    )
    return Group(*(Text(line) for line in lines))


def memory(run: Any, model: Model, world: int, micro: int) -> shares.Memory:
    """What a process needs at the peak of a step, by the run's own strategy."""
    device = strategy_.device_of(run.device).type
    found = footprint.Footprint(run, model, "cuda" if device == "cuda" else "cpu")
    way = shares.way(run, world)
    return shares.peak(
        way,
        found.sizes,
        found.exact(micro),
        world=world,
        accumulations=run.batch.size // (micro * world),
        pictures=found.pictures(world),
        offload=shares.offload(run, way),
    )
