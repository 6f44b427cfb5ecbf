"""All runs and folders of maps below a folder, each with how it stands.

Links to folders are not followed, and folders that hold files of a run or of maps alone are not entered. What cannot be
read becomes a row that says so: one broken folder hides no other.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from memdist import rundir
from memdist.cluster import book, maps, runs, scorings, standing
from memdist.cluster.farm import Farm
from memdist.cluster.queue import Job
from memdist.cluster.standing import Row, Slurm
from memdist.errors import ConfigError, MemdistError, printable

_CLOSED = {rundir.CHECKPOINTS, rundir.SAMPLES, rundir.TENSORBOARD, maps.MANIFEST, rundir.JOBS}
_BROKEN = (MemdistError, OSError, TypeError, ValueError, KeyError, RecursionError)
"""What reading files raises that hold something else than they should."""


@dataclass(frozen=True)
class Survey:
    """What was found."""

    rows: tuple[Row, ...]
    """By group and name."""
    unknown: str = ""
    """Why Slurm has not said what it was asked; empty where it has, or was not asked."""


def survey(folder: Path, slurm: Slurm | None = None) -> Survey:
    """Look at a folder; a ConfigError where it is none."""
    if not folder.is_dir():
        what = "is no folder" if folder.exists() else "does not exist"
        raise ConfigError(f"{folder} {what}: name a folder of runs, such as runs, or the folder of one run")
    slurm = slurm or Slurm()
    walk = _Walk(os.fspath(folder), slurm)
    walk.go()
    found = walk.rows + [row for farm in walk.farms for row in _unbegun(farm, walk.group(farm), slurm)]
    ended = slurm.ended(row.gone for row in found if row.gone)
    if ended:
        found = [_told(row, ended.get(row.gone)) for row in found]
    found.sort(key=lambda row: (_natural(row.group), _natural(row.name)))
    return Survey(tuple(found), slurm.asked.unknown if slurm.asked is not None else "")


def beside(place: Path, slurm: Slurm) -> Survey:
    """Look at a folder as a run of the farm that it may belong to."""
    path = os.path.abspath(place)
    for above in list(Path(path).parents)[:3]:
        try:
            submitted = book.submitted(above)
        except _BROKEN:
            continue
        if any(one.kind == "train" and one.numbers for one in submitted):
            farm = Farm.of(os.fspath(above), submitted)
            walk = _Walk(farm.place, slurm)
            walk.look(path, os.path.relpath(path, farm.place), farm)
            mine = [row for row in _unbegun(farm, ".", slurm) if row.place == path]
            return Survey(tuple(row for row in walk.rows + mine if row.place == path))
    return Survey(tuple(row for row in survey(Path(path), slurm).rows if row.place == path))


class _Walk:
    """Rows of a folder and of all below it."""

    def __init__(self, root: str, slurm: Slurm) -> None:
        self.rows: list[Row] = []
        self.farms: list[Farm] = []
        self._root, self._slurm = root, slurm

    def go(self) -> None:
        """Look at everything."""
        left: list[tuple[str, str, Farm | None]] = [(self._root, "", None)]
        while left:
            left += self.look(*left.pop())

    def look(self, path: str, within: str, farm: Farm | None) -> list[tuple[str, str, Farm | None]]:
        """Look at a folder, `within` the root, that may belong to a farm; gives those that are to be looked at next."""
        names, folders = set(), []
        try:
            with os.scandir(path) as entries:
                for entry in entries:
                    names.add(entry.name)
                    if entry.name[0] != "." and entry.name not in _CLOSED and entry.is_dir(follow_symlinks=False):
                        folders.append(entry.name)
        except OSError as error:
            self.rows.append(self._broken(path, within, farm, error))
            return []
        try:
            if maps.RECORD in names:
                self.rows += maps.rows(path, self._slurm, name=self._name(within))
                return []  # numbered folders of maps
            farm = self._read(path, within, names, farm)
        except _BROKEN as error:
            self.rows.append(self._broken(path, within, farm, error))
        return [(f"{path}/{name}", f"{within}/{name}" if within else name, farm) for name in folders]

    def _read(self, path: str, within: str, names: set[str], farm: Farm | None) -> Farm | None:
        """Look at what may be a run, or a farm; gives the farm that folders within belong to."""
        begun = rundir.CONFIG in names and (
            rundir.STATE in names or any(n.startswith(f"{rundir.LOCK}.") for n in names)
        )
        if not begun and rundir.JOBS in names:
            submitted = book.submitted(Path(path))
            if any(one.kind == "predict" for one in submitted):
                self.rows += maps.rows(path, self._slurm, name=self._name(within))
                return farm
            if any(one.numbers for one in submitted):
                self.farms.append(Farm.of(path, submitted))
                return self.farms[-1]
            begun = bool(submitted) or os.path.exists(f"{path}/{rundir.JOBS}/{book.ATTEMPTS}.jsonl")
        if begun:
            name, group = self._named(within, farm)
            self.rows.append(runs.read(path, names, self._slurm, name=name, group=group, farm=farm))
            if rundir.JOBS in names:
                self.rows += scorings.rows(self.rows[-1], self._slurm)
        return farm

    def _named(self, within: str, farm: Farm | None) -> tuple[str, str]:
        """Name and group of a run."""
        if farm is not None:
            start = farm.place[len(self._root) :].lstrip("/")
            return printable(within[len(start) :].lstrip("/")) or self._name(within), self.group(farm)
        group, _, name = within.rpartition("/")
        return (printable(name), printable(group) or ".") if within else (self._name(within), "")

    def group(self, farm: Farm) -> str:
        """What the runs of a farm are shown under."""
        return printable(farm.place[len(self._root) :].lstrip("/")) or "."

    def _name(self, within: str) -> str:
        return printable(within or os.path.basename(os.path.abspath(self._root)) or self._root)

    def _broken(self, path: str, within: str, farm: Farm | None, error: BaseException) -> Row:
        name, group = self._named(within, farm)
        said = (error.strerror or str(error)).lower() if isinstance(error, OSError) else str(error)
        why = printable(said.replace(f"{path}/", ""))
        return Row(name=name, group=group, place=path, state="unreadable", why=why)


def _unbegun(farm: Farm, group: str, slurm: Slurm) -> Iterator[Row]:
    """Runs of a farm that no job has begun yet."""
    for name, elements in farm.elements.items():
        if name in farm.begun:
            continue
        job, gone = slurm.find(elements[-1:], names=farm.names)
        why = standing.pending(job) if job is not None and job.waits else standing.unseen(elements[-1:])
        state = standing.judge("", "unknown", job, gone=bool(gone), begun=False)
        yield Row(
            name=printable(name),
            group=group,
            place=f"{farm.place}/{name}",
            state=standing.cancelled(state, gone, farm.place),
            node=job.nodes if job is not None and job.runs else "",
            why=standing.missing(gone, begun=False) if gone else why,
            gone=gone,
        )


def _told(row: Row, job: Job | None) -> Row:
    """A row of a job that is gone, with what sacct says of its end."""
    if job is None:
        return row
    where = f" on {job.nodes}" if job.nodes else ""
    code = f", exit code {job.code}" if job.code not in ("", "0:0") else ""
    said = f"Slurm says {job.state}{where}{code}"
    unbegun = job.state == "CANCELLED" and row.attempt == 0 and row.step is None
    return replace(row, state="cancelled" if unbegun else row.state, why=f"{row.why}: {said}" if row.why else said)


def _natural(text: str) -> list[tuple[int, str]]:
    """Sorts 2 before 10."""
    parts = re.split(r"([0-9]{1,18})", text)
    return [(int(part), "") if at % 2 else (-1, part) for at, part in enumerate(parts)]
