"""The plan of a run: for each strategy what a rank needs, the largest micro-batch that fits, and the time of a step."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from math import ceil
from typing import Any

import torch

from memdist.config import Run
from memdist.data import loader as loader_
from memdist.data import sources as sources_
from memdist.data import split as split_
from memdist.distributed import strategy as strategy_
from memdist.errors import ConfigError
from memdist.model import Model
from memdist.plan import gpus, timing, traffic
from memdist.plan.gpus import Gpu
from memdist.train import shares, start
from memdist.train.footprint import Footprint, Pass
from memdist.train.shares import Memory, Offload

GIB = 2**30
RESERVE = {"cuda": (1.5 * GIB, 0.05), "cpu": (0.5 * GIB, 0.05)}
"""Bytes, and a share of all memory, that are left free. GPUs: CUDA's context, NCCL's buffers, workspaces of cuBLAS and cuDNN, and
what the allocator cannot use for being torn; CPUs: Python, torch, workspaces of oneDNN."""
MOST = 2**16
"""Pictures of a micro-batch beyond which nobody looks."""


@dataclass(frozen=True, kw_only=True)
class Choice:
    """One way of sharing a run out."""

    way: str
    """As in `shares.TABLE`."""
    offload: Offload = "none"
    checkpointing: bool | None = None
    """Blocks are computed again; None: as the run says."""

    @property
    def name(self) -> str:
        """In the tables."""
        return "ddp" if self.way == "one" else self.way

    @property
    def settings(self) -> str:
        """What chooses it."""
        kind, _, stage = self.name.partition(" ")
        words = [f"strategy={kind}"] + ([f"deepspeed.stage={stage}"] if stage else [])
        if self.offload != "none":
            words.append("fsdp.offload=true" if kind == "fsdp" else f"deepspeed.offload={self.offload}")
        return " ".join(words + (["activation_checkpointing=true"] if self.checkpointing else []))


@dataclass(frozen=True, kw_only=True)
class Row:
    """What a plan says of one strategy."""

    choice: Choice
    refused: str | None = None
    """Why the model cannot run with it; nothing else is known then."""
    memory: Memory = field(default_factory=Memory)
    """With the micro-batch that the settings ask for."""
    fits: bool = False
    largest: int = 0
    """Pictures of the largest micro-batch that fits; 0: none does."""
    micro: int = 0
    """The largest of those that share the batch out evenly."""
    accumulations: int = 0
    """Micro-batches of a step, with `micro`."""
    compute: float = 0.0
    """Seconds a step on a rank."""
    exchange: traffic.Exchange = field(default_factory=lambda: traffic.Exchange(sent=0, seconds=0, exposed=0))

    @property
    def seconds(self) -> float:
        """Of a step."""
        return self.compute + self.exchange.exposed

    @property
    def efficiency(self) -> float:
        """Share of a step in which a rank computes."""
        return self.compute / self.seconds if self.seconds else 1.0


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What `memdist plan` shows."""

    run: Any
    gpu: Gpu
    world: int
    box: int
    micro: int
    """Pictures of a micro-batch, as the settings ask for."""
    rows: tuple[Row, ...]
    steps: int | None
    """Of the whole run; None where no data are given."""
    advice: Row | None
    """What to do: the simplest that fits; None: nothing does."""
    timed: bool
    """Whether seconds were measured on this machine's device."""
    free: float
    """Bytes of a device that a run may use."""
    weights: int
    """Numbers of the largest network."""


class Planner:
    """Finds what fits, for one run on one kind of device."""

    def __init__(self, run: Any, model: Model, world: int, device: str, memory: int, pairs: int | None = None) -> None:
        """`device` is cuda or cpu, `memory` its bytes; `pairs` of all splits are known where data are given."""
        self.run, self.world = run, world
        self.share = run.batch.size // world
        self.footprint = Footprint(run, model, device)
        fixed, part = RESERVE[device]
        self.free = memory - fixed - part * memory
        self.pictures = self.footprint.pictures(world)
        kept = (pairs or 0) * self.footprint.picture() // 4  # a byte a number
        if device == "cuda" and (run.data.resident == "device" or (run.data.resident == "auto" and kept <= memory / 4)):
            self.pictures += kept

    def need(self, choice: Choice, micro: int, passes: tuple[Pass, ...] | None = None) -> Memory:
        """Memory of a rank with a micro-batch of so many pictures, whose passes are found unless they are given."""
        return shares.peak(
            choice.way,
            self.footprint.sizes,
            passes or self.footprint.passes(micro, choice.checkpointing),
            world=self.world,
            accumulations=max(1, ceil(self.share / micro)),
            pictures=self.pictures,
            offload=choice.offload,
        )

    def largest(self, choice: Choice) -> int:
        """Pictures of the largest micro-batch that fits; 0: not even one does."""
        low, high = 0, MOST + 1
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if self.need(choice, middle).total <= self.free else (low, middle)
        return low

    def looked_at(self, row: Row) -> Row:
        """The row, its micro-batch tried at its own size not along a line; a smaller one if need be."""
        for micro in (m for m in range(row.micro, 0, -1) if self.share % m == 0):
            exact = self.footprint.exact(micro, row.choice.checkpointing)
            if self.need(row.choice, micro, exact).total <= self.free:
                return replace(row, micro=micro, accumulations=self.share // micro)
        return replace(row, micro=0)

    def choices(self) -> list[Choice]:
        """The strategies, as the run would take them; the simplest first."""
        ways = [way for way in shares.TABLE if way != ("ddp" if self.world == 1 else "one")]
        return [Choice(way=way, offload=shares.offload(self.run, way)) for way in ways]

    def dearer(self) -> list[Choice]:
        """What takes less memory than any of `choices`, and more time; the cheapest first."""
        # Stage 3 gathers weights between the layers of a block, and cannot compute it again.
        again = [
            Choice(way=c.way, offload=c.offload, checkpointing=True) for c in self.choices() if c.way != "deepspeed 3"
        ]
        further = [("deepspeed 2", "optimizer"), ("fsdp", "all"), ("deepspeed 3", "all")]
        return again + [
            Choice(way=way, offload=offload, checkpointing=way != "deepspeed 3")  # type: ignore[arg-type]
            for way, offload in further
        ]

    def row(self, choice: Choice, micro: int) -> Row:
        """Memory of one strategy, and the micro-batch that should be set."""
        memory, largest = self.need(choice, micro), self.largest(choice)
        even = max((m for m in range(1, min(largest, self.share) + 1) if self.share % m == 0), default=0)
        return Row(
            choice=choice,
            memory=memory,
            fits=memory.total <= self.free,
            largest=largest,
            micro=even,
            accumulations=self.share // even if even else 0,
        )


def plan(run: Any, *, world: int, gpu: str, box: int, timed: bool = True) -> Plan:
    """Plan a run on `world` GPUs of a kind (a name of the catalogue, or `here`), `box` in a machine; raises ConfigError.

    `timed`: steps are taken where such a device is at hand.
    """
    if world < 1 or box < 1:
        given, what = ("--gpus", world) if world < 1 else ("--gpus-per-node", box)
        raise ConfigError(f"{given} {what} cannot be: give a whole number from 1")
    own = strategy_.device_of(run.device).type if gpu == gpus.HERE else "cuda"
    if own not in ("cuda", "cpu"):
        raise ConfigError(f"a plan for {own} cannot be made: name a GPU with --gpu, or give device=cpu")
    kind = gpus.here(own, world) if gpu == gpus.HERE else gpus.find(gpu)
    gpus.check_precision(kind, run.precision)
    model = start.build(run, here=gpu == gpus.HERE)
    steps = pairs = None
    train = run.batch.size
    if sources_.given(run.data):
        stems, _ = split_.deal(sources_.find(run.data).pairs, run.data)
        pairs, train = sum(map(len, stems.values())), len(stems["train"])
        steps = loader_.epoch_end(run.epochs, train, run.batch.size)
    micro = start.micro_batch(run, world, train)
    planner = Planner(run, model, world, own, kind.memory, pairs)
    refused = dict(model.refuses())
    if why := strategy_.no_stage_3(run):
        refused["deepspeed 3"] = why
    try:
        start.check_recomputing(run)
    except ConfigError as error:
        refused["activation_checkpointing"] = str(error)
    rows = [
        Row(choice=choice, refused=why) if (why := _refusal(choice, refused)) else planner.row(choice, micro)
        for choice in planner.choices()
    ]
    advice = next((row for row in rows if row.micro), None)
    if advice is None:
        left = (c for c in planner.dearer() if not _refusal(c, refused) and (own == "cuda" or c.offload == "none"))
        advice = next((row for choice in left if (row := planner.row(choice, micro)).micro), None)
    if advice is not None and not (advice := planner.looked_at(advice)).micro:
        advice = None
    seconds, measured = _seconds(planner, model, kind, own, advice if timed else None)
    # Ranks on a CPU share its cores, so that each takes as long as all of them would one after the other.
    pictures = planner.share * (world if own == "cpu" else 1)
    links = traffic.Links(world=world, box=box, gpu=kind)
    compute = timing.of_share(seconds, pictures)

    def timed_row(row: Row) -> Row:
        if not row.micro:
            return row
        passes = planner.footprint.passes(row.micro, row.choice.checkpointing)
        exchange = traffic.of_step(
            row.choice.way,
            planner.footprint.sizes,
            passes,
            links,
            accumulations=row.accumulations,
            compute=compute,
            offload=row.choice.offload,
        )
        busy = sum(compute[taken.net] / taken.every for taken in passes)
        return replace(row, exchange=exchange, compute=busy)

    return Plan(
        run=run,
        gpu=kind,
        world=world,
        box=box,
        micro=micro,
        rows=tuple(timed_row(row) for row in rows),
        steps=steps,
        advice=timed_row(advice) if advice else None,
        timed=measured,
        free=planner.free,
        weights=max(s.weights for s in planner.footprint.sizes.values()),
    )


def _refusal(choice: Choice, refused: Mapping[str, str]) -> str | None:
    names = [
        choice.name.partition(" ")[0],
        choice.name,
        *(["activation_checkpointing"] if choice.checkpointing else []),
    ]
    return next((refused[name] for name in names if name in refused), None)


def _seconds(
    planner: Planner, model: Model, gpu: Gpu, device: str, advice: Row | None
) -> tuple[dict[str, float], bool]:
    """Seconds a picture of each update, and whether they were measured: where this machine has such a device, and room on it."""
    run = planner.run
    if advice is not None and (device == "cpu" or gpus.is_here(gpu)):
        alone = Planner(run, model, 1, device, gpu.memory)
        micro = min(advice.micro, alone.largest(Choice(way="one")), 4 if device == "cpu" else advice.micro)
        if micro:
            return timing.measured(run, model, torch.device(device), micro), True
    micro = advice.micro if advice else 1
    passes = planner.footprint.passes(micro, advice.choice.checkpointing if advice else None)
    return timing.reckoned(passes, micro, gpu, run.precision), False


def warning(run: Run, world: int, device_memory: int) -> str | None:
    """A sentence for a run that will not fit, see `memdist.plan.warning`."""
    device = strategy_.device_of(run.device).type
    if device not in RESERVE:
        return None
    micro = start.micro_batch(run, world, run.batch.size)
    planner = Planner(run, start.build(run), world, device, device_memory)
    way = shares.way(run, world)
    choice = Choice(way=way, offload=shares.offload(run, way))
    if planner.need(choice, micro, planner.footprint.exact(micro)).total <= planner.free:
        return None
    row = planner.row(choice, micro)
    what = "GPU" if device == "cuda" else "process"
    least = f"batch.micro={row.micro} would" if row.micro else "no micro-batch does: see `memdist plan` for what would"
    return (
        f"this run will not fit: {choice.name} needs about {row.memory.total / GIB:.1f} GiB a {what} with micro-batches of "
        f"{micro}, and {max(0.0, planner.free) / GIB:.1f} GiB of {device_memory / GIB:.1f} can be used; {least}"
    )
