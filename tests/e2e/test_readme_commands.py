"""Every command of the README runs as it stands there, in order, in an empty folder."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from memdist import rundir
from memdist.data import example
from memdist.train import restore
from tests import foreign

ROOT = Path(__file__).parents[2]
# What a test cannot run: itself, and what installs and then runs for minutes, which has a test of its own below.
ELSEWHERE = {"./launch/test", "./launch/quickstart"}


def commands() -> list[str]:
    # Jobs need a cluster: what is said of them, and of searches, is run by tests/slurm.
    text = re.sub(
        r"^## (Farm it out|Search everything)\n.*?(?=^## )", "", (ROOT / "README.md").read_text(), flags=re.M | re.S
    )
    blocks = re.findall(r"^ *```\n(.*?)^ *```$", text, re.M | re.S)
    lines = [line.strip() for block in blocks for line in block.splitlines()]
    return [
        line for line in lines if re.match(r"(memdist|torchrun|pip|python) (?! )|\./", line) and line not in ELSEWHERE
    ]


def test_there_are_commands() -> None:
    assert sum(line.startswith("memdist train") for line in commands()) >= 3


def what_a_person_has(here: Path) -> None:
    """The data and weights that the README's commands name."""
    example.make(here / "made", 40, 64, 0, 1)
    for map_ in (here / "made" / "maps").iterdir():
        if not np.asarray(Image.open(map_)).any():  # which `data check` would find
            map_.unlink()
            (here / "made" / "images" / f"{map_.stem}.jpg").unlink()
    (here / "made" / "images").rename(here / "photos")
    (here / "made" / "maps").rename(here / "heatmaps")
    shutil.rmtree(here / "made")
    (here / "facades").mkdir()
    lines = ["image,map,split,group"]
    for number, image in enumerate(sorted((here / "photos").iterdir())):
        map_ = here / "heatmaps" / f"{image.stem}.png"
        both = Image.new("RGB", (128, 64))
        both.paste(Image.open(image), (0, 0))
        both.paste(Image.open(map_), (64, 0))
        both.save(here / "facades" / f"{image.stem}.png")
        split = "test" if number < 8 else "val" if number < 12 else "train"
        lines.append(f"photos/{image.name},heatmaps/{map_.name},{split},burst {number // 4}")
    (here / "pairs.csv").write_text("\n".join(lines) + "\n")
    places = np.random.default_rng(0).integers(0, 64, (400, 20, 2), dtype=np.int16)
    np.savez(here / "fixations.npz", **{f"scene-{number:05d}": places[number] for number in range(400)})
    torch.save(foreign.denoiser(channels=32) | foreign.tables(), here / "100_Network.pth")
    foreign.save_pix2pix(here / "checkpoints" / "facades")


@pytest.mark.slow
def test_every_command_runs(tmp_path: Path) -> None:
    what_a_person_has(tmp_path)
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "OMP_NUM_THREADS": "2"}
    for line in commands():
        done = subprocess.run(
            ["bash", "-c", line], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=600
        )
        assert done.returncode == 0, (line, done.stdout[-2000:], done.stderr[-2000:])
    assert (tmp_path / "runs" / "compare.html").is_file()
    assert len(list((tmp_path / "runs" / "maps").glob("*.png"))) == 400
    scores = rundir.read_json(tmp_path / "runs" / "first" / rundir.SCORES)
    # What learns beats every predictor that does not, by far.
    assert scores["test"]["skill"] > 0.2 and scores["test"]["metrics"]["cc"]["mean"] > 0.5
    assert not scores["test"]["optimistic"] and scores["val"]["optimistic"]
    assert scores["test"]["metrics"]["nss"]["n"] == scores["test"]["n"]
    back = restore.restore(tmp_path / "runs" / "back", "best", ema=True, device=torch.device("cpu"))
    first = restore.restore(tmp_path / "runs" / "first", "best", ema=True, device=torch.device("cpu"))
    for name, net in first.nets.items():
        for key, value in net.state_dict().items():
            assert torch.equal(value, back.nets[name].state_dict()[key])


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
