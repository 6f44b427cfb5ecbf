"""How long the passes of a step take: measured where the device is at hand, else from operations."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import torch

from memdist.distributed.single import Single
from memdist.model import Model, Pair, Scratch
from memdist.plan.gpus import Gpu
from memdist.train import optim, start
from memdist.train.footprint import Pass

UTILISATION = 0.3
"""Share of a GPU's nominal speed that convolutional networks reach: an assumption, which a timed step replaces."""
WARM, STEPS, ENOUGH = 1, 5, 5.0
"""Steps before the clock counts and while it does; seconds after which fewer do."""


def reckoned(passes: tuple[Pass, ...], micro: int, gpu: Gpu, precision: str) -> dict[str, float]:
    """Seconds a picture of each network's update, by its operations."""
    return {taken.net: taken.flops / micro / (gpu.flops[precision] * UTILISATION) for taken in passes}


def measured(run: Any, model: Model, device: torch.device, micro: int) -> dict[str, float]:
    """Seconds a picture of each network's update on this machine's device, with random pictures; its optimiser's step counts."""
    strategy = Single(device, run.precision)
    stage, averages = start.place(run, model, device)
    start.dress(run, stage, averages, strategy)
    strategy.prepare(
        stage,
        lambda name, weights: optim.make(weights, getattr(run.optim, name)),
        {name: getattr(run.optim, name).clip for name in stage.nets},
    )
    data = run.data
    picture = torch.rand(micro, data.image_channels, data.size, data.size, device=device) * 2 - 1
    map_ = torch.rand(micro, data.map_channels, data.size, data.size, device=device) * 2 - 1
    batch = Pair(picture, map_, torch.arange(micro, device=device))
    taken: dict[str, float] = {update.net: 0.0 for update in stage.updates}
    begun, counted = time.perf_counter(), 0
    for number in range(WARM + STEPS):
        if counted and time.perf_counter() - begun > ENOUGH:
            break
        counted += number >= WARM
        scratch: Scratch = {}
        for update in stage.updates:
            before = _clock(device)
            with strategy.only(update.net) as nets, strategy.micro(update.net, True):
                strategy.backward(update.net, update.loss(nets, batch, scratch).value, 1)
            averages.update(update.net, number, strategy.step(update).taken)
            if number >= WARM:
                taken[update.net] += _clock(device) - before
    return {net: seconds / counted / micro for net, seconds in taken.items()}


def _clock(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def of_share(seconds: Mapping[str, float], pictures: int) -> dict[str, float]:
    """Seconds of each update with so many pictures."""
    return {net: value * pictures for net, value in seconds.items()}
