"""Figures of `bench scale` in words and as a table; pure functions of what ranks found."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

AIM = 0.98
"""Share of a bare loop's speed that memdist's ddp is to reach at least."""


def ratio(above: Sequence[float], below: Sequence[float]) -> float:
    """Median over pairs of figures that were measured one after the other."""
    return statistics.median(a / b for a, b in zip(above, below, strict=True))


def strong(ranks: int, one: Sequence[float], many: Sequence[float]) -> float:
    """Efficiency from seconds of a step with one batch, on one rank and on several: 1 where k ranks take a k-th of the time."""
    return ratio(one, many) / ranks


def weak(ranks: int, one: Sequence[float], many: Sequence[float]) -> float:
    """Efficiency from seconds of a step with one micro-batch a rank: 1 where several ranks take as long as one alone."""
    return ratio(one, many)


def mfu(operations: float | None, peak: float | None, seconds: float) -> float | None:
    """Model FLOPs utilisation: a rank's operations in a step, over what its GPU is sold with in that time; None: not known."""
    return operations / (peak * seconds) if operations and peak else None


@dataclass(frozen=True)
class Row:
    """A step under one strategy, or why there is none."""

    strategy: str
    precision: str
    seconds: float | None = None
    pictures: float | None = None
    """A second, over all ranks."""
    mfu: float | None = None
    memory: int | None = None
    """Peak of a rank, bytes of its GPU."""
    why: str = ""


def row(strategy: str, precision: str, found: Mapping[str, Any]) -> Row:
    """Figures of one job."""
    seconds = found["seconds"][str(found["batch"])]
    return Row(
        strategy,
        precision,
        seconds,
        found["batch"] / seconds,
        mfu(found["operations"], found["peak"], seconds),
        found["memory"],
    )


def head(found: Mapping[str, Any]) -> str:
    """What is measured, and on which machine."""
    world, threads = found["world"], found["threads"]
    on = f"{_many(world, found['device'].upper() + ' rank')} ({found['machine']}"
    on += f", {_many(threads, 'thread')} each)" if found["device"] == "cpu" else ")"
    size = found["size"]
    return f"{found['model']}, {found['batch']} pictures of {size} x {size} a step over all ranks, on {on}"


def against(ours: Sequence[float], theirs: Sequence[float]) -> str:
    """The comparison with a bare loop, from seconds of a step, pair by pair."""
    return (
        f"ddp over a bare torch DDP loop: {ratio(theirs, ours):.4f} of its speed (median of {len(ours)} pairs of blocks; "
        f"{_ms(statistics.median(ours))} and {_ms(statistics.median(theirs))} a step; aim: at least {AIM})"
    )


def scaling(
    what: str,
    seconds: Mapping[int, Sequence[float]],
    efficiency: Callable[[int, Sequence[float], Sequence[float]], float],
) -> str:
    """One kind of scaling, from seconds of a step, turn by turn, for each number of ranks."""
    parts = []
    for ranks, found in seconds.items():
        step = f"{_many(ranks, 'rank')} {_ms(statistics.median(found))} a step"
        # Without a world of one there is nothing to compare with.
        parts.append(step if ranks == 1 else f"{step}, efficiency {efficiency(ranks, seconds[1], found):.3f}")
    return f"{what}: {'; '.join(parts)}"


def of_one(found: Mapping[str, Any]) -> str:
    """What a launcher's ranks found together, in lines."""
    made = row("", found["precision"], found)
    lines = [head(found)]
    if "ours" in found:
        lines.append(against(found["ours"], found["theirs"]))
    figures = [f"{_ms(made.seconds or 0)} a step", f"{made.pictures:.1f} pictures/s"]
    if found["device"] == "cuda":
        figures += [f"MFU {_share(made.mfu)}", f"peak memory of a rank {_gib(made.memory)}"]
    lines.append(f"strategy={found['strategy']}, precision={found['precision']}: {', '.join(figures)}")
    lines.append(
        "scaling and other strategies: start with other numbers of ranks, or strategy=..., or without a launcher"
    )
    return "\n".join(lines)


def table(rows: Sequence[Row], ranks: int, *, gpu: bool) -> Any:
    """A line for each strategy and precision; MFU and memory are those of GPUs."""
    from rich.table import Table

    made = Table(title=f"a step on {_many(ranks, 'rank')}", caption=_note(rows) if gpu else None)
    for name in ("strategy", "precision"):
        made.add_column(name, no_wrap=True)
    for name in ("ms/step", "pictures/s", *(("MFU", "peak memory") if gpu else ())):
        made.add_column(name, justify="right", no_wrap=True)
    if refused := any(line.why for line in rows):
        made.add_column("why not", ratio=1)
    for line in rows:
        cells = [line.strategy, line.precision]
        cells += [
            f"{1000 * line.seconds:.2f}" if line.seconds else "-",
            f"{line.pictures:.1f}" if line.pictures else "-",
        ]
        if gpu:
            cells += [_share(line.mfu), _gib(line.memory)]
        made.add_row(*cells, *([line.why] if refused else []))
    return made


def _note(rows: Sequence[Row]) -> str | None:
    """Where MFU is missing although there is a time."""
    if any(line.seconds and line.mfu is None for line in rows):
        return "no MFU: the catalogue (memdist plan --gpu) does not know this GPU's peak in that precision"
    return None


def _many(number: int, noun: str) -> str:
    return f"{number} {noun}{'s' if number != 1 else ''}"


def _ms(seconds: float) -> str:
    return f"{1000 * seconds:.2f} ms"


def _share(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.1f} %"


def _gib(size: int | None) -> str:
    return "-" if size is None else f"{size / 2**30:.2f} GiB"
