"""slurm/*.sbatch: the same options, and the same call, as the scripts that `memdist submit` writes."""

import os
import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from memdist.cluster import leg, text
from memdist.cluster.profile import Cluster
from memdist.cluster.text import Job

SLURM = Path(__file__).parents[2] / "slurm"
FILES = sorted(SLURM.glob("*.sbatch"))
CLUSTER = Cluster(partition="gpu", cpus_per_gpu=8)
# A place that sbatch is not told of, as it is in a variable.
TRAIN = Job(
    kind="train",
    name="memdist-train",
    words=("train", "scale/palette-64gpu"),
    place=Path("/a place"),
    folder=Path("/"),
    seconds=8 * 3600,
    nodes=4,
    ranks=8,
    gpus=8,
)
SAMPLE = replace(
    TRAIN,
    kind="predict",
    name="memdist-sample",
    seconds=2 * 3600,
    nodes=1,
    ranks=1,
    gpus=1,
    numbers=tuple(range(1, 65)),
    total=64,
    at_most=16,
)
SEARCH = replace(
    TRAIN, kind="search", name="memdist-search", words=("search", "run", "palette"), nodes=3, ranks=1, cpus=64
)
JOBS = {"train": TRAIN, "sample": SAMPLE, "ray": SEARCH}


def test_there_are_these() -> None:
    assert {file.stem for file in FILES} >= set(JOBS)


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_they_are_clean_shell(file: Path) -> None:
    subprocess.run(["bash", "-n", file], check=True)
    if shutil.which("shellcheck"):
        done = subprocess.run(["shellcheck", file], capture_output=True, text=True)
        assert done.returncode == 0, done.stdout
    # sbatch stops at the first line that is neither empty nor a comment, or runs the file by its first line.
    lines = file.read_text().splitlines()
    assert lines[0] == "#!/bin/bash"
    code = next(at for at, line in enumerate(lines) if not line.startswith("#"))
    assert not any(line.startswith("#SBATCH") for line in lines[code:])


@pytest.mark.parametrize("name", JOBS)
def test_options_of_sbatch_are_those_of_rendered_jobs(name: str) -> None:
    lines = (SLURM / f"{name}.sbatch").read_text().splitlines()
    found = [line.removeprefix("#SBATCH ") for line in lines if line.startswith("#SBATCH ")]
    assert found == text.directives(JOBS[name], CLUSTER)
    commented = [line.removeprefix("##SBATCH ") for line in lines if line.startswith("##SBATCH ")]
    assert set(commented) <= set(text.directives(JOBS[name], Cluster(account="my-project")))


def call(name: str, home: Path, edit: tuple[str, str] | None = None, **environment: str) -> Any:
    """What the leg of a file is called with, its variables counted from a home."""
    python = home / "memdist" / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text('#!/bin/sh\nprintf \'%s\\0\' "$@" >"$HOME/words"\n')
    python.chmod(0o755)
    script = (SLURM / f"{name}.sbatch").read_text()
    if edit is not None:
        script, count = re.subn(f"^{edit[0]}=.*$", lambda _: f"{edit[0]}={edit[1]}", script, count=1, flags=re.M)
        assert count == 1
    (home / "script").write_text(script)
    slurm = {"SLURM_JOB_ID": "7", "SLURM_NTASKS_PER_NODE": "8", **environment}
    done = subprocess.run(
        ["bash", home / "script"],
        env={"PATH": os.environ["PATH"], "HOME": str(home), **slurm},
        cwd=home,
        capture_output=True,
    )
    words = (home / "words").read_bytes().decode().split("\0")[:-1] if (home / "words").exists() else []
    assert not done.stdout + done.stderr and words[:3] in ([], ["-P", "-m", "memdist.cluster.leg"])
    return leg.options(words[3:]) if words else done.returncode


def as_rendered(job: Job, cluster: Cluster, given: Any) -> None:
    """The leg has the options that a rendered job of the same kind gives it."""
    expected = vars(leg.options(text.options(job, cluster)))
    assert {key: value for key, value in vars(given).items() if key != "words"} == {
        key: value for key, value in expected.items() if key != "words"
    }


def test_a_training(tmp_path: Path) -> None:
    home = tmp_path / "a 'home' of; $me"
    given = call("train", home)
    place = home / "runs" / "palette"
    as_rendered(replace(TRAIN, place=place), CLUSTER, given)
    data = [f"data.images={home}/data/images", f"data.maps={home}/data/maps"]
    assert given.words == ["train", "scale/palette-64gpu", *data, "--out", str(place)]
    assert list((place / "jobs" / "logs").iterdir()) == [place / "jobs" / "logs" / "7.log"]
    assert (place / "jobs" / "logs" / "7.log").stat().st_mode & 0o077 == 0


@pytest.mark.parametrize(
    ("edit", "option", "value"),
    [
        (("again", "chain"), "again", "chain"),
        (("scratch", "'$TMPDIR'"), "scratch", "$TMPDIR"),
        (("lead", "30"), "lead", 30),
        (("max_failures", "0"), "max_failures", 0),
        (("run", "'my runs/a'"), "place", Path("my runs/a")),
    ],
)
def test_what_is_edited_counts(edit: tuple[str, str], option: str, value: object, tmp_path: Path) -> None:
    given = call("train", tmp_path, edit)
    assert vars(given)[option] == (tmp_path / value if isinstance(value, Path) else value)


def test_shares_of_maps(tmp_path: Path) -> None:
    home = tmp_path / "a 'home' of; $me"
    given = call("sample", home, SLURM_ARRAY_JOB_ID="9", SLURM_ARRAY_TASK_ID="64")
    as_rendered(replace(SAMPLE, place=home / "maps"), CLUSTER, given)
    words = ["predict", f"{home}/runs/palette", f"{home}/my-pictures", "--out", f"{home}/maps"]
    assert given.words == words
    assert (home / "maps" / "jobs" / "logs" / "9_64.log").exists()


def test_an_array_of_more_than_all_shares(tmp_path: Path) -> None:
    assert call("sample", tmp_path, SLURM_ARRAY_JOB_ID="9", SLURM_ARRAY_TASK_ID="65") == 2
    assert "none of 1 to 64" in (tmp_path / "maps" / "jobs" / "logs" / "9_65.log").read_text()
