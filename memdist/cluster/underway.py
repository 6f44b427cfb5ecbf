"""Which jobs of a folder wait or run, by what is written down of them and by what Slurm says.

Another cluster, whose Slurm is asked now, may have given the number of a job to one of something else: names tell them apart.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

from memdist import rundir
from memdist.cluster import book, facts, farm, local
from memdist.cluster import queue as queue_
from memdist.errors import ClusterError


def finished(place: Path) -> bool:
    """Whether a run, or every run of the last sweep of a folder of runs, has come to its end."""
    keys = [job.key for job in book.submitted(place) if job.key.startswith("runs-")]
    listing = book.folder(place) / keys[-1] if keys else None
    if listing is None or not listing.is_file():
        return rundir.read_json(place / rundir.STATE).get("state") == "finished"
    return all(finished(Path(json.loads(line)["folder"])) for line in listing.read_text().splitlines())


def jobs(place: Path, kind: book.Kind | None = None, *, key: str | None = None, cancelled: bool = False) -> list[str]:
    """Jobs of a place (of one kind, one key) that wait or run; cancelled ones, which may still end, only if so wanted."""
    over = set() if cancelled else book.cancellations(place)
    said = [
        job
        for job in book.submitted(place)
        if kind in (None, job.kind) and key in (None, job.key) and job.id not in over
    ]
    queued = {(each.partition("_")[0], job.name) for each, job in _queue(said).jobs.items()}
    return [
        job.id for job in said if (local.alive(job.id) if job.id.startswith("local-") else (job.id, job.name) in queued)
    ]


def elements(
    place: Path, match: Callable[[book.Submitted], bool], *, cancelled: bool = False
) -> list[tuple[book.Submitted, int]]:
    """Elements of arrays that `match` which wait or run, each with its number; cancelled ones only if so wanted."""
    over = set() if cancelled else book.cancellations(place)
    said = [job for job in book.submitted(place) if job.numbers and job.id not in over and match(job)]
    queued = {(each, job.name) for each, job in _queue(said).jobs.items()}
    found: list[tuple[book.Submitted, int]] = []
    for job in said:
        here = job.id.startswith("local-")
        if here and not local.alive(job.id):
            continue
        ids = ((number, job.element(number)) for number in job.numbers)
        found += [(job, number) for number, id in ids if id not in over and (here or (id, job.name) in queued)]
    return found


def element(run: Path, *, cancelled: bool = False) -> tuple[Path, list[str]] | None:
    """The folder of runs that a run was submitted with, and the elements that train it and wait or run; else None."""
    place = run.parent
    listings = {job.key: farm.listed(place, job) for job in book.submitted(place)}
    numbers = {
        (key, number)
        for key, listing in listings.items()
        for number, line in enumerate(listing, 1)
        if line["folder"] == str(run)
    }
    if not numbers:
        return None
    found = elements(place, lambda job: any(key == job.key for key, _ in numbers), cancelled=cancelled)
    return place, [job.element(number) for job, number in found if (job.key, number) in numbers]


def _queue(jobs: Sequence[book.Submitted]) -> queue_.Queue:
    """What Slurm says of jobs; raises ClusterError where it does not answer: what it has would be submitted twice."""
    theirs = [job.id for job in jobs if not job.id.startswith("local-")]
    found = queue_.ask() if theirs else queue_.Queue()
    if found.unknown and facts.there():
        raise ClusterError(
            f"whether job {theirs[-1]} waits or runs is not known, as {found.unknown}: try again when Slurm answers"
        )
    return found
