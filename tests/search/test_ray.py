"""Searches with a real Ray: all of the quick grid, the part of it that ASHA needs, and kill -9 of anything at any moment."""

import signal
import sys
import time
from pathlib import Path

import pytest

from memdist import config, rundir
from memdist.data import example
from memdist.launch.ends import RESUME_ME
from memdist.search import folder, space
from tests import tiny
from tests.search import killing

pytestmark = [pytest.mark.slow, pytest.mark.skipif(sys.platform != "linux", reason="needs Linux")]

SPACE = {
    "base": "quick/unet",
    "settings": {
        "epochs": 8,
        "data.size": tiny.SIZE,
        "data.val": 0.2,
        "data.test": 0.2,
        "batch.size": 4,
        "checkpoint.every": 1,
        "model.multipliers": [1, 2],
        "device": "cpu",
        "log.images": 0,
    },
    "parameters": {
        "model.channels": [2, 4, 8],
        "optim.unet": [{"name": "adam", "lr": 0.002}, {"name": "adam", "lr": 0.0005}, {"name": "sgd", "lr": 0.05}],
    },
}


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small space, its data, and a search of it that nothing disturbed."""
    place = tmp_path_factory.mktemp("search")
    data = tiny.data(place / "data")
    mine = {**SPACE, "settings": {**SPACE["settings"], "data.images": f"{data}/images", "data.maps": f"{data}/maps"}}  # type: ignore[dict-item]
    (place / "space.yaml").write_text(config.written(mine))
    code, said, _ = killing.searched(place / "space.yaml", place / "whole")
    assert code == 0, said
    assert len(killing.values(place / "whole")) == 9 and set(killing.legs(place / "whole").values()) == {1}
    return place


def whole(out: Path, like: Path) -> None:
    """Nothing is lost, nothing is trained twice, and all is worth what it was worth undisturbed."""
    assert killing.values(out) == killing.values(like)
    assert killing.curves(out) == killing.curves(like)
    assert not [path.name for path in out.iterdir() if path.name.startswith(".tune")]


@pytest.mark.parametrize("seed", range(2))
def test_whatever_is_killed_nothing_is_lost_or_repeated(seed: int, here: Path) -> None:
    victims = ["worker", "actor", "raylet", "driver", "worker", "driver"]
    victims = victims[seed:] + victims[:seed]
    out = here / f"killed {seed}"
    found = killing.kill(here / "space.yaml", out, victims, seed)
    print(found.kills, found.codes)
    assert found.kills, "it was over before anything was killed"
    assert set(found.codes) <= {0, RESUME_ME, -signal.SIGKILL}
    assert all("Traceback" not in said for said in found.said), found.said
    whole(out, here / "whole")
    # A kill of a worker or an actor begins one trial again, of a driver or of Ray at most the two that run.
    begun = killing.legs(out)
    assert sum(begun.values()) <= len(begun) + 2 * len(found.kills)


def test_halving_survives_a_kill_with_its_rungs(here: Path) -> None:
    words = ["search.method=asha", "search.eta=2", "search.min_epochs=2"]
    out = here / "asha"
    found = killing.kill(here / "space.yaml", out, ["driver", "worker"], 5, *words)
    lines = killing.ledger(out)
    starts = [line["ask"][2] for line in lines if "ask" in line and line["ask"][0] == "start"]
    assert sorted(starts) == list(range(9)) and found.codes[-1] == 0
    cells = {line["ask"][1]: line["ask"][2] for line in lines if "ask" in line and line["ask"][0] == "start"}
    ends = {(cells[line["tell"][0]], line["tell"][1]): line["value"] for line in lines if "tell" in line}
    full = killing.values(here / "whole")
    assert any(until == 8 for _, until in ends)
    assert all((("ok", value) == full[cell, until]) for (cell, until), value in ends.items() if until == 8)
    said = killing.searched(here / "space.yaml", out, *words)
    assert said[0] == 0 and killing.ledger(out) == lines, "a search that is done was gone on with"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGUSR2])
def test_a_signal_stops_a_search_and_the_same_command_goes_on(number: signal.Signals, here: Path) -> None:
    out = here / number.name
    process, end = killing.started(here / "space.yaml", out), time.monotonic() + 300
    while not any("tell" in line for line in killing.ledger(out)) and time.monotonic() < end:
        time.sleep(0.1)
    process.send_signal(number)
    said, _ = process.communicate(timeout=300)
    assert process.returncode == RESUME_ME and "stopped; the same command goes on from there" in said, said
    assert "Traceback" not in said
    code, said, _ = killing.searched(here / "space.yaml", out)
    assert code == 0 and said.startswith("going on with 9 cells"), said
    whole(out, here / "whole")


def test_a_trial_that_needs_more_than_there_is_is_not_waited_for(here: Path) -> None:
    code, said, _ = killing.searched(here / "space.yaml", here / "many", "search.cpus=1000", timeout=300)
    assert code == 2 and said.startswith(
        "memdist: a trial needs 1000 CPUs, and no machine of the cluster has more than"
    )
    assert len(said.strip().splitlines()) == 1 and not (here / "many").exists()


def test_the_quick_grid_and_what_halving_finds_of_it(tmp_path: Path) -> None:
    """All 48 cells, each exactly once; halving comes within 1 % of the best with a fifth of the epochs."""
    example.make(tmp_path / "data", 100, 128, 0, 1)
    words = [f"data.images={tmp_path}/data/images", f"data.maps={tmp_path}/data/maps", "device=cpu"]
    best = {}
    for method in ("grid", "asha"):
        out, began = tmp_path / method, time.monotonic()
        code, said, _ = killing.searched("quick", out, f"search.method={method}", *words, timeout=1800)
        assert code == 0, said
        lines = killing.ledger(out)
        starts = [line["ask"][2] for line in lines if "ask" in line and line["ask"][0] == "start"]
        assert sorted(starts) == list(range(48))
        names = {path.name for path in (out / folder.TRIALS).iterdir() if not path.name.startswith(".")}
        assert names == {space.cell(space.read("quick"), number).name for number in range(48)}
        worth = {cell: value for (cell, until), (state, value) in killing.values(out).items() if until == 16}
        best[method] = min(value for value in worth.values() if value is not None)
        spent = killing.epochs(out)
        assert spent == 48 * 16 if method == "grid" else spent <= 0.2 * 48 * 16
        kept = [name for name in names if (out / folder.TRIALS / name / rundir.CHECKPOINTS).exists()]
        assert len(kept) <= 5
        print(f"{method}: {time.monotonic() - began:.0f} s, {spent} epochs, best {best[method]:.6g}")
    assert best["asha"] <= 1.01 * best["grid"]
