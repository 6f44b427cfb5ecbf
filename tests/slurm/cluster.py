"""A cluster of slurm/devcluster for tests: in a folder of its own, at ports of its own."""

import fcntl
import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import IO

ROOT = Path(__file__).parents[2]
DEVCLUSTER = ROOT / "slurm" / "devcluster"
NODES = 4
NONE: Mapping[str, str] = MappingProxyType({})
# Below the ports at which ranks meet, and without those that databases and the like are known by.
_BASES = range(2100, 3200, 8)


def free_base() -> tuple[int, IO[str]]:
    """The first of eight ports that nothing uses, and a file: as long as it is open, other tests choose others."""
    for number in range(len(_BASES)):
        base = _BASES[(os.getpid() + number) % len(_BASES)]
        try:
            taken = open(Path(tempfile.gettempdir()) / f"memdist-devcluster-{base}.lock", "w")
        except PermissionError:
            continue
        try:
            fcntl.flock(taken, fcntl.LOCK_EX | fcntl.LOCK_NB)
            for port in range(base, base + 8):
                with socket.socket() as probe:
                    probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                    probe.bind(("127.0.0.1", port))
        except OSError:
            taken.close()
            continue
        return base, taken
    raise AssertionError(f"no eight free ports between {_BASES.start} and {_BASES.stop}")


class Cluster:
    """A cluster that runs once `start` has given no sentence; `purge` leaves nothing of it."""

    def __init__(self, accounting: str = "none") -> None:
        # pytest's own folders have names too long for the sockets in them.
        self.folder = Path(tempfile.mkdtemp(prefix="memdist-cluster-")) / "c"
        self.base, self._lock = free_base()
        self.environment = {
            **os.environ,
            "DEVCLUSTER_DIR": str(self.folder),
            "DEVCLUSTER_PORT": str(self.base),
            "DEVCLUSTER_ACCT": accounting,
            "SLURM_CONF": str(self.folder / "etc" / "slurm.conf"),
            "MASTER_ADDR": "127.0.0.1",
        }

    def start(self, signal: str = "user", nodes: int = NODES) -> str:
        """Start it, or change what it sends to jobs that must give way; the sentence that says what is missing, or none."""
        self.environment["DEVCLUSTER_PREEMPT_SIGNAL"] = signal
        done = self.ask(DEVCLUSTER, "start", nodes, timeout=240)
        if done.returncode == 2 and "devcluster install" in done.stderr:
            return done.stderr
        assert done.returncode == 0, done.stderr
        return ""

    def ask(
        self, *words: object, timeout: float = 120, folder: Path | None = None, variables: Mapping[str, str] = NONE
    ) -> subprocess.CompletedProcess[str]:
        """Run a command on the cluster, whatever its exit code."""
        command = [str(word) for word in words]
        environment = {**self.environment, **variables}
        return subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True, timeout=timeout)

    def run(
        self, *words: object, timeout: float = 120, folder: Path | None = None, variables: Mapping[str, str] = NONE
    ) -> str:
        """What a command prints that must succeed."""
        done = self.ask(*words, timeout=timeout, folder=folder, variables=variables)
        assert done.returncode == 0, (words, done.returncode, done.stdout[-2000:], done.stderr[-4000:])
        return done.stdout

    def sbatch(
        self, *words: object, script: str | None = None, folder: Path | None = None, variables: Mapping[str, str] = NONE
    ) -> int:
        """Submit a job: options and a file, or a script's text; gives its number."""
        if script is not None:
            assert folder is not None
            file = folder / f"job-{time.monotonic_ns()}.sbatch"
            file.write_text("#!/bin/bash\n" + script)
            words = (*words, file)
        return int(self.run("sbatch", "--parsable", *words, folder=folder, variables=variables).split(";")[0])

    def squeue(self, *words: object) -> str:
        return self.run("squeue", "--noheader", *words)

    def scontrol(self, *words: object) -> str:
        return self.run("scontrol", *words)

    def state(self, job: int | str) -> str:
        """PENDING, RUNNING, ... of a job, as long as the cluster remembers it (5 minutes after its end)."""
        return self.scontrol("--oneliner", "show", "job", job).split("JobState=")[1].split()[0]

    def wait_for(self, predicate: Callable[[], object], seconds: float, what: str = "") -> None:
        """Wait until something holds; fails with the queue if it does not come to."""
        end = time.monotonic() + seconds
        while not predicate():
            if time.monotonic() > end:
                queue = self.run("squeue", "--states=all", "-o", "%i %j %T %r %N %M")
                raise AssertionError(f"{what or predicate} has not come to be in {seconds} s; {queue}")
            time.sleep(0.1)

    def wait_for_state(self, job: int | str, state: str, seconds: float = 120) -> None:
        self.wait_for(lambda: self.state(job) == state, seconds, f"job {job} {state}")

    def kill_node(self, node: str) -> None:
        """Its power fails. Slurm notices by itself after half a minute; `scontrol update` tells it at once."""
        self.run(DEVCLUSTER, "kill-node", node)

    def start_node(self, node: str) -> None:
        self.run(DEVCLUSTER, "start-node", node)

    def tidy(self) -> None:
        """No job is left, and every node is of use: a job that can never start would hold up those of the next test."""
        queue, nodes = self.ask("squeue", "--noheader"), self.ask("sinfo", "-hp", "debug", "-o", "%D %T")
        usual = self.environment["DEVCLUSTER_PREEMPT_SIGNAL"] == "user"
        if usual and queue.returncode == 0 and not queue.stdout and nodes.stdout == f"{NODES} idle\n":
            return
        self.start()
        if self.squeue():
            # Those that run die at once instead of being asked first.
            self.ask("scancel", "--full", "--signal=KILL", "--state=RUNNING", "--quiet", f"--user={os.getuid()}")
            self.ask("scancel", "--quiet", f"--user={os.getuid()}")
            self.wait_for(lambda: not self.squeue(), 120, "an empty queue")

    def purge(self) -> None:
        try:
            self.run(DEVCLUSTER, "purge", timeout=60)
        finally:
            shutil.rmtree(self.folder.parent, ignore_errors=True)
            self._lock.close()
