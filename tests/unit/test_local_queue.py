"""Jobs that are queued on this machine: who comes first, what is cancelled, which GPUs are whose."""

import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest

from memdist.cluster import book, here, local
from memdist.cluster.profile import Cluster
from memdist.cluster.slurm import LOCAL_JOB, Here
from memdist.cluster.text import Job
from memdist.launch import gpus
from memdist.launch.ends import RESUME_ME
from memdist.launch.forward import Forward


@pytest.fixture(autouse=True)
def _own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    monkeypatch.setattr(local, "TICK", 0.01)
    monkeypatch.setattr(gpus, "count", lambda: 0)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


def runner(place: Path, number: str = "local-1", **more: Any) -> local.Runner:
    entry = {"number": number, "numbers": [], "offset": 0, "gpus": 0, "at_most": None, "after": [], "behind": []}
    return local.Runner({**entry, "place": str(place), "environment": {}, "words": [], **more})


def test_who_comes_first_is_first_as_long_as_it_lives() -> None:
    turns = [here.Turn("gpu", f"local-{came}", came) for came in (1, 2, 3)]
    assert turns[0].here()
    assert not turns[2].here() and not turns[1].here()  # who asks sooner gains nothing
    other = here.Turn("cpu", "local-4", 4)
    assert other.here()
    other.leave()
    turns[0].leave()
    assert not turns[2].here() and turns[1].here()
    handle, turns[1]._handle = turns[1]._handle, None
    assert handle is not None
    handle.close()  # as when it is killed
    assert turns[2].here() and not turns[1]._path.exists()
    turns[2].leave()


def test_a_job_that_was_cancelled_in_the_queue_is_no_success(tmp_path: Path) -> None:
    made = runner(tmp_path)
    with Forward() as forward:
        os.kill(os.getpid(), signal.SIGTERM)
        assert made.run(forward) == 1


def test_one_element_is_cancelled_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = runner(tmp_path, numbers=[11, 12, 13], offset=10)
    begun: list[int | None] = []

    def start(number: int | None, slot: local.Slot, restart: int) -> None:
        begun.append(number)
        if number == 12:
            # A leg that is told to leave, and asks to be started again.
            code = f"import signal, sys; signal.signal(15, lambda *_: sys.exit({RESUME_ME})); print(flush=True); signal.pause()"
            book.cancel(tmp_path, "local-1_3")
        else:
            code = "print(flush=True)"
        child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
        assert child.stdout is not None
        with child.stdout as said:
            said.readline()
        if number == 12:
            book.cancel(tmp_path, "local-1_2")
        made.running[number] = child, slot, restart

    monkeypatch.setattr(made, "_start", start)
    with Forward() as forward:
        assert made.run(forward) == RESUME_ME
    assert begun == [11, 12]


def test_gpus_are_called_alike_whatever_is_visible(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpus, "count", lambda: 2)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,3")
    theirs = local.Slots().take(1)
    assert theirs is not None and theirs.environment == {"CUDA_VISIBLE_DEVICES": "2"}
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    monkeypatch.setattr(gpus, "count", lambda: 4)
    slots = local.Slots()
    ours = slots.take(3)
    assert ours is not None and ours.environment == {"CUDA_VISIBLE_DEVICES": "0,1,3"} and slots.take(1) is None
    theirs.free()
    ours.free()


def test_the_end_of_an_allocation_is_none_of_a_job_that_was_queued_from_it() -> None:
    environment = {LOCAL_JOB: "local-1", "SLURM_JOB_END_TIME": "1", "SLURM_JOB_ID": "7"}
    assert Here.of(environment).ends(environment) is None


def test_what_goes_with_a_login_is_no_place_for_jobs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert here.folder().parent == tmp_path
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/run/user/0")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    (tmp_path / "tmp").mkdir()
    assert here.folder().parent == tmp_path / "tmp"


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # who queues a job does not wait for it
def test_a_job_is_done_from_end_to_end(tmp_path: Path) -> None:
    place = tmp_path / "maps"
    job = Job(kind="verify", name="n", words=("--help",), place=place, folder=tmp_path, seconds=60)
    number = local.submit(job, Cluster(requeue=False))
    local._wait_for(lambda: local.end_of(number) is not None and not local.alive(number))
    assert local.end_of(number) == 0
    [attempt] = book.attempts(book.attempts_file(place, "--help"))
    assert (attempt.job, attempt.kind) == (number, "finished")
    assert "Usage" in book.rank_log(place, number, 0, 0).read_text()
