"""One process: freezing, mixed precision with one loss scaler a network, clipping."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor, nn

from memdist.distributed import pieces
from memdist.distributed.pieces import Begin, Fetch, Piece, Pieces
from memdist.distributed.strategy import Make, Stepped, freeze, norm
from memdist.model import Nets, Stage, Update


class Single:
    """The whole step in this process; the base of strategies that share it."""

    rank = 0
    world = 1
    shares = False

    def __init__(self, device: torch.device, precision: str) -> None:
        """Compute on `device` in fp32, tf32, bf16 or fp16 (checked by `strategy.check_precision`)."""
        self.device = self.home = device
        self.precision = precision
        self._bare: dict[str, nn.Module] = {}
        self._wrapped: dict[str, nn.Module] = {}
        self._weights: dict[str, dict[str, nn.Parameter]] = {}
        self.optimisers: dict[str, torch.optim.Optimizer] = {}
        self._clips: dict[str, float | None] = {}
        self._scalers: dict[str, torch.amp.GradScaler] = {}
        self._training: str | None = None

    @property
    def main(self) -> bool:
        """Whether this process writes files and speaks to a person."""
        return self.rank == 0

    def prepare(self, stage: Stage, make: Make, clips: Mapping[str, float | None]) -> None:
        """Take over networks that are already on the device, and make their optimisers."""
        self._bare, self._clips, self._training = dict(stage.nets), dict(clips), None
        self._wrapped, self._weights, self.optimisers = {}, {}, {}
        for name, net in self._bare.items():
            self._wrapped[name] = self._wrap(net, whole=name in stage.twice)
            self._weights[name] = self._moved(net)
            self.optimisers[name] = make(name, list(self._weights[name].values()))
        if self.precision == "fp16":
            self._scalers = {name: torch.amp.GradScaler(self.device.type) for name in self._bare}

    def _wrap(self, net: nn.Module, *, whole: bool) -> nn.Module:
        return net

    def _moved(self, net: nn.Module) -> dict[str, nn.Parameter]:
        """What the optimiser of a wrapped network moves, by parameter."""
        return dict(net.named_parameters())

    def _shape(self, weight: nn.Parameter) -> tuple[int, ...]:
        """Shape of the whole parameter of which the optimiser moves `weight`."""
        return tuple(weight.shape)

    def weights(self, net: str) -> Pieces:
        """What this rank holds of a network's fp32 weights, by parameter."""
        return {key: self._piece(weight, weight) for key, weight in self._weights[net].items()}

    def moments(self, net: str) -> Pieces:
        """What this rank holds of the state of a network's optimiser, by <kind>/<parameter>."""
        state = self.optimisers[net].state
        return {
            f"{kind}/{key}": self._piece(value, weight)
            for key, weight in self._weights[net].items()
            for kind, value in state.get(weight, {}).items()
            if value is not None
        }

    def take_moments(self, net: str, stored: Mapping[str, tuple[int, ...]], fetch: Fetch) -> None:
        """Restore the state of a network's optimiser: names and shapes as `moments` gave them."""
        optimiser, weights = self.optimisers[net], self._weights[net]
        fused = optimiser.param_groups[0].get("fused") or optimiser.param_groups[0].get("capturable")
        for name, shape in stored.items():
            kind, _, key = name.partition("/")
            weight = weights[key]
            if shape == self._shape(weight):
                # Like the weight in layout, so that fused kernels see what they saw before.
                state = torch.zeros_like(weight, requires_grad=False)
            else:
                # Step counts stay where they were: beside the weight, which may be offloaded, or on the host.
                state = torch.zeros(shape, device=weight.device if fused else "cpu")
            optimiser.state[weight][kind] = state
            pieces.fill({name: self._piece(state, weight)}, fetch)

    def _piece(self, value: Tensor, weight: nn.Parameter) -> Piece:
        """What this rank holds of a weight, or of a tensor that is dealt out as the weight is."""
        return pieces.whole(value)

    def weights_changed(self, fetch: Fetch) -> None:
        """There is no other copy of the weights."""

    def weight_norm(self, net: str, module: nn.Module) -> Tensor:
        """L2 norm of a network's weights, a scalar on the device."""
        return norm([p.data for p in module.parameters()])

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
        if self.precision in ("fp32", "tf32"):
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
        net = update.net
        optimiser, scaler, clip = self.optimisers[net], self._scalers.get(net), self._clips[net]
        parameters = list(self._weights[net].values())
        if scaler:
            scaler.unscale_(optimiser)
            self._agree_on_overflow(scaler, optimiser)
        size = self._norm([p.grad for p in parameters if p.grad is not None])
        if clip is not None:
            self._clip(parameters, clip, size)
        if scaler:
            scaler.step(optimiser)
            scaler.update()
        else:
            optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        if update.after is not None:
            with torch.no_grad():
                for piece in self.weights(net).values():
                    update.after(piece.values)
        return Stepped(size, torch.isfinite(size).float() if scaler else None)

    def _norm(self, gradients: list[Tensor]) -> Tensor:
        return norm(gradients)

    def _clip(self, parameters: list[nn.Parameter], clip: float, size: Tensor) -> None:
        nn.utils.clip_grads_with_norm_(parameters, clip, size)

    def _agree_on_overflow(self, scaler: torch.amp.GradScaler, optimiser: torch.optim.Optimizer) -> None:
        """One process knows all of the gradient."""

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

    def collect(self, pieces: Pieces, begin: Begin) -> None:
        """Hand over the pieces."""
        put = begin({name: (piece.shape, piece.values.dtype) for name, piece in pieces.items()})
        for name, piece in pieces.items():
            put(name, piece.start, piece.values)

    def close(self) -> None:
        """Nothing to leave."""
