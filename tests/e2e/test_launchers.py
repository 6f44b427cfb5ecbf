"""Real ranks on the CPU: started in every way, stopped, killed, hung, and gone on with."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from memdist import process, rundir
from memdist.train import checkpoint
from tests import tiny

ROOT = Path(__file__).parents[2]
MEMDIST = [sys.executable, "-P", "-m", "memdist"]
LAUNCHERS = ["torchrun", "accelerate", "deepspeed"]

pytestmark = pytest.mark.distributed


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A configuration that ends after 14 steps, with a checkpoint every epoch."""
    folder = tmp_path_factory.mktemp("launched")
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump(tiny.raw("unet", tiny.data(folder / "data"))))
    return path


class Job:
    """A command under way, whose standard output is read line by line."""

    def __init__(self, command: list[Any], **environment: str) -> None:
        self.process = subprocess.Popen(
            [str(word) for word in command],
            env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=ROOT,
        )
        self.said = ""

    def until(self, text: str) -> str:
        """Read on until a line with this text; gives it."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.said += line
            if text in line:
                return line
        raise AssertionError(f"{text!r} never came: {self.said[-2000:]} {self.process.communicate()[1][-4000:]}")

    def end(self, timeout: float = 120) -> tuple[int, str]:
        """Exit code and standard error, once it has ended."""
        out, err = self.process.communicate(timeout=timeout)
        self.said += out
        return self.process.returncode, err

    def ranks(self) -> dict[int, int]:
        """Process ids of the ranks, wherever among the descendants they are."""
        found: dict[int, int] = {}
        for pid in _descendants(self.process.pid):
            words = Path(f"/proc/{pid}/cmdline").read_text().split("\0")
            texts = Path(f"/proc/{pid}/environ").read_text().split("\0")
            environment = dict(text.split("=", 1) for text in texts if "=" in text)
            if "memdist" in words and "train" in words and "RANK" in environment:
                found.setdefault(int(environment["RANK"]), pid)
        return found


def _descendants(pid: int) -> list[int]:
    children = [
        int(child) for task in Path(f"/proc/{pid}/task").iterdir() for child in (task / "children").read_text().split()
    ]
    return children + [further for child in children for further in _descendants(child)]


@pytest.fixture
def start(config: Path) -> Iterator[Callable[..., Job]]:
    """Starts `memdist train` on the tiny configuration."""
    jobs: list[Job] = []

    def begin(out: Path, *words: str, by: list[Any] | None = None, **environment: str) -> Job:
        jobs.append(Job([*(MEMDIST if by is None else by), "train", config, "--out", out, *words], **environment))
        return jobs[-1]

    yield begin
    for job in jobs:
        job.process.kill()
        job.process.communicate()


def outcome(out: Path) -> tuple[bytes, bytes]:
    last = checkpoint.steps(out)[-1]
    return (out / rundir.METRICS).read_bytes(), (checkpoint.folder(out, last) / checkpoint.NETS).read_bytes()


@pytest.fixture(scope="module")
def whole(config: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[bytes, bytes]:
    """What two ranks of `--gpus 2` make of it."""
    out = tmp_path_factory.mktemp("whole") / "run"
    job = Job([*MEMDIST, "train", config, "--out", out, "--gpus", "2"])
    code, err = job.end()
    assert code == 0, err
    assert "2 ranks share the CPU, 1 thread each" in job.said and "2 processes" in job.said
    assert job.said.count("finished: step 14 of 14") == 1
    return outcome(out)


@pytest.mark.slow
@pytest.mark.parametrize("name", LAUNCHERS)
def test_every_launcher_trains_alike(
    name: str, whole: tuple[bytes, bytes], start: Callable[..., Job], tmp_path: Path
) -> None:
    job = start(tmp_path / "run", by=[ROOT / "launch" / name], GPUS="2", DS_ACCELERATOR="cpu")
    code, err = job.end()
    assert code == 0, err
    assert "2 processes" in job.said
    assert outcome(tmp_path / "run") == whole


@pytest.mark.slow
@pytest.mark.parametrize(
    ("one", "other"), [(["--gpus", "2"], []), ([], ["--gpus", "2"])], ids=["gpus then torchrun", "ray then gpus"]
)
def test_stopped_and_gone_on_with(one: list[str], other: list[str], start: Callable[..., Job], tmp_path: Path) -> None:
    """A signal to the launcher is a stop of all ranks; the same command goes on, whatever starts the ranks."""
    out = tmp_path / "run"
    stopped = 0
    for words, name, number in ((one, "ray", signal.SIGTERM), (other, "torchrun", signal.SIGUSR1)):
        by = None if words else [ROOT / "launch" / name]
        job = start(out, "epochs=4000", *words, by=by, GPUS="2")
        job.until(f"2 processes): train 18, val 6, test 6; step {stopped} of ")
        job.until("step ")
        job.process.send_signal(number)
        code, err = job.end()
        assert code == 75 and "Traceback" not in err
        assert f"by {number.name}; the same command goes on from there" in job.said
        assert checkpoint.steps(out)[-1] > stopped
        stopped = checkpoint.steps(out)[-1]


@pytest.mark.slow
def test_a_rank_that_is_killed(start: Callable[..., Job], tmp_path: Path) -> None:
    """Twice: all ranks start again once, from the last checkpoint, and then the job ends."""
    job = start(tmp_path / "run", "epochs=4000", "checkpoint.every_minutes=1e-9", "--gpus", "2", "--max-restarts", "1")
    job.until("step 4/")
    os.kill(job.ranks()[1], signal.SIGKILL)
    job.until("2 processes")
    job.until("step ")
    ranks = job.ranks()
    began = {pid: process._stat(pid)[1] for pid in ranks.values()}
    os.kill(ranks[1], signal.SIGKILL)
    before = time.monotonic()
    code, err = job.end()
    assert time.monotonic() - before < 15
    assert code == 1
    assert "rank 1 was killed by SIGKILL (out of memory?): all ranks start again from step " in err
    assert err.endswith("memdist: rank 1 was killed by SIGKILL (out of memory?); the other ranks were stopped\n")
    assert "Traceback" not in err and "Connection" not in err
    assert not any(process.life(pid, start_) == "alive" for pid, start_ in began.items())


@pytest.mark.slow
def test_a_rank_that_raises(config: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.launched", "--ranks", "5", "1", "train", config, "--out", tmp_path / "run"]
    code, err = Job(command).end()
    assert code == 1
    assert err.count("Traceback") == 1 and "ZeroDivisionError: raised by a test" in err
    assert "Connection" not in err
    assert err.endswith("memdist: rank 1 ended with exit code 1; the other ranks were stopped\n")


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_that_hangs_is_named(rank: int, start: Callable[..., Job], tmp_path: Path) -> None:
    job = start(tmp_path / "run", "epochs=4000", "hang_minutes=0.05", "--gpus", "2")
    job.until("step 4/")
    os.kill(job.ranks()[rank], signal.SIGSTOP)
    code, err = job.end()
    assert code == 1 and "Traceback" not in err
    said = [line for line in err.splitlines() if "hang_minutes" in line]
    assert len(said) == 1
    named = "rank 1 has not answered for 0.05 minutes" if rank else "rank 0, or the launcher that keeps what ranks tell"
    assert named in said[0]


@pytest.mark.slow
def test_a_rank_that_dies_under_torchrun(start: Callable[..., Job], tmp_path: Path) -> None:
    job = start(tmp_path / "run", "epochs=4000", by=[ROOT / "launch" / "torchrun"], GPUS="2")
    job.until("step 4/")
    os.kill(job.ranks()[1], signal.SIGKILL)
    before = time.monotonic()
    code, err = job.end()
    assert time.monotonic() - before < 25
    assert code == 1 and "Connection closed" not in err
    assert "memdist: rank 1 ended without a word, so it was killed" in err


@pytest.mark.slow
@pytest.mark.parametrize(
    ("word", "by", "says"),
    [
        # Found before the ranks have met, and after.
        ("no.such=1", "gpus", "memdist: there is no setting 'no'"),
        ("batch.size=3", "torchrun", "memdist: batch.size = 3 cannot be shared by 2 ranks"),
    ],
)
def test_a_mistake_is_one_sentence(word: str, by: str, says: str, start: Callable[..., Job], tmp_path: Path) -> None:
    if by == "gpus":
        job = start(tmp_path / "run", word, "--gpus", "2")
    else:
        job = start(tmp_path / "run", word, by=[ROOT / "launch" / "torchrun"], GPUS="2")
    code, err = job.end()
    assert code == 2
    assert err.count("memdist:") == 1 and err.count("memdist (rank") == 0
    assert says in err and "Traceback" not in err and "ChildFailedError" not in err
    assert not (tmp_path / "run").exists()


def test_gpus_of_a_rank_are_refused(start: Callable[..., Job], tmp_path: Path) -> None:
    told = [
        start(tmp_path / "run", "--gpus", "2", RANK=rank, WORLD_SIZE="2", MASTER_ADDR="localhost", MASTER_PORT="1")
        for rank in ("0", "1")
    ]
    ends = [job.end() for job in told]
    assert [code for code, _ in ends] == [2, 2]
    assert ends[0][1].startswith("memdist: --gpus and --max-restarts start the ranks") and ends[1][1] == ""


@pytest.mark.parametrize(
    ("name", "words", "environment", "says"),
    [
        ("torchrun", ["train"], {"GPUS": "two"}, "GPUS='two' cannot be"),
        ("torchrun", ["train"], {"GPUS": "0"}, "GPUS='0' cannot be"),
        ("torchrun", ["train"], {"NODES": "2"}, "NODES=2 needs MASTER_ADDR"),
        ("torchrun", ["train"], {"GPUS": "1", "MAX_RESTARTS": "-1"}, "MAX_RESTARTS='-1' cannot be"),
        ("accelerate", ["train"], {"NODE_RANK": "1"}, "NODE_RANK=1 and NODES=1 cannot be"),
        ("deepspeed", ["train"], {"NODES": "2", "MASTER_ADDR": "a", "MASTER_PORT": "x"}, "MASTER_PORT='x' cannot be"),
        ("srun", ["train"], {}, "there is no Slurm allocation here"),
        ("ray", ["train"], {"GPUS": "1.5"}, "GPUS='1.5' cannot be"),
    ],
)
def test_what_launchers_refuse(name: str, words: list[str], environment: dict[str, str], says: str) -> None:
    code, err = Job([ROOT / "launch" / name, *words], **environment).end()
    assert code == 2 and err.startswith(f"memdist: {says}") and err.count("\n") == 1


@pytest.mark.parametrize("name", [*LAUNCHERS, "srun", "ray"])
def test_launchers_explain_themselves(name: str) -> None:
    job = Job([ROOT / "launch" / name, "--help"])
    assert job.end() == (0, "")
    assert job.said.startswith("Runs a command of memdist in several ranks") and f"launch/{name} train" in job.said
    assert "ranks.sh" not in job.said
    bare = Job([ROOT / "launch" / name])
    assert bare.end() == (2, job.said)


def test_srun_gives_each_gpu_a_task(tmp_path: Path) -> None:
    (tmp_path / "srun").write_text('#!/usr/bin/env bash\nprintf "%s\\n" "$@"\n')
    (tmp_path / "srun").chmod(0o755)
    path = f"{tmp_path}:{os.environ['PATH']}"
    slurm = {"SLURM_JOB_ID": "7", "SLURM_JOB_NUM_NODES": "2", "PATH": path}
    for more, expected in (
        ({}, ["--nodes=2", "--ntasks=2", "--ntasks-per-node=1"]),
        ({"SLURM_GPUS_ON_NODE": "4"}, ["--nodes=2", "--ntasks=8", "--ntasks-per-node=4", "--gpu-bind=none"]),
        ({"GPUS": "3", "NODES": "1"}, ["--nodes=1", "--ntasks=3", "--ntasks-per-node=3"]),
    ):
        job = Job([ROOT / "launch" / "srun", "train", "quick/unet", "data.images=it's here"], **slurm, **more)
        assert job.end() == (0, "")
        words = job.said.splitlines()
        assert words[: len(expected)] == expected
        assert words[-6:] == ["-P", "-m", "memdist", "train", "quick/unet", "data.images=it's here"]
