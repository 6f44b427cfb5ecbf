"""What a rank holds of a named tensor: a stretch of its flattened values, whichever strategy dealt it out.

DDP holds all of each; `fully_shard` deals out rows; ZeRO deals out a long row of all parameters laid end to end. In each
case a rank has, of each tensor, none or one stretch in row-major order. So one way of writing and one of reading serves
every strategy at every world size, and what one wrote any other can read.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

Gather = Callable[[Tensor], Tensor]
"""Concatenates equally shaped tensors of all ranks along the first axis, in rank order (`Strategy.gather`)."""

Fetch = Callable[[str, int, int], Tensor]
"""Values start .. start + count of the flattened tensor of a name, 1-D, on any device."""

Put = Callable[[str, int, Tensor], None]
"""Takes values of the tensor of a name, 1-D and on the CPU, from the flattened tensor's value of this number on."""

Begin = Callable[[Mapping[str, tuple[tuple[int, ...], torch.dtype]]], Put]
"""Told the shapes and types of all tensors, by name, gives what takes their values."""


@dataclass(frozen=True)
class Piece:
    """A stretch of one tensor's values."""

    shape: tuple[int, ...]
    """Of the whole tensor."""
    start: int
    """Where the stretch begins in the flattened tensor."""
    values: Tensor
    """The stretch, in row-major order, in any shape; writing into it changes what is trained."""
    everywhere: bool = False
    """Whether each rank holds the same: running statistics, step counts."""

    @property
    def count(self) -> int:
        """Values held."""
        return self.values.numel()

    @property
    def sent(self) -> bool:
        """Whether the main process needs it from another rank."""
        return self.count > 0 and not self.everywhere

    @torch.no_grad()
    def fill(self, flat: Tensor) -> None:
        """Take over new values, 1-D."""
        self.values.copy_(flat.view(self.values.shape))


Pieces = Mapping[str, Piece]
"""Pieces by name. A rank that holds nothing of a tensor has no piece of it, or an empty one."""


def whole(tensor: Tensor) -> Piece:
    """A tensor that every rank holds all of."""
    return Piece(tuple(tensor.shape), 0, tensor.detach(), everywhere=True)


def fill(pieces: Pieces, fetch: Fetch) -> None:
    """Take over values of all pieces."""
    for name, piece in pieces.items():
        if piece.count:
            piece.fill(fetch(name, piece.start, piece.count))


def of_nets(nets: Mapping[str, nn.Module]) -> Fetch:
    """Values out of networks that are held whole: names are <network>.<parameter or buffer>."""
    tensors = {f"{name}.{key}": value for name, net in nets.items() for key, value in net.state_dict().items()}
    return lambda key, start, count: tensors[key].reshape(-1)[start : start + count]


def gathered(
    shapes: Mapping[str, tuple[int, ...]], pieces: Pieces, gather: Gather, device: torch.device
) -> Iterator[tuple[str, Tensor]]:
    """Whole float32 tensors, one after the other, on every rank; all ranks ask for the same ones in the same order."""
    spans = torch.tensor(
        [[pieces[name].start, pieces[name].count] if name in pieces else [0, 0] for name in shapes],
        dtype=torch.int64,
        device=device,
    )
    everybody = gather(spans[None]).tolist()
    for number, (name, shape) in enumerate(shapes.items()):
        ranks = [rank[number] for rank in everybody]
        mine = torch.zeros(max(count for _, count in ranks), device=device)
        if name in pieces:
            mine[: pieces[name].count] = pieces[name].values.reshape(-1)
        tensor = torch.empty(math.prod(shape), device=device)
        for (start, count), part in zip(ranks, gather(mine[None]), strict=True):
            tensor[start : start + count] = part[:count]
        yield name, tensor.view(shape)
