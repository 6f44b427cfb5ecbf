"""What each strategy holds of the networks on a rank, beside activations: one table, and the sums over it.

Mixed precision is autocast over fp32 weights in every strategy, so that weights, gradients, optimiser states and averages
are fp32 everywhere. Sources: ddp, Li et al. 2020 (arXiv 2006.15704), with gradients as views of the buckets; fsdp, Zhao et
al. 2023 (arXiv 2304.11277), reshard after forward; deepspeed, Rajbhandari et al. 2019 (arXiv 1910.02054), section 5.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal

from memdist.train.footprint import FP32, Pass, Size

REDUCE_BUCKET = 500_000_000
"""Numbers that DeepSpeed gathers before it reduces them (`reduce_bucket_size`), at most."""
LIVE = 1_000_000_000
"""Numbers of weights that stage 3 keeps gathered at most (`stage3_max_live_parameters`, `stage3_max_reuse_distance`)."""


@dataclass(frozen=True)
class Share:
    """Copies of a network's numbers that a rank holds: `whole`, and `shared` out over all ranks."""

    whole: int
    shared: int

    def of(self, numbers: float, world: int) -> float:
        """Numbers on a rank."""
        return numbers * (self.whole + self.shared / world)


@dataclass(frozen=True, kw_only=True)
class Held:
    """What a strategy holds of a network."""

    weights: Share
    gradients: Share
    everyone: bool
    """Gradients of all networks exist all the time, rather than those of the one that moves."""
    master: Share
    """Another copy of the weights, which the optimiser moves."""
    optimiser: Share
    """Of each moment."""
    averages: Share


_NONE, _WHOLE, _SHARED = Share(0, 0), Share(1, 0), Share(0, 1)
TABLE: Mapping[str, Held] = {
    "one": Held(weights=_WHOLE, gradients=_WHOLE, everyone=False, master=_NONE, optimiser=_WHOLE, averages=_WHOLE),
    "ddp": Held(weights=_WHOLE, gradients=_WHOLE, everyone=True, master=_NONE, optimiser=_WHOLE, averages=_WHOLE),
    "fsdp": Held(weights=_SHARED, gradients=_SHARED, everyone=False, master=_NONE, optimiser=_SHARED, averages=_SHARED),
    "deepspeed 1": Held(
        weights=_WHOLE, gradients=_WHOLE, everyone=False, master=_SHARED, optimiser=_SHARED, averages=_SHARED
    ),
    "deepspeed 2": Held(
        weights=_WHOLE, gradients=_SHARED, everyone=False, master=_SHARED, optimiser=_SHARED, averages=_SHARED
    ),
    "deepspeed 3": Held(
        weights=_SHARED, gradients=_SHARED, everyone=True, master=_SHARED, optimiser=_SHARED, averages=_SHARED
    ),
}
"""By strategy, for DeepSpeed with its stage; "one" is a process alone, whatever its strategy is called."""


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Bytes of one rank at the peak of training steps."""

    weights: float = 0
    """Weights, other copies that the optimiser moves, and buffers."""
    gradients: float = 0
    optimiser: float = 0
    averages: float = 0
    passing: float = 0
    """What is whole for a moment only: gathered blocks, buckets that are being reduced, copies that an optimiser makes."""
    activations: float = 0
    """What forward keeps for backward, and what backward makes; with pictures, and half copies of weights under autocast."""
    host: float = 0
    """What lies in the host's memory instead; no part of the total."""

    @property
    def total(self) -> float:
        """Of the device."""
        return sum(getattr(self, field.name) for field in fields(self)) - self.host


Offload = Literal["none", "optimizer", "all"]


def peak(
    way: str,
    sizes: Mapping[str, Size],
    passes: tuple[Pass, ...],
    *,
    world: int,
    accumulations: int = 1,
    pictures: int = 0,
    offload: Offload = "none",
) -> Memory:
    """Largest need of a rank over the updates of a step; `way` as in TABLE, `pictures` in bytes."""
    every = (
        one(way, sizes, taken, world=world, accumulations=accumulations, pictures=pictures, offload=offload)
        for taken in passes
    )
    return max(every, key=lambda memory: memory.total)


def one(
    way: str,
    sizes: Mapping[str, Size],
    taken: Pass,
    *,
    world: int,
    accumulations: int = 1,
    pictures: int = 0,
    offload: Offload = "none",
) -> Memory:
    """Need of a rank in one update: at the peak of its backward, or in the step of its optimiser if that is more."""
    held = TABLE[way]
    moving = sizes[taken.net]
    weights = sum(held.weights.of(s.weights, world) for s in sizes.values())
    master = sum(held.master.of(s.weights, world) for s in sizes.values())
    moments = sum(held.optimiser.of(s.moments * s.weights, world) for s in sizes.values())
    averages = sum(held.averages.of(s.weights, world) for s in sizes.values() if s.averaged)
    buffers = sum(s.buffers * (1 + s.averaged) for s in sizes.values())
    bearing = sizes.values() if held.everyone else (moving,)
    gradients = sum(held.gradients.of(s.weights, world) for s in bearing)
    if way == "fsdp" and accumulations > 1:
        gradients += moving.weights  # whole until the last micro-batch, whose gradients are shared out
    activations: float = taken.activations
    if way in ("one", "deepspeed 1") and accumulations == 1:
        # Gradients grow while activations go, so that the two are never there whole at once.
        activations = max(0, taken.joint - FP32 * gradients)
    most = _most(way, sizes, moving, gradients, activations / FP32, world, accumulations)
    passing = most - gradients - activations / FP32
    host = 0.0
    if offload != "none":
        # Averages live where the weights do that the optimiser moves.
        host += master + moments + averages
        master = moments = averages = 0
    if offload == "all":
        host += weights + gradients
        weights = gradients = 0
    return Memory(
        weights=FP32 * (weights + master) + buffers,
        gradients=FP32 * gradients,
        optimiser=FP32 * moments,
        averages=FP32 * averages,
        passing=FP32 * passing,
        activations=activations + pictures,
        host=FP32 * host,
    )


def _most(
    way: str,
    sizes: Mapping[str, Size],
    moving: Size,
    gradients: float,
    activations: float,
    world: int,
    accumulations: int,
) -> float:
    """Numbers beside what stays from step to step, at the worst of three moments: a pass, sharing gradients out, a step."""
    share = moving.weights / world
    scratch = TABLE[way].optimiser.of(moving.scratch, world)
    bucket = min(REDUCE_BUCKET, moving.weights)
    largest = sorted((unit for s in sizes.values() for unit in s.units), reverse=True)
    match way:
        case "fsdp":  # the block at work and the one that is fetched, and a gradient before it is shared out
            work = activations + gradients + sum(largest[:2]) + moving.units[0]
            return max(work, gradients + scratch)
        case "deepspeed 1":
            # Gradients stay where backward leaves them until all are there; beside them the bucket, which is allocated first.
            # They move into it, and each sum over ranks makes a copy of it. The step makes one of the rank's share.
            return max(bucket + gradients + activations, bucket + moving.weights, 2 * share + scratch)
        case "deepspeed 2":
            # Gradients move into the bucket as they come; those of the buckets and micro-batches before are there as shares.
            before = share if bucket < moving.weights or accumulations > 1 else 0
            return before + max(bucket + activations, 2 * bucket, 2 * share + scratch - before)
        case "deepspeed 3":
            # Each network has its bucket all the time.
            buckets = sum(min(REDUCE_BUCKET, s.weights) for s in sizes.values())
            # All blocks are fetched ahead, and stay for backward; until the last is at work there is a copy as it was sent.
            gathered = min(LIVE, sum(s.weights for s in sizes.values()))
            sent = min(LIVE, max(s.weights for s in sizes.values()))
            return gradients + buckets + max(activations + gathered + sent, bucket, share + scratch)
        case _:
            return gradients + max(activations, scratch)


def offload(run: Any, way: str) -> Offload:
    """What a row of TABLE moves to the host under the run's settings; all of DeepSpeed's has weights only in stage 3."""
    if way == "fsdp":
        return "all" if run.fsdp.offload else "none"
    if not way.startswith("deepspeed"):
        return "none"
    wanted: Offload = run.deepspeed.offload
    return "optimizer" if wanted == "all" and way != "deepspeed 3" else wanted


def way(run: Any, world: int) -> str:
    """The row of TABLE that a run takes."""
    if run.strategy == "ddp":
        return "ddp" if world > 1 else "one"
    return f"deepspeed {run.deepspeed.stage}" if run.strategy == "deepspeed" else "fsdp"
