"""Runs that are submitted to a cluster of `tests.slurm.cluster`: small ones, and the one that they must equal."""

import contextlib
import io
import json
import os
import re
import signal
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from memdist import cli, rundir
from memdist.cluster import book
from memdist.cluster.book import Attempt
from memdist.data import example
from tests.slurm.cluster import ROOT, Cluster

SETTINGS = (
    *("model.channels=8", "model.multipliers=[1,2,2]", "data.size=16", "batch.size=4", "epochs=150"),
    *("device=cpu", "log.every=5", "log.tensorboard=false", "checkpoint.every=10000", "validate.every=10000"),
)


class Site:
    """A folder with data, and files that tell of the cluster in several ways."""

    def __init__(self, cluster: Cluster, folder: Path) -> None:
        self.cluster, self.folder = cluster, folder
        example.make(folder / "data", 28, 16, 0, 1)
        profiles = folder / "config" / "memdist" / "clusters"
        profiles.mkdir(parents=True)
        variables = {"MASTER_ADDR": "127.0.0.1", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        common: dict[str, Any] = {"partition": "debug", "gpus_per_node": 2, "cpus_per_gpu": 1, "max_failures": 2}
        common |= {"signal_lead": 20, "shared": [str(folder)], "environment": variables}
        kinds: dict[str, dict[str, Any]] = {
            "debug": {},
            "high": {"partition": "high"},
            # Who is to give way has a node for itself, so that it is clear who must.
            "preempt": {"partition": "preempt", "options": ["--exclusive"]},
            "disks": {"scratch": "$DISKS/own", "environment": variables | {"DISKS": str(folder)}},
            "chained": {"requeue": False},
            "refused": {"options": ["--nodelist=nowhere"]},
        }
        for name, own in kinds.items():
            (profiles / f"{name}.yaml").write_text(json.dumps(common | own))
        self.variables = {"XDG_CONFIG_HOME": str(folder / "config"), "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}

    def memdist(self, *words: object, code: int = 0) -> str:
        """What a command of memdist prints on the login node."""
        command = [sys.executable, "-P", "-m", "memdist", *words]
        done = self.cluster.ask(*command, timeout=200, folder=self.folder, variables=self.variables)
        assert done.returncode == code, (words, done.returncode, done.stdout[-2000:], done.stderr[-4000:])
        return done.stdout if code == 0 else done.stderr

    def train(self, out: str, partition: str = "debug", *more: object) -> str:
        """Submit a small training; gives its job."""
        data = ("data.images=data/images", "data.maps=data/maps")
        words = [
            "submit",
            "train",
            "quick/unet",
            *data,
            *SETTINGS,
            "--out",
            out,
            "--cluster",
            partition,
            "--time",
            "20m",
        ]
        self.submit(*words[1:], *more)
        return book.submitted(self.folder / out)[-1].id

    def submit(self, *words: object) -> str:
        """What `memdist submit WORDS` prints."""
        # In this process, which has torch already: one after the other, runs would be done before the last was submitted.
        variables = {**self.cluster.environment, **self.variables}
        said = io.StringIO()
        with mock.patch.dict(os.environ, variables), contextlib.chdir(self.folder), contextlib.redirect_stdout(said):
            with pytest.raises(SystemExit) as end:
                cli.main(["submit", *map(str, words)])
        assert not end.value.code
        return said.getvalue()

    def processes(self, words: str) -> list[int]:
        """Processes of `memdist WORDS` on all nodes that are no job's own."""
        found = []
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            with contextlib.suppress(OSError):
                line = path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
                if words in line and str(self.folder) in line and " -m memdist " in line and "srun" not in line:
                    found.append(int(path.parent.name))
        return found

    def reference(self, name: str = "reference", *more: object) -> Path:
        """The same training, undisturbed."""
        data = ("data.images=data/images", "data.maps=data/maps")
        self.memdist("train", "quick/unet", *data, *SETTINGS, "--out", name, *more)
        return self.folder / name

    def step(self, out: str) -> int:
        """How far a run has come."""
        lines = rundir.read_lines(self.folder / out / rundir.METRICS)
        return int(lines[-1]["step"]) if lines else 0

    @contextlib.contextmanager
    def held(self, *outs: str, step: int = 30) -> Iterator[list[int]]:
        """Stop runs that have taken some steps, so that none is done before what is to happen to it; gives their processes."""
        owners: list[int] = []
        for out in outs:
            self.cluster.wait_for(partial(self._reached, out, step), 300, f"step {step} of {out}")
            owners.append(json.loads(max((self.folder / out).glob(f"{rundir.LOCK}*")).read_bytes())["pid"])
            os.kill(owners[-1], signal.SIGSTOP)
        yield owners
        for pid in owners:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)

    def signalled(self, pid: int) -> None:
        """Wait until a held process has been sent USR2, and let it go on."""

        def sent() -> bool:
            pending = re.search(r"^ShdPnd:\s*(\w+)", Path(f"/proc/{pid}/status").read_text(), re.M)
            return pending is not None and bool(int(pending[1], 16) >> (signal.SIGUSR2 - 1) & 1)

        self.cluster.wait_for(sent, 120, f"USR2 to process {pid}")
        os.kill(pid, signal.SIGCONT)

    def finished(self, *outs: str) -> None:
        """Wait until runs have finished; they end well."""
        for out in outs:
            self.cluster.wait_for(partial(self.ended, out), 300, f"the end of {out}")
            assert self.attempts(out)[-1].kind == "finished", self.told(out)

    def _reached(self, out: str, step: int) -> bool:
        return self.step(out) >= step

    def ended(self, out: str) -> bool:
        """Whether the last attempt at a run has come to its end, and no other is to follow."""
        attempts = self.attempts(out)
        return bool(attempts) and attempts[-1].kind not in (
            None,
            "stopped",
            "node-failure",
            "host-memory",
            "time-limit",
        )

    def attempts(self, out: str) -> list[Attempt]:
        """Attempts at a run so far."""
        return book.attempts(book.attempts_file(self.folder / out))

    def told(self, out: str) -> dict[str, Any]:
        """All that a run's jobs have printed."""
        logs = book.logs(self.folder / out)
        return {path.name: path.read_text()[-3000:] for path in sorted(logs.iterdir())} if logs.is_dir() else {}

    def curve(self, out: str) -> list[dict[str, Any]]:
        """Lines of a run's metrics."""
        return rundir.read_lines(self.folder / out / rundir.METRICS)
