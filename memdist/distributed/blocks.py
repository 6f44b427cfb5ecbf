"""The blocks of a network: what is sharded, and recomputed, as one; and what is done to networks block by block."""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from memdist.errors import ConfigError


def blocks(net: nn.Module) -> list[nn.Module]:
    """The items of a network's lists of modules, and its sequences: each is called as a whole, one after the other."""
    found: list[nn.Module] = []
    for child in net.children():
        if isinstance(child, nn.Sequential):
            found.append(child)
        elif isinstance(child, nn.ModuleList):
            found.extend(child)
    return [block for block in found if next(block.parameters(), None) is not None]


def statistics(net: nn.Module) -> list[Tensor]:
    """Running means and variances of a network's normalisations."""
    return [
        buffer
        for module in net.modules()
        if isinstance(module, nn.modules.batchnorm._NormBase) and module.track_running_stats
        for buffer in (module.running_mean, module.running_var)
        if buffer is not None
    ]


def check(name: str, net: nn.Module) -> None:
    """Raise a ConfigError for a network that `recompute` cannot be for: a second forward would count statistics twice."""
    if statistics(net):
        raise ConfigError(
            f"activation_checkpointing=true cannot be with batch normalisation in {name}: computing a block again would count "
            "its statistics twice; use norm group, instance or none, or activation_checkpointing=false"
        )


def recompute(net: nn.Module) -> None:
    """Let each block keep its input alone for backward, and compute the rest again there (Chen et al. 2016, arXiv 1604.06174)."""
    for block in blocks(net):
        # Early stopping of the second forward would leave hooks of sharded blocks half-way.
        block.forward = functools.partial(checkpoint, block.forward, use_reentrant=False, early_stop=False)


def compiled(net: nn.Module) -> None:
    """Compile each block by itself: hooks on the blocks, which deal weights out and gather them, stay outside."""
    for block in blocks(net):
        block.forward = torch.compile(_own(block.forward), fullgraph=True)


def _own(forward: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """The same function with code of its own: what is compiled is kept by code, of which blocks share one, and for few."""

    def call(*inputs: Tensor) -> Tensor:
        return forward(*inputs)

    call.__code__ = call.__code__.replace()
    return call


def synchronised(net: nn.Module) -> nn.Module:
    """The network with batch normalisation over all ranks."""
    changed: nn.Module = nn.SyncBatchNorm.convert_sync_batchnorm(net)  # type: ignore[no-untyped-call]
    return changed
