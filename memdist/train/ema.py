"""Exponential moving averages of weights."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from memdist.distributed import pieces
from memdist.distributed.pieces import Piece, Pieces
from memdist.distributed.strategy import Strategy


class Averages:
    """Averaged copies of networks, in evaluation mode; they are what validates, samples and is handed on."""

    def __init__(self, nets: Mapping[str, nn.Module], names: tuple[str, ...], decay: float | None) -> None:
        """Start at the networks' present weights; `decay` None keeps no averages."""
        self.decay = decay
        self.nets: dict[str, nn.Module] = {}
        if decay is not None:
            for name in names:
                self.nets[name] = copy.deepcopy(nets[name]).eval().requires_grad_(False)
        self._live = {name: nets[name] for name in names}
        self._shells: dict[str, nn.Module] = {}
        self._shares: dict[str, Pieces] = {}
        self._moving = {
            name: ([p.data for p in average.parameters()], [p.data for p in nets[name].parameters()])
            for name, average in self.nets.items()
        }

    def part(self) -> None:
        """Called before a strategy deals out the weights: remember what the networks look like that predict."""
        self._shells = {name: _shell(self.nets.get(name, net)) for name, net in self._live.items()}

    def deal_out(self, strategy: Strategy) -> None:
        """Keep of each average the stretches that the strategy lets this rank keep of the weights."""
        for name, average in self.nets.items():
            values, shares = dict(average.named_parameters()), {}
            weights = strategy.weights(name)
            for key, piece in weights.items():
                mine = values[key].detach().reshape(-1)[piece.start : piece.start + piece.count]
                # Where the weight's stretch lives: on the device or the host.
                shares[key] = replace(piece, values=torch.empty_like(piece.values))
                shares[key].fill(mine)
            self._shares[name] = shares
            self._moving[name] = ([s.values for s in shares.values()], [w.values for w in weights.values()])
        self.nets = {name: self._shells[name] for name in self.nets}

    @contextlib.contextmanager
    def whole(self, names: Sequence[str], strategy: Strategy) -> Iterator[dict[str, nn.Module]]:
        """Networks to predict with: averages where there are any, and of what is dealt out a whole copy for as long.

        All ranks call it alike.
        """
        if strategy.shares:
            yield {name: self._gathered(name, strategy) for name in names}
            return
        bare = {name: self._live[name] for name in names if name not in self.nets}
        for net in bare.values():
            net.eval()
        try:
            yield bare | {name: self.nets[name] for name in names if name in self.nets}
        finally:
            for net in bare.values():
                net.train()

    @torch.no_grad()
    def _gathered(self, name: str, strategy: Strategy) -> nn.Module:
        net = copy.deepcopy(self._shells[name]).to_empty(device=strategy.device)
        weights = dict(net.named_parameters())
        shapes = {key: tuple(weight.shape) for key, weight in weights.items()}
        shares = self._shares.get(name) or strategy.weights(name)
        for key, tensor in pieces.gathered(shapes, shares, strategy.gather, strategy.device):
            weights[key].copy_(tensor)
        for mine, theirs in zip(net.buffers(), self._live[name].buffers(), strict=True):
            mine.copy_(theirs)
        return net

    def pieces(self) -> dict[str, Piece]:
        """What this rank holds of the averages: <network>.<parameter or buffer>."""
        found: dict[str, Piece] = {}
        for name, net in self.nets.items():
            if name in self._shares:
                found |= {f"{name}.{key}": piece for key, piece in self._shares[name].items()}
                found |= {f"{name}.{key}": pieces.whole(value) for key, value in kept(self._live[name]).items()}
            else:
                found |= {f"{name}.{key}": pieces.whole(value) for key, value in net.state_dict().items()}
        return found

    @torch.no_grad()
    def update(self, name: str, step: int, taken: Tensor | None) -> None:
        """Move one network's average after its step; `taken` (0 or 1 on the device) is 0 for a step that was skipped."""
        if name not in self._moving:
            return
        assert self.decay is not None
        averages, weights = self._moving[name]
        if not averages:
            return  # a rank may hold no weight of a small network
        share = 1 - min(self.decay, (1 + step) / (10 + step))
        if taken is None:
            torch._foreach_lerp_(averages, weights, share)
        else:
            change = list(torch._foreach_sub(weights, averages))
            torch._foreach_mul_(change, taken.to(change[0].device) * share)
            torch._foreach_add_(averages, change)

    @torch.no_grad()
    def copy_buffers(self) -> None:
        """Take over running statistics, once they are averaged over ranks."""
        for name, net in self.nets.items():
            if name not in self._shares:
                for buffer, value in zip(net.buffers(), self._live[name].buffers(), strict=True):
                    buffer.copy_(value)


def kept(net: nn.Module) -> dict[str, Tensor]:
    """A network's buffers that checkpoints keep, by name."""
    named = dict(net.named_buffers())
    return {key: named[key] for key in net.state_dict() if key in named}


def _shell(net: nn.Module) -> nn.Module:
    """A copy of a network without values; none is made on the way, as the device may have no room for one more."""
    given = {id(p): nn.Parameter(torch.empty_like(p, device="meta"), p.requires_grad) for p in net.parameters()}
    given |= {id(buffer): torch.empty_like(buffer, device="meta") for buffer in net.buffers()}  # type: ignore[misc]
    return copy.deepcopy(net, given).eval()
