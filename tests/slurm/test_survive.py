"""Trainings that their cluster interrupts end as if it had not."""

import math
import os
import signal
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from memdist import rundir
from tests.slurm.cluster import Cluster
from tests.slurm.site import Site

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def site(bare: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    made = Site(bare, tmp_path_factory.mktemp("site"))
    made.reference()
    yield made


def same(site: Site, out: str) -> None:
    """A run is the undisturbed one, to the last byte."""
    assert (site.folder / out / rundir.METRICS).read_bytes() == (
        site.folder / "reference" / rundir.METRICS
    ).read_bytes()


def close(site: Site, out: str) -> None:
    """A run of other ranks is the undisturbed one but for the order of sums."""
    for one, other in zip(site.curve(out), site.curve("reference"), strict=True):
        assert one.keys() == other.keys()
        if one["step"] > 250:
            return
        for key, value in other.items():
            # What the last bit of a sum does grows by the step, and shows in gradients first.
            assert key.startswith("grad_norm") or math.isclose(one[key], value, rel_tol=2e-3), (key, one, other)


def tries(site: Site, out: str, count: int) -> bool:
    return len(site.attempts(out)) == count


def push_out(site: Site, job: str) -> None:
    """Have a job of higher rank ask for the node where a job runs."""
    node = site.cluster.squeue("-j", job, "-o", "%N").strip()
    site.cluster.sbatch("-p", "high", "-w", node, "--exclusive", "-t1", "-o/dev/null", "--wrap=sleep 1")


def test_the_user_signal_the_limit_and_a_kill(site: Site) -> None:
    cluster = site.cluster
    cluster.start("user")
    preempted = site.train("preempted", "preempt")
    limited = site.train("limited", "debug")
    site.train("killed", "debug")
    with site.held("preempted", "limited", "killed") as (first, second, third):
        os.kill(third, signal.SIGKILL)
        # The end of its time comes nearer: it is told to leave the signal's lead before that.
        cluster.scontrol("update", f"JobId={limited}", "TimeLimit=1")
        push_out(site, preempted)
        site.signalled(first)
        site.signalled(second)
    site.finished("preempted", "limited", "killed")
    for out in ("preempted", "limited", "killed"):
        same(site, out)
    before, *_, after = site.attempts("preempted")
    assert before.kind == "stopped" and (before.reached or 0) >= 30 and after.since == before.reached
    assert site.attempts("limited")[0].kind == "stopped"
    assert site.attempts("killed")[0].kind in ("host-memory", "node-failure")


def test_terminated_in_a_grace_of_five_seconds(site: Site) -> None:
    site.cluster.start("term")
    job = site.train("terminated", "preempt")
    with site.held("terminated"):
        push_out(site, job)
        time.sleep(2)
    site.finished("terminated")
    same(site, "terminated")
    assert site.attempts("terminated")[0].kind == "stopped"
    site.cluster.start("user")


def test_two_nodes_of_two_tasks_one_of_which_fails(site: Site) -> None:
    cluster = site.cluster
    job = site.train("spread", "disks", "--nodes", 2, "--ranks-per-node", 2, "checkpoint.every_minutes=0.01")
    with site.held("spread", step=100):
        nodes = cluster.run("squeue", "-h", "-j", job, "-o", "%N").strip()
        bad = cluster.run("scontrol", "show", "hostnames", nodes).split()[-1]
        cluster.kill_node(bad)
        cluster.scontrol("update", f"node={bad}", "state=down", "reason=test")
    cluster.wait_for(lambda: len(site.attempts("spread")) == 2, 300, "a second attempt after a node's failure")
    assert bad not in cluster.run("scontrol", "show", "hostnames", site.attempts("spread")[1].nodes).split()
    site.finished("spread")
    close(site, "spread")
    # Pictures were decoded on the nodes' own disks, before the ranks began.
    assert [path.name for path in site.folder.glob("own/memdist-*/*")] != []
    told = site.told("spread")
    assert not any("decoding" in text for name, text in told.items() if ".rank" in name), told
    first, second = site.attempts("spread")
    assert first.kind in ("node-failure", "pre-empted") and second.since > 0, site.told("spread")
    assert {path.name for path in (site.folder / "spread" / "jobs" / "logs").iterdir()} >= {
        f"{job}.{attempt}.rank{rank}" for attempt in (0, 1) for rank in range(4)
    }


def test_a_run_that_stays_where_it_is_ends(site: Site) -> None:
    job = site.train("stuck", "debug")
    for attempt in range(2):
        site.cluster.wait_for(partial(tries, site, "stuck", attempt + 1), 300, f"attempt {attempt + 1}")
        site.cluster.scontrol("requeue", job)  # before a first step
    site.cluster.wait_for(lambda: site.ended("stuck"), 300, "an end")
    assert site.attempts("stuck")[-1].kind == "no-progress", site.attempts("stuck")
    assert "2 attempts in a row have ended without a newer checkpoint" in str(site.told("stuck"))
    assert not Path(site.folder, "stuck", rundir.STATE).exists() or site.step("stuck") == 0
