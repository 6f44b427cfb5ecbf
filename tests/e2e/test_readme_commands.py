"""Every command of the README runs as it stands there, in order, in an empty folder."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from memdist import rundir
from memdist.data import example

ROOT = Path(__file__).parents[2]
# What a test cannot run: itself, and what installs and then runs for minutes, which has a test of its own below.
ELSEWHERE = {"./launch/test", "./launch/quickstart"}


def commands() -> list[str]:
    blocks = re.findall(r"^```\n(.*?)^```$", (ROOT / "README.md").read_text(), re.M | re.S)
    lines = [line for block in blocks for line in block.splitlines()]
    return [line for line in lines if re.match(r"(memdist|torchrun|pip|python) |\./", line) and line not in ELSEWHERE]


def test_there_are_commands() -> None:
    assert sum(line.startswith("memdist train") for line in commands()) >= 3


@pytest.mark.slow
def test_every_command_runs(tmp_path: Path) -> None:
    example.make(tmp_path / "made", 40, 64, 0, 1)
    (tmp_path / "made" / "images").rename(tmp_path / "photos")
    (tmp_path / "made" / "maps").rename(tmp_path / "heatmaps")
    shutil.rmtree(tmp_path / "made")
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "OMP_NUM_THREADS": "2"}
    for line in commands():
        done = subprocess.run(
            ["bash", "-c", line], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=600
        )
        assert done.returncode == 0, (line, done.stdout[-2000:], done.stderr[-2000:])
    assert (tmp_path / "runs" / "compare.html").is_file()
    assert len(list((tmp_path / "runs" / "maps").iterdir())) == 400
    scores = rundir.read_json(tmp_path / "runs" / "first" / rundir.SCORES)
    # What learns beats every predictor that does not, by far.
    assert scores["test"]["skill"] > 0.2 and scores["test"]["metrics"]["cc"]["mean"] > 0.5
    assert not scores["test"]["optimistic"] and scores["val"]["optimistic"]


@pytest.mark.slow
def test_quickstart_on_a_persons_own_pairs(tmp_path: Path) -> None:
    """The whole way, on few pairs, with a folder name that a shell would trip over; then again, which reuses it all."""
    data = tmp_path / "it's my data: $HOME #1"
    example.make(data, 40, 64, 1, 1)
    command = [str(ROOT / "launch" / "quickstart"), "--images", str(data / "images"), "--maps", str(data / "maps")]
    out = None
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=900)
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
        out = ROOT / re.findall(r"page: (\S+)/compare\.html", done.stdout)[-1]
        for name in ("unet", "pix2pix", "palette"):
            assert name in done.stdout
            assert rundir.read_json(out / name / rundir.STATE)["state"] == "finished"
        page = (out / "compare.html").read_text()
        assert "data:image/png" in page and "nearest training picture" in page
        before = {p: p.read_bytes() for p in out.glob("*/metrics.jsonl")}
        again = subprocess.run(command, capture_output=True, text=True, timeout=900)
        assert again.returncode == 0 and again.stdout.count("this run is finished already") == 3
        assert {p: p.read_bytes() for p in out.glob("*/metrics.jsonl")} == before
    finally:
        if out is not None:
            shutil.rmtree(out)


@pytest.mark.parametrize(
    "arguments", [["--images", "/nowhere", "--maps", "/tmp"], ["--images", "/tmp"], ["--imgs"], ["--images"]]
)
def test_quickstart_says_what_is_wrong(arguments: list[str]) -> None:
    done = subprocess.run([str(ROOT / "launch" / "quickstart"), *arguments], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("memdist: ") and len(done.stderr.strip().splitlines()) == 1
