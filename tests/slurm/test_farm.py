"""Arrays, chains and what follows upon another: each part once, whatever is killed or submitted again."""

import contextlib
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from memdist import rundir
from memdist.cluster import book
from tests.slurm.cluster import Cluster
from tests.slurm.site import SETTINGS, Site

pytestmark = pytest.mark.slow

DATA = ("data.images=data/images", "data.maps=data/maps")


@pytest.fixture(scope="module")
def site(bare: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    made = Site(bare, tmp_path_factory.mktemp("farm"))
    made.memdist("train", "quick/unet", *DATA, *SETTINGS, "epochs=1", "--out", "trained")
    yield made


def kinds(folder: Path) -> dict[str, list[str | None]]:
    """How the attempts at each share ended."""
    files = sorted((folder / "jobs" / book.ATTEMPTS).glob("*.jsonl"))
    return {file.stem: [attempt.kind for attempt in book.attempts(file)] for file in files}


def test_eight_shares_two_of_which_are_killed(site: Site) -> None:
    words = ("predict", "trained", "data/images", "--out", "maps", "--shards", 8, "--cluster", "debug", "device=cpu")
    site.submit(*words, "--at-most", 3)
    again = site.submit(*words, "--at-most", 3)
    assert "8 of 8 shares are queued already" in again and "job" not in again
    folder = site.folder / "maps"
    array, verifies = book.submitted(folder)
    killed: set[str] = set()

    def kill_two() -> bool:
        for file in (folder / "jobs" / book.ATTEMPTS).glob("*-of-8.jsonl"):
            share = file.stem
            if len(killed) < 2 and share not in killed and book.attempts(file)[-1].kind is None:
                pids = site.processes(f"--shard {share.replace('-of-', '/')}")
                for pid in pids:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
                killed.update([share] if pids else [])
        return len(killed) == 2

    site.cluster.wait_for(kill_two, 300, "two shares to kill")
    site.cluster.wait_for(lambda: kinds(folder).get("verify", [None])[-1] is not None, 300, "the verification")
    ended = kinds(folder)
    assert ended.pop("verify") == ["finished"], site.told("maps")
    assert sorted(ended) == [f"{number}-of-8" for number in range(1, 9)]
    assert all(tries[-1] == "finished" for tries in ended.values()), ended
    assert {share for share, tries in ended.items() if len(tries) > 1} == killed
    assert len(list(folder.glob("*.png"))) == 28
    assert array.numbers == tuple(range(1, 9)) and verifies.kind == "verify"
    assert "8 of 8 shares are done" in site.submit(*words)
    # What is gone is made again, and nothing else.
    gone = min(folder.glob("*.png"))
    gone.unlink()
    assert "predict, 1 of 8" in site.submit(*words)
    site.cluster.wait_for(gone.is_file, 300, "the map that was gone")
    shown = site.memdist("status", "maps")
    assert "1/8" in shown and "finished" in shown


def test_runs_of_a_sweep_and_what_comes_after_them(site: Site) -> None:
    sweep = (
        "train",
        "quick/unet",
        *DATA,
        *SETTINGS,
        "epochs=1",
        "-m",
        "seed=range(0,2)",
        "--out",
        "farm",
        "--cluster",
        "debug",
    )
    site.submit(*sweep)
    assert "2 of 2 runs are queued already" in site.submit(*sweep)
    # One that trains longer than its first leg is given.
    site.submit(
        "train", "quick/unet", *DATA, *SETTINGS, "--out", "chain", "--cluster", "chained", "--legs", 2, "--time", "10m"
    )
    first, second = book.submitted(site.folder / "chain")
    site.submit("evaluate", "chain", "device=cpu", "--after", "chain", "--cluster", "debug")
    with site.held("chain"):
        site.cluster.run("scancel", "--batch", "--signal=USR2", first.id)
        site.cluster.wait_for(lambda: site.cluster.state(second.id) == "PENDING", 120)
    site.finished("chain")
    jobs = [attempt.job for attempt in site.attempts("chain")]
    assert jobs == [first.id, second.id] and site.attempts("chain")[0].kind == "stopped"
    site.cluster.wait_for(lambda: (site.folder / "chain" / rundir.SCORES).is_file(), 300, "scores after the training")
    for seed in (0, 1):
        site.finished(f"farm/seed={seed}")
    assert "2 of 2 runs are finished" in site.submit(*sweep)
    assert "2 finished" in site.memdist("status", "farm")
    assert "finished: step" in site.memdist("logs", "chain")


def test_cancelled_runs_stay_so(site: Site) -> None:
    job = site.train("cancelled")
    with site.held("cancelled"):
        assert f"cancelled: job {job}" in site.memdist("cancel", "cancelled")
    site.cluster.wait_for(
        lambda: site.attempts("cancelled")[-1].kind is not None or not site.cluster.squeue(), 300, "an end"
    )
    site.cluster.wait_for(lambda: not site.cluster.squeue(), 300, "an empty queue")
    assert [attempt.kind for attempt in site.attempts("cancelled")] in (["cancelled"], [None])
    assert "no job of it waits or runs" in site.memdist("cancel", "cancelled")
    # Another command goes on there.
    before = site.attempts("cancelled")[-1].reached
    site.train("cancelled")
    site.cluster.wait_for(lambda: len(site.attempts("cancelled")) == 2, 300, "a second attempt")
    site.finished("cancelled")
    assert site.attempts("cancelled")[-1].since == before if before else True


def test_with_accounting(accounted: Cluster, tmp_path: Path) -> None:
    site = Site(accounted, tmp_path)
    job = site.train("run", "debug", "epochs=2")
    site.finished("run")
    accounted.wait_for(
        lambda: "COMPLETED" in accounted.run("sacct", "-nX", "-j", job, "-o", "State"), 120, "an account"
    )
    assert "1 finished" in site.memdist("status", ".")


def test_what_sbatch_refuses_is_told_in_its_words(site: Site) -> None:
    told = site.memdist(
        *("submit", "train", "quick/unet", *DATA, *SETTINGS, "--out", "refused", "--cluster", "refused"), code=2
    )
    assert told.startswith("memdist: sbatch refuses: ") and told.count("\n") == 1, told
    assert "nothing was submitted" in told and not book.submitted(site.folder / "refused")
    many = site.memdist(
        *("submit", "train", "quick/unet", *DATA, "--out", "many", "--cluster", "debug", "--gpus-per-node", 3), code=2
    )
    assert "no node of partition debug has more than 2" in many
