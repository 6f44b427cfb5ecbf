"""Who a process is, in words that others can judge: on its own machine at once, on others not at all.

A process id means something only among processes of one kernel, since it started, in one namespace of ids; a start time in
the kernel's ticks tells it from a later process of the same number. Clocks are never looked at.
"""

from __future__ import annotations

import functools
import hashlib
import os
import platform
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Life = Literal["alive", "dead", "unknown"]


@dataclass(frozen=True)
class Process:
    """A process, as it writes itself down."""

    host: str
    machine: str
    """What the system calls this installation (machine-id); empty where it has no such name."""
    boot: str
    """The kernel's name for the time since it started; empty where it has none."""
    namespace: str
    """Namespace of process ids; empty where the system has none."""
    pid: int
    start: int
    """Clock ticks from the kernel's start to the process's; 0 where the system does not say."""
    job: str
    """Slurm's job id, and behind a dot how often that job had been started before; empty outside a job."""

    def __str__(self) -> str:
        """As a sentence names it."""
        return f"process {self.pid} on {self.host}" + (f" (job {self.job})" if self.job else "")

    @property
    def place(self) -> str:
        """8 hexadecimal digits that processes share which can judge each other by their ids, if they have a `boot`."""
        words = "\0".join((self.host, self.machine, self.boot, self.namespace))
        return hashlib.sha256(words.encode()).hexdigest()[:8]

    @property
    def tag(self) -> str:
        """Name of this process inside the names of its temporary files."""
        return f"{self.place}-{self.pid}-{self.start}"

    def life(self, me: Process) -> Life:
        """Whether it lives, as far as `me` can know without waiting."""
        if self._left_behind(me):
            return "dead"
        # Another boot of a machine with this name is no proof: containers on two machines share names, and what an
        # installation calls itself. After a machine has started anew, patience costs a minute. Where kernels give their
        # boots no names, two machines of one name look like one place: there nobody is judged by a number.
        return life(self.pid, self.start) if me.boot and self.place == me.place else "unknown"

    def _left_behind(self, me: Process) -> bool:
        """Whether it belongs to an earlier start of the job that `me` is part of: Slurm ends all of one before the next."""
        mine, its = (re.fullmatch(r"([0-9]+)(?:\.([0-9]+))?", process.job) for process in (me, self))
        return mine is not None and its is not None and mine[1] == its[1] and int(its[2] or 0) < int(mine[2] or 0)


def this() -> Process:
    """The process that asks."""
    return _this(os.getpid())


def life(pid: int, start: int) -> Life:
    """Whether the process of this number and start lives in this place."""
    try:
        state, began = _stat(pid)
    except (OSError, ValueError, IndexError):
        try:
            os.kill(pid, 0)
        except (ProcessLookupError, OverflowError):
            return "dead"
        except PermissionError:
            pass
        return "unknown"  # it is there, but may be another one of the same number
    # A zombie has ended: only its parent has not asked yet how.
    return "alive" if began == start and state not in "ZX" else "dead"


@functools.cache
def _this(pid: int) -> Process:
    try:
        start = _stat(pid)[1]
    except (OSError, ValueError, IndexError):
        start = 0
    return Process(
        host=platform.node(),
        machine=_first_line(Path("/etc/machine-id")),
        boot=_first_line(Path("/proc/sys/kernel/random/boot_id")),
        namespace=_link(Path("/proc/self/ns/pid")),
        pid=pid,
        start=start,
        job=_job(os.environ),
    )


def _job(environment: Mapping[str, str]) -> str:
    number, restart = environment.get("SLURM_JOB_ID", ""), environment.get("SLURM_RESTART_COUNT", "0")
    return f"{number}.{restart}" if number and restart not in ("", "0") else number


def _stat(pid: int) -> tuple[str, int]:
    """State and start time: fields 3 and 22 of /proc/<pid>/stat, counted from behind the name, which may hold anything."""
    fields = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
    return fields[0], int(fields[19])


def _first_line(path: Path) -> str:
    try:
        return path.read_text(errors="replace").strip()
    except OSError:
        return ""


def _link(path: Path) -> str:
    try:
        return os.readlink(path)
    except OSError:
        return ""
