"""The job that this process is part of, from its environment: a job of Slurm, or one that is queued on this machine."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from memdist import times
from memdist.cluster import queue

LOCAL_JOB = "MEMDIST_LOCAL_JOB"
"""Environment variable of a job that is queued on this machine: its number, of an array `local-..._4`."""
LOCAL_RESTART = "MEMDIST_LOCAL_RESTART"

PATIENCE = 20.0
"""Seconds that a program of Slurm may take, while a job's grace runs out."""


@dataclass(frozen=True)
class Here:
    """A job, seen from within."""

    id: str
    """As it is written down: of an array 123_4."""
    number: str
    """As scontrol takes it."""
    index: int | None
    """Of an array."""
    restart: int
    nodes: str
    """In Slurm's short form."""
    count: int
    """Nodes."""
    node: str
    """Where this process is."""
    local: bool

    @classmethod
    def of(cls, environment: Mapping[str, str]) -> Here:
        """Read the environment of a batch script."""
        if local := environment.get(LOCAL_JOB):
            index = local.rpartition("_")[2] if "_" in local else ""
            restart = int(environment.get(LOCAL_RESTART, "0"))
            return cls(local, local, int(index) if index else None, restart, "this machine", 1, "this machine", True)
        number, array = environment.get("SLURM_JOB_ID", ""), environment.get("SLURM_ARRAY_JOB_ID", "")
        index = environment.get("SLURM_ARRAY_TASK_ID", "")
        in_array = bool(array and index)
        return cls(
            id=f"{array}_{index}" if in_array else number or "none",
            number=f"{array}_{index}" if in_array else number,
            index=int(index) if in_array else None,
            restart=int(environment.get("SLURM_RESTART_COUNT") or 0),
            nodes=environment.get("SLURM_JOB_NODELIST", ""),
            count=int(environment.get("SLURM_JOB_NUM_NODES") or 1),
            node=environment.get("SLURMD_NODENAME", ""),
            local=False,
        )

    def ends(self, environment: Mapping[str, str]) -> float | None:
        """When its time is over, in seconds since 1970; None where nobody says, or it has no end."""
        if self.local:
            return None  # what the environment says is of the allocation that it was queued from
        given = environment.get("SLURM_JOB_END_TIME", "")
        if given.isdecimal():
            return float(given)
        return self._time("EndTime")

    def submitted(self) -> float | None:
        """When it was given to sbatch, in seconds since 1970; None where nobody says."""
        return self._time("SubmitTime")

    def _time(self, name: str) -> float | None:
        said = self._scontrol("show", "job", "-o", self.number) or ""
        found = re.search(rf"\b{name}=(\d{{4}}-\d\d-\d\dT\d\d:\d\d:\d\d)", said)
        # Slurm writes the time of its own zone, which is this machine's.
        return time.mktime(time.strptime(found[1], "%Y-%m-%dT%H:%M:%S")) if found else None

    def ending(self) -> bool:
        """Whether Slurm ends this job although its time is not over: somebody has cancelled it, or put it into the queue."""
        said = self._scontrol("show", "job", "-o", self.number) or ""
        if not re.search(r"\bJobState=(COMPLETING|CANCELLED|PENDING|REQUEUED)", said):
            return False
        used, limit = (re.search(rf"\b{name}=(\S+)", said) for name in ("RunTime", "TimeLimit"))
        most = times.limit(limit[1]) if limit else None
        return most is None or used is None or (times.limit(used[1]) or 0) < most

    def beside(self, jobs: Iterable[str], names: Mapping[str, str]) -> str | None:
        """Another one of these jobs that runs, as far as Slurm tells; `names` of those that are known."""
        others = [job for job in jobs if job != self.id]
        found = queue.ask().find(others, names=names) if others and not self.local else None
        return found.id if found is not None and found.runs else None

    def requeue(self, without: str | None) -> str | None:
        """Put this job into the queue again, without a node if need be; None, or why that cannot be.

        Slurm kills this process soon after.
        """
        if shutil.which("scontrol") is None:
            return "there is no scontrol on this node"
        if self._scontrol("requeue", self.number) is None:
            # After the failure of a node Slurm does so itself.
            if re.search(r"\bJobState=(PENDING|REQUEUE)", self._scontrol("show", "job", "-o", self.number) or ""):
                return None
            return f"scontrol requeue {self.number} is refused"
        if without:
            for _ in range(20):
                if self._avoid(self.number, without):
                    break
                time.sleep(0.2)
        return None

    def avoid_later(self, name: str, without: str) -> None:
        """Have the jobs of a name that wait, as those of a chain do, keep away from a node as well; as far as Slurm does it."""
        if self.local or not name or shutil.which("scontrol") is None:
            return
        for job in queue.ask().jobs.values():
            if job.name == name and job.waits and job.id != self.id:
                self._avoid(job.id, without)

    def _avoid(self, number: str, without: str) -> bool:
        # Only of a job that waits may the nodes be changed; those that it keeps away from already stay so.
        said = re.search(r"\bExcNodeList=(\S+)", self._scontrol("show", "job", "-o", number) or "")
        without = f"{said[1]},{without}" if said and said[1] not in ("(null)", without) else without
        return self._scontrol("update", f"JobId={number}", f"ExcNodeList={without}") is not None

    def _scontrol(self, *words: str) -> str | None:
        if self.local or not self.number:
            return None
        try:
            done = subprocess.run(
                ["scontrol", *words],
                capture_output=True,
                text=True,
                errors="replace",
                timeout=PATIENCE,
                stdin=subprocess.DEVNULL,
                env={**os.environ, "SLURM_TIME_FORMAT": "standard"},
                preexec_fn=_unmoved,  # no thread runs here
            )
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout if done.returncode == 0 else None


def _unmoved() -> None:
    """Ignore TERM: where Slurm ends a job, it goes to every process that the batch script has started."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


def step(nodes: int, ranks: int) -> list[str]:
    """Words that start a command in so many ranks on each node of a job, and hand out its cores and GPUs."""
    cpus = os.environ.get("SLURM_CPUS_PER_TASK")
    words = [f"--nodes={nodes}", f"--ntasks={nodes * ranks}", f"--ntasks-per-node={ranks}", "--kill-on-bad-exit=1"]
    # Every rank sees all GPUs of its node and takes the one of its number: so ranks can copy from GPU to GPU.
    words += ["--gpu-bind=none"] if os.environ.get("SLURM_GPUS_ON_NODE") else []
    return ["srun", *words, *([f"--cpus-per-task={cpus}"] if cpus else []), "--disable-status"]


def inside(container: str | None) -> list[str]:
    """Words that take a command of a step into the container: srun starts it outside, wherever it is called itself."""
    return ["bash", "-c", f'exec {container} "$@"', "memdist"] if container else []
