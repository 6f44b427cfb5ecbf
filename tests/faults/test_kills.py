"""kill -9 at random instants, again and again on one run folder: it ends byte for byte as one that was left alone."""

import sys
from pathlib import Path

import pytest

from memdist import rundir
from tests import tiny
from tests.faults.asking import ask, outcome

MODELS = ["unet", "pix2pix", "palette"]
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="needs Linux")


def killed(models: list[str], tmp_path: Path, *, kills: int, reach: float, seed: int, lost: int | None = None) -> None:
    data = tiny.data(tmp_path / "data")
    requests = []
    for model in models:
        (tmp_path / model).mkdir()
        settings = {"checkpoint.every_minutes": 1e-9, "log.tensorboard": "true", "validate.steps": 2}
        settings |= {"on_divergence": "rollback"} if lost is not None else {}
        request = {
            "do": "kills",
            "raw": tiny.raw(model, data, **settings),
            "seed": seed,
            "kills": kills,
            "reach": reach,
        }
        request |= {"lost": lost} if lost is not None else {}
        requests.append(request | {"out": str(tmp_path / model / "killed"), "whole": str(tmp_path / model / "whole")})
    for model, told in zip(models, ask(requests), strict=True):
        here = tmp_path / model
        assert told["kills"] == kills
        whole = outcome(here / "whole")
        others = [here / "killed", *(here / f"whole-{number}" for number in range(told["finished"] - 1))]
        for out in others:
            assert outcome(out) == whole
            state = rundir.read_json(out / rundir.STATE)
            assert state["state"] == "finished" and state["rollbacks"] == (2 if lost is not None else 0)
            # Nothing half-written stays, and no other lock than the last.
            assert [p for p in out.rglob(".*") if not p.name.startswith(".lock.")] == []
            assert len(list(out.glob(".lock.*"))) == 1
        print(f"{model}: {told['kills']} kills, {told['finished']} runs, {told['whole']:.2f} s undisturbed")


def test_a_few_kills(tmp_path: Path) -> None:
    killed(MODELS, tmp_path, kills=2, reach=0.8, seed=1)


@pytest.mark.slow
@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("reach", [0.3, 1.0])
def test_many_kills(model: str, reach: float, tmp_path: Path) -> None:
    """34 a model, 102 in all: half of them soon after a start, the others up to the end of a run."""
    killed([model], tmp_path, kills=17, reach=reach, seed=7)


@pytest.mark.slow
@pytest.mark.parametrize("model", MODELS)
def test_many_kills_of_a_run_that_goes_back(model: str, tmp_path: Path) -> None:
    """A weight is lost twice; every kill, on the way there, back or on, leads through the same two rollbacks."""
    killed([model], tmp_path, kills=6, reach=1.0, seed=3, lost=8)
