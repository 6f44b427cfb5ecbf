"""Eight shards, each a process of its own, killed at random instants and restarted: the maps are those of one left alone."""

import json
import shutil
import sys
from pathlib import Path

import pytest

from memdist.predict import folder, pictures
from memdist.train import loop
from tests import tiny
from tests.faults.asking import ask

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="needs Linux")


def killed(model: str, tmp_path: Path, *, kills: int, seed: int, reach: float) -> None:
    data = tiny.data(tmp_path / "data")
    run, given = tmp_path / "run", tmp_path / "in"
    assert loop.train(tiny.run(model, data, epochs=1), run) == 0
    shutil.copytree(data / "images", given)
    for number, path in enumerate(sorted((data / "images").iterdir())[:10]):
        shutil.copy(path, given / f"again-{number}.jpg")  # the same content under two names
    overrides = ["eval.batch=2", "eval.compile=never", "device=cpu"]
    overrides += ["eval.samples=2", "eval.steps=4"] if model == "palette" else []
    each = model == "palette"
    line = ["predict", str(run), str(given), *overrides, *(["--each"] if each else [])]
    request = {"do": "shards", "line": line, "kills": kills, "seed": seed, "reach": reach}
    (told,) = ask([request | {"out": str(tmp_path / "shards"), "whole": str(tmp_path / "whole")}])
    assert told["kills"] + told["finished"] == 8 * (kills + 1) and told["finished"] >= 8
    assert told["kills"] >= 1, told
    report = pictures.predict(run, [given], tmp_path / "shards", overrides=overrides, each=each, verify=True)
    assert report.clean, report
    one, many = (
        {str(path.relative_to(tmp_path / place)): path.read_bytes() for path in (tmp_path / place).rglob("*.png")}
        for place in ("whole", "shards")
    )
    assert one == many and len(one) == (tiny.PAIRS + 10) * (3 if each else 1)
    files = sorted((tmp_path / "shards" / folder.MANIFEST).iterdir())
    lines = [json.loads(text) for path in files for text in path.read_bytes().split(b"\n")[:-1]]
    print(f"{model}: {told['kills']} kills, {told['finished']} ends, {told['whole']:.2f} s undisturbed, ", end="")
    print(f"{len(lines)} lines of {len({line['name'] for line in lines})} outputs by {len(files)} processes")


def test_a_few_kills(tmp_path: Path) -> None:
    killed("palette", tmp_path, kills=1, seed=5, reach=1.0)


@pytest.mark.slow
@pytest.mark.parametrize("model", ["unet", "palette"])
@pytest.mark.parametrize("reach", [0.5, 1.5])
def test_many_kills(model: str, reach: float, tmp_path: Path) -> None:
    """13 a shard, 104 in all: half of them soon after a start, the others up to the end of a share."""
    killed(model, tmp_path, kills=13, seed=11, reach=reach)
