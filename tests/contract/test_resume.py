"""A run that was stopped, wherever and however, ends as the run that was not: for every model, in one process."""

import shutil
from pathlib import Path
from typing import Any

import pytest

from memdist import locks, rundir
from memdist.errors import CheckpointError
from memdist.train import checkpoint, loop, restore
from memdist.train import step as step_
from tests import tiny

LAST = 14
"""Steps of a tiny run: 18 training pairs, 3 epochs, batches of 4."""


class Killed(BaseException):
    """Ends a process's work on the spot, as SIGKILL does: nothing may follow it."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.data(tmp_path_factory.mktemp("data"))


def killed_at(monkeypatch: pytest.MonkeyPatch, run: Any, out: Path, step: int) -> None:
    taken = step_.take_step

    def take_step(session: Any, *rest: Any) -> None:
        taken(session, *rest)
        if session.step == step:
            raise Killed

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(step_, "take_step", take_step)
        # Nothing that a killed process would not do: no word on its end.
        patch.setattr(loop.Leg, "note", lambda *_: None)
        loop.train(run, out)


def outcome(out: Path) -> tuple[bytes, dict[str, bytes]]:
    last = checkpoint.steps(out)[-1]
    names = (checkpoint.NETS, checkpoint.AVERAGES, checkpoint.OPTIM)
    return (out / rundir.METRICS).read_bytes(), {n: (checkpoint.folder(out, last) / n).read_bytes() for n in names}


@pytest.mark.parametrize("variant", tiny.VARIANTS)
def test_killed_runs_end_as_if_nothing_had_happened(
    variant: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A checkpoint after each step, so that runs go on in the middle of an epoch and of a log interval.
    run = tiny.run(variant, folder, **{"checkpoint.every_minutes": 1e-9})
    assert loop.train(run, tmp_path / "whole") == 0
    assert checkpoint.steps(tmp_path / "whole")[-1] == LAST
    for step in (1, 7, 12):
        killed_at(monkeypatch, run, tmp_path / "killed", step)
    assert loop.train(run, tmp_path / "killed") == 0
    assert outcome(tmp_path / "killed") == outcome(tmp_path / "whole")


def test_a_kill_before_the_first_checkpoint_starts_anew(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tiny.run("unet", folder)
    assert loop.train(run, tmp_path / "whole") == 0
    killed_at(monkeypatch, run, tmp_path / "killed", 3)
    assert checkpoint.steps(tmp_path / "killed") == [] and (tmp_path / "killed" / rundir.METRICS).stat().st_size > 0
    assert loop.train(run, tmp_path / "killed") == 0
    assert outcome(tmp_path / "killed") == outcome(tmp_path / "whole")


def test_metrics_do_not_depend_on_checkpoints(folder: Path, tmp_path: Path) -> None:
    for name, every in (("often", 1e-9), ("seldom", 1000)):
        loop.train(tiny.run("unet batch prior", folder, **{"checkpoint.every_minutes": every}), tmp_path / name)
    assert outcome(tmp_path / "often") == outcome(tmp_path / "seldom")


def test_a_finished_run_is_left_alone(folder: Path, tmp_path: Path) -> None:
    run = tiny.run("unet", folder)
    assert loop.train(run, tmp_path / "run") == 0
    before = outcome(tmp_path / "run")
    assert loop.train(run, tmp_path / "run") == 0
    assert outcome(tmp_path / "run") == before
    assert len(rundir.read_json(tmp_path / "run" / rundir.PROVENANCE)["legs"]) == 2


def test_more_epochs_go_on(folder: Path, tmp_path: Path) -> None:
    assert loop.train(tiny.run("unet", folder, epochs=2), tmp_path / "run") == 0
    assert loop.train(tiny.run("unet", folder, epochs=4), tmp_path / "run") == 0
    assert loop.train(tiny.run("unet", folder, epochs=4), tmp_path / "whole") == 0
    assert outcome(tmp_path / "run") == outcome(tmp_path / "whole")


def test_early_stopping_ends_where_it_would_have(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = tiny.run(
        "unet", folder, **{"epochs": 40, "select.patience": 1, "select.metric": "val/psnr", "select.min_delta": 50}
    )
    assert loop.train(run, tmp_path / "whole") == 0
    state = rundir.read_json(tmp_path / "whole" / rundir.STATE)
    assert state["state"] == "finished" and state["step"] == 9 and "stopped early" in state["why"]
    killed_at(monkeypatch, run, tmp_path / "killed", 7)
    assert loop.train(run, tmp_path / "killed") == 0
    assert outcome(tmp_path / "killed") == outcome(tmp_path / "whole")
    assert loop.train(run, tmp_path / "killed") == 0
    assert outcome(tmp_path / "killed") == outcome(tmp_path / "whole")


# Kills in the moments between two writes


def test_a_checkpoint_that_was_half_removed_is_in_nobodys_way(folder: Path, tmp_path: Path) -> None:
    run = tiny.run("unet", folder)
    assert loop.train(run, tmp_path / "whole") == 0
    shutil.copytree(tmp_path / "whole", tmp_path / "torn")
    torn = tmp_path / "torn"
    # The last one has lost its manifest: it is no checkpoint any more, and its step comes again.
    (checkpoint.folder(torn, LAST) / "manifest.json").unlink()
    assert len(checkpoint.steps(torn)) == 1
    assert loop.train(run, torn) == 0
    assert outcome(torn) == outcome(tmp_path / "whole")


@pytest.mark.parametrize("written", [[], [rundir.SPLIT], [rundir.SPLIT, rundir.PROVENANCE, ".config.yaml.0123.tmp"]])
def test_a_start_that_was_killed_can_be_made_again(written: list[str], folder: Path, tmp_path: Path) -> None:
    run = tiny.run("unet", folder)
    assert loop.train(run, tmp_path / "whole") == 0
    (tmp_path / "begun").mkdir()
    for name in written:
        content = (tmp_path / "whole" / name).read_bytes() if not name.startswith(".") else b"half"
        (tmp_path / "begun" / name).write_bytes(content)
    assert loop.train(run, tmp_path / "begun") == 0
    assert outcome(tmp_path / "begun") == outcome(tmp_path / "whole")
    assert not list((tmp_path / "begun").glob(".*.tmp"))


def test_a_second_process_is_refused(folder: Path, tmp_path: Path) -> None:
    run = tiny.run("unet", folder)
    assert loop.train(run, tmp_path / "run") == 0
    with (
        locks.hold(tmp_path / "run"),
        pytest.raises(CheckpointError, match=r"is being trained by process \d+ on"),
    ):
        loop.train(run, tmp_path / "run")
    assert loop.train(run, tmp_path / "run") == 0


def test_a_run_that_was_killed_on_its_last_line_is_finished_by_the_next(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tiny.run("unet", folder)
    with monkeypatch.context() as patch:
        patch.setattr(loop.Leg, "_finish", lambda *_: 0)
        loop.train(run, tmp_path / "run")
    assert rundir.read_json(tmp_path / "run" / rundir.STATE)["state"] == "running"
    assert loop.train(run, tmp_path / "run") == 0
    assert rundir.read_json(tmp_path / "run" / rundir.STATE)["state"] == "finished"


def test_best_is_said_to_be_lost_where_it_is(folder: Path, tmp_path: Path) -> None:
    # A correlation that may fall: the first validation is the best, as no later one is 5 better.
    settings = {"select.metric": "val/cc", "select.min_delta": 5, "checkpoint.keep_every": 1}
    assert loop.train(tiny.run("unet", folder, **settings), tmp_path / "run") == 0
    best = restore.chosen_step(tmp_path / "run", "best")
    assert best < LAST
    shutil.rmtree(checkpoint.folder(tmp_path / "run", best))
    with pytest.raises(CheckpointError, match=f"has lost its best checkpoint, of step {best}"):
        restore.chosen_step(tmp_path / "run", "best")
