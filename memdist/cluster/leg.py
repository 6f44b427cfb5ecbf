"""`python -m memdist.cluster.leg OPTIONS -- WORDS...`: `memdist WORDS` inside a job, and what becomes of the job afterwards.

A job ends before its command does: its time is over, another job comes first, a node fails. This process is what its batch
script becomes. It starts the command's ranks, hands signals on, tells them in time to write a checkpoint, and then decides
from how they ended, and from the checkpoints that are there, whether the job goes into the queue again. What it found it
writes into the folder's book (`memdist.cluster.book`), which is read again at the next start: an attempt that was killed
without a word is judged then.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from memdist import rundir, triage
from memdist.cluster import book, decide, ranks, stage
from memdist.cluster.slurm import Here
from memdist.cluster.task import Task, task
from memdist.errors import ClusterError, MemdistError, printable
from memdist.launch.ends import RESUME_ME
from memdist.launch.forward import Forward

TICK = 0.1
"""Seconds between two looks at the command."""

SPARE = 10.0
"""Seconds before the end of a job's time at which a command that has not left is killed: the rest is for the queue."""

GRACE = 20.0
"""Seconds after TERM for what writes no checkpoint: Slurm kills 30 s after it, unless a site has set another KillWait."""

_LOOKED = 16384
"""Bytes of the end of each log that are searched for what went wrong: there may be hundreds of ranks."""


class Leg:
    """One attempt at a task."""

    def __init__(self, options: argparse.Namespace, here: Here, what: Task) -> None:
        """Nothing is started yet."""
        self.options, self.here, self.task = options, here, what
        self.file = book.attempts_file(what.home, what.share)
        self.told: str | None = None
        """What made it tell the command to leave."""
        self.killed = False
        """Whether the command was told, and did not leave in time."""
        self.scores: dict[str, Any] = {}
        """Of a scoring: those that were there before."""
        self.submitted: list[float] = []
        """When this job was; empty where nobody has written that down."""

    def run(self, forward: Forward) -> int:
        """Do it; gives the exit code of the job."""
        before = self.earlier()
        chained = self.options.again == "chain" and bool(self.submitted)
        hopeless = decide.hopeless(before, self.here.id) if chained else None
        if why := hopeless or (before and self.refusal(before)):
            say(f"this job is not started again: {why}")
            book.ended(
                self.file,
                replace(
                    self.attempt(), ended=time.time(), code=1, reached=self.task.progress(), kind="no-progress", why=why
                ),
            )
            return 1
        with contextlib.suppress(MemdistError):  # the command meets it, and tells
            self.scores = self.task.scores()
        begun = self.attempt()
        book.began(self.file, begun)
        try:
            environment = stage.prepare(self.options, self.here, self.task.words, lambda: bool(forward.got))
            child = None if forward.got else ranks.start(self.options, self.here, self.task, environment)
        except MemdistError as error:
            done = replace(begun, ended=time.time(), code=2, reached=begun.since, kind="wrong-input", why=str(error))
            book.ended(self.file, done)
            raise
        if child is None:  # it was told to leave before there was anything to tell
            self.told = signal.Signals(forward.got[-1]).name
        code = RESUME_ME if child is None else self.wait(child, forward)
        if self.told is None and code != RESUME_ME:  # else the time that is left is for the queue
            stage.keep(self.options, environment)
        return self.end(begun, before, code)

    def attempt(self) -> book.Attempt:
        """This attempt, as it begins."""
        here, log = self.here, book.batch_log(self.options.place, self.here.id)
        return book.Attempt(
            job=here.id,
            restart=here.restart,
            nodes=here.nodes,
            began=time.time(),
            since=self.task.progress(),
            log=log.stat().st_size if log.is_file() else 0,
        )

    def earlier(self) -> list[book.Attempt]:
        """Attempts before this one; of those that were killed, how they ended is found out and written down.

        Raises ClusterError where another job is still at work on one of them.
        """
        found = book.attempts(self.file)
        names = {one.id: one.name for one in book.submitted(self.options.place)}
        if other := self.here.beside((attempt.job for attempt in found if attempt.kind is None), names):
            raise ClusterError(
                f"job {other} is still at work on {self.task.home}: cancel one of the two, or submit again when it has ended"
            )
        for at, attempt in enumerate(found):
            if attempt.kind is None:
                finding = self.judge(None, attempt)
                found[at] = replace(
                    attempt, ended=time.time(), reached=self.task.progress(), kind=finding.kind, why=_why(finding)
                )
                book.ended(self.file, found[at])
        self.submitted = book.times(self.options.place, self.here.id.partition("_")[0])
        if not self.submitted and self.options.again == "chain" and (when := self.here.submitted()) is not None:
            self.submitted = [when]  # by hand
        return decide.answerable(found, self.here.id, self.submitted, self.options.again == "requeue")

    def wait(self, child: subprocess.Popen[bytes], forward: Forward) -> int:
        """Wait for the command, handing signals on and minding the end of the job's time."""
        end = self.here.ends(os.environ) if self.options.lead else None
        last: float | None = None
        while (code := child.poll()) is None:
            if self.told is None:
                if forward.got:
                    self.tell(child, signal.Signals(forward.got[-1]).name)
                elif end is not None and time.time() > end - self.options.lead:
                    self.tell(child, "the end of the job's time")
                last = self.deadline(end) if self.told is not None else None
            elif last is not None and not self.killed and time.time() > last:
                # Slurm would kill this process with it, and nothing would have the job start again.
                self.killed = True
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(child.pid, signal.SIGKILL)
            time.sleep(TICK)
        if self.told is None and forward.got:  # TERM may have ended the command itself, before it could be told
            self.told = signal.Signals(forward.got[-1]).name
        return code

    def deadline(self, end: float | None) -> float | None:
        """When a command that was told just now must have left; None: whenever it likes."""
        if self.here.local:
            return None  # nobody kills it
        now, spare = time.time(), min(SPARE, self.options.lead / 2)
        found = [] if end is None else [max(end, now + self.options.lead / 2) - spare]
        if self.told == "SIGTERM" and not self.task.trains:
            found.append(now + GRACE)
        elif self.told == "SIGUSR2" and end is None and self.options.lead:
            found.append(now + self.options.lead - spare)
        return min(found, default=None)

    def tell(self, child: subprocess.Popen[bytes], why: str) -> None:
        """Tell the command to leave."""
        self.told = why
        # USR2 is what a training takes as the wish to stop; whatever else is begun again where it was.
        child.send_signal(signal.SIGUSR2 if self.task.trains else signal.SIGTERM)

    def judge(self, code: int | None, attempt: book.Attempt) -> triage.Finding:
        """What became of an attempt, from its exit code (None: it was killed) and what it printed."""
        files = book.logs(self.task.home).glob(f"{attempt.job}.{attempt.restart}.rank*")
        logs = {
            path.name.rpartition(".")[2].replace("rank", "rank "): triage.tail(path, _LOOKED) for path in sorted(files)
        }
        batch = book.batch_log(self.options.place, attempt.job)
        logs["batch"] = triage.tail(batch, _LOOKED, start=attempt.log) if batch.is_file() else []
        state = self.task.home / rundir.STATE
        noted = {}
        with contextlib.suppress(MemdistError, OSError):
            # What an earlier attempt has left says nothing of this one.
            if self.task.trains and state.stat().st_mtime >= attempt.began:
                noted = rundir.read_json(state)
        return triage.judge(code, logs, noted=noted)

    def finished(self) -> bool:
        """Whether what a command leaves says that it came to its end; srun gives 0 for one whose ranks it lost, too."""
        try:
            if self.task.trains:
                return rundir.read_json(self.task.home / rundir.STATE).get("state") == "finished"
            if not (now := self.task.scores()):
                return True
            # No two scorings take the same time; of all splits, a run may lack some.
            there = {name: one for name, one in now.items() if one is not None}
            return bool(there) and all(one != self.scores.get(name) for name, one in there.items())
        except MemdistError:
            return False

    def paused(self) -> bool:
        """Whether a training has come as far as it was asked to."""
        with contextlib.suppress(MemdistError):
            return str(rundir.read_json(self.task.home / rundir.STATE).get("why")).startswith("until=")
        return False

    def end(self, begun: book.Attempt, before: list[book.Attempt], ended: int) -> int:
        """Write down how it ended, and do what follows from it; gives the job's exit code."""
        code = None if ended == 0 and not self.finished() else 0 if ended == RESUME_ME and self.paused() else ended
        # srun kills its tasks where it is told to leave by TERM.
        terminated = (-signal.SIGTERM, 128 + signal.SIGTERM, 128 + signal.SIGKILL)
        left = self.told is not None and (
            code == RESUME_ME or (self.killed and code != 0) or (not self.task.trains and code in terminated)
        )
        # What is told to leave by TERM ends of it, as somebody's command to end it would look: it is a stop like any other.
        finding = None if code == 0 else self.judge(RESUME_ME if left else code, begun)
        kind = "finished" if finding is None else finding.kind
        late = ", and killed as it did not leave" if self.killed else ""
        why = f"by {self.told}{late}" if left else "" if finding is None else _why(finding)
        if kind != "finished" and book.cancelled(self.options.place, begun.job):
            kind = "cancelled"
        done = replace(begun, ended=time.time(), code=code, reached=self.task.progress(), kind=kind, why=why)
        book.ended(self.file, done)
        if finding is not None and not left:
            say(f"{kind}: {finding.advice}", *(f"  {line.where}: {line.text}" for line in finding.lines))
        if kind in ("finished", "cancelled"):
            return code or 0
        again = finding is not None and finding.retry
        if again and (why_not := self.refusal([*before, done])):
            book.ended(self.file, replace(done, kind="no-progress", why=why_not))
            say(f"this job is not started again: {why_not}")
            return 1
        return self.again(finding) if again else (1 if code is None else code if code > 0 else 128 - code)

    def refusal(self, attempts: list[book.Attempt]) -> str | None:
        """Why it is not to be started again after these attempts; None: it may be."""
        return decide.refusal(attempts, self.options.max_failures, measured=self.task.measured)

    def again(self, finding: triage.Finding | None) -> int:
        """Have the job started again; gives its exit code."""
        bad = finding is not None and finding.elsewhere
        # Where the lines do not say which node it was, the job may as well keep away from this one.
        without = ",".join(finding.nodes) or self.here.node if finding is not None and bad else None
        if self.options.again == "chain" or self.here.local:
            if without:
                self.here.avoid_later(os.environ.get("SLURM_JOB_NAME", ""), without)
            chained = "the next job of the chain goes on from here; without one, submit again"
            say("it is started again" if self.here.local else chained)
            return RESUME_ME
        known = finding is not None and finding.kind in ("pre-empted", "time-limit")
        if self.told == "SIGTERM" and not known and self.here.ending():
            say("Slurm ends this job before its time is over: whoever wanted that may have it start again")
            return RESUME_ME
        refused = self.here.requeue(without)
        if refused is not None:
            say(f"{refused}: submit again to go on from here, or give the job --legs from the start")
        return RESUME_ME


def _why(finding: triage.Finding) -> str:
    return finding.lines[0].text if finding.lines else finding.advice


def say(*lines: str) -> None:
    """Print sentences into the job's log."""
    for line in lines:
        print(f"memdist: {printable(line)}", flush=True)


def options(words: Sequence[str]) -> argparse.Namespace:
    """Read the command line that `memdist.cluster.text` writes."""
    parser = argparse.ArgumentParser(prog="memdist.cluster.leg", description=__doc__)
    parser.add_argument("--place", type=Path, required=True)
    parser.add_argument("--ranks", type=int, default=1)
    parser.add_argument("--lead", type=int, default=120)
    parser.add_argument("--max-failures", type=int, default=3)
    parser.add_argument("--again", choices=["requeue", "chain"], default="requeue")
    parser.add_argument("--offset", type=int, default=0)
    parser.add_argument("--total", type=int, default=0)
    parser.add_argument("--scratch")
    parser.add_argument("--container")
    parser.add_argument("--runs", type=Path)
    parser.add_argument("words", nargs="+")
    return parser.parse_args(words)


def main() -> int:
    """Run what the command line says inside the job that the environment tells of."""
    given = options(sys.argv[1:])
    here = Here.of(os.environ)
    try:
        with Forward() as forward:
            what = task(given, here)
            say(
                f"attempt {here.restart + 1} of job {here.id} on {here.nodes or 'no node'}: memdist {shlex.join(what.words)}"
            )
            return Leg(given, here, what).run(forward)
    except MemdistError as error:
        say(str(error))
        return 2


if __name__ == "__main__":
    sys.exit(main())
