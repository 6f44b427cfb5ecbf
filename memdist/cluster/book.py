"""What is written down of jobs, in the folder `jobs` of the run, or of the maps, or of the runs that they make.

PLACE/jobs/
    submitted.jsonl               a line for each job that was submitted
    cancelled.jsonl               a line for each that its user has cancelled
    attempts.jsonl                lines of the attempts at this run: one when it begins, one when it ends
    attempts/7-of-64.jsonl        the same of one share of the pictures; of a scoring evaluate-<its words' digest>.jsonl
    <job>.sbatch                  what was given to sbatch
    logs/<job>.log                what the batch script printed, over all its attempts
    logs/<job>.<restart>.rank<r>  what a rank printed in one attempt

<job> is Slurm's number (of an array: 123_4). Lines are appended whole; an attempt that has no second line was killed.
"""

from __future__ import annotations

import contextlib
import hashlib
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from memdist import rundir

SUBMITTED = "submitted.jsonl"
CANCELLED = "cancelled.jsonl"
ATTEMPTS = "attempts"
LOGS = "logs"

Kind = Literal["train", "evaluate", "predict", "verify", "search"]


@dataclass(frozen=True, kw_only=True)
class Submitted:
    """One job, or one array of them, as it was submitted."""

    id: str
    """Slurm's number of the job or the array; `local-...` for one that is queued on this machine."""
    kind: Kind
    cluster: str
    """Name of the profile."""
    name: str
    """Name of the job."""
    numbers: tuple[int, ...] = ()
    """Of an array: which of `total` shares or runs its elements are, from 1; empty for a single job."""
    offset: int = 0
    """What is added to an element's index for its number."""
    total: int = 0
    """Of an array: shares or runs in all."""
    pictures: int = 0
    """Of shares: pictures in all; 0: not known."""
    legs: int = 1
    """Jobs of a chain, of which this is one."""
    key: str = ""
    """Of an array: what its numbers mean; of a scoring: its words (`memdist.cluster.make`)."""
    at: float = 0.0
    """When, in seconds since 1970."""

    def share(self, number: int) -> int | None:
        """Pictures of share `number`."""
        return len(range(number, self.pictures + 1, self.total)) if self.pictures and self.total else None

    def element(self, number: int) -> str:
        """Slurm's name of the element that does share or run `number`."""
        return f"{self.id}_{number - self.offset}" if self.numbers else self.id


@dataclass(frozen=True, kw_only=True)
class Attempt:
    """One start of a job's command."""

    job: str
    restart: int
    """How often Slurm had started this job before."""
    nodes: str
    """In Slurm's short form."""
    began: float
    """Seconds since 1970."""
    since: int
    """Step of the last checkpoint (maps that were there) at its beginning."""
    log: int = 0
    """Bytes of the batch script's log before it."""
    ended: float | None = None
    """None: it still runs, or was killed."""
    code: int | None = None
    reached: int | None = None
    """As `since`, at its end."""
    kind: str | None = None
    """What its end was: finished, stopped, or a class of `memdist.triage`."""
    why: str = ""


def digest(words: str) -> str:
    """A short name of what may be long."""
    return hashlib.sha256(words.encode("utf-8", "surrogatepass")).hexdigest()[:8]


def folder(place: Path) -> Path:
    """Folder of a place's jobs."""
    return place / rundir.JOBS


def note(place: Path, job: Submitted) -> None:
    """Write down that a job was submitted."""
    _append(folder(place) / SUBMITTED, asdict(job) | {"at": job.at or time.time()})


def submitted(place: Path) -> list[Submitted]:
    """Jobs that were submitted for a place, in order; a CheckpointError for a file that is none of ours."""
    return [_read(Submitted, line) for line in rundir.read_lines(folder(place) / SUBMITTED)]


def times(place: Path, job: str) -> list[float]:
    """When a job was submitted; empty where it was given to sbatch by hand.

    A job may begin before its line is written, but not before the file of what it does.
    """
    found = [one.at for one in submitted(place) if one.id == job][-1:]
    for name in (f"{job}.sbatch", f"{job}.json"):
        with contextlib.suppress(OSError):
            found.append((folder(place) / name).stat().st_mtime)
    return [min(found)] if found else []


def cancel(place: Path, job: str) -> None:
    """Write down that a job, an array or an element of one is not to be started again."""
    _append(folder(place) / CANCELLED, {"job": job, "at": time.time()})


def cancelled(place: Path, job: str) -> bool:
    """Whether a job or an element of an array was cancelled, by itself or with its array."""
    found = cancellations(place)
    return job in found or job.rpartition("_")[0] in found


def cancellations(place: Path) -> set[str]:
    """All jobs, arrays and elements of arrays of a place that were cancelled."""
    lines = rundir.read_lines(folder(place) / CANCELLED)
    # A cluster that was made anew counts its jobs from 1 again: what was cancelled before that is another of its number.
    since = {job.id: job.at for job in submitted(place)} if lines else {}
    names = ((str(line.get("job")), float(line.get("at") or 0)) for line in lines)
    return {name for name, at in names if at >= since.get(name.partition("_")[0], 0.0)}


def attempts_file(place: Path, share: str = "") -> Path:
    """File of the attempts at a run, or at a share (`7-of-64`)."""
    return folder(place) / (f"{ATTEMPTS}/{share}.jsonl" if share else f"{ATTEMPTS}.jsonl")


def began(path: Path, attempt: Attempt) -> None:
    """Write down the beginning of an attempt in a file of `attempts_file`."""
    said = asdict(attempt)
    _append(path, {name: said[name] for name in ("job", "restart", "nodes", "began", "since", "log")})


def ended(path: Path, attempt: Attempt) -> None:
    """Write down the end of an attempt."""
    _append(path, asdict(attempt))


def attempts(path: Path) -> list[Attempt]:
    """Attempts of a file of `attempts_file`, in order."""
    found: dict[tuple[str, int], Attempt] = {}
    for line in rundir.read_lines(path):
        attempt = _read(Attempt, line)
        found[attempt.job, attempt.restart] = attempt
    return list(found.values())


def logs(place: Path) -> Path:
    """Folder of logs."""
    return folder(place) / LOGS


def rank_log(place: Path, job: str, restart: int, rank: int | str) -> Path:
    """File of what a rank of an attempt prints; `%t` is srun's word for its number."""
    return logs(place) / f"{job}.{restart}.rank{rank}"


def batch_log(place: Path, job: str) -> Path:
    """File of what a job's batch script prints; `%j` and `%A_%a` are Slurm's words for its number."""
    return logs(place) / f"{job}.log"


def _append(path: Path, record: dict[str, Any]) -> None:
    with rundir.naming(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    lines = rundir.Lines(path)
    try:
        lines.write(record)
    finally:
        lines.close()


def _read(kind: Any, line: dict[str, Any]) -> Any:
    """A record of a kind, as far as a line has its fields: an older or newer memdist may have written it."""
    known: Sequence[str] = tuple(kind.__dataclass_fields__)
    values = {name: tuple(line[name]) if isinstance(line[name], list) else line[name] for name in known if name in line}
    missing = {"at": 0.0, "nodes": "", "began": 0.0, "since": 0, "restart": 0}
    return kind(**{name: value for name, value in missing.items() if name in known} | values)
