"""One process: freezing, mixed precision with one loss scaler a network, clipping."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor, nn

from memdist.distributed.strategy import Stepped, freeze, norm
from memdist.model import Nets, Stage, Update


class Single:
    """The whole step in this process; the base of strategies that share it."""

    rank = 0
    world = 1

    def __init__(self, device: torch.device, precision: str) -> None:
        """Compute on `device` in fp32, bf16 or fp16 (checked by `strategy.check_precision`)."""
        self.device = device
        self.precision = precision
        self._bare: dict[str, nn.Module] = {}
        self._wrapped: dict[str, nn.Module] = {}
        self._optimisers: dict[str, torch.optim.Optimizer] = {}
        self._clips: dict[str, float | None] = {}
        self._scalers: dict[str, torch.amp.GradScaler] = {}
        self._training: str | None = None

    @property
    def main(self) -> bool:
        """Whether this process writes files and speaks to a person."""
        return self.rank == 0

    def prepare(
        self, stage: Stage, optimisers: Mapping[str, torch.optim.Optimizer], clips: Mapping[str, float | None]
    ) -> None:
        """Take over networks that are already on the device, and their optimisers."""
        self._bare = dict(stage.nets)
        self._wrapped = {name: self._wrap(net) for name, net in self._bare.items()}
        self._optimisers, self._clips = dict(optimisers), dict(clips)
        if self.precision == "fp16":
            self._scalers = {name: torch.amp.GradScaler(self.device.type) for name in optimisers}

    def _wrap(self, net: nn.Module) -> nn.Module:
        return net

    @contextlib.contextmanager
    def only(self, net: str) -> Iterator[Nets]:
        """Freeze every network but one."""
        if self._training != net:
            freeze(self._bare, net)
            self._training = net
        yield self._bare | {net: self._wrapped[net]}

    @contextlib.contextmanager
    def micro(self, net: str, last: bool) -> Iterator[None]:
        """Surround forward and backward of one micro-batch."""
        with self.autocast():
            yield

    def autocast(self) -> contextlib.AbstractContextManager[None]:
        """Mixed precision for forward passes."""
        if self.precision == "fp32":
            return contextlib.nullcontext()
        dtype = torch.bfloat16 if self.precision == "bf16" else torch.float16
        return torch.autocast(self.device.type, dtype)

    def backward(self, net: str, value: Tensor, accumulations: int) -> None:
        """Add the gradient of a micro-batch's share of the loss."""
        share = value.float() / accumulations if accumulations > 1 else value.float()
        scaler = self._scalers.get(net)
        (scaler.scale(share) if scaler else share).backward()  # type: ignore[no-untyped-call]

    def step(self, update: Update) -> Stepped:
        """Unscale, clip, step, zero, `after`; under fp16 a step can be skipped."""
        optimiser, scaler, clip = self._optimisers[update.net], self._scalers.get(update.net), self._clips[update.net]
        parameters = list(self._bare[update.net].parameters())
        if scaler:
            scaler.unscale_(optimiser)
        size = norm([p.grad for p in parameters if p.grad is not None])
        if clip is not None:
            nn.utils.clip_grads_with_norm_(parameters, clip, size)
        if scaler:
            scaler.step(optimiser)
            scaler.update()
        else:
            optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        if update.after is not None:
            with torch.no_grad():
                for parameter in parameters:
                    update.after(parameter)
        return Stepped(size, torch.isfinite(size).float() if scaler else None)

    def finish_step(self) -> None:
        """Nothing to average in one process."""

    def scalers(self) -> dict[str, dict[str, float]]:
        """State of the loss scalers, by network."""
        return {name: scaler.state_dict() for name, scaler in self._scalers.items()}

    def load_scalers(self, state: Mapping[str, Mapping[str, float]]) -> None:
        """Restore what `scalers` gave."""
        for name, scaler in self._scalers.items():
            scaler.load_state_dict(dict(state[name]))

    def mean(self, values: Tensor) -> Tensor:
        """Mean over ranks."""
        return values

    def gather(self, values: Tensor) -> Tensor:
        """Values of all ranks, in rank order."""
        return values

    def agree(self, wishes: int) -> int:
        """All ranks' wishes, at once."""
        return wishes

    def settle(self) -> int:
        """Nothing is under way in one process."""
        return 0

    def first(self, work: Callable[[], None]) -> None:
        """Do it."""
        work()

    def close(self) -> None:
        """Nothing to leave."""
