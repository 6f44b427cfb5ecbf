"""`python -m memdist.launch.under LAUNCHER ARGUMENTS...`: ranks of a launcher that is not ours.

Launchers such as torchrun pass on some signals or none, make exit code 1 of whatever their ranks end with, and take half a
minute to end the peers of a rank that has died. Ranks of memdist register with the one who runs the launcher, so that
signals go to them directly, the exit code is theirs, and what a dead rank leaves waiting is ended within seconds. The word
{port} among the arguments stands for a free port of this machine.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

from memdist import process
from memdist.launch import ends as ends_
from memdist.launch.ends import RESUME_ME, End
from memdist.launch.forward import Forward, bound
from memdist.launch.ports import Port

GRACE = 3.0
"""Seconds after a rank's failure in which its launcher may end the others, and the one that failed first may say so."""

_TICK = 0.1


class Job:
    """A launcher, and the ranks that it has started on this machine."""

    def __init__(self, command: Sequence[str], folder: Path) -> None:
        """Start the launcher, in a session of its own: a terminal's signals come by way of this process."""
        self.folder = folder
        self._seen: dict[tuple[int, int], float] = {}
        self._peers: dict[tuple[int, int], list[tuple[int, int]]] = {}
        self._launcher = subprocess.Popen(
            command,
            env={**os.environ, ends_.JOB: str(folder)},
            stdin=subprocess.DEVNULL,
            start_new_session=True,
            preexec_fn=bound(),  # no thread runs here
        )

    @property
    def code(self) -> int | None:
        """Exit code of the launcher, once it has ended."""
        return self._launcher.poll()

    def send(self, number: int) -> None:
        """Send a signal to the ranks; to the launcher where there is none yet."""
        there = ends_.registered(self.folder)
        if not there:
            self._launcher.send_signal(signal.SIGINT if number == signal.SIGINT else signal.SIGTERM)
        for rank, (pid, start) in there.items():
            if ends_.left(self.folder, rank) is None and process.life(pid, start) == "alive":
                _kill(pid, number)

    def ends(self) -> list[End]:
        """The ends of ranks so far; one that was killed has left no word, and counts as killed by SIGKILL."""
        found = []
        for rank, (pid, start) in ends_.registered(self.folder).items():
            dead = process.life(pid, start) == "dead"
            noted = ends_.left(self.folder, rank)  # after it was seen dead: it notes its end, then ends
            if noted is not None or dead:
                at = self._seen.setdefault((pid, start), time.monotonic())
                found.append(End(rank, *(noted or (-signal.SIGKILL, "own")), at=at))
        return found

    def tidy(self) -> None:
        """End those that a rank which has failed leaves waiting, some time later, if their launcher has not."""
        there = ends_.registered(self.folder)
        for end in self.ends():
            if end.code in (0, RESUME_ME) or end.kind == "agreed" or end.rank not in there:
                continue
            # Those of its own start: a launcher may start all again.
            peers = self._peers.setdefault(there[end.rank], list(there.values()))
            if time.monotonic() > end.at + GRACE:
                _end(peers)

    def kill(self) -> None:
        """End the ranks that are left."""
        _end(ends_.registered(self.folder).values())

    def close(self) -> None:
        """End everything."""
        if self.code is None:
            self._launcher.kill()
            self._launcher.wait()
        self.kill()


def _end(processes: Iterable[tuple[int, int]]) -> None:
    for pid, start in processes:
        if process.life(pid, start) == "alive":
            _kill(pid, signal.SIGKILL)


def _kill(pid: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def run(command: Sequence[str]) -> int:
    """Run a launcher to its end; gives the exit code of its ranks."""
    folder = Path(tempfile.mkdtemp(prefix="memdist-job-"))
    try:
        with Forward() as forward, Port() as port:
            job = Job([word.replace("{port}", str(port.number)) for word in command], folder)
            try:
                return _wait(job, forward)
            finally:
                job.close()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _wait(job: Job, forward: Forward) -> int:
    while (code := job.code) is None:
        forward.hand_on(job.send)
        job.tidy()
        if forward.insists:
            return 130
        time.sleep(_TICK)
    ends = job.ends()
    worst = ends_.cause(ends)
    if forward.got and (worst is None or worst.code < 0):
        # Stopped as asked; or killed by what was handed on, before a rank could catch it and there was a step to stop after.
        if worst is None and (ends or not code):
            return ends_.code_of(ends)
        return 130 if signal.SIGINT in forward.got else RESUME_ME
    if worst is not None and worst.code < 0:
        print(
            f"memdist: rank {worst.rank} ended without a word, so it was killed (out of memory?); the others were stopped",
            file=sys.stderr,
        )
    return ends_.code_of(ends) or (1 if code else 0)


if __name__ == "__main__":
    sys.exit(run(sys.argv[1:]))
