"""What a step of training takes, found without taking one: sizes of networks, live bytes, operations.

The model's own updates run on fake tensors, which have shapes and no content, and every storage that comes and goes is
counted. What a kernel takes for itself while it runs (workspaces of cuDNN and oneDNN) is not known there.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from memdist.config import Optim
from memdist.distributed import strategy as strategy_
from memdist.distributed.blocks import blocks
from memdist.model import Model, Pair, Scratch, Stage, Update
from memdist.train import live as live_
from memdist.train.live import Live

FP32 = 4
"""Bytes of a number: weights, gradients, optimiser states and averages are always fp32."""
_MOMENTS = {"sgd": 0, "adam": 2, "adamw": 2, "adadelta": 2}
_SCRATCH = {"sgd": 0, "adam": 1, "adamw": 1, "adadelta": 2}
"""Copies of all weights that a step of the foreach kernel makes meanwhile (its square roots and quotients)."""


@dataclass(frozen=True, kw_only=True)
class Size:
    """What of a network stays from step to step, in numbers of fp32."""

    weights: int
    buffers: int
    """In bytes: running statistics and the like."""
    moments: int
    """Numbers that the optimiser keeps of each weight."""
    averaged: bool
    """Whether it has a moving average."""
    scratch: int
    """Numbers that the optimiser's step takes meanwhile."""
    units: tuple[int, ...]
    """Weights of its blocks, largest first, what is outside of all blocks is one more; or all in one, if that is how they are
    dealt out."""


@dataclass(frozen=True, kw_only=True)
class Pass:
    """Forward and backward of one update with one micro-batch."""

    net: str
    """The network that moves."""
    every: int
    """Taken at each `every`-th step."""
    activations: int
    """Most live bytes beside weights, buffers, the pictures and finished gradients."""
    joint: int
    """Most live bytes beside weights, buffers and the pictures: gradients grow while activations go."""
    flops: int
    """Operations, a multiplication and an addition counted as two."""
    calls: Mapping[str, int]
    """How often each network is called."""


@dataclass(frozen=True)
class Course:
    """How memory goes through a pass: live bytes after each operation."""

    update: Update
    beside: npt.NDArray[np.float64]
    """Beside weights, buffers, the pictures and finished gradients."""
    gradients: npt.NDArray[np.float64]
    """Finished gradients of weights."""
    flops: float
    calls: Mapping[str, int]

    def towards(self, other: Course, share: float) -> Course:
        """On the line from here (0) to another course (1), and beyond."""
        beside = self.beside + share * (other.beside - self.beside)
        flops = self.flops + share * (other.flops - self.flops)
        return Course(self.update, beside, self.gradients, flops, self.calls)


_TWO = (2, 4)
"""Pictures of the two courses; one picture alone is laid out, and logged, a little differently."""


def _pass(course: Course) -> Pass:
    return Pass(
        net=course.update.net,
        every=course.update.every,
        activations=int(course.beside.max()),
        joint=int((course.beside + course.gradients).max()),
        flops=int(course.flops),
        calls=course.calls,
    )


def size(net: nn.Module, settings: Optim, averaged: bool, whole: bool = False) -> Size:
    """Sizes of a network under its optimiser; `whole`: it is never parted into blocks."""
    count = sum(p.numel() for p in net.parameters())
    moments = _MOMENTS[settings.name] + (settings.name == "sgd" and settings.momentum > 0)
    foreach = settings.kernel == "foreach" or (settings.kernel == "auto" and settings.name == "adadelta")
    scratch = (_SCRATCH[settings.name] + (settings.weight_decay > 0)) * count if foreach else 0
    inner = [] if whole else [sum(p.numel() for p in block.parameters()) for block in blocks(net)]
    return Size(
        weights=count,
        buffers=sum(b.nbytes for b in net.buffers()),
        moments=moments,
        averaged=averaged,
        scratch=scratch,
        units=tuple(sorted((*inner, count - sum(inner)), reverse=True)),
    )


class Footprint:
    """Sizes of a run's networks, and what its passes take at any micro-batch; remembers what it has found."""

    def __init__(self, run: Any, model: Model, device: str) -> None:
        """`device` is the type that the run is for, cpu or cuda: it decides on the layout and on what stays fp32."""
        self._run, self._model, self._device = run, model, device
        self._fake = FakeTensorMode(allow_non_fake_inputs=True)
        self._stages: dict[bool, Stage] = {}
        self._found: dict[tuple[int, bool], tuple[Course, ...]] = {}
        stage = self._stage(False)
        self.sizes = {
            name: size(
                net,
                getattr(run.optim, name),
                name in model.averaged() and run.ema.decay is not None,
                name in stage.twice,
            )
            for name, net in stage.nets.items()
        }

    def passes(self, micro: int, checkpointing: bool | None = None) -> tuple[Pass, ...]:
        """One pass of every update with `micro` pictures; blocks are computed again if the run, or the argument, says so.

        What is alive after each operation grows along a line with the pictures: two courses give that of any number.
        """
        again = self._run.activation_checkpointing if checkpointing is None else checkpointing
        if micro in (1, *_TWO):
            return self.of(self.courses(micro, again))
        low, high = (self.courses(few, again) for few in _TWO)
        if any(len(a.beside) != len(b.beside) for a, b in zip(low, high, strict=True)):
            return self.of(self.courses(micro, again))
        share = (micro - _TWO[0]) / (_TWO[1] - _TWO[0])
        return self.of(tuple(a.towards(b, share) for a, b in zip(low, high, strict=True)))

    def exact(self, micro: int, checkpointing: bool | None = None) -> tuple[Pass, ...]:
        """The same, tried with that many pictures rather than along a line: sooner, where one number is asked for."""
        again = self._run.activation_checkpointing if checkpointing is None else checkpointing
        return self.of(self.courses(micro, again))

    @staticmethod
    def of(courses: tuple[Course, ...]) -> tuple[Pass, ...]:
        """What counts of each course."""
        return tuple(_pass(course) for course in courses)

    def courses(self, micro: int, checkpointing: bool) -> tuple[Course, ...]:
        """What `passes` rests on, taken with exactly so many pictures."""
        if (micro, checkpointing) not in self._found:
            self._found[micro, checkpointing] = self._measure(micro, self._stage(checkpointing))
        return self._found[micro, checkpointing]

    def picture(self) -> int:
        """Bytes of a pair in fp32."""
        data = self._run.data
        return int(FP32 * (data.image_channels + data.map_channels) * data.size**2)

    def pictures(self, world: int) -> int:
        """Bytes of a rank's share of a step: all its micro-batches are there at once, as they were and augmented."""
        changed = any(getattr(self._run.augment, name) for name in type(self._run.augment).model_fields)
        return self.picture() * int(self._run.batch.size // world) * (1 + changed)

    def _stage(self, checkpointing: bool) -> Stage:
        if checkpointing not in self._stages:
            self._stages[checkpointing] = self._fresh(checkpointing)
        return self._stages[checkpointing]

    def _fresh(self, checkpointing: bool) -> Stage:
        last = self._run.channels_last
        with torch.device("meta"):
            stage = self._model.stage()
            if last == "always" or (last == "auto" and (self._device == "cuda" or self._run.compile)):
                for net in stage.nets.values():
                    net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        with self._fake:
            for net in stage.nets.values():
                net.to_empty(device="cpu").train()
                if checkpointing:
                    for block in blocks(net):
                        live_.compute_again(block, self._device)
        return stage

    def _measure(self, micro: int, stage: Stage) -> tuple[Course, ...]:
        data = self._run.data
        with self._fake:
            picture = torch.empty(micro, data.image_channels, data.size, data.size)
            map_ = torch.empty(micro, data.map_channels, data.size, data.size)
            batch = Pair(picture, map_, torch.empty(micro, dtype=torch.int64))
            live = Live([*batch, *_all(stage.nets)])
            scratch: Scratch = {}
            with live:
                return tuple(self._course(update, stage, batch, scratch, live) for update in stage.updates)

    def _course(self, update: Update, stage: Stage, batch: Pair, scratch: Scratch, live: Live) -> Course:
        strategy_.freeze(stage.nets, update.net)
        parameters = [p for p in stage.nets[update.net].parameters()]
        with live_.counted(stage.nets) as calls, live_.gradients(parameters, live):
            live.restart()
            with live_.arithmetic(self._run.precision, self._device):
                update.loss(stage.nets, batch, scratch).value.float().backward()  # type: ignore[no-untyped-call]
        for parameter in parameters:
            parameter.grad = None
        return Course(update, np.array(live.beside), np.array(live.gradients), live.flops, dict(calls))


def _all(nets: Mapping[str, nn.Module]) -> Iterator[Tensor]:
    for net in nets.values():
        yield from net.parameters()
        yield from net.buffers()
