"""What ranks send one another in a step, and how long that takes by an alpha-beta model.

A collective of S bytes over W ranks costs messages x alpha + bytes / beta (Thakur, Rabenseifner and Gropp 2005,
"Optimization of collective communication operations in MPICH"); rings send the least bytes that are possible (Patarasuk and
Yuan 2009, "Bandwidth optimal all-reduce algorithms for clusters of workstations"). A machine's GPUs first reduce among
themselves, then each of them its part with its like on the other machines.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import ceil

from memdist.plan.gpus import Gpu
from memdist.train.footprint import FP32, Pass, Size
from memdist.train.shares import REDUCE_BUCKET, Offload

ALPHA_INSIDE = 10e-6
"""Seconds from GPU to GPU of one machine, before the first byte: NCCL's, about."""
ALPHA_NETWORK = 25e-6
"""Seconds between GPUs of two machines."""
REACHED = 0.8
"""Share of a link's nominal bandwidth that collectives reach."""
BACKWARD = 2 / 3
"""Backward's share of a pass: it makes two products for each one of forward."""
DDP_BUCKET = 25 * 2**20
"""Bytes of a bucket of torch's DistributedDataParallel."""


@dataclass(frozen=True, kw_only=True)
class Cost:
    """Of communication, on one rank."""

    sent: float = 0.0
    """Bytes."""
    seconds: float = 0.0

    def __add__(self, other: Cost) -> Cost:
        return Cost(sent=self.sent + other.sent, seconds=self.seconds + other.seconds)

    def __mul__(self, times: float) -> Cost:
        return Cost(sent=self.sent * times, seconds=self.seconds * times)


@dataclass(frozen=True, kw_only=True)
class Links:
    """W ranks on machines of at most `box` GPUs."""

    world: int
    box: int
    gpu: Gpu

    def half(self, size: float, messages: int = 1) -> Cost:
        """Reduce-scatter or all-gather of `size` bytes, in so many pieces: (W - 1) / W x size are sent by each rank."""
        if self.world == 1:
            return Cost()
        inside = min(self.box, self.world)
        boxes = ceil(self.world / inside)
        start = (inside - 1) * ALPHA_INSIDE + (boxes - 1) * ALPHA_NETWORK
        flow = (inside - 1) / inside * size / (REACHED * self.gpu.inside)
        flow += (boxes - 1) / boxes * size / inside / (REACHED * self.gpu.network)
        return Cost(sent=(self.world - 1) / self.world * size, seconds=messages * start + flow)

    def all_reduce(self, size: float, messages: int = 1) -> Cost:
        """A reduce-scatter and an all-gather: 2 (W - 1) / W x size are sent by each rank."""
        return self.half(size, messages) * 2


@dataclass(frozen=True, kw_only=True)
class Exchange:
    """Of one step on one rank."""

    sent: float
    """Bytes to other ranks."""
    seconds: float
    """As long as all communication takes by itself."""
    exposed: float
    """Seconds of it that computation cannot hide, with the way to the host and back."""


def of_step(
    way: str,
    sizes: Mapping[str, Size],
    passes: tuple[Pass, ...],
    links: Links,
    *,
    accumulations: int,
    compute: Mapping[str, float],
    offload: Offload = "none",
) -> Exchange:
    """Mean over steps, of updates that are not taken at each one; `compute` is seconds of an update, by network.

    ddp: one all-reduce of the gradients, 2 (W - 1) / W x 4P bytes, in backward of the last micro-batch, which hides it (Li
    et al. 2020, section 3.2). deepspeed 1, 2: a reduce-scatter of the gradients and an all-gather of the weights, as much
    again (Rajbhandari et al. 2019, section 7.1); the second comes after the step and nothing hides it; stage 2 reduces each
    micro-batch. fsdp and deepspeed 3: each call of a network gathers its weights in forward and again in backward, and each
    micro-batch reduces the gradients (section 7.2: 3/2 of ddp's); each is fetched while the block before computes (Zhao et
    al. 2023, section 3.3).
    """
    sent = seconds = exposed = 0.0
    for taken in passes:
        total, open_ = _of_update(way, sizes, taken, links, accumulations, compute[taken.net])
        open_ += _to_host(sizes[taken.net], links, accumulations, offload)
        sent += total.sent / taken.every
        seconds += total.seconds / taken.every
        exposed += open_ / taken.every
    return Exchange(sent=sent, seconds=seconds, exposed=exposed)


def _of_update(
    way: str, sizes: Mapping[str, Size], taken: Pass, links: Links, accumulations: int, compute: float
) -> tuple[Cost, float]:
    size = FP32 * sizes[taken.net].weights
    micro = compute / accumulations
    if way in ("one", "ddp"):
        cost = links.all_reduce(size, ceil(size / DDP_BUCKET)) if way == "ddp" else Cost()
        return cost, max(0.0, cost.seconds - BACKWARD * micro)
    if way in ("deepspeed 1", "deepspeed 2"):
        times = 1 if way == "deepspeed 1" else accumulations
        half = links.half(size, ceil(size / (FP32 * REDUCE_BUCKET)))
        return half * (times + 1), times * max(0.0, half.seconds - BACKWARD * micro) + half.seconds
    gather = Cost()
    for name, calls in taken.calls.items():
        gather += links.half(FP32 * sizes[name].weights, len(sizes[name].units)) * calls
    reduce = links.half(size, len(sizes[taken.net].units))
    late = max(0.0, gather.seconds - (1 - BACKWARD) * micro)
    late += max(0.0, gather.seconds + reduce.seconds - BACKWARD * micro)
    return (gather * 2 + reduce) * accumulations, late * accumulations


def _to_host(moving: Size, links: Links, accumulations: int, offload: Offload) -> float:
    """Seconds in which a rank's share goes to the host and back: not hidden, for all that is known beforehand."""
    share = FP32 * moving.weights / links.world / (REACHED * links.gpu.host)
    return share * {"none": 0, "optimizer": 2, "all": 3 * accumulations}[offload]
