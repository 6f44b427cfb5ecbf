"""How long the passes of a step take: measured where the device is at hand, else from operations."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any, cast

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


class Steps:
    """Steps of a run on this machine's device, with random pictures, as training takes them."""

    def __init__(self, run: Any, model: Model, device: torch.device, micro: int) -> None:
        """Build networks and optimisers; no step is taken yet."""
        self._device, self._number = device, 0
        self._strategy = Single(device, run.precision)
        self._stage, self._averages = start.place(run, model, device)
        start.dress(run, self._stage, self._averages, self._strategy)
        self._strategy.prepare(
            self._stage,
            lambda name, weights: optim.make(weights, getattr(run.optim, name)),
            {name: getattr(run.optim, name).clip for name in self._stage.nets},
        )
        data = run.data
        picture = torch.rand(micro, data.image_channels, data.size, data.size, device=device) * 2 - 1
        map_ = torch.rand(micro, data.map_channels, data.size, data.size, device=device) * 2 - 1
        self._batch = Pair(picture, map_, torch.arange(micro, device=device))

    def take(self) -> dict[str, float]:
        """Take one with all updates, and give the seconds of each network's."""
        taken: dict[str, float] = {update.net: 0.0 for update in self._stage.updates}
        strategy, scratch = self._strategy, cast(Scratch, {})
        for update in self._stage.updates:
            before = _clock(self._device)
            with strategy.only(update.net) as nets, strategy.micro(update.net, True):
                strategy.backward(update.net, update.loss(nets, self._batch, scratch).value, 1)
            self._averages.update(update.net, self._number, strategy.step(update).taken)
            taken[update.net] += _clock(self._device) - before
        self._number += 1
        return taken


def measured(run: Any, model: Model, device: torch.device, micro: int) -> dict[str, float]:
    """Seconds a picture of each network's update on this machine's device, with random pictures; its optimiser's step counts."""
    steps = Steps(run, model, device, micro)
    begun, found = time.perf_counter(), list[dict[str, float]]()
    for number in range(WARM + STEPS):
        if found and time.perf_counter() - begun > ENOUGH:
            break
        taken = steps.take()
        if number >= WARM:
            found.append(taken)
    return {net: sum(taken[net] for taken in found) / len(found) / micro for net in found[0]}


def _clock(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def of_share(seconds: Mapping[str, float], pictures: int) -> dict[str, float]:
    """Seconds of each update with so many pictures."""
    return {net: value * pictures for net, value in seconds.items()}
