"""What starts a job's ranks: srun's words, and the way into a container."""

import argparse
import os
import subprocess
from pathlib import Path

import pytest

from memdist.cluster import book, leg, ranks, slurm
from memdist.cluster.task import Task
from memdist.errors import ClusterError


def test_a_rank_is_a_task_that_sees_all_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SLURM_CPUS_PER_TASK", "SLURM_GPUS_ON_NODE"):
        monkeypatch.delenv(name, raising=False)
    words = ["srun", "--nodes=2", "--ntasks=8", "--ntasks-per-node=4", "--kill-on-bad-exit=1"]
    assert slurm.step(2, 4) == [*words, "--disable-status"]
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "12")
    monkeypatch.setenv("SLURM_GPUS_ON_NODE", "4")
    assert slurm.step(2, 4) == [*words, "--gpu-bind=none", "--cpus-per-task=12", "--disable-status"]


def test_a_container_is_entered_as_the_script_enters_it() -> None:
    words = ["a b", "$HOME", "", "-x", "'", "`touch PWNED`", "\n"]
    entered = slurm.inside("""env "A=$B c" D='$B'""")
    done = subprocess.run(
        [*entered, "sh", "-c", 'printf "%s\\0" "$A" "$D" "$@"', "sh", *words],
        env={"PATH": os.environ["PATH"], "B": "b"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split("\0")[:-1] == ["b c", "$B", *words]
    assert slurm.inside(None) == []


def start(tmp_path: Path, nodes: int, *more: str) -> list[str]:
    """The words that a training's ranks are started with, where srun and memdist only write them down."""
    place = tmp_path / "100% run"
    given: argparse.Namespace = leg.options([f"--place={place}", *more, "--", "train", "my.yaml", "--out", str(place)])
    here = slurm.Here.of({"SLURM_JOB_ID": "7", "SLURM_JOB_NUM_NODES": str(nodes)})
    child = ranks.start(given, here, Task(tuple(given.words), place), dict(os.environ))
    child.wait(60)
    log = book.rank_log(place, "7", 0, 0)
    text = (tmp_path / "words").read_text() if (tmp_path / "words").exists() else log.read_text()
    return text.split("\0")[:-1]


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of programs before all others, in which `memdist` prints its words."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    (folder / "memdist").write_text("#!/bin/sh\nprintf '%s\\0' \"$@\"\n")
    (folder / "memdist").chmod(0o755)
    monkeypatch.setattr(ranks, "memdist", lambda words: [str(folder / "memdist"), *words])
    return folder


def test_ranks_of_several_nodes_are_started_by_srun(programs: Path, tmp_path: Path) -> None:
    (programs / "srun").write_text(f"#!/bin/sh\nprintf '%s\\0' \"$@\" >'{tmp_path}/words'\n")
    (programs / "srun").chmod(0o755)
    log = f"--output={tmp_path}/100%% run/jobs/logs/7.0.rank%t"
    command = [str(programs / "memdist"), "train", "my.yaml", "--out", f"{tmp_path}/100% run"]
    words = start(tmp_path, 2, "--ranks=4")
    assert words == [*slurm.step(2, 4)[1:], log, "--open-mode=append", *command]
    words = start(tmp_path, 2, "--ranks=4", "--container=apptainer exec x")
    assert words[-len(command) - 4 :] == ["bash", "-c", 'exec apptainer exec x "$@"', "memdist", *command]


def test_without_srun_one_node_starts_its_own_ranks(
    programs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("memdist.cluster.ranks.shutil.which", lambda name: None)
    assert start(tmp_path, 1, "--ranks=4")[-2:] == ["--gpus", "4"]
    assert start(tmp_path, 1)[:2] == ["train", "my.yaml"]
    with pytest.raises(ClusterError, match="this job has 2 nodes, and no srun to start ranks there"):
        start(tmp_path, 2, "--ranks=4")
