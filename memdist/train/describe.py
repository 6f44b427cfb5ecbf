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
from memdist.model import Model, Pair, Scratch, Stage
from memdist.train import restore
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
    fixed, activations = memory(run, model, stage, micro)
    lines.append(
        f"memory a process: {fixed / 2**20:.0f} MiB for weights, gradients, optimisers and averages, about "
        f"{activations / 2**20:.0f} MiB for activations at {micro} pictures"
    )
    return Group(*(Text(line) for line in lines))


def memory(run: Any, model: Model, stage: Stage, micro: int) -> tuple[int, int]:
    """Bytes a process needs in fp32: of what stays, and of what one backward pass keeps; from networks on the meta device."""
    moments = {"sgd": 0, "adam": 2, "adamw": 2, "adadelta": 2}
    fixed = 0
    for name, net in stage.nets.items():
        settings = getattr(run.optim, name)
        kept = 2 + moments[settings.name] + (settings.name == "sgd" and settings.momentum > 0)
        kept += name in model.averaged() and run.ema.decay is not None
        fixed += 4 * kept * sum(p.numel() for p in net.parameters())
    picture = torch.empty(micro, run.data.image_channels, run.data.size, run.data.size, device="meta")
    map_ = picture.new_empty(micro, run.data.map_channels, run.data.size, run.data.size)
    batch = Pair(picture, map_, torch.empty(micro, dtype=torch.int64, device="meta"))
    most = 0
    scratch: Scratch = {}
    for update in stage.updates:
        strategy_.freeze(stage.nets, update.net)
        kept_by: dict[int, torch.UntypedStorage] = {}

        def keep(tensor: torch.Tensor, into: dict[int, torch.UntypedStorage] = kept_by) -> torch.Tensor:
            storage = tensor.untyped_storage()
            into[storage._cdata] = storage
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            update.loss(stage.nets, batch, scratch)
        weights = {p.untyped_storage()._cdata for net in stage.nets.values() for p in net.parameters()}
        most = max(most, sum(s.nbytes() for key, s in kept_by.items() if key not in weights))
    return fixed, most
