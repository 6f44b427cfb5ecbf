"""Fully sharded data parallelism: each rank holds a share of weights, gradients and optimiser states.

torch's own `fully_shard` on every device: Accelerate's way to it takes plain data parallelism on CPUs, silently.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh

from memdist.distributed import pieces
from memdist.distributed.blocks import blocks
from memdist.distributed.group import Group
from memdist.distributed.pieces import Piece
from memdist.distributed.strategy import Make, Stepped
from memdist.model import Stage, Update


class Fsdp(Group):
    """Weights are dealt out in rows and gathered block by block (Zhao et al. 2023, arXiv 2304.11277).

    Weights, gradients and what the ranks tell each other are fp32 in each precision, so that the results are those of ddp.
    """

    shares = True

    def __init__(
        self, device: torch.device, precision: str, hang_minutes: float = 10.0, *, offload: bool = False
    ) -> None:
        """Join the process group; `offload` keeps shares in the host's memory."""
        super().__init__(device, precision, hang_minutes)
        # No network here changes what a block gave in place.
        warnings.filterwarnings("ignore", "FSDP2-wrapped module .* returned a view tensor", UserWarning)
        # Blocks come to the device one by one as they are dealt out: no rank needs room there for all of a network.
        self.home = torch.device("cpu")
        self._offload = offload
        self._gathered: list[Any] = []
        self._places: dict[int, tuple[tuple[int, ...], int]] = {}
        self._dealt: dict[str, dict[str, nn.Parameter]] = {}
        self._mesh = init_device_mesh(device.type, (self.world,))

    def _wrap(self, net: nn.Module, *, whole: bool) -> nn.Module:
        from torch.distributed.fsdp import CPUOffloadPolicy, FSDPModule, OffloadPolicy, fully_shard

        policy = CPUOffloadPolicy() if self._offload else OffloadPolicy()
        # A second differentiation meets weights that were gathered for the first: they must still be there.
        for part in (net,) if whole else (*blocks(net), net):
            fully_shard(part, mesh=self._mesh, offload_policy=policy, reshard_after_forward=not whole)
        assert isinstance(net, FSDPModule)
        if whole:
            net.set_reshard_after_backward(False)
            self._gathered.append(net)
        return net

    @contextlib.contextmanager
    def micro(self, net: str, last: bool) -> Iterator[None]:
        """Surround forward and backward of one micro-batch; gradients are reduced in the last one only."""
        wrapped: Any = self._wrapped[net]
        wrapped.set_requires_gradient_sync(last)
        with self.autocast():
            yield

    def prepare(self, stage: Stage, make: Make, clips: Mapping[str, float | None]) -> None:
        """Take over networks from the host, deal them out to the devices, and make their optimisers."""
        self._gathered, self._places = [], {}
        super().prepare(stage, make, clips)
        for scaler in self._scalers.values() if self._offload else ():
            # Of a scale on the device the host's gradients would meet a copy that is still on its way: torch waits for none.
            scaler._lazy_init_scale_growth_tracker(torch.device("cpu"))
        self._dealt = {name: dict(net.named_parameters()) for name, net in self._bare.items()}

    def _moved(self, net: nn.Module) -> dict[str, nn.Parameter]:
        """Plain tensors that share their memory with this rank's shares: not every fused optimiser takes others."""
        found: dict[str, nn.Parameter] = {}
        for key, dealt in net.named_parameters():
            share: Tensor = dealt.to_local().detach()  # type: ignore[attr-defined]
            # `fully_shard` deals out the first axis in shares of one size, the last ones smaller or empty: stretches of rows.
            rows = -(-dealt.shape[0] // self.world)
            per_row = dealt.numel() // dealt.shape[0]
            found[key] = nn.Parameter(share)
            self._places[id(found[key])] = (tuple(dealt.shape), min(self.rank * rows, dealt.shape[0]) * per_row)
        return found

    def _shape(self, weight: nn.Parameter) -> tuple[int, ...]:
        return self._places[id(weight)][0]

    def _piece(self, value: Tensor, weight: nn.Parameter) -> Piece:
        if value.shape != weight.shape:
            return pieces.whole(value)
        shape, start = self._places[id(weight)]
        return Piece(shape, start, value.detach())

    def step(self, update: Update) -> Stepped:
        """Unscale, clip, step, zero, `after`; what was kept whole for a second differentiation is dealt out again before."""
        for net in self._gathered:
            net.reshard()
        for key, dealt in self._dealt[update.net].items():
            gradient: Any = dealt.grad
            self._weights[update.net][key].grad = None if gradient is None else gradient.to_local()
            dealt.grad = None
        return super().step(update)

    def _norm(self, gradients: list[Tensor]) -> Tensor:
        return self._shared_norm(gradients)

    def _clip(self, parameters: list[nn.Parameter], clip: float, size: Tensor) -> None:
        own = [p.grad for p in parameters if p.grad is not None]
        torch._foreach_mul_(own, (clip / (size + 1e-6)).clamp(max=1).to(own[0].device))

    def _agree_on_overflow(self, scaler: torch.amp.GradScaler, optimiser: torch.optim.Optimizer) -> None:
        # Each rank has looked at its share alone.
        for found in scaler._per_optimizer_states[id(optimiser)]["found_inf_per_device"].values():
            # Of shares that are offloaded it lies on the host, where NCCL does not reach.
            there = found.to(self.device)
            dist.all_reduce(there, op=dist.ReduceOp.MAX)
            found.copy_(there)
