"""`until`: a run that pauses at the end of an epoch and goes on is the run that did not, bit for bit."""

import subprocess
import sys
from pathlib import Path

import pytest

from memdist import config, rundir
from memdist.launch.ends import RESUME_ME
from memdist.train import loop
from tests import tiny
from tests.faults.asking import outcome

CASES = {
    "unet": ("unet", {"select.patience": 3}),
    "ema": ("unet batch prior", {"batch.size": 5}),
    "pix2pix": ("pix2pix", {}),
    "palette": ("palette", {"epochs": 2}),
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.data(tmp_path_factory.mktemp("until") / "data")


@pytest.mark.parametrize("name", sorted(CASES))
def test_a_run_that_pauses_is_the_run_that_does_not(name: str, data: Path, tmp_path: Path) -> None:
    variant, more = CASES[name]
    assert loop.train(tiny.run(variant, data, **more), tmp_path / "whole") == 0
    for until in (1, 2, 2, None):
        again = more | ({"until": until} if until else {})
        pauses = until is not None and until < int(str(more.get("epochs", 3)))
        assert loop.train(tiny.run(variant, data, **again), tmp_path / "paused") == (RESUME_ME if pauses else 0)
        stands = rundir.read_json(tmp_path / "paused" / rundir.STATE)
        if pauses:
            assert (stands["state"], stands["why"]) == ("stopped", f"until={until}") and int(stands["epoch"]) == until
            seen = [int(r["epoch"]) for r in rundir.read_lines(tmp_path / "paused" / rundir.METRICS) if "val/l1" in r]
            assert seen == list(range(1, until + 1))
    assert outcome(tmp_path / "paused") == outcome(tmp_path / "whole")
    config_ = rundir.CONFIG
    assert config.read(tmp_path / "paused" / config_) == config.read(tmp_path / "whole" / config_)


def test_what_is_there_already_is_left_as_it_is(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    assert loop.train(tiny.run("unet", data, until=2), out) == RESUME_ME
    before = outcome(out)
    for until in (1, 2):
        assert loop.train(tiny.run("unet", data, until=until), out) == RESUME_ME
        assert outcome(out) == before and int(rundir.read_json(out / rundir.STATE)["epoch"]) == 2


@pytest.mark.parametrize("until", [3, 4, 1000])
def test_the_last_epoch_is_no_pause(until: int, data: Path, tmp_path: Path) -> None:
    assert loop.train(tiny.run("unet", data, until=until), tmp_path / "run") == 0
    assert rundir.read_json(tmp_path / "run" / rundir.STATE)["state"] == "finished"
    assert loop.train(tiny.run("unet", data, until=1), tmp_path / "run") == 0, "it is finished, and stays so"
    assert rundir.read_json(tmp_path / "run" / rundir.STATE)["state"] == "finished"


def test_patience_counts_over_a_pause(data: Path, tmp_path: Path) -> None:
    more = {"epochs": 8, "select.patience": 2, "optim.unet.lr": 1e-30}
    if loop.train(tiny.run("unet", data, **more), tmp_path / "whole") == 0:
        for until in (1, 2, 3, None):
            code = loop.train(
                tiny.run("unet", data, **more, **({"until": until} if until else {})), tmp_path / "paused"
            )
    assert code == 0 and "stopped early" in rundir.read_json(tmp_path / "whole" / rundir.STATE)["why"]
    assert outcome(tmp_path / "paused") == outcome(tmp_path / "whole")


@pytest.mark.slow
@pytest.mark.distributed
def test_two_ranks_pause_together(data: Path, tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"

    def train(name: str, *words: str) -> int:
        file.write_text(config.written(tiny.raw("unet", data)))
        program = "import sys; from memdist.launch import local; sys.exit(local.run(sys.argv[1:], 2))"
        command = [sys.executable, "-m", "memdist", "train", str(file), *words, "--out", str(tmp_path / name)]
        return subprocess.run([sys.executable, "-c", program, *command], timeout=300).returncode

    assert train("whole") == 0
    assert train("paused", "until=1") == RESUME_ME and train("paused") == 0
    assert outcome(tmp_path / "paused") == outcome(tmp_path / "whole")
