"""How a run, or a share of a folder of maps, stands: a row of `memdist status`, and what its state is taken for.

What its folder says comes first; whether the process that wrote it lives, second; what Slurm says, last, and only where
Slurm has answered.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from memdist.cluster import book, queue
from memdist.cluster.book import Attempt
from memdist.cluster.queue import Job, Queue
from memdist.errors import MemdistError

State = Literal[
    "running", "running?", "starting", "queued", "queued?", "waiting", "stopped", "failed", "diverged", "lost",
    "unreadable", "cancelled", "ended", "finished", "imported",
]  # fmt: skip
Life = Literal["alive", "dead", "unknown"]

MEANINGS: dict[State, str] = {
    "running": "",
    "running?": "says that it runs; whether its process lives cannot be seen from here",
    "starting": "its job runs, but is not at work yet",
    "queued": "in the queue, not begun yet",
    "queued?": "submitted, not begun yet; whether it is still in the queue is not known",
    "waiting": "begun, and in the queue to go on",
    "stopped": "the same command goes on from there",
    "failed": "",
    "diverged": "",
    "lost": "says that it runs, but its process or its job is gone; the same command goes on from its last checkpoint",
    "unreadable": "",
    "cancelled": "",
    "ended": "nobody is at work; `memdist predict` with --verify says whether all maps are there",
    "finished": "",
    "imported": "",
}
"""All states, in the order in which they are counted, each with what it means where the word does not say it."""
LIVE: frozenset[State] = frozenset({"running", "running?", "starting", "queued", "queued?", "waiting"})
"""States of what may still come to something without anybody's doing."""
BAD: frozenset[State] = frozenset({"failed", "diverged", "lost", "unreadable"})
"""States that ask for somebody."""

_STOPS = ("stopped", "time-limit", "pre-empted")
"""Ends of attempts that are no failures."""

FRESH = 60.0
"""Seconds for which a sign of life counts as life."""
LOCAL = "local-"
"""How the number of a job begins that is queued on this machine."""
OLD = 10.0
"""Seconds after which Slurm is asked again."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """A run, or a share of a folder of maps, as a person sees it."""

    name: str
    group: str
    """Folder that it is shown under, with others."""
    place: str
    """Its folder."""
    state: State
    maps: bool = False
    """Whether steps are maps."""
    scoring: bool = False
    """Whether it is a scoring of a run."""
    epoch: float | None = None
    step: int | None = None
    steps: int | None = None
    loss: float | None = None
    """Of training, the last one that was noted."""
    speed: float | None = None
    """Steps a second."""
    node: str = ""
    attempt: int = 0
    """How often a job has started it; 0: no job has."""
    why: str = ""
    """Of its last failure, or what it waits for."""
    gone: str = ""
    """A job that is not in the queue any more, of which sacct may tell the end."""

    @property
    def left(self) -> float | None:
        """Seconds to the last step."""
        if self.state != "running" or None in (self.step, self.steps) or not self.speed:
            return None
        assert self.step is not None and self.steps is not None
        return max(0, self.steps - self.step) / self.speed


class Slurm:
    """What Slurm says, asked when it matters, and not more often than it should be."""

    def __init__(self, ask: Callable[[], Queue] = queue.ask, here: Callable[[str], bool] | None = None) -> None:
        """Nothing is asked yet; `here` tells whether a job that was queued on this machine still is, or runs."""
        self._ask, self._here = ask, here
        self._queue: Queue | None = None
        self._until = 0.0
        self._ended: dict[str, Job | None] = {}

    @property
    def asked(self) -> Queue | None:
        """What was answered; None where nothing had to be asked."""
        return self._queue

    @property
    def queue(self) -> Queue:
        """Jobs that wait or run; what was answered before, for a while."""
        if self._queue is None or time.monotonic() > self._until:
            self._queue = self._ask()
            # Who does not answer is not asked at each look: a person waits for the answer.
            self._until = time.monotonic() + OLD * (6 if self._queue.unknown else 1)
        return self._queue

    def find(
        self, ids: Iterable[str], name: str = "", *, names: Mapping[str, str] | None = None, begun: bool = False
    ) -> tuple[Job | None, str]:
        """The job of one of these ids, or of a chain's name, and else one that is known to be gone, or nothing.

        `names` are those of jobs, by number. `begun`: an attempt of theirs has noted no end, which is all that is known of
        jobs of this machine.
        """
        ids = sorted(ids, key=lambda one: (len(one), one))
        here = [one for one in ids if one.startswith(LOCAL)]
        if here and self._here is not None:
            alive = next((one for one in here if self._here(one.partition("_")[0])), None)
            return (Job(id=alive, state="RUNNING" if begun else "PENDING"), "") if alive else (None, here[-1])
        ids = [one for one in ids if one[:1].isdigit()]
        if not ids:
            return None, ""
        job = self.queue.find(ids, name, names)
        return job, "" if job is not None or self.queue.unknown else ids[-1]

    def ended(self, ids: Iterable[str]) -> dict[str, Job | None]:
        """How jobs ended, as far as it is known; each is asked of once."""
        if new := {each for each in ids if each not in self._ended and each[:1].isdigit()}:
            told = queue.ended(new)
            self._ended |= {each: told.get(each) for each in new}
        return self._ended


def judge(said: str, life: Life, job: Job | None, *, gone: bool, begun: bool) -> State:
    """The state of what `said` one: running, stopped, finished, failed, diverged, imported; empty: nothing yet.

    `life` is its process's; `job` the one in the queue that does it; `gone`: Slurm has answered, and has no such job;
    `begun`: some job has done a part of it.
    """
    if said in ("finished", "imported"):
        return "finished" if said == "finished" else "imported"
    if life == "alive":
        return "running" if said == "running" else "starting"
    if job is not None and job.runs:
        return "running" if said == "running" and life == "unknown" else "starting"
    if job is not None and job.waits:
        return "waiting" if begun else "queued"
    if said == "stopped":
        return "stopped"
    if said == "cancelled":
        return "cancelled"
    if said in ("failed", "diverged"):
        return "failed" if said == "failed" else "diverged"
    if life == "dead" or gone:
        return "lost"
    return "running?" if said == "running" or begun else "queued?"


def cancelled(state: State, gone: str, *places: str) -> State:
    """The state, or cancelled where it is lost and one of these places has it written down that its job was cancelled."""
    if state != "lost" or not gone:
        return state
    # Written with the names of the commands alone: what cannot be read says nothing.
    with contextlib.suppress(MemdistError, OSError):
        if any(book.cancelled(Path(place), gone) for place in places):
            return "cancelled"
    return state


def end_of(attempts: Sequence[Attempt]) -> str:
    """What the last attempt says of its end: finished, stopped, cancelled, failed; running where it says nothing of one."""
    if not attempts:
        return ""
    kind = attempts[-1].kind
    if attempts[-1].ended is None:
        return "running"
    if kind in _STOPS:
        return "stopped"
    return kind if kind in ("finished", "cancelled") else "failed"


def last_failure(attempts: Sequence[Attempt]) -> str:
    """Why the last attempt that failed did so; empty where none did."""
    for at in range(len(attempts) - 1, -1, -1):
        attempt = attempts[at]
        which = f"attempt {at + 1} of {len(attempts)}: " if len(attempts) > 1 else ""
        if attempt.ended is None and at + 1 < len(attempts):
            return f"{which}killed, and nothing was noted of its end"
        if attempt.ended is not None and attempt.kind not in ("finished", *_STOPS):
            return which + ": ".join(filter(None, (attempt.kind, attempt.why)))
    return ""


def pending(job: Job) -> str:
    """What a job waits for."""
    start = f"from {job.start[:16].replace('T', ' ')} on" if job.start else ""
    return f"job {job.id}" + (f": {said}" if (said := ", ".join(filter(None, (job.reason, start)))) else "")


def unseen(ids: Iterable[str]) -> str:
    """The newest of these jobs, of which nothing is known."""
    last = max(ids, key=lambda one: (len(one), one), default="")
    return f"job {last}" if last else ""


def missing(job: str, *, begun: bool) -> str:
    """That a job is gone."""
    return f"job {job} is no longer in the queue" + ("" if begun else ", and never began")


def silence(path: str) -> float | None:
    """Seconds since a file was written, by the clocks of two machines; None where it is not there."""
    try:
        return time.time() - os.stat(path).st_mtime
    except OSError:
        return None


def for_long(seconds: float) -> str:
    """A time of silence: 5 min, 3 h, 2 days."""
    for size, unit in ((86400, "days"), (3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"
