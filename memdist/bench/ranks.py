"""One rank of what `bench scale` measures: `python -m memdist.bench.ranks FOLDER KIND STEPS BATCHES CONFIG KEY=VALUE...`.

Each job is one world in which every rank measures the same; rank 0 leaves what was found in FOLDER, and a rank that cannot go
on leaves the sentence that says why. Example data lie beside FOLDER, for all jobs.
"""

from __future__ import annotations

import contextlib
import io
import os
import statistics
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from memdist import config, models, rundir
from memdist.bench import loop
from memdist.bench.scale import FIGURES, REFUSED
from memdist.data import sources
from memdist.distributed import strategy as strategy_
from memdist.distributed.strategy import Strategy
from memdist.errors import ConfigError, MemdistError
from memdist.launch import ends, place
from memdist.plan import gpus
from memdist.train import loop as train_
from memdist.train import mapper, start
from memdist.train.footprint import Footprint
from memdist.train.signals import Signals

ALL = ("fp32", "tf32", "bf16", "fp16")


@contextlib.contextmanager
def together(run: Any, batch: int) -> Iterator[Strategy]:
    """Join the other ranks for a run with so many pictures in a step."""
    if run.batch.micro is not None:
        run = run.model_copy(update={"batch": run.batch.model_copy(update={"micro": None})})
    run = run.model_copy(update={"batch": run.batch.model_copy(update={"size": batch})})
    with place.alike():
        start.build(run)
    strategy = strategy_.make(run)
    try:
        # What a run says of its losses is no figure of this command's.
        with contextlib.redirect_stdout(io.StringIO()):
            yield strategy
            # Whoever starts ranks may end all others once one has left.
            strategy.first(lambda: None)
    finally:
        strategy.close()


def against(run: Any, strategy: Strategy, folder: Path, out: Path, steps: int) -> dict[str, Any]:
    """Seconds a step of memdist's loop under ddp (`ours`) and of a bare torch DDP loop (`theirs`), a figure for each block.

    Blocks alternate, and so does which of the two is first.
    """
    settings = loop.quiet(run, folder)
    device = strategy.device
    with _session(settings, folder, out, strategy) as (session, ours):

        def shared(net: nn.Module) -> nn.Module:
            # Broadcast before each forward, running statistics would change under an earlier one of the same step.
            how: dict[str, Any] = {"broadcast_buffers": False} if len(session.stage.nets) > 1 else {}
            with warnings.catch_warnings():
                # Newer torch has another word for it, which the oldest that we run on does not know.
                warnings.filterwarnings("ignore", "`broadcast_buffers` is deprecated", FutureWarning)
                return nn.parallel.DistributedDataParallel(
                    net, device_ids=[device] if device.type == "cuda" else None, **how
                )

        theirs = loop.Bare(session, shared).step
        for step in (ours, theirs):
            loop.timed(step, loop.WARM, device)
        found: dict[str, list[float]] = {"ours": [], "theirs": []}
        for number in range(max(2, steps // loop.BLOCK)):
            pair: list[tuple[str, Callable[[], object]]] = [("ours", ours), ("theirs", theirs)]
            for name, step in pair if number % 2 == 0 else reversed(pair):
                found[name].append(_block(strategy, step))
    return {**found, **_facts(settings, strategy)}


def steps_of(
    run: Any, strategy: Strategy, folder: Path, out: Path, steps: int, batches: Sequence[int]
) -> dict[str, Any]:
    """Seconds of a step as the run is set, by pictures in it over all ranks; on GPUs memory and operations of the last."""
    seconds = {}
    for batch in batches:
        settings = loop.quiet(run, folder, batch)
        # As many pairs for each batch: enough for the run's.
        with _session(settings, folder, out / str(batch), strategy, loop.enough(run.batch.size)) as (_, step):
            loop.timed(step, loop.WARM, strategy.device)
            if strategy.device.type == "cuda":
                torch.cuda.reset_peak_memory_stats(strategy.device)
            seconds[str(batch)] = statistics.median(_block(strategy, step) for _ in range(max(2, steps // loop.BLOCK)))
    memory = None
    if strategy.device.type == "cuda":
        own = torch.tensor([float(torch.cuda.max_memory_allocated(strategy.device))], device=strategy.device)
        memory = int(strategy.gather(own).max())
    return {"seconds": seconds, "memory": memory, **_facts(settings, strategy), **_work(settings, strategy)}


@contextlib.contextmanager
def _session(
    settings: Any, data: Path, out: Path, strategy: Strategy, pairs: int = 0
) -> Iterator[tuple[start.Session, Callable[[], object]]]:
    """A run that is ready, and what takes a step of it as `memdist train` does."""
    session = loop.opened(settings, data, out, strategy, pairs)
    # No signal is caught: an interruption ends the measurement.
    with contextlib.closing(train_.Leg(session, Signals())) as leg, leg.loader() as loader:
        yield session, lambda: leg.advance(loader)
        strategy.settle()


def _block(strategy: Strategy, step: Callable[[], object]) -> float:
    """Seconds of one step, from a start that all ranks have in common until the last has done its block."""
    strategy.mean(torch.zeros(1, device=strategy.device)).item()
    spent = loop.timed(step, loop.BLOCK, strategy.device)
    return float(strategy.gather(torch.tensor([spent], device=strategy.device)).max()) / loop.BLOCK


def _facts(settings: Any, strategy: Strategy) -> dict[str, Any]:
    """What a table says of where it was measured."""
    device, has = strategy.device, []
    for precision in ALL if device.type == "cuda" else ("fp32",):
        with contextlib.suppress(ConfigError):
            strategy_.check_precision(precision, device)
            has.append(precision)
    return {
        "model": settings.model.name,
        "size": settings.data.size,
        "batch": settings.batch.size,
        "precision": settings.precision,
        "strategy": settings.strategy,
        "device": device.type,
        "machine": mapper.name_of(device),
        "threads": torch.get_num_threads(),
        "precisions": has,
        "world": strategy.world,
    }


def _work(settings: Any, strategy: Strategy) -> dict[str, Any]:
    """Operations of a rank's share of a step, and how many a second its GPU is sold with; None where that is not known."""
    known = None
    if strategy.device.type == "cuda" and strategy.main:
        known = next((gpu for gpu in gpus.CATALOGUE.values() if gpus.is_here(gpu)), None)
    if known is None:
        return {"operations": None, "peak": None}
    passes = Footprint(settings, start.build(settings), "cuda").exact(settings.batch.size // strategy.world)
    return {
        "operations": sum(taken.flops / taken.every for taken in passes),
        "peak": known.flops.get(settings.precision),
    }


def joined(name: str, overrides: Sequence[str], steps: int) -> dict[str, Any]:
    """As one of the ranks that a launcher started, find what this one world can tell: `against` under ddp in fp32, `steps_of`."""
    with place.alike():
        run = models.resolve(config.read(config.find(name), overrides))
        here = place.read(os.environ)
        if here.world > here.locals and not sources.given(run.data):
            raise ConfigError(
                f"the {here.world} ranks are on several machines, which share no example data: give data.images and data.maps"
            )
    with contextlib.ExitStack() as stack, together(run, run.batch.size) as strategy:

        def make() -> dict[str, str]:
            return {"folder": stack.enter_context(tempfile.TemporaryDirectory(prefix="memdist-bench-"))}

        folder = Path(strategy_.record_from_main(strategy, make)["folder"])
        found = steps_of(run, strategy, folder, folder / "steps", steps, [run.batch.size])
        if run.strategy == "ddp" and run.precision == "fp32" and strategy.world > 1:
            found |= against(run, strategy, folder, folder / "against", steps)
        return found


def main(words: Sequence[str]) -> None:
    """Be one rank."""
    folder, kind, steps, batches, name, *overrides = words
    out = Path(folder)
    with ends.told():
        here = place.take()
        try:
            run = models.resolve(config.read(config.find(name), overrides))
            sizes = [int(size) for size in batches.split(",") if size] or [run.batch.size]
            with together(run, sizes[0]) as strategy:
                if kind == "against":
                    found = against(run, strategy, out.parent, out / "run", int(steps))
                else:
                    found = steps_of(run, strategy, out.parent, out / "run", int(steps), sizes)
            if here.rank == 0:
                rundir.write_json(out / FIGURES, found)
        except (MemdistError, torch.OutOfMemoryError) as error:
            short = isinstance(error, torch.OutOfMemoryError)
            why = "does not fit into the GPU's memory: use a smaller batch.size" if short else str(error)
            rundir.write_json(out / REFUSED.format(rank=here.rank), {"why": why})
            sys.exit(2)


if __name__ == "__main__":
    main(sys.argv[1:])
