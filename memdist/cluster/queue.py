"""What Slurm says of jobs: squeue of those that wait or run, sacct of others where accounting is on.

Both are asked with a limit of time, and a cluster that does not answer is no error: what is not known is said to be so.
What Slurm says is never waited for, nor taken for the truth on what a run has done: that stands in its folder.
"""

from __future__ import annotations

import contextlib
import functools
import os
import re
import signal
import subprocess
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from memdist.errors import printable

PATIENCE = 10.0
"""Seconds for which an answer of Slurm is waited for."""

FORMAT = "%i|%A|%T|%M|%L|%e|%S|%N|%j|%r"
"""Of squeue: id, number, state, time used, time left, end, start, nodes, name, reason; any text comes last."""

_WAITS = {"PENDING", "REQUEUED", "REQUEUE_FED", "REQUEUE_HOLD", "SPECIAL_EXIT", "RESV_DEL_HOLD"}
_ENDS = {
    *(
        "COMPLETED",
        "CANCELLED",
        "FAILED",
        "TIMEOUT",
        "PREEMPTED",
        "NODE_FAIL",
        "OUT_OF_MEMORY",
        "DEADLINE",
        "BOOT_FAIL",
    ),
    *("REVOKED", "COMPLETING"),
}
_MOST = 1_000_000
"""Elements of one array at most: Slurm allows four times as many in a list that no person has."""
_IDS = 1000
"""Jobs of one question to sacct."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """A job, or an element of an array, as Slurm tells of it."""

    id: str
    """123, or 123_4."""
    state: str
    """In Slurm's words: PENDING, RUNNING, ..."""
    reason: str = ""
    """Why it waits; empty where Slurm gives none."""
    nodes: str = ""
    """In Slurm's short form."""
    number: str = ""
    """What SLURM_JOB_ID is within it; elements of an array have one each once they have been started."""
    name: str = ""
    used: str = ""
    """Time it has run."""
    left: str = ""
    """Time until its limit."""
    start: str = ""
    """When it was, or may be, started."""
    end: str = ""
    """When its limit is reached, or when it ended."""
    code: str = ""
    """Exit code and signal, `1:0`; of jobs that sacct tells of."""

    @property
    def waits(self) -> bool:
        """Whether it is yet to be started, or to be started again."""
        return self.state in _WAITS

    @property
    def runs(self) -> bool:
        """Whether its processes run, as far as Slurm knows."""
        return not self.waits and self.state not in _ENDS


@dataclass(frozen=True)
class Queue:
    """This user's jobs that wait or run, or why they are not known."""

    jobs: Mapping[str, Job] = field(default_factory=dict)
    """By id."""
    unknown: str = ""
    """Why Slurm has not answered; empty where it has."""

    def find(self, ids: Iterable[str], name: str = "", names: Mapping[str, str] | None = None) -> Job | None:
        """A job of one of these ids or numbers, or of a name: a running one sooner than one that waits.

        `names` of jobs that are known by number: another cluster may have given that to another job.
        """
        keys, names = set(ids), names or {}
        found = [
            job
            for key in keys
            for job in (self.jobs.get(key), self._numbers.get(key))
            if job is not None and names.get(key.partition("_")[0], job.name) == job.name
        ]
        found += self._names.get(name, []) if name else []
        return min(found, key=lambda job: (not job.runs, not job.waits), default=None)

    @functools.cached_property
    def _numbers(self) -> Mapping[str, Job]:
        # Elements that wait have the number of their array, which says nothing of any one of them.
        return {job.number: job for job in self.jobs.values() if "_" not in job.id or not job.waits}

    @functools.cached_property
    def _names(self) -> Mapping[str, Sequence[Job]]:
        names: dict[str, list[Job]] = {}
        for job in self.jobs.values():
            names.setdefault(job.name, []).append(job)
        return names


def ask(patience: float = PATIENCE) -> Queue:
    """This user's jobs, by squeue alone."""
    done = _run(["squeue", f"--user={os.getuid()}", "--array", "--noheader", "-o", FORMAT], patience)
    return Queue(unknown=done.trouble) if done.trouble else Queue(parse(done.text))


def parse(text: str) -> dict[str, Job]:
    """Jobs of what squeue prints in FORMAT; lines that are none are passed over."""
    found: dict[str, Job] = {}
    for line in text.splitlines():
        parts = [part.strip() for part in line.split("|", FORMAT.count("|"))]
        if len(parts) != FORMAT.count("|") + 1 or not re.match("[0-9]", parts[0]):
            continue
        which, number, state, used, left, end, start, nodes, name, reason = map(printable, parts)
        job = Job(
            id=which,
            number=number,
            state=state.upper(),
            used=used,
            left=left,
            end=_said(end),
            start=_said(start),
            nodes=_said(nodes),
            name=name,
            reason="" if reason == "None" else _said(reason),
        )
        found |= {each: replace(job, id=each) for each in elements(which)}
    return found


def elements(text: str) -> Iterator[str]:
    """Ids of one line: 123, 123_4, or the elements 123_[1-5,7,10-20:5%2] that were not parted yet."""
    array = re.fullmatch(r"([0-9]+)_\[([^]]*)\]?", text)
    if array is None:
        yield text
        return
    # What was cut off ends in dots; what can be read of it is true.
    for part in array[2].partition("%")[0].split(","):
        step = re.fullmatch(r"([0-9]{1,9})(?:-([0-9]{1,9}))?(?::([1-9][0-9]{0,8}))?", part.strip())
        if step:
            first, last, by = int(step[1]), int(step[2] or step[1]), int(step[3] or 1)
            yield from (f"{array[1]}_{index}" for index in range(first, min(last, first + _MOST) + 1, by))


def ended(ids: Iterable[str], patience: float = PATIENCE) -> dict[str, Job]:
    """How jobs ended that squeue no longer knows, by sacct; empty where accounting is off or does not answer."""
    known: dict[str, Job] = {}
    # Of an array all elements at once: a list of them would soon be too long.
    asked = sorted({found[0] for text in ids if (found := re.match("[0-9]+", text))})
    for at in range(0, len(asked), _IDS):
        words = [
            "sacct",
            "-j",
            ",".join(asked[at : at + _IDS]),
            "-P",
            "-n",
            "-X",
            "-o",
            "JobID,State,ExitCode,NodeList",
        ]
        done = _run(words, patience)
        if done.trouble:
            break  # the next one would not be answered either
        known |= parse_ended(done.text)
    return known


def parse_ended(text: str) -> dict[str, Job]:
    """Jobs of what sacct prints of JobID, State, ExitCode and NodeList."""
    found: dict[str, Job] = {}
    for line in text.splitlines():
        parts = [printable(part.strip()) for part in line.split("|")]
        if len(parts) != 4 or not re.match("[0-9]", parts[0]) or not parts[1]:
            continue
        state = parts[1].split()[0].rstrip("+")  # CANCELLED by 1000
        nodes = "" if parts[3] == "None assigned" else parts[3]
        job = Job(id=parts[0], state=state, reason=parts[1].partition(" ")[2], code=parts[2], nodes=nodes)
        found |= {each: replace(job, id=each) for each in elements(parts[0])}
    return found


def _said(text: str) -> str:
    """A field, unless it says that there is nothing to say."""
    return "" if text in ("N/A", "(null)", "n/a", "Unknown") else text


@dataclass(frozen=True)
class _Answer:
    text: str = ""
    trouble: str = ""


def _run(words: Sequence[str], patience: float) -> _Answer:
    """What a command prints, or why it gave no answer; never an exception, and never a wait of more than `patience`."""
    # Times in a form of Slurm's that says the date; lists of elements uncut.
    environment = {**os.environ, "SLURM_BITSTR_LEN": "0", "SLURM_TIME_FORMAT": "standard", "LC_ALL": "C"}
    # Defaults that a person has set for their own eyes.
    for name in ("SQUEUE_FORMAT", "SQUEUE_STATES", "SQUEUE_PARTITION", "SQUEUE_NAMES", "SACCT_FORMAT", "SQUEUE_SORT"):
        environment.pop(name, None)
    name = words[0]
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as errors:
        try:
            # In a group of its own: a wrapper that hangs in a child of its own ends with it, and Ctrl-C is ours alone.
            process = subprocess.Popen(
                words, stdin=subprocess.DEVNULL, stdout=out, stderr=errors, env=environment, start_new_session=True
            )
        except OSError as error:
            missing = isinstance(error, FileNotFoundError)
            why = "is not installed here" if missing else f"cannot be run: {(error.strerror or str(error)).lower()}"
            return _Answer(trouble=f"{name} {why}")
        try:
            code = process.wait(patience)
        except subprocess.TimeoutExpired:
            return _Answer(trouble=f"{name} did not answer within {patience:g} s")
        finally:
            _end(process)
        out.seek(0)
        errors.seek(0)
        if code:
            said = errors.read(10_000).decode(errors="replace").strip().splitlines()
            last = said[-1].removeprefix(f"{name}: ").removeprefix("error: ").removeprefix("fatal: ") if said else ""
            return _Answer(trouble=f"{name} failed: {printable(last) or f'exit code {code}'}")
        return _Answer(out.read().decode(errors="replace"))


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a command that still runs, with all that it has started."""
    if process.poll() is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
