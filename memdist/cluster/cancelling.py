"""`memdist cancel`: a run's jobs are ended, and not started again."""

from __future__ import annotations

import os
from pathlib import Path

from memdist.cluster import book, facts, local, submit, underway
from memdist.errors import ClusterError, printable


def cancel(place: Path) -> str:
    """Cancel the jobs of a run, of a folder of runs or of maps; gives a sentence. Raises ClusterError where there are none."""
    if not place.is_dir():
        raise ClusterError(f"{printable(place)} is no folder: name that of a run, of runs or of maps")
    place = Path(os.path.abspath(place))
    # Those that were cancelled already, too: Slurm may not have heard of it.
    numbers = underway.jobs(place, cancelled=True)
    if numbers:
        return _end(place, numbers)
    own = underway.element(place, cancelled=True)
    if own and own[1]:
        return _end(*own)
    if not book.submitted(place) and own is None:
        raise ClusterError(
            f"no job was ever submitted for {printable(place)}: name a folder that `memdist status` shows with one"
        )
    if any(not job.id.startswith("local-") for job in book.submitted(place)) and not facts.there():
        facts.call(["squeue", "--version"])  # which says so
    return f"{printable(place)}: no job of it waits or runs"


def _end(place: Path, numbers: list[str]) -> str:
    # Written down first: a job that is told to leave looks whether it is to go on.
    for number in numbers:
        book.cancel(place, number)
    own = [number for number in numbers if number.startswith("local-")]
    others = [number for number in numbers if number not in own]
    if own:
        local.cancel(own)
    if others:
        submit.cancel(others)
    return f"cancelled: job {', '.join(numbers)} of {printable(place)}; submit again to go on from the last checkpoint"
