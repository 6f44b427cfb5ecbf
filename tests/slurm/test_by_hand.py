"""slurm/*.sbatch, edited at the top and given to sbatch as a person does it."""

import re
import sys
from pathlib import Path

import pytest

from memdist.cluster import book
from tests.slurm.cluster import ROOT, Cluster
from tests.slurm.site import SETTINGS, Site

pytestmark = pytest.mark.slow


def edited(name: str, folder: Path, options: dict[str, str], variables: dict[str, str]) -> Path:
    """A copy of a script with other values at the top, and a Python where the script looks for one."""
    python = folder / "memdist" / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True, exist_ok=True)
    if not python.exists():
        lines = ["export OMP_NUM_THREADS=1 MASTER_ADDR=127.0.0.1", f"export PYTHONPATH='{ROOT}'"]
        python.write_text("\n".join(["#!/bin/sh", *lines, f"exec '{sys.executable}' \"$@\"", ""]))
        python.chmod(0o755)
    text = (ROOT / "slurm" / f"{name}.sbatch").read_text()
    for key, value in options.items():
        text, count = re.subn(f"^#SBATCH --{key}=.*$", f"#SBATCH --{key}={value}", text, flags=re.M)
        assert count == 1
    for key, value in {"memdist": str(folder / "memdist"), **variables}.items():
        text, count = re.subn(f"^{key}=.*$", f"{key}={value}", text, count=1, flags=re.M)
        assert count == 1
    (folder / f"my-{name}.sbatch").write_text(text)
    return folder / f"my-{name}.sbatch"


def test_a_training_and_its_maps(cluster: Cluster, tmp_path: Path) -> None:
    site = Site(cluster, tmp_path)
    settings = ("data.images=data/images", "data.maps=data/maps", *SETTINGS, "epochs=20")
    words = " ".join(f"'{word}'" for word in settings)
    options = {"partition": "debug", "nodes": "2", "ntasks-per-node": "2", "gpus-per-node": "2", "cpus-per-task": "1"}
    options |= {"signal": "B:USR2@20", "time": "00:20:00"}
    variables = {"config": "quick/unet", "settings": f"({words})", "run": "'a run'", "lead": "20"}
    script = edited("train", tmp_path, options, variables)
    job = cluster.run("sbatch", "--parsable", "-D", tmp_path, script).strip()
    cluster.wait_for(lambda: site.step("a run") >= 20, 300, "some steps")
    cluster.scontrol("requeue", job)
    cluster.wait_for(lambda: site.attempts("a run")[-1].kind == "finished", 300, "the end of a run")
    first, last = site.attempts("a run")
    assert first.job == last.job == job and last.restart == 1
    names = {path.name for path in book.logs(tmp_path / "a run").iterdir()}
    assert names == {f"{job}.log", *(f"{job}.{restart}.rank{rank}" for restart in (0, 1) for rank in range(4))}

    options = {"partition": "debug", "array": "1-3%2", "cpus-per-task": "1", "time": "00:20:00"}
    variables = {"run": "'a run'", "pictures": "(data/images)", "maps": "maps", "shares": "3"}
    script = edited("sample", tmp_path, options, variables)
    array = cluster.run("sbatch", "--parsable", "-D", tmp_path, script).strip()
    files = [book.attempts_file(tmp_path / "maps", f"{number}-of-3") for number in (1, 2, 3)]
    cluster.wait_for(
        lambda: all((book.attempts(file) or [first])[-1].kind == "finished" for file in files), 300, "maps"
    )
    assert {book.attempts(file)[0].job for file in files} == {f"{array}_{number}" for number in (1, 2, 3)}
    assert len(list((tmp_path / "maps").glob("*.png"))) == 28
    assert "28 " in site.memdist("predict", "a run", "data/images", "--out", "maps", "--verify")
