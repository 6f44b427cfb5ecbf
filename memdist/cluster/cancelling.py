"""`memdist cancel`: a run's jobs are ended, and not started again."""

from __future__ import annotations

import json
from pathlib import Path

from memdist.cluster import book, local, request, submit
from memdist.errors import ClusterError, printable


def cancel(place: Path) -> str:
    """Cancel the jobs of a run, of a folder of runs or of maps; gives a sentence. Raises ClusterError where there are none."""
    if not place.is_dir():
        raise ClusterError(f"{printable(place)} is no folder: name that of a run, of runs or of maps")
    place = place.absolute()
    numbers = request.live(place)
    if numbers:
        return _end(place, numbers)
    if own := _element(place):
        return _end(*own)
    if not book.submitted(place):
        raise ClusterError(
            f"no job was ever submitted for {printable(place)}: name a folder that `memdist status` shows with one"
        )
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


def _element(run: Path) -> tuple[Path, list[str]] | None:
    """The folder of runs that a run belongs to, and the element of an array that trains it, if that waits or runs."""
    place = run.parent
    for job in book.submitted(place):
        file = book.folder(place) / job.key
        if not job.key.startswith("runs-") or not file.is_file():
            continue
        numbers = request.live_numbers(place, lambda other, job=job: other.id == job.id)  # type: ignore[misc]
        for number, line in enumerate(file.read_text().splitlines(), 1):
            if number in numbers and json.loads(line)["folder"] == str(run):
                return place, [job.element(number)]
    return None
