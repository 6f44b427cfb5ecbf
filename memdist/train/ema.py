"""Exponential moving averages of weights."""

from __future__ import annotations

import copy
from collections.abc import Mapping

import torch
from torch import Tensor, nn


class Averages:
    """Averaged copies of networks, in evaluation mode; they are what validates, samples and is handed on."""

    def __init__(self, nets: Mapping[str, nn.Module], names: tuple[str, ...], decay: float | None) -> None:
        """Start at the networks' present weights; `decay` None keeps no averages."""
        self.decay = decay
        self.nets: dict[str, nn.Module] = {}
        if decay is not None:
            for name in names:
                self.nets[name] = copy.deepcopy(nets[name]).eval().requires_grad_(False)
        self._pairs = {
            name: (
                [p.data for p in average.parameters()],
                [p.data for p in nets[name].parameters()],
                list(average.buffers()),
                list(nets[name].buffers()),
            )
            for name, average in self.nets.items()
        }

    @torch.no_grad()
    def update(self, name: str, step: int, taken: Tensor | None) -> None:
        """Move one network's average after its step; `taken` (0 or 1 on the device) is 0 for a step that was skipped."""
        if name not in self._pairs:
            return
        assert self.decay is not None
        averages, weights, _, _ = self._pairs[name]
        share = 1 - min(self.decay, (1 + step) / (10 + step))
        if taken is None:
            torch._foreach_lerp_(averages, weights, share)
        else:
            change = list(torch._foreach_sub(weights, averages))
            torch._foreach_mul_(change, taken * share)
            torch._foreach_add_(averages, change)

    @torch.no_grad()
    def copy_buffers(self) -> None:
        """Take over running statistics, once they are averaged over ranks."""
        for _, _, mine, theirs in self._pairs.values():
            for buffer, value in zip(mine, theirs, strict=True):
                buffer.copy_(value)
