"""`--cluster local`: runs are queued on this machine, one at a time where there is no GPU, and outlive who submitted them."""

import contextlib
import functools
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from memdist import process, rundir
from memdist.cluster import book
from memdist.data import example

pytestmark = pytest.mark.slow

SETTINGS = ("model.channels=8", "model.multipliers=[1,2,2]", "data.size=16", "batch.size=4", "device=cpu")
DATA = ("data.images=data/images", "data.maps=data/maps", "log.tensorboard=false", "validate.every=10000")


class Machine:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        example.make(folder / "data", 28, 16, 0, 1)
        own = {"XDG_RUNTIME_DIR": str(folder), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
        self.environment = {**os.environ, **own}

    def memdist(self, *words: object) -> str:
        command = [sys.executable, "-m", "memdist", *map(str, words)]
        done = subprocess.run(
            command, cwd=self.folder, env=self.environment, capture_output=True, text=True, timeout=120
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def train(self, *words: object) -> str:
        return self.memdist("submit", "train", "quick/unet", *DATA, *SETTINGS, "--cluster", "local", *words)

    def attempts(self, run: str) -> list[book.Attempt]:
        return book.attempts(book.attempts_file(self.folder / run))

    def wait_for(self, what: Callable[[], object], seconds: float = 300) -> None:
        end = time.monotonic() + seconds
        while not what():
            assert time.monotonic() < end, self.memdist("status", ".", "--all")
            time.sleep(0.2)

    def ended(self, run: str) -> bool:
        attempts = self.attempts(run)
        return bool(attempts) and attempts[-1].kind not in (None, "host-memory")


@pytest.fixture
def machine(tmp_path: Path):
    made = Machine(tmp_path)
    try:
        yield made
    finally:
        for path in tmp_path.glob("memdist-queue-*/*.pid"):
            with contextlib.suppress(ProcessLookupError, ValueError):
                os.kill(int(path.read_text().split()[0]), signal.SIGKILL)  # what it has started ends with it


def test_runs_wait_for_each_other_and_those_that_are_killed_go_on(machine: Machine) -> None:
    machine.train("epochs=3", "-m", "seed=range(0,3)", "--out", "farm")
    assert "3 of 3 runs are queued already" in machine.train("epochs=3", "-m", "seed=range(0,3)", "--out", "farm")
    machine.train("epochs=2", "--out", "last", "--after", "farm")
    machine.wait_for(lambda: machine.attempts("farm/seed=1"))
    machine.wait_for(lambda: list((machine.folder / "farm" / "seed=1").glob(f"{rundir.LOCK}*")))
    owner = json.loads(next((machine.folder / "farm" / "seed=1").glob(f"{rundir.LOCK}*")).read_bytes())
    if process.life(owner["pid"], owner["start"]) == "alive":
        os.kill(owner["pid"], signal.SIGKILL)
    for run in ("farm/seed=0", "farm/seed=1", "farm/seed=2", "last"):
        machine.wait_for(functools.partial(machine.ended, run))
        assert machine.attempts(run)[-1].kind == "finished"
    order = sorted((a.began, a.ended or 0.0) for seed in range(3) for a in machine.attempts(f"farm/seed={seed}"))
    assert all(ended <= began + 0.01 for (_, ended), (began, _) in zip(order, order[1:], strict=False)), order
    assert machine.attempts("last")[0].began >= order[-1][1] - 0.01
    assert "4 finished" in machine.memdist("status", ".")


def test_what_is_cancelled_stays_so(machine: Machine) -> None:
    machine.train("epochs=2000", "log.every=5", "--out", "long")
    machine.train("epochs=2", "--out", "next")
    machine.wait_for((machine.folder / "long" / rundir.METRICS).is_file)
    assert "cancelled: job local-" in machine.memdist("cancel", "next")
    assert "cancelled: job local-" in machine.memdist("cancel", "long")
    machine.wait_for(lambda: machine.ended("long"))
    assert [attempt.kind for attempt in machine.attempts("long")] == ["cancelled"]
    assert rundir.read_json(machine.folder / "long" / rundir.STATE)["state"] == "stopped"
    assert not machine.attempts("next")
