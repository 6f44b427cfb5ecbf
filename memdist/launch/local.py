"""Several ranks of one command on this machine: started, signalled, waited for, ended together, started again.

`python -m memdist.launch.local WORDS...` runs `memdist WORDS...` so, as one of several machines if need be: GPUS ranks
here, NODES machines, this one number NODE_RANK, rank 0 met at MASTER_ADDR:MASTER_PORT.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from memdist import rundir
from memdist.errors import printable
from memdist.launch import ends as ends_
from memdist.launch.ends import RESUME_ME, End
from memdist.launch.forward import Forward, bound
from memdist.launch.ports import Port

AT_ONCE = 0.2
"""Seconds that the others have after one has failed by itself; time for a second one that is at the end of failing."""

GRACE = 2.0
"""The same where the cause is still to come: those that have merely lost another, or may have found the same mistake."""

ALIKE = 60.0
"""The same where all are bound to end by themselves, so that rank 0 can say why: it may be slower than the others."""

_TICK = 0.05
_SHOWN = 200
"""Lines of a rank's output that are shown when it was at fault."""


class Machines(NamedTuple):
    """Which of several machines this is, and where rank 0 is met; one machine finds a port of its own each time."""

    number: int = 0
    total: int = 1
    address: str = "127.0.0.1"
    port: int = 0


class Ranks:
    """The ranks of one start: the first is seen and heard as it runs, what others print is kept in the job's folder."""

    def __init__(self, command: Sequence[str], count: int, machines: Machines, port: int, folder: Path) -> None:
        """Start them."""
        self.folder = folder
        self.first = machines.number * count
        self._ended: dict[int, End] = {}
        self._processes: dict[int, subprocess.Popen[bytes]] = {}
        common = {
            "WORLD_SIZE": str(count * machines.total),
            "LOCAL_WORLD_SIZE": str(count),
            "MASTER_ADDR": machines.address,
            "MASTER_PORT": str(port),
            ends_.JOB: str(folder),
        }
        if "OMP_NUM_THREADS" not in os.environ:
            common["OMP_NUM_THREADS"] = str(max(1, cores() // count))
        bind = bound()
        for local in range(count):
            rank = self.first + local
            own = {"RANK": str(rank), "LOCAL_RANK": str(local)}
            log = None if local == 0 else self.log(rank).open("wb")
            try:
                self._processes[rank] = subprocess.Popen(
                    command,
                    env={**os.environ, **common, **own},
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    # A session each: what a terminal sends to all in the foreground comes once, by way of this process.
                    start_new_session=True,
                    preexec_fn=bind,  # no thread runs here
                )
            finally:
                if log is not None:
                    log.close()

    def log(self, rank: int) -> Path:
        """File of what a rank has printed."""
        return self.folder / f"{rank}.log"

    def send(self, number: int) -> None:
        """Send those that still run a signal."""
        for rank, process in self._processes.items():
            if rank not in self._ended:
                process.send_signal(number)

    def ended(self) -> list[End]:
        """The ends so far."""
        for rank, process in self._processes.items():
            code = None if rank in self._ended else process.poll()
            if code is not None:
                noted = ends_.left(self.folder, rank) if code >= 0 else None
                self._ended[rank] = End(rank, *(noted or (code, "own")), at=time.monotonic())
        return list(self._ended.values())

    @property
    def running(self) -> bool:
        """Whether any has not been seen to end."""
        return len(self._ended) < len(self._processes)

    def kill(self) -> None:
        """End all that is left, with whatever they have started."""
        # SIGTERM would have them write a checkpoint together with one that is gone.
        for process in self._processes.values():
            try:
                os.killpg(process.pid, signal.SIGKILL)
            except (ProcessLookupError, PermissionError):  # macOS says the latter of what has ended
                pass
            process.wait()


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def memdist(words: Sequence[str]) -> list[str]:
    """The command `memdist WORDS` of this very installation, whatever lies in the current folder."""
    return [sys.executable, "-P", "-m", "memdist", *words]


def run(command: Sequence[str], count: int, *, restarts: int = 0, machines: Machines | None = None) -> int:
    """Run a command of memdist in `count` ranks on this machine; gives the exit code of the whole.

    When a rank fails, the others are ended and what the one at fault printed is shown. `restarts`: how often all are
    started again then, to go on from the last checkpoint.
    """
    machines = machines or Machines()
    reached: int | None = None
    with Forward() as forward:
        for attempt in range(restarts + 1):
            folder = Path(tempfile.mkdtemp(prefix="memdist-job-"))
            try:
                ends, trained = _once(command, count, machines, folder, forward)
                code = ends_.code_of(ends)
                worst = ends_.cause(ends)
                if code != 1 or forward.got or worst is None:
                    return code
                step = newest(trained)
                if attempt == restarts:
                    return code
                if reached is not None and step <= reached:
                    _say(
                        f"{ends_.describe(worst)}, and there is no newer checkpoint than at the failure before (step {step}): "
                        "starting again would lead there again, so this job ends"
                    )
                    return code
                reached = step
                where = f"from step {step}" if step else "from the beginning, as there is no checkpoint yet"
                _say(f"{ends_.describe(worst)}: all ranks start again {where} (restart {attempt + 1} of {restarts})")
            finally:
                shutil.rmtree(folder, ignore_errors=True)
    raise AssertionError("the last attempt returns")


def _once(
    command: Sequence[str], count: int, machines: Machines, folder: Path, forward: Forward
) -> tuple[list[End], Path | None]:
    """Start all ranks and wait for them; gives their ends (of those that ended by themselves), and the run that they trained."""
    with Port() as port:
        ranks = Ranks(command, count, machines, machines.port or port.number, folder)
        try:
            ends = _wait(ranks, forward)
        finally:
            ranks.kill()
    _show(ranks, ends)
    noted = folder / "run"
    return ends, Path(noted.read_text()) if noted.is_file() else None


def _wait(ranks: Ranks, forward: Forward) -> list[End]:
    while True:
        forward.hand_on(ranks.send)
        seen = ranks.ended()
        ends = [_stopped(end, forward.got) for end in seen]
        if not ranks.running or forward.insists:
            break
        # A signal that a rank did not live to catch ends all: no step has been taken yet.
        failed = [end for end in seen if end.code not in (0, RESUME_ME)]
        if failed:
            deadline = min(end.at + _patience(end) for end in failed)
            if time.monotonic() > deadline:
                break
        time.sleep(_TICK)
    if forward.insists and ranks.running:
        ends.append(End(ranks.first, 130, at=time.monotonic()))
    return ends


def _patience(end: End) -> float:
    """How long the others may still run after such an end."""
    if end.kind == "agreed":
        return ALIKE
    return GRACE if end.kind == "lost" or end.code == 2 else AT_ONCE


def _stopped(end: End, got: Sequence[int]) -> End:
    """The end, or what it means where a rank died of a signal that was handed on before it could catch it."""
    if -end.code not in got:
        return end
    return end._replace(code=130 if -end.code == signal.SIGINT else RESUME_ME)


def _show(ranks: Ranks, ends: Sequence[End]) -> None:
    """Say what went wrong: the words of the rank at fault, and which one it was."""
    worst = ends_.cause(ends)
    if worst is None or worst.code == 130:
        return
    log = ranks.log(worst.rank)
    if log.is_file():
        lines = log.read_text(errors="replace").splitlines()
        for line in lines[-_SHOWN:]:
            # What would move a terminal's cursor was meant for a terminal of its own.
            print(printable(line), file=sys.stderr)
    if worst.code != 2 and worst.kind != "told":
        _say(f"{ends_.describe(worst)}; the other ranks were stopped")


def newest(run: Path | None) -> int:
    """Step of a run's last checkpoint; 0 where there is none."""
    found = [] if run is None else (run / rundir.CHECKPOINTS).glob("[0-9]" * 10)
    return max((int(path.name) for path in found), default=0)


def _say(sentence: str) -> None:
    print(f"memdist: {sentence}", file=sys.stderr, flush=True)


def main() -> int:
    """Run `memdist WORDS` in the ranks of this machine, as the environment says."""
    given = os.environ
    here = Machines(
        number=int(given.get("NODE_RANK", "0")),
        total=int(given.get("NODES", "1")),
        address=given.get("MASTER_ADDR", "127.0.0.1"),
        port=int(given.get("MASTER_PORT", "0")),
    )
    return run(memdist(sys.argv[1:]), int(given.get("GPUS", "1")), machines=here)


if __name__ == "__main__":
    sys.exit(main())
