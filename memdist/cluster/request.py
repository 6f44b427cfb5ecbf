"""What a person asks of a cluster, checked before anything is written or submitted."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from memdist import times
from memdist.cluster import book, facts, local, profile, submit, text, underway
from memdist.cluster.profile import LOCAL, Cluster
from memdist.cluster.text import Job
from memdist.errors import ClusterError, ConfigError, printable

_OWN = ("/tmp", "/var/tmp", "/dev/shm", "/run")
"""Folders that each machine has for itself."""

_DATA = ("images", "maps", "side_by_side", "csv", "groups", "fixations", "val", "test", "train", "cache")
"""Settings of `data` that may name folders and files."""


@dataclass(frozen=True, kw_only=True)
class Asked:
    """The flags of `memdist submit`."""

    cluster: str
    time: str | None = None
    nodes: int = 1
    gpus: int | None = None
    """Of each node; None: one, where the cluster has any, or with `whole` all."""
    whole: bool = False
    ranks: int | None = None
    """Of each node; None: one a GPU."""
    legs: int = 1
    after: tuple[Path, ...] = ()
    at_most: int | None = None


class Site:
    """A cluster, and what is asked of it."""

    def __init__(self, asked: Asked, *, dry: bool = False) -> None:
        """Read the profile, ask Slurm, and check what was asked; raises MemdistError."""
        self.asked = asked
        self.name = asked.cluster
        self.cluster: Cluster = profile.read(asked.cluster)
        self.notes: list[str] = []
        self._seen: set[tuple[str, Path]] = set()
        self.local = asked.cluster == LOCAL
        self.facts: facts.Facts | None = None
        if not self.local:
            try:
                self.facts = facts.ask()
            except ClusterError as error:
                if not dry:
                    raise
                self.notes.append(f"limits are not checked: {error}")
        self.seconds = times.seconds(asked.time or self.cluster.time)
        if self.local and asked.nodes > 1:
            raise ClusterError(
                f"--nodes {asked.nodes} cannot be with --cluster local, which is this machine: leave it out"
            )
        if self.local and asked.legs > 1:
            raise ClusterError(
                f"--legs {asked.legs} cannot be with --cluster local, where no job runs out of time: leave it out"
            )
        self.gpus = self._gpus()
        self.ranks = asked.ranks or max(1, self.gpus)
        self._limits()
        if not self.local and (names := submit.overruled(self.cluster)):
            self.notes.append(
                f"left aside, as the job says it: {', '.join(names)} of the environment (what a cluster needs belongs in its "
                "file)"
            )

    def _gpus(self) -> int:
        asked = self.asked.gpus
        if self.local:
            from memdist.launch import gpus

            there = gpus.count()
            if asked is not None and asked > there:
                raise ClusterError(
                    f"--gpus-per-node {asked} cannot be: this machine has {there} GPUs; ask for at most as many"
                )
            return (there if self.asked.whole else min(1, there)) if asked is None else asked
        most = self.cluster.gpus_per_node
        if most is None and self.facts is not None:
            most = self.facts.partition(self.cluster.partition).gpus
        if asked is not None and most is not None and asked > most:
            where = f"partition {self.cluster.partition}" if self.cluster.partition else f"cluster {self.name}"
            raise ClusterError(
                f"--gpus-per-node {asked} cannot be: no node of {where} has more than {most}; ask for at most as many, and for "
                "more --nodes"
            )
        if asked is not None:
            return asked
        return (most or 0) if self.asked.whole else 1 if most is None else min(1, most)

    def _limit(self, name: str | None) -> tuple[int | None, str]:
        """Longest time of a job in a partition, and who says so; None: nobody bounds it, or it is not known."""
        limit = times.seconds(self.cluster.max_time) if self.cluster.max_time else None
        where = "the cluster's file"
        if self.facts is not None:
            partition = self.facts.partition(name)
            if partition.seconds is not None and (limit is None or partition.seconds < limit):
                limit, where = partition.seconds, f"partition {partition.name}"
        return limit, where

    def without_gpus(self) -> int:
        """Seconds of a job without GPUs beside those that have them: what was asked for, as far as its partition allows it."""
        limit, where = self._limit(self.cluster.cpu_partition or self.cluster.partition)
        if limit is None or self.seconds <= limit:
            return self.seconds
        self.notes.append(f"the job that verifies has {times.shown(limit)}, the limit of {where}")
        return limit

    def _limits(self) -> None:
        name = (self.cluster.partition if self.gpus else self.cluster.cpu_partition) or self.cluster.partition
        if self.facts is not None:
            partition = self.facts.partition(name)
            if partition.nodes and self.asked.nodes > partition.nodes:
                raise ClusterError(
                    f"--nodes {self.asked.nodes} cannot be: partition {partition.name} has {partition.nodes}; ask for fewer"
                )
        limit, where = self._limit(name)
        if limit is not None and self.seconds > limit:
            legs = -(-self.seconds // limit)
            raise ClusterError(
                f"--time {times.shown(self.seconds)} is over the limit of {where}, {times.shown(limit)}: give --time "
                f"{times.shown(limit).replace(' ', '')}; a job that is not done then goes on in the next of {legs} by requeueing "
                "itself, or with --legs"
            )

        if not self.local and self.seconds <= self.cluster.signal_lead:
            raise ClusterError(
                f"--time {times.shown(self.seconds)} cannot be: jobs are told to leave {self.cluster.signal_lead} s before their "
                "end (signal_lead of the cluster's file), and would never begin; ask for more"
            )

    def sees(self, folder: Path, what: str) -> None:
        """Raise a ClusterError where compute nodes cannot see a folder, as far as that can be known here."""
        if self.local:
            return
        real = Path(os.path.realpath(folder))
        if self.cluster.shared:
            if not any(real.is_relative_to(os.path.realpath(one)) for one in self.cluster.shared):
                raise ClusterError(
                    f"{what} {printable(folder)} is not in a folder that compute nodes of {self.name} see "
                    f"({', '.join(map(str, self.cluster.shared))}, by `shared` of its file): choose one there"
                )
        elif any(real.is_relative_to(one) for one in _OWN):
            raise ClusterError(
                f"{what} {printable(folder)} is this machine's own, and compute nodes do not see it: choose one on a shared file "
                f"system, or name it in `shared` of the file of cluster {self.name}"
            )

    def sees_data(self, run: Any, *, scored: bool = False) -> None:
        """As `sees`, for what the settings of a run name and its training reads (`scored`: its scoring)."""
        said = [(f"data.{key} =", getattr(run.data, key)) for key in _DATA]
        said.append(("eval.fid_weights =", run.eval.fid_weights) if scored else ("init.from =", run.init.from_))
        for what, place in said:
            if isinstance(place, Path) and (what, place) not in self._seen:
                self.sees(place, what)
                self._seen.add((what, place))  # of a sweep, all runs have the same

    def submit(self, job: Job) -> str:
        """Submit a job; gives its number."""
        return local.submit(job, self.cluster) if self.local else submit.to_slurm(job, self.cluster)

    def cancel(self, numbers: list[str]) -> None:
        """Take back what was submitted."""
        (local.cancel if self.local else submit.cancel)(numbers)

    def split(self, job: Job) -> list[Job]:
        """A job as it is submitted: arrays cut to what Slurm takes, chains as so many jobs."""
        if not self.local and not self.cluster.requeue and self.asked.legs == 1:
            # Only single trainings and searches can be chained.
            chains = job.kind in ("train", "search") and not job.numbers
            goes_on = (
                "with --legs N so many follow one another" if chains else "when they have ended, submit what is left"
            )
            self.notes.append(f"jobs of this cluster cannot requeue themselves: {goes_on}")
        if job.numbers:
            most = self.facts.max_array if self.facts is not None else facts.MAX_ARRAY
            pieces = text.cut(job.numbers, 10**9 if self.local else most)
            made = [replace(job, offset=offset, numbers=numbers) for offset, numbers in pieces]
            # Slurm bounds how many elements of one array run at once: of several, one follows the other.
            return [replace(one, behind=("",)) if at and job.at_most else one for at, one in enumerate(made)]
        if self.asked.legs > 1:
            return [replace(job, chained=True)] * self.asked.legs
        return [job]

    def predecessors(self) -> tuple[str, ...]:
        """Jobs of the runs that --after names; raises ClusterError for one that is neither finished nor queued."""
        numbers: list[str] = []
        for run in self.asked.after:
            run = Path(os.path.abspath(run))
            waits = underway.jobs(run, "train")
            if not waits and (own := underway.element(run)):
                # What waits on this machine waits for a whole array.
                waits = [each.partition("_")[0] if each.startswith("local-") else each for each in own[1]]
            if waits and any(job.legs > 1 for job in book.submitted(run) if job.id in waits):
                numbers.append(waits[-1])  # of a chain, every leg but the last may end before the run does
            elif waits:
                numbers += waits
            elif not underway.finished(run):
                raise ClusterError(
                    f"--after {printable(run)}: this run is neither finished nor has it a job that waits or runs; submit it first"
                )
        return tuple(dict.fromkeys(numbers))


def hours(job: Job) -> float:
    """GPU-hours (of what has no GPU: node-hours) that a job can take at most, in one go."""
    return job.seconds / 3600 * job.nodes * (job.gpus or 1) * max(1, len(job.numbers))


def describe(site: Site, jobs: Sequence[Job], said: Sequence[str]) -> str:
    """What would be submitted, for --dry-run: every script as it would be, and what it costs."""
    lines: list[str] = []
    before = [f"<job {number}>" for number in range(1, len(jobs) + 1)]
    scripts = [text.render(replace(job, behind=_behind(job, before[:at])), site.cluster) for at, job in enumerate(jobs)]
    for script in dict.fromkeys(scripts):
        same = scripts.count(script)
        lines += [script] + ([f"({same} such jobs, one after the other)", ""] if same > 1 else [])
    for job in jobs:
        if job.numbers:
            last = job.numbers[-1] - job.offset
            first = job.numbers[0] - job.offset
            lines.append(
                f"array: {len(job.numbers)} of {job.total}, numbers {text.indices(job.numbers)} as indices {first} to {last}"
                f"{f', {job.at_most} at once' if job.at_most else ''}"
            )
    unit = "GPU-hours" if any(job.gpus for job in jobs) else "node-hours"
    total = sum(hours(job) for job in jobs)
    lines.append(
        f"{unit}: {total:.1f} at most, each time that the time limit of {times.shown(site.seconds)} is used up"
    )
    return "\n".join([*lines, *said, *site.notes, "nothing was submitted"])


class Standing(ClusterError):
    """Jobs that could not be taken back."""


def do(site: Site, jobs: Sequence[Job]) -> list[str]:
    """Submit jobs that belong together: all or none; gives their numbers. An empty `behind` waits for those before."""
    done: list[str] = []
    try:
        for job in jobs:
            done.append(site.submit(replace(job, behind=_behind(job, done))))
    except BaseException as error:
        if done:
            take_back(site, jobs, done, error)
        raise
    return done


def _behind(job: Job, done: Sequence[str]) -> tuple[str, ...]:
    """Jobs that one waits for, with the numbers of those before it where it names them."""
    return tuple(number for each in job.behind for number in ([each] if each else done))


def take_back(site: Site, jobs: Sequence[Job], done: list[str], error: BaseException) -> None:
    """Cancel jobs that were submitted, as the others could not be; raises Standing where that is refused."""
    try:
        site.cancel(done)
    except ClusterError as refused:
        raise Standing(
            f"{error}; and job {', '.join(done)}, submitted before, could not be taken back ({refused}): cancel it by hand"
        ) from error
    for job, number in zip(jobs, done, strict=False):
        submit.script(job.place, number).unlink(missing_ok=True)


def ranks_of(site: Site, size: int) -> None:
    """Raise a ConfigError where a batch does not divide by the ranks that were asked for."""
    world = site.asked.nodes * site.ranks
    if size % world:
        raise ConfigError(
            f"batch.size = {size} cannot be shared by {world} ranks ({site.asked.nodes} nodes of {site.ranks}): make it a "
            "multiple, or ask for other --nodes or --gpus-per-node"
        )
