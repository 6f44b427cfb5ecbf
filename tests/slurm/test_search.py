"""A search inside an allocation of several nodes: Ray's head and workers are started there, and what is interrupted goes on."""

import json
from pathlib import Path

import pytest

from memdist import rundir
from memdist.search import found, outcome
from tests.slurm.cluster import Cluster
from tests.slurm.site import Site
from tests.slurm.test_by_hand import edited

pytestmark = pytest.mark.slow

SPACE = {
    "base": "quick/unet",
    "settings": {
        **{"model.multipliers": [1, 2], "data.size": 16, "batch.size": 4, "epochs": 4, "device": "cpu"},
        **{"log.tensorboard": False, "log.images": 0},
    },
    "parameters": {"model.channels": [4, 8], "optim.unet.lr": [0.001, 0.01, 0.1]},
}
DATA = ("data.images=data/images", "data.maps=data/maps")


def told(search: Path) -> list[tuple[int, int]]:
    """(trial, epoch) of each result so far."""
    lines = rundir.read_lines(search / "ledger.jsonl")
    return [tuple(line["tell"]) for line in lines if "tell" in line]


def done(site: Site, out: str) -> None:
    """Wait for the end of a search, through all of its attempts."""

    def last() -> str | None:
        return ([None] + [attempt.kind for attempt in site.attempts(out)])[-1]

    site.cluster.wait_for(lambda: last() in ("finished", "no-progress", "bug", "wrong-input"), 400, f"the end of {out}")
    assert last() == "finished", site.told(out)


def whole(search: Path) -> None:
    """Every cell was trained, once, up to the last epoch."""
    assert sorted(told(search)) == [(trial, 4) for trial in range(6)]
    assert {one.folder.name for one in found.trials(search)} == {path.name for path in search.glob("trials/[!.]*")}
    for one in found.trials(search):
        records = rundir.read_lines(one.folder / rundir.METRICS)
        epochs = [epoch for epoch, _ in outcome.values(records, "val/l1")]
        assert epochs == [1, 2, 3, 4], one
    assert (search / "leaderboard.csv").is_file()


def test_three_nodes_and_a_requeue(cluster: Cluster, tmp_path: Path) -> None:
    site = Site(cluster, tmp_path)
    (tmp_path / "space.yaml").write_text(json.dumps(SPACE))
    asked = ["--cluster", "debug", "--nodes", "3", "--cpus-per-node", "1", "--gpus-per-node", "0", "--time", "20m"]
    words = ["search", "space.yaml", *DATA, *asked]
    dry = site.submit(*words, "--out", "a search", "--dry-run")
    assert "#SBATCH --nodes=3" in dry and "#SBATCH --ntasks-per-node=1" in dry and not (tmp_path / "a search").exists()
    site.submit(*words, "--out", "a search")
    (tmp_path / "space.yaml").unlink()  # what changes until a job starts changes nothing
    cluster.wait_for(lambda: len(told(tmp_path / "a search")) >= 2, 300, "two results")
    job = site.attempts("a search")[-1].job
    cluster.scontrol("requeue", job)
    done(site, "a search")
    whole(tmp_path / "a search")
    assert [attempt.restart for attempt in site.attempts("a search")] == [0, 1]
    machines = {path.name for path in (tmp_path / "a search" / "workers").iterdir()}
    assert len(machines) >= 3  # a process at least on each node
    assert not (tmp_path / "a search" / ".token").exists()
    (tmp_path / "space.yaml").write_text(json.dumps(SPACE))
    assert "nothing to submit" in site.submit(*words, "--out", "a search")


def test_by_hand(cluster: Cluster, tmp_path: Path) -> None:
    site = Site(cluster, tmp_path)
    (tmp_path / "space.yaml").write_text(json.dumps(SPACE))
    options = {"partition": "debug", "nodes": "2", "gpus-per-node": "2", "cpus-per-task": "1", "time": "00:20:00"}
    options |= {"signal": "B:USR2@20"}
    settings = " ".join(("search.method=asha", "search.eta=2", *DATA))
    variables = {"space": "space.yaml", "settings": f"({settings})", "search": "by-hand", "lead": "20"}
    script = edited("ray", tmp_path, options, variables)
    cluster.run("sbatch", "--parsable", "-D", tmp_path, script)
    done(site, "by-hand")
    results = told(tmp_path / "by-hand")
    assert len(results) == len(set(results)) and sum(epoch == 4 for _, epoch in results) >= 1
    assert {trial for trial, _ in results} == set(range(6))
