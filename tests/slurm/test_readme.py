"""What README says of clusters works word for word: one script, in an empty folder, on a cluster of its own."""

import contextlib
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from memdist import config, rundir
from memdist.cluster import book
from tests.slurm.cluster import ROOT, Cluster
from tests.slurm.conftest import NEEDS

pytestmark = pytest.mark.slow


def blocks(title: str) -> list[str]:
    """Commands of a section of the README."""
    section = re.search(rf"^## {title}\n(.*?)^## ", (ROOT / "README.md").read_text(), re.M | re.S)
    assert section is not None
    return re.findall(r"^```\n(.*?)^```$", section[1], re.M | re.S)


@contextlib.contextmanager
def ran(folder: Path, lines: list[str]) -> Iterator[tuple[Cluster, str]]:
    """Run commands as one script on a fresh machine; gives the cluster that they make, and what they print."""
    own = Cluster("none")
    (folder / "slurm").symlink_to(ROOT / "slurm")
    variables = {"HOME": str(folder), "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "XDG_CONFIG_HOME": ""}
    # As on a fresh machine, the cluster is known once the script has asked for its `env`.
    environment = {key: text for key, text in own.environment.items() if key not in ("SLURM_CONF", "MASTER_ADDR")}
    environment["PATH"] = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    kept, own.environment = own.environment, environment
    try:
        said = own.run("bash", "-c", "\n".join(["set -e", *lines]), timeout=400, folder=folder, variables=variables)
        own.environment = kept
        yield own, said
    finally:
        own.environment = kept
        own.purge()


def test_farm_it_out(tmp_path: Path, bare: Cluster) -> None:
    assert NEEDS
    commands = blocks("Farm it out")
    assert sum(block.count("memdist submit") for block in commands) == 5
    with ran(tmp_path, commands) as (own, said):
        assert "#SBATCH --time=00:30:00" in said and "nothing was submitted" in said
        assert "finished: step" in said  # what `logs -f` saw
        assert "array" not in said.partition("nothing was submitted")[0]
        runs = tmp_path / "runs"
        own.wait_for(lambda: not own.squeue(), 240, "an empty queue")
        assert (runs / "far" / rundir.SCORES).is_file()
        assert len(list((runs / "far-maps").glob("*.png"))) == 60
        [verified] = book.attempts(book.attempts_file(runs / "far-maps", "verify"))
        assert verified.kind == "finished"
        ended = [rundir.read_json(path)["state"] for path in (runs / "sweep").glob(f"*/{rundir.STATE}")]
        assert ended == ["finished"] * 4


def test_search_everything(tmp_path: Path, bare: Cluster) -> None:
    cluster, name = blocks("Farm it out")[:2]
    commands = blocks("Search everything")
    assert sum(block.count("memdist s") for block in commands) == 4
    with ran(tmp_path, [cluster, name, *commands]) as (own, said):
        assert "2 finalists, 2 seeds each" in said and "Best: trial" in said
        searches = tmp_path / "searches"
        assert config.read(searches / "best.yaml")["model"]["name"] == "unet"
        own.wait_for(lambda: not own.squeue(), 240, "an empty queue")
        for search in ("first", "far"):
            assert rundir.read_json(searches / search / rundir.STATE)["state"] == "finished"
            assert (searches / search / "parallel.svg").is_file()
