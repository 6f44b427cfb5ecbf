"""Jobs of this machine: queued, one a GPU, by a process of their own that outlives the terminal.

`python -m memdist.cluster.local FILE` does the jobs that a file lists: it waits for a free GPU (where there is none, for the
CPU), starts the job there (`memdist.cluster.leg`), and starts it again when it says so. Who comes first is served first.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import signal
import subprocess
import sys
import time
import uuid
from collections import deque
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from memdist import process, rundir
from memdist.cluster import book, here
from memdist.cluster.profile import Cluster
from memdist.cluster.slurm import LOCAL_JOB, LOCAL_RESTART
from memdist.cluster.submit import private
from memdist.cluster.text import Job, options
from memdist.errors import ClusterError
from memdist.launch import gpus
from memdist.launch.ends import RESUME_ME
from memdist.launch.forward import Forward, bound

TICK = 0.2
CPU = "cpu"


def submit(job: Job, cluster: Cluster) -> str:
    """Queue a job or an array of them on this machine; gives its number."""
    number = f"local-{uuid.uuid4().hex[:10]}"
    file = book.folder(job.place) / f"{number}.json"
    entry = {
        "number": number,
        "numbers": list(job.numbers),
        "offset": job.offset,
        "gpus": job.gpus,
        "at_most": job.at_most,
        "after": [*job.after],
        "behind": [*job.behind],
        "place": str(job.place),
        "folder": str(job.folder),
        "environment": dict(cluster.environment),
        "words": options(job, cluster),
    }
    with private():
        rundir.make_folder(book.logs(job.place))
        rundir.write_json(file, entry)
        with open(book.batch_log(job.place, number), "ab") as log:
            runner = subprocess.Popen(
                [sys.executable, "-P", "-m", "memdist.cluster.local", str(file)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                cwd=job.folder,
            )
    _wait_for(lambda: _owner(number) is not None or end_of(number) is not None or runner.poll() is not None)
    if runner.poll() is not None and end_of(number) is None:
        raise ClusterError(
            f"job {number} could not be queued on this machine: see the end of {book.batch_log(job.place, number)}"
        )
    return number


def alive(number: str) -> bool:
    """Whether the jobs of a number are still queued or run."""
    owner = _owner(number)
    return owner is not None and process.life(*owner) == "alive"


def end_of(number: str) -> int | None:
    """Exit code of the jobs of a number, the worst; None where they have not ended, or were killed."""
    try:
        return int((here.folder() / f"{number}.end").read_text())
    except (OSError, ValueError):
        return None


def cancel(numbers: list[str]) -> None:
    """End jobs; what they train is written to a checkpoint first. Of an array's element its runner reads in the book."""
    for number in numbers:
        owner = _owner(number)
        if owner is not None and process.life(*owner) == "alive":
            os.kill(owner[0], signal.SIGTERM)


class Slots:
    """GPUs of this machine (or its CPU), each of which one job of this user has at a time."""

    def __init__(self) -> None:
        """Count them; a person's own choice of visible GPUs is kept to."""
        seen = [part.strip() for part in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if part.strip()]
        self.names = [seen[n] if n < len(seen) else str(n) for n in range(gpus.count())]

    def take(self, count: int) -> Slot | None:
        """So many free ones; None where there are not as many now."""
        taken = Slot()
        for name in self.names if self.names and count else [CPU]:
            handle = open(
                here.folder() / (f"{CPU}.slot" if name == CPU else f"gpu-{rundir.file_name(name)}.slot"), "ab"
            )
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                handle.close()
                continue
            taken.files[name] = handle
            if len(taken.files) == max(1, count) or name == CPU:
                return taken
        taken.free()
        return None


class Slot:
    """What a job has."""

    def __init__(self) -> None:
        """Nothing yet."""
        self.files: dict[str, BinaryIO] = {}

    @property
    def environment(self) -> dict[str, str]:
        """What shows a job its GPUs alone."""
        return {} if CPU in self.files else {"CUDA_VISIBLE_DEVICES": ",".join(self.files)}

    def free(self) -> None:
        """Let others have them."""
        for file in self.files.values():
            file.close()


class Runner:
    """Does the jobs of one file."""

    def __init__(self, entry: dict[str, Any]) -> None:
        """Nothing runs yet."""
        self.entry = entry
        self.number: str = entry["number"]
        self.waiting = deque(entry["numbers"] or [None])
        self.running: dict[int | None, tuple[subprocess.Popen[bytes], Slot, int]] = {}
        self.worst = 0
        self.slots = Slots()
        self.turn = here.Turn("gpu" if self.slots.names and entry["gpus"] else CPU, self.number)
        """Waited for before GPUs are, so that later jobs do not take what this one needs one by one."""
        self.place = Path(entry["place"])
        self.over: set[int | None] = set()
        """Elements that were cancelled."""
        self._seen = 0

    def run(self, forward: Forward) -> int:
        """Do all of them; gives the worst exit code."""
        if not self._predecessors(forward):
            print("memdist: a job that this one waits for has failed: it is not started", flush=True)
            return 1
        while self.waiting or self.running:
            forward.hand_on(self._send)
            self._cancelled()
            if forward.got:
                self._drop(self.waiting)
            if self.waiting and len(self.running) < (self.entry["at_most"] or len(self.waiting) + len(self.running)):
                self._next()
            else:
                self.turn.leave()
            self._look(again=not forward.got)
            time.sleep(TICK)
        return self.worst

    def _predecessors(self, forward: Forward) -> bool:
        while any(alive(number) for number in (*self.entry["after"], *self.entry["behind"])):
            if forward.got:
                return True  # nothing will be started
            time.sleep(TICK)
        return all(end_of(number) == 0 for number in self.entry["after"])

    def _next(self) -> None:
        if self.turn.here() and (slot := self.slots.take(self.entry["gpus"])) is not None:
            self._start(self.waiting.popleft(), slot, 0)

    def _drop(self, numbers: Iterable[int | None]) -> None:
        """Never start these, which is no success: others may wait for one."""
        gone = list(numbers)
        self.waiting = deque(number for number in self.waiting if number not in gone)
        self.worst = max(self.worst, 1 if gone else 0)

    def _cancelled(self) -> None:
        """End what was cancelled of an array, as the book says."""
        with contextlib.suppress(OSError):
            size = (book.folder(self.place) / book.CANCELLED).stat().st_size
            if size == self._seen:
                return
            self._seen = size
            said = book.cancellations(self.place)
            self._drop(number for number in self.waiting if number is not None and self._name(number) in said)
            for number in self.running.keys() - self.over:
                if number is not None and self._name(number) in said:
                    self.over.add(number)
                    self.running[number][0].send_signal(signal.SIGTERM)

    def _name(self, number: int | None) -> str:
        return self.number if number is None else f"{self.number}_{number - self.entry['offset']}"

    def _start(self, number: int | None, slot: Slot, restart: int) -> None:
        name = self._name(number)
        own = {LOCAL_JOB: name, LOCAL_RESTART: str(restart), **slot.environment}
        log = book.batch_log(self.place, name)
        with open(log, "ab") as file:
            child = subprocess.Popen(
                [sys.executable, "-P", "-m", "memdist.cluster.leg", *self.entry["words"]],
                env={**os.environ, **self.entry["environment"], **own},
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
                start_new_session=True,
                preexec_fn=bound(),  # no thread runs here
            )
        self.running[number] = child, slot, restart

    def _look(self, *, again: bool) -> None:
        for number, (child, slot, restart) in list(self.running.items()):
            code = child.poll()
            if code is None:
                continue
            del self.running[number]
            if code == RESUME_ME and again and number not in self.over:
                self._start(number, slot, restart + 1)
                continue
            slot.free()
            self.worst = max(self.worst, abs(code))

    def _send(self, signal_number: int) -> None:
        for child, _, _ in self.running.values():
            child.send_signal(signal_number)


def _owner(number: str) -> tuple[int, int] | None:
    """Process id and start time of who does the jobs of a number."""
    try:
        pid, _, start = (here.folder() / f"{number}.pid").read_text().partition(" ")
        return int(pid), int(start)
    except (OSError, ValueError):
        return None


@contextlib.contextmanager
def _known(number: str) -> Iterator[None]:
    me = process.this()
    rundir.write_text(here.folder() / f"{number}.pid", f"{me.pid} {me.start}")
    try:
        yield
    finally:
        (here.folder() / f"{number}.pid").unlink(missing_ok=True)


def _wait_for(what: Any, seconds: float = 30.0) -> None:
    end = time.monotonic() + seconds
    while not what() and time.monotonic() < end:
        time.sleep(0.05)


def main() -> int:
    """Do the jobs of the file that the command line names."""
    entry = json.loads(Path(sys.argv[1]).read_text())
    number = entry["number"]
    with Forward() as forward, _known(number):
        code = Runner(entry).run(forward)
        rundir.write_text(here.folder() / f"{number}.end", str(code))
    return code


if __name__ == "__main__":
    sys.exit(main())
