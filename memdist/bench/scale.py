"""What ranks bring: ddp against a bare torch DDP loop, strong and weak scaling, a step under each strategy.

This process never loads torch: it starts jobs of ranks (`memdist.bench.ranks`), one after the other, and reads what they found.
"""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from memdist import config, output, rundir
from memdist.bench import scaletable
from memdist.errors import ConfigError
from memdist.launch import gpus, local, place

TURNS = 3
"""Jobs of each world size, the sizes taking turns, so that what else the machine does meets all of them."""
STRATEGIES = {
    "ddp": ["strategy=ddp"],
    "fsdp": ["strategy=fsdp"],
    **{f"deepspeed {stage}": ["strategy=deepspeed", f"deepspeed.stage={stage}"] for stage in (1, 2, 3)},
}
FIGURES, REFUSED = "figures.json", "refused-{rank}.json"
"""Files in the folder of a job: what rank 0 found; why a rank could not go on."""
_INTERRUPTED = 130


def main(name: str, overrides: Sequence[str], *, ranks: int | None, steps: int) -> None:
    """Measure in jobs of up to `ranks` ranks of this machine, and print; as one of a launcher's ranks, measure with the others.

    Raises ConfigError, with nothing measured, for what cannot be.
    """
    place.take()
    if ranks is None and "WORLD_SIZE" in os.environ:
        from memdist.bench import ranks as joined

        output.show(scaletable.of_one(joined.joined(name, overrides, steps)))
        return
    raw = config.read(config.find(name), overrides)
    if raw.get("precision", "fp32") != "fp32":
        raise ConfigError(
            f"precision = {raw['precision']!r} cannot be measured against the bare DDP loop, which is fp32: leave it out; the "
            "table has every precision of a GPU"
        )
    device = str(raw.get("device", "auto"))
    gpus.check(ranks or 1, device, os.environ)
    there = 0 if device == "cpu" else gpus.count()
    if ranks is None:
        ranks = most(there or max(2, local.cores()), _batch(raw), least=1 if there else 2)
        gpus.check(ranks, device, os.environ)
    elif ranks > 1 and device != "cpu" and (there or device == "cuda") and ranks > there:
        raise gpus.too_many(ranks, there)
    with tempfile.TemporaryDirectory(prefix="memdist-bench-") as folder, _threads(on_cpu=not there):
        jobs = _Jobs(Path(folder), name, overrides)
        if ranks > 1:
            first = jobs.run("against", ranks, steps, extra=STRATEGIES["ddp"])
            output.show(scaletable.head(first))
            output.show(scaletable.against(first["ours"], first["theirs"]))
            _scaling(jobs, first["batch"], ranks, steps)
        else:
            first = jobs.run("steps", 1, 1)
            output.show(scaletable.head(first))
            output.show("one rank: ddp against a bare loop, and scaling, need two or more (--gpus 2)")
        rows = []
        for precision in first["precisions"]:
            for strategy, settings in STRATEGIES.items():
                try:
                    found = jobs.run("steps", ranks, steps, extra=[*settings, f"precision={precision}"])
                    rows.append(scaletable.row(strategy, precision, found))
                except ConfigError as error:
                    rows.append(scaletable.Row(strategy, precision, why=str(error)))
        output.show(scaletable.table(rows, ranks, gpu=first["device"] == "cuda"))


def most(there: int, batch: int | None, *, least: int) -> int:
    """As many ranks as there is room for and the batch divides by; `least` where there are none, and a rank says why."""
    fitting = [ranks for ranks in range(least, there + 1) if batch is None or batch % ranks == 0]
    return max(fitting, default=least)


def sizes(ranks: int, batch: int) -> list[int]:
    """World sizes at which scaling is measured: powers of two by which the batch divides, and all ranks."""
    found = [2**power for power in range(ranks.bit_length()) if 2**power < ranks and batch % 2**power == 0]
    return [*found, ranks]


def _scaling(jobs: _Jobs, batch: int, ranks: int, steps: int) -> None:
    """Measure and print strong scaling (one batch over all ranks) and weak (one micro-batch at each rank)."""
    worlds, micro = sizes(ranks, batch), batch // ranks
    strong: dict[int, list[float]] = {world: [] for world in worlds}
    weak: dict[int, list[float]] = {world: [] for world in worlds}
    for turn in range(TURNS):
        for world in worlds if turn % 2 == 0 else reversed(worlds):
            # All ranks together have one batch in both.
            batches = sorted({batch, micro * world}, reverse=True)
            found = jobs.run("steps", world, -(-steps // TURNS), batches, extra=STRATEGIES["ddp"])
            strong[world].append(found["seconds"][str(batch)])
            weak[world].append(found["seconds"][str(micro * world)])
    output.show(scaletable.scaling(f"strong scaling, {batch} pictures over all ranks", strong, scaletable.strong))
    output.show(scaletable.scaling(f"weak scaling, {micro} pictures at each rank", weak, scaletable.weak))


class _Jobs:
    """Runs one job after the other."""

    def __init__(self, folder: Path, name: str, overrides: Sequence[str]) -> None:
        self._folder, self._name, self._overrides = folder, name, list(overrides)
        self._count = 0

    def run(
        self, kind: str, ranks: int, steps: int, batches: Sequence[int] = (), *, extra: Sequence[str] = ()
    ) -> Mapping[str, Any]:
        """Gives what rank 0 found; raises ConfigError with the sentence of a rank that could not go on."""
        self._count += 1
        folder = self._folder / f"job-{self._count}"
        folder.mkdir()
        words = [str(folder), kind, str(steps), ",".join(map(str, batches)), self._name, *self._overrides, *extra]
        code = local.run([sys.executable, "-P", "-m", "memdist.bench.ranks", *words], ranks)
        if code == _INTERRUPTED:
            raise KeyboardInterrupt
        if refused := sorted(folder.glob(REFUSED.format(rank="*"))):
            raise ConfigError(rundir.read_json(refused[0])["why"])
        if code:
            raise ConfigError(
                f"{ranks} rank{'s' if ranks > 1 else ''} with {' '.join(extra) or 'these settings'} ended with exit code "
                f"{code}: see what they said above"
            )
        return rundir.read_json(folder / FIGURES)


def _batch(raw: Mapping[str, Any]) -> int | None:
    """Pictures of a step as written or by default; None for what a rank will refuse."""
    section = raw.get("batch", {})
    size = section.get("size", config.Batch().size) if isinstance(section, dict) else None
    return size if isinstance(size, int) and size > 0 else None


@contextlib.contextmanager
def _threads(*, on_cpu: bool) -> Iterator[None]:
    """One thread a rank on CPUs, in a world of one as well, unless the environment says otherwise."""
    if not on_cpu or "OMP_NUM_THREADS" in os.environ:
        yield
        return
    os.environ["OMP_NUM_THREADS"] = "1"
    try:
        yield
    finally:
        del os.environ["OMP_NUM_THREADS"]
