"""What README says of clusters works word for word: one script, in an empty folder, on a cluster of its own."""

import os
import re
from pathlib import Path

import pytest

from memdist import rundir
from memdist.cluster import book
from tests.slurm.cluster import ROOT, Cluster
from tests.slurm.conftest import NEEDS

pytestmark = pytest.mark.slow


def test_farm_it_out(tmp_path: Path, bare: Cluster) -> None:
    section = re.search(r"^## Farm it out\n(.*?)^## ", (ROOT / "README.md").read_text(), re.M | re.S)
    assert section is not None and NEEDS
    blocks = re.findall(r"^```\n(.*?)^```$", section[1], re.M | re.S)
    assert sum(block.count("memdist submit") for block in blocks) == 5
    own = Cluster("none")
    (tmp_path / "slurm").symlink_to(ROOT / "slurm")
    variables = {"HOME": str(tmp_path), "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "XDG_CONFIG_HOME": ""}
    # As on a fresh machine, the cluster is known once the script has asked for its `env`.
    environment = {key: text for key, text in own.environment.items() if key not in ("SLURM_CONF", "MASTER_ADDR")}
    environment["PATH"] = f"{ROOT / '.venv' / 'bin'}:{os.environ['PATH']}"
    script = "set -e\n" + "\n".join(blocks)
    kept, own.environment = own.environment, environment
    try:
        said = own.run("bash", "-c", script, timeout=300, folder=tmp_path, variables=variables)
        own.environment = kept
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
    finally:
        own.environment = kept
        own.purge()
