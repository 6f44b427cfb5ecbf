"""How ranks end: what each leaves behind for whoever started it, and which of several ends is the cause of the others.

A launcher of memdist gives its ranks a folder (`JOB`). A rank writes there who it is (`<rank>.pid`), which run it trains
(`run`), and at its end what happened (`<rank>.end`): an exit code alone does not tell a fault from the loss of a peer
that had one, and most launchers make 1 of any code but 0.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

from memdist import errors, process
from memdist.launch import forward

JOB = "MEMDIST_JOB"
"""Environment variable: folder for what ranks tell whoever started them."""

RESUME_ME = 75
"""Exit code of a training that was stopped and goes on when the same command is given again (EX_TEMPFAIL)."""

AGREED = 2.0
"""Seconds that a rank which has nothing to say stays after an error that all ranks share, so that rank 0 has said it first."""

LOST = 6.0
"""Seconds after which a rank says that it has lost another; a launcher that sees the other's end has stopped it by then."""

Kind = Literal["own", "agreed", "told", "lost"]
"""What an end is: this rank's own matter, every rank's alike, one of which this rank has said all there is to say, or the
consequence of another rank's end."""


class End(NamedTuple):
    """How one rank ended."""

    rank: int
    code: int
    """Exit code, or the negative number of the signal that killed it, as in `subprocess`."""
    kind: Kind = "own"
    at: float = 0.0
    """When it was seen, in seconds of any clock."""


def register() -> None:
    """Tell whoever started this rank its number and process, and end with it; nothing without such a folder."""
    if folder := os.environ.get(JOB):
        forward.binder()()
        me = process.this()
        with contextlib.suppress(OSError):  # whoever asked is gone
            # A launcher that starts ranks again does so with the same numbers.
            Path(folder, f"{_rank()}.end").unlink(missing_ok=True)
            _write(Path(folder, f"{_rank()}.pid"), f"{me.pid} {me.start}")


def trains(run: Path) -> None:
    """Tell whoever started this rank into which folder it trains."""
    folder = os.environ.get(JOB)
    if folder and _rank() == "0":
        with contextlib.suppress(OSError):
            _write(Path(folder, "run"), str(run.absolute()))


def leave(code: int, kind: Kind) -> int:
    """Note how this rank ends; gives the exit code with which it does.

    An end that all ranks have alike is none to which a launcher need do anything: it would kill those that still write
    their last words, and tell of a failure. So it sees 0, and whoever gave the folder knows better.
    """
    folder = os.environ.get(JOB)
    if not folder:
        return code
    try:
        _write(Path(folder, f"{_rank()}.end"), json.dumps({"code": code, "kind": kind}))
    except OSError:
        return code
    return 0 if kind == "agreed" else code


def _rank() -> str:
    # Not checked here: an end is noted of what could not be started for a wrong number, too.
    return os.environ.get("RANK", "0")


def left(folder: Path, rank: int) -> tuple[int, Kind] | None:
    """What a rank noted with `leave`; None if it did not come to that."""
    try:
        noted = json.loads((folder / f"{rank}.end").read_text())
        return int(noted["code"]), noted["kind"]
    except (OSError, ValueError, KeyError):
        return None


def registered(folder: Path) -> dict[int, tuple[int, int]]:
    """Process id and start time of all ranks that have registered, as `process.life` judges them."""
    found = {}
    for path in folder.glob("*.pid"):
        pid, _, start = path.read_text().partition(" ")
        found[int(path.stem)] = int(pid), int(start)
    return found


def _write(path: Path, text: str) -> None:
    beside = path.with_name(f".{path.name}")
    beside.write_text(text)
    beside.replace(path)


@contextlib.contextmanager
def told() -> Iterator[None]:
    """Surround a command: as one of several ranks, its end is noted, and the loss of a peer told in a sentence.

    What is raised goes on as it is, but for the loss of a peer, which becomes exit code 1.
    """
    # What srun says is turned into RANK and WORLD_SIZE later, by the command.
    alone = os.environ.get("WORLD_SIZE", "1") == "1" and os.environ.get("SLURM_STEP_NUM_TASKS", "1") == "1"
    if not os.environ.get(JOB) and alone:
        yield
        return
    register()
    try:
        yield
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 0 if end.code is None else 1
        raise SystemExit(_ending(code, end.__context__)) from None
    except Exception as error:
        if (sentence := lost(error)) is None:
            leave(1, "own")
            raise
        leave(1, "lost")
        time.sleep(LOST)
        print(f"memdist (rank {os.environ.get('RANK', '0')}): {sentence}", file=sys.stderr)
        raise SystemExit(1) from None
    leave(0, "own")


def _ending(code: int, error: BaseException | None) -> int:
    together = code == RESUME_ME or (code == 2 and error is not None and errors.is_shared(error))
    if together and not os.environ.get(JOB) and os.environ.get("RANK", "0") != "0":
        time.sleep(AGREED)  # the launcher stops all others as soon as one has left
    return leave(code, "agreed" if together else "own")


_GONE = re.compile(
    # gloo, then NCCL, then torch's store
    r"gloo/transport|Connection (closed|reset) by peer|ncclRemoteError|remote process exited or there was a network error"
    r"|NCCL communicator was aborted|(failed to|Failed to) (recv|send), got 0 bytes|Broken pipe.*TCPStore|TCPStore.*Broken pipe"
    r"|Gloo connectFullMesh failed",
    re.S,
)


def lost(error: BaseException) -> str | None:
    """A sentence where an error is but the loss of another rank; None for any other.

    What was raised first counts: an error on whose way out a connection failed as well is an error of its own.
    """
    first = error
    while (before := first.__cause__ or first.__context__) is not None:
        first = before
    kinds = {kind.__name__ for kind in type(first).__mro__}
    if not kinds & {"RuntimeError"}:
        return None
    text = str(first)
    if "EADDRINUSE" in text:
        return None
    if _GONE.search(text):
        return (
            "the connection to another rank was lost, so that rank has ended or cannot be reached: what it said itself, or the "
            "log of its machine, tells why"
        )
    if "DistNetworkError" in kinds:
        at = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
        return f"rank 0 was not met at {errors.printable(at)}: see what it says, and whether this machine reaches that address"
    return None


def describe(end: End) -> str:
    """An end in words, for a sentence."""
    if end.code >= 0:
        return f"rank {end.rank} ended with exit code {end.code}"
    name = signal.Signals(-end.code).name if -end.code in set(signal.Signals) else f"signal {-end.code}"
    why = " (out of memory?)" if name == "SIGKILL" else ""
    return f"rank {end.rank} was killed by {name}{why}"


def cause(ends: Sequence[End]) -> End | None:
    """The end that brought the others about; None where none is a failure.

    The first, but a rank that merely lost another comes after those that did not, and before it one whose NCCL watchdog
    gave up (SIGABRT). Where it is a sentence for the user, the lowest rank with one: all may have found the same mistake.
    """
    failed = [end for end in ends if end.code not in (0, RESUME_ME)]

    def weight(end: End) -> tuple[bool, bool, float]:
        return end.kind == "lost", end.code == -signal.SIGABRT, end.at

    first = min(failed, key=weight, default=None)
    if first is None or first.code != 2:
        return first
    return min((end for end in failed if end.code == 2), key=lambda end: end.rank)


def code_of(ends: Sequence[End]) -> int:
    """Exit code of a job whose ranks ended like this."""
    if (worst := cause(ends)) is not None:
        return worst.code if worst.code > 0 else 1
    return RESUME_ME if any(end.code == RESUME_ME for end in ends) else 0
