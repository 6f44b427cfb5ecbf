"""The protocol between the loop and a way of sharing a step, and the choice of one."""

from __future__ import annotations

import importlib.util
import json
import os
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from memdist.config import Run
from memdist.distributed.pieces import Begin, Fetch, Pieces
from memdist.errors import ConfigError
from memdist.launch import place
from memdist.model import Nets, Stage, Update

FP16_ON_CPU = "MEMDIST_TEST_FP16_ON_CPU"
"""Environment variable that lets the tests drive the fp16 path (scaler, overflow) without a GPU."""


class Stepped(NamedTuple):
    """How a network moved; scalars on the device, the same on all ranks."""

    norm: Tensor
    """L2 norm of its gradient, unscaled, averaged over ranks, before clipping."""
    taken: Tensor | None
    """1, or 0 for a step that overflowed and was skipped; None where none can be."""


Make = Callable[[str, list[nn.Parameter]], torch.optim.Optimizer]
"""Makes the optimiser of a network, by its name, of what this rank moves of it."""


class Strategy(Protocol):
    """What the loop asks of a way of sharing a step; nothing else of it is known above."""

    device: torch.device
    home: torch.device
    """Where networks are built that `prepare` takes over: the device, or the host where it deals them out to the device."""
    rank: int
    world: int
    shares: bool
    """Whether a rank holds but a share of the weights: networks are then called in training alone."""
    optimisers: dict[str, torch.optim.Optimizer]
    """By network: for learning rates."""

    @property
    def main(self) -> bool:
        """Whether this process writes files and speaks to a person."""

    def prepare(self, stage: Stage, make: Make, clips: Mapping[str, float | None]) -> None:
        """Take over networks that stand at `home`, and make their optimisers; `clips` are largest gradient norms."""

    def weights(self, net: str) -> Pieces:
        """What this rank holds of a network's fp32 weights, by parameter: the same tensors at each call."""

    def moments(self, net: str) -> Pieces:
        """What this rank holds of the state of a network's optimiser, by <kind>/<parameter>; empty before its first step."""

    def take_moments(self, net: str, stored: Mapping[str, tuple[int, ...]], fetch: Fetch) -> None:
        """Restore the state of a network's optimiser: names and shapes as `moments` gave them, and their values."""

    def weights_changed(self, fetch: Fetch) -> None:
        """Take notice that `weights` were filled, from `fetch` (<network>.<parameter>): other copies of them follow."""

    def weight_norm(self, net: str, module: nn.Module) -> Tensor:
        """L2 norm of all weights of a network, a scalar on the device."""

    def only(self, net: str) -> AbstractContextManager[Nets]:
        """Freeze every network but one; gives that one as the strategy trains it and the others bare."""

    def micro(self, net: str, last: bool) -> AbstractContextManager[None]:
        """Surround forward AND backward of one micro-batch: mixed precision, and no reduction before the last one."""

    def autocast(self) -> AbstractContextManager[None]:
        """Mixed precision for forward passes outside a step."""

    def backward(self, net: str, value: Tensor, accumulations: int) -> None:
        """Add the gradient of a micro-batch's mean loss divided by the number of micro-batches."""

    def step(self, update: Update) -> Stepped:
        """Unscale, clip, step, zero, `after`."""

    def finish_step(self) -> None:
        """Average running statistics over ranks."""

    def scalers(self) -> dict[str, dict[str, float]]:
        """State of the loss scalers, by network."""

    def load_scalers(self, state: Mapping[str, Mapping[str, float]]) -> None:
        """Restore what `scalers` gave."""

    def mean(self, values: Tensor) -> Tensor:
        """Mean over ranks, element by element."""

    def gather(self, values: Tensor) -> Tensor:
        """Concatenate equally shaped tensors of all ranks along the first axis, in rank order."""

    def agree(self, wishes: int) -> int:
        """Bitwise or of all ranks' wishes, one step late when there are several ranks: it never waits for a device."""

    def settle(self) -> int:
        """Wait for what `agree` still has under way and give it."""

    def first(self, work: Callable[[], None]) -> None:
        """Let the main process do something before the others go on; its failure is everybody's (`errors.shared`)."""

    def collect(self, pieces: Pieces, begin: Begin) -> None:
        """Hand the pieces of all ranks (1-D, on the CPU) to the main process, which alone calls `begin`; for a thread."""

    def close(self) -> None:
        """Leave the process group."""


def device_of(name: str) -> torch.device:
    """Device for `device=NAME`; a ConfigError when it is not there."""
    local = place.read(os.environ).local
    if name in ("auto", "cuda") and torch.cuda.is_available():
        place.enough(torch.cuda.device_count())
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda", local)
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    device = torch.device(name)
    present = {
        "cuda": torch.cuda.is_available() and (device.index or 0) < torch.cuda.device_count(),
        "mps": torch.backends.mps.is_available(),
        "cpu": True,
    }[device.type]
    if not present:
        raise ConfigError(
            f"device = {name!r} is not on this machine; use device=auto or device=cpu (`memdist doctor` says what is here)"
        )
    if device.type == "cuda" and device.index is None:
        device = torch.device("cuda", local)
    return device


def check_precision(precision: str, device: torch.device, key: str = "precision") -> None:
    """Raise a ConfigError when the device cannot compute in this precision; `key` is the setting that asks for it."""
    if precision == "fp16" and device.type == "cpu" and os.environ.get(FP16_ON_CPU) != "1":
        raise ConfigError(f"{key} = 'fp16' needs a GPU and the device is a CPU; use {key}=fp32")
    if precision == "fp16" and device.type == "mps":
        raise ConfigError(f"{key} = 'fp16' has no loss scaling on mps; use {key}=fp32")
    if precision == "tf32" and (device.type != "cuda" or torch.cuda.get_device_capability(device) < (8, 0)):
        raise ConfigError(
            f"{key} = 'tf32' needs an NVIDIA GPU of compute capability 8.0 (Ampere) or later; use {key}=fp32"
        )
    if precision == "bf16" and device.type == "mps":
        raise ConfigError(f"{key} = 'bf16' is not supported on mps; use {key}=fp32")
    if precision == "bf16" and device.type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
        name = torch.cuda.get_device_name(device)
        raise ConfigError(f"{key} = 'bf16' cannot run on {name}, which has no bf16; use {key}=fp16 or fp32")


def check(run: Run, *, here: bool = True) -> None:
    """Raise a ConfigError for settings of strategies that cannot be together, on a machine like this one (`here`) or any."""
    if run.strategy == "deepspeed":
        if importlib.util.find_spec("deepspeed") is None:
            raise ConfigError(
                "strategy = 'deepspeed' needs deepspeed, which is not installed: install it (pip install deepspeed), or use "
                "strategy=ddp or fsdp"
            )
        if run.deepspeed.stage == 3 and (why := no_stage_3(run)):
            raise ConfigError(why)
    for setting, wanted in (("sync_batch_norm", run.sync_batch_norm), ("fsdp.offload", run.fsdp.offload)):
        if here and wanted and (run.device == "cpu" or not torch.cuda.is_available()):
            raise ConfigError(f"{setting}=true needs GPUs, and the device is no GPU here: leave it out")


def no_stage_3(run: Run) -> str | None:
    """Why a run cannot be with ZeRO stage 3, in a sentence; None if it can."""
    for setting in ("compile", "activation_checkpointing"):
        if getattr(run, setting):
            return (
                f"{setting}=true cannot be with deepspeed.stage = 3, which gathers weights between the layers of a block: "
                f"use deepspeed.stage=1 or 2, strategy=fsdp, or {setting}=false"
            )
    return None


def make(run: Run) -> Strategy:
    """The way in which the processes that a launcher started share a run's steps, joined to the others."""
    device = _device(run)
    world = place.read(os.environ).world
    match run.strategy:
        case "ddp" if world > 1:
            from memdist.distributed.ddp import Ddp

            return Ddp(device, run.precision, run.hang_minutes)
        case "fsdp":
            from memdist.distributed.fsdp import Fsdp

            if run.fsdp.offload and device.type != "cuda":
                raise ConfigError(
                    f"fsdp.offload=true needs GPUs and the device is a {device.type.upper()}: leave it out"
                )
            return Fsdp(device, run.precision, run.hang_minutes, offload=run.fsdp.offload)
        case "deepspeed":
            from memdist.distributed.zero import Zero

            micro = run.batch.micro or max(1, run.batch.size // world)
            count = max(1, run.batch.size // (micro * world))
            return Zero(device, run.precision, run.hang_minutes, settings=run.deepspeed, micro=micro, count=count)
    from memdist.distributed.single import Single

    return Single(device, run.precision)


def reading(run: Run) -> Strategy:
    """The processes that a launcher started, joined to share pictures: each holds the networks, and none is trained."""
    device = _device(run)
    if place.read(os.environ).world > 1:
        from memdist.distributed.group import Group

        return Group(device, run.precision, run.hang_minutes)
    from memdist.distributed.single import Single

    return Single(device, run.precision)


def _device(run: Run) -> torch.device:
    """This process's device, set up for the run's arithmetic."""
    with place.alike():
        device = device_of(run.device)
        check_precision(run.precision, device)
        _check_ranks(run, device)
    if device.type == "cuda":
        # What asks for no device (events, page-locked memory, compiled kernels) takes the current one.
        torch.cuda.set_device(device)
        # Before the first kernel runs: cuBLAS reads its variable once.
        if run.deterministic:
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(run.deterministic)
        torch.backends.cudnn.benchmark = not run.deterministic
        # torch itself would round the products of convolutions, and of nothing else.
        torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = run.precision == "tf32"
    return device


def _check_ranks(run: Run, device: torch.device) -> None:
    """Raise a ConfigError for a device that ranks cannot share, or cannot send anything from."""
    here = place.read(os.environ)
    if ":" in run.device and here.locals > 1:
        raise ConfigError(
            f"device = {run.device!r} is one GPU and {here.locals} processes were started on this machine: use device=cuda, "
            "which gives each its own"
        )
    if run.strategy == "deepspeed" and ":" in run.device and device.index:
        raise ConfigError(
            f"device = {run.device!r} cannot be with strategy = 'deepspeed', which takes the first GPU that it sees: use "
            f"device=cuda, with CUDA_VISIBLE_DEVICES={device.index} in the environment"
        )
    if device.type == "mps" and here.world > 1:
        raise ConfigError(f"{here.world} processes cannot share a run on mps: start one, or use device=cpu")
    if device.type == "mps" and run.strategy != "ddp":
        raise ConfigError(f"strategy = {run.strategy!r} cannot run on mps: use strategy=ddp, or device=cpu")


def freeze(nets: Mapping[str, nn.Module], net: str) -> None:
    """Let the parameters of one network require gradients, and no others."""
    for name, module in nets.items():
        for parameter in module.parameters():
            parameter.requires_grad_(name == net)


def from_main(strategy: Strategy, work: Callable[[], int]) -> int:
    """A number that the main process finds, and that all ranks get; its failure is everybody's."""
    found = [0]

    def find() -> None:
        found[0] = work()

    strategy.first(find)
    return int(strategy.gather(torch.tensor(found, device=strategy.device))[0])


def record_from_main(strategy: Strategy, work: Callable[[], Mapping[str, Any]]) -> dict[str, Any]:
    """A record of JSON that the main process finds, for all ranks: another process may be writing what they would read."""
    told: list[bytes] = []

    def find() -> int:
        told.append(json.dumps(work()).encode())
        return len(told[0])

    length = from_main(strategy, find)
    mine = torch.tensor(list(told[0]) if told else [0] * length, dtype=torch.int32, device=strategy.device)
    return dict(json.loads(bytes(strategy.gather(mine[None])[0].tolist())))


def norm(tensors: list[Tensor]) -> Tensor:
    """L2 norm of all numbers in some tensors of one device and type, as a scalar on the device."""
    return torch.linalg.vector_norm(torch.stack(torch._foreach_norm(tensors)))
