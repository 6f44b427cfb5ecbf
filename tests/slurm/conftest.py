"""Real clusters, one for each process that tests and needs it; between tests their jobs are cancelled."""

import os
from collections.abc import Iterator

import pytest

from tests.slurm.cluster import Cluster

NEEDS = "needs Slurm: slurm/devcluster install"


def _started(accounting: str) -> Iterator[Cluster]:
    made = Cluster(accounting)
    try:
        lacking = made.start()
        if lacking and os.environ.get("CI") == "true":
            # Where everything is to be proved, nothing is left out.
            pytest.fail(lacking)
        elif lacking:
            pytest.skip(NEEDS)
        yield made
    finally:
        made.purge()


@pytest.fixture(scope="session")
def bare() -> Iterator[Cluster]:
    yield from _started("none")


@pytest.fixture(scope="session")
def recorded() -> Iterator[Cluster]:
    yield from _started("dbd")


@pytest.fixture
def cluster(bare: Cluster) -> Iterator[Cluster]:
    """Four nodes without accounting, nothing running: `sacct` fails, as it does on many clusters."""
    yield bare
    bare.tidy()


@pytest.fixture
def accounted(recorded: Cluster) -> Iterator[Cluster]:
    """Four nodes with accounting: it starts some seconds later, for the database."""
    yield recorded
    recorded.tidy()


@pytest.fixture(params=["user", "term"])
def preempting(request: pytest.FixtureRequest, cluster: Cluster) -> Cluster:
    """The cluster as it sends the signal of --signal to jobs that must give way, and as it sends TERM."""
    cluster.start(request.param)
    return cluster
