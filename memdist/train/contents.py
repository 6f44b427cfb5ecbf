"""What a checkpoint holds, as this rank sees it: the same names, types and values whatever the strategy and the ranks.

Written are fp32 weights and running statistics, their averages, and the states of optimisers; each rank hands over the
stretches that it holds, and reads back those that it is to hold.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from memdist.distributed import pieces
from memdist.distributed.pieces import Fetch, Piece, Pieces, Put
from memdist.distributed.strategy import Strategy
from memdist.model import Stage
from memdist.train import checkpoint
from memdist.train.checkpoint import AVERAGES, NETS, OPTIM
from memdist.train.ema import Averages, kept
from memdist.train.tensorfile import Kinds, TensorFile


def of_nets(stage: Stage, strategy: Strategy) -> dict[str, Piece]:
    """What this rank holds of the networks: <network>.<parameter or buffer>."""
    found: dict[str, Piece] = {}
    for name, net in stage.nets.items():
        found |= {f"{name}.{key}": piece for key, piece in strategy.weights(name).items()}
        found |= {f"{name}.{key}": pieces.whole(value) for key, value in kept(net).items()}
    return found


def everything(stage: Stage, averages: Averages, strategy: Strategy) -> dict[str, Piece]:
    """What this rank adds to a checkpoint: <file>:<tensor>; nothing where the main process has all of it."""
    if not (strategy.main or strategy.shares):
        return {}
    moments = {f"{net}/{name}": piece for net in stage.nets for name, piece in strategy.moments(net).items()}
    files = {NETS: of_nets(stage, strategy), AVERAGES: averages.pieces(), OPTIM: moments}
    return {f"{file}:{name}": piece for file, part in files.items() for name, piece in part.items()}


def write(
    run: Path,
    step: int,
    copies: Pieces,
    strategy: Strategy,
    state: Mapping[str, Any],
    still_ours: Callable[[], None] = lambda: None,
) -> None:
    """Write a checkpoint of copies of `everything`, whole or not at all; all ranks call it, and the main one writes.

    It asks `still_ours` at the end, which raises where the folder has come to be another process's meanwhile.
    """
    if not strategy.main:
        strategy.collect(copies, _never)
        return
    with checkpoint.new(run, step, state) as folder, contextlib.ExitStack() as files:

        def begin(kinds: Kinds) -> Put:
            opened = {}
            for file in (NETS, AVERAGES, OPTIM):
                own = {key.removeprefix(f"{file}:"): kind for key, kind in kinds.items() if key.startswith(f"{file}:")}
                opened[file] = files.enter_context(TensorFile(folder / file, own))

            def put(key: str, start: int, flat: Tensor) -> None:
                file, _, name = key.partition(":")
                opened[file].put(name, start, flat)

            return put

        strategy.collect(copies, begin)
        files.close()  # before the folder is sealed
        still_ours()


def _never(_: Kinds) -> Put:
    raise AssertionError("the main process alone writes")


def take(run: Path, step: int, stage: Stage, averages: Averages, strategy: Strategy) -> None:
    """Restore networks, averages and optimisers from a checkpoint that was found to be whole."""
    with checkpoint.reading(run, step, NETS) as fetch:
        take_weights(stage, strategy, fetch)
    with checkpoint.reading(run, step, AVERAGES) as fetch:
        pieces.fill(averages.pieces(), fetch)
    stored = checkpoint.shapes(checkpoint.folder(run, step) / OPTIM)
    with checkpoint.reading(run, step, OPTIM) as fetch:
        for net in stage.nets:
            own = {name.removeprefix(f"{net}/"): shape for name, shape in stored.items() if name.startswith(f"{net}/")}
            strategy.take_moments(net, own, _under(f"{net}/", fetch))


def take_weights(stage: Stage, strategy: Strategy, fetch: Fetch) -> None:
    """Take over the values of networks."""
    pieces.fill(of_nets(stage, strategy), fetch)
    strategy.weights_changed(fetch)


def _under(prefix: str, fetch: Fetch) -> Fetch:
    return lambda name, start, count: fetch(prefix + name, start, count)
