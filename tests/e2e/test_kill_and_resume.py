"""Real processes, real signals: a run that was killed and started again ends byte for byte as one that was not."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from memdist import rundir
from memdist.train import checkpoint
from tests import tiny

ROOT = Path(__file__).parents[2]
LAST = 14
# Instance normalisation everywhere: what is compiled, eager and shared by ranks is the same in kind.
MODELS = ["unet", "pix2pix", "palette"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.data(tmp_path_factory.mktemp("data"))


def start(ranks: int, raw: dict[str, Any], out: Path, **death: Any) -> int:
    """Train in fresh processes; gives the exit code (of the launcher, when there are two ranks)."""
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"] if ranks > 1 else []
    request = json.dumps({"raw": raw, "out": str(out), **death})
    command = [sys.executable, *launcher, "-m", "tests.drivers", request]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600, cwd=ROOT)
    if death.get("at") is None:
        assert done.returncode == 0, done.stdout[-1500:] + done.stderr[-5000:]
    return done.returncode


def outcome(out: Path) -> tuple[bytes, bytes]:
    last = checkpoint.steps(out)[-1]
    return (out / rundir.METRICS).read_bytes(), (checkpoint.folder(out, last) / checkpoint.NETS).read_bytes()


def kill_and_resume(model: str, folder: Path, tmp_path: Path, ranks: int, compiled: bool, times: int) -> None:
    # Signals come at random steps; one seed a case, so that a failure can be seen again.
    chance = random.Random(f"{model} {ranks} {compiled}")
    settings = {"checkpoint.every_minutes": 1e-9, "compile": str(compiled).lower()}
    raw = tiny.raw(model, folder, **settings)
    start(ranks, raw, tmp_path / "whole")
    killed = tmp_path / "killed"
    at = 0
    for number in range(times):
        at = min(at + chance.randint(1, LAST // times), LAST - 2)  # two ranks agree a step later
        name = ("SIGKILL", "SIGTERM", "SIGUSR1", "SIGINT")[number % 4]
        code = start(ranks, raw, killed, at=at, signal=name)
        if ranks == 1:
            assert code == (-signal.SIGKILL if name == "SIGKILL" else 75), name
        assert code != 0 and len(rundir.read_lines(killed / rundir.METRICS)) < len(
            rundir.read_lines(tmp_path / "whole" / rundir.METRICS)
        )
    start(ranks, raw, killed)
    assert outcome(killed) == outcome(tmp_path / "whole")


@pytest.mark.parametrize("model", ["pix2pix"])
def test_one_process(model: str, folder: Path, tmp_path: Path) -> None:
    kill_and_resume(model, folder, tmp_path, ranks=1, compiled=False, times=2)


@pytest.mark.slow
@pytest.mark.parametrize("model", ["unet", "palette"])
def test_one_process_of_the_others(model: str, folder: Path, tmp_path: Path) -> None:
    kill_and_resume(model, folder, tmp_path, ranks=1, compiled=False, times=4)


@pytest.mark.slow
@pytest.mark.parametrize("model", MODELS)
def test_compiled(model: str, folder: Path, tmp_path: Path) -> None:
    kill_and_resume(model, folder, tmp_path, ranks=1, compiled=True, times=2)


@pytest.mark.slow
@pytest.mark.distributed
@pytest.mark.parametrize("model", MODELS)
def test_two_ranks(model: str, folder: Path, tmp_path: Path) -> None:
    kill_and_resume(model, folder, tmp_path, ranks=2, compiled=False, times=2)


@pytest.mark.slow
@pytest.mark.distributed
def test_two_ranks_compiled(folder: Path, tmp_path: Path) -> None:
    # The one of two networks; compiling is minutes of work, and one process compiles each model.
    kill_and_resume("pix2pix", folder, tmp_path, ranks=2, compiled=True, times=2)


@pytest.mark.slow
def test_sigkill_at_any_instant(folder: Path, tmp_path: Path) -> None:
    """Not between steps, but whenever: while it starts, trains, validates, or writes a checkpoint."""
    raw = tiny.raw("unet", folder, **{"checkpoint.every_minutes": 1e-9, "epochs": 30})
    before = time.monotonic()
    start(1, raw, tmp_path / "whole")
    length = time.monotonic() - before
    chance = random.Random(0)
    request = json.dumps({"raw": raw, "out": str(tmp_path / "killed")})
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    kills = 0
    while kills < 12:
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.drivers", request],
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd=ROOT,
        )
        try:
            # Most of a start is imports: from before the first step to well into the run, however fast the machine is.
            process.wait(timeout=chance.uniform(0.5, 0.9) * length)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            kills += 1
            continue
        assert process.returncode == 0
        if kills:
            break
        # The machine has become faster since the length was taken.
        shutil.rmtree(tmp_path / "killed")
        length *= 0.7
    else:
        start(1, raw, tmp_path / "killed")
    assert outcome(tmp_path / "killed") == outcome(tmp_path / "whole")
