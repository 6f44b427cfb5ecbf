"""`memdist search run SPACE --dry-run`: what would be trained, and whether the disk has room for what is left of it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from memdist.errors import printable
from memdist.search import cells, cost, measure, spread
from memdist.search.methods.asha import Asha
from memdist.search.methods.method import Method
from memdist.search.run import Asked, trains, within

TEXT, LINE, TRIAL_FILES = 8000, 450, 9
"""Bytes of a trial's settings, facts and state; of an epoch's lines in metrics.jsonl and timing.jsonl; files and folders
without a checkpoint (measured; splits that are the same are one file)."""
CHECKPOINT_FILES, CHECKPOINT_TEXT = 6, 4000
"""Files and folders of a checkpoint, and bytes of it beside tensors."""
COPIES = 3
"""Checkpoints of a trial that trains or is kept, at most: the last, the best, and one that is being written, or led back to."""
SEARCH_FILES, LEDGER_LINE = 40, 700
"""Files of the search itself, those of its end included; bytes of its lines about a stretch of a trial."""
NAMES = 3


class Needs(NamedTuple):
    """Room on a disk."""

    bytes: int
    inodes: int


def checkpoints(method: Method, trials: int, running: int, keep: int) -> int:
    """Trials that have checkpoints at one time, at most: that run, that may be promoted, or that are the best `keep`."""
    found = min(keep, trials) + running
    if isinstance(method, Asha):
        found += sum(max(1, trials // method.eta ** (rung + 1)) for rung in range(len(method.rungs) - 1))
    return min(found, trials)


def needs(method: Method, work: cost.Work, stored: int, running: int, keep: int) -> Needs:
    """What a search takes; `stored`: bytes of the largest checkpoint."""
    held = COPIES * checkpoints(method, work.trials, running, keep)
    text = work.trials * TEXT + work.epochs * LINE + work.stretches * LEDGER_LINE
    return Needs(
        text + held * (stored + CHECKPOINT_TEXT),
        work.trials * TRIAL_FILES + held * CHECKPOINT_FILES + SEARCH_FILES,
    )


def free(place: Path) -> tuple[Path, Needs | None, bool]:
    """The nearest folder that is there, what its file system has left for this user, and whether it counts inodes."""
    here = place.absolute()
    while not here.exists() and here != here.parent:
        here = here.parent
    try:
        found = os.statvfs(here)
    except OSError:
        return here, None, False
    return here, Needs(found.f_bavail * found.f_frsize, found.f_favail), found.f_files > 0


def dry(asked: Asked, address: str | None) -> list[str]:
    """Sentences on what would be trained, with a warning where it does not fit; nothing is touched. Raises MemdistError."""
    asked = within(asked, address)
    space, method = asked.space, asked.method
    with trains(asked, address) as (need, slots, _):
        many = None if space.drawn else cells.count(space)
        work = cost.work(method, method.epochs, many)
        found = spread.spread(space, lambda cell: measure.look(cells.resolve(space, cell)), None)
        room = needs(method, work, found.stored, min(slots, work.trials), asked.search.keep)
    counted = "cells without end" if many is None else f"{many:,} cells"
    most = "at most " if work.at_most else ""
    names = [
        method.candidates.cell(cell).name for place in range(NAMES) if (cell := method.candidates.at(place)) is not None
    ]
    trial = " and ".join(f"{much:g} {kind}" for kind, much in need.items() if much)
    lines = [
        f"{counted} of {space.source}, such as:",
        *(f"  {name}" for name in names),
        f"{method.name}: {most}{work.trials:,} trials of at most {method.epochs} epochs, {most}{work.epochs:,} epochs in all"
        f"{' if later results bear out all promotions' if isinstance(method, Asha) else ''}",
        f"at once: {slots} trial{'s' if slots > 1 else ''}, each with {trial}",
        f"a checkpoint: {size(found.stored)} for the largest cell, {found.largest.name}",
    ]
    return [*lines, *judged(room, asked.place)]


def judged(room: Needs, place: Path) -> list[str]:
    """What is needed against what is there."""
    here, left, counts = free(place)
    where = f"{printable(os.path.relpath(place))} would need at most {size(room.bytes)} and {room.inodes:,} inodes"
    if left is None:
        return [f"{where}; what {printable(here)} has left is not known"]
    inodes = f"{left.inodes:,} inodes" if counts else "no count of inodes"
    lines = [f"{where}; {printable(here)} has {size(left.bytes)} and {inodes} left"]
    short = {"bytes": room.bytes > left.bytes, "inodes": counts and room.inodes > left.inodes}
    if any(short.values()):
        lines.append(_warning(short))
    return lines


def _warning(short: Mapping[str, bool]) -> str:
    what = " and ".join(name for name, too_few in short.items() if too_few)
    return (
        f"WARNING: it does not fit, for want of {what}: make room, search on another disk with --out, keep fewer "
        "(search.keep), or try fewer cells (search.method=asha, search.samples)"
    )


def size(count: float) -> str:
    """Bytes as people read them."""
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "bytes" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"
