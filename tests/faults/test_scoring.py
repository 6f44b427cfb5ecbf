"""Scoring a run while it trains, and twice at once: everybody comes to the end, and nobody's scores are lost."""

import multiprocessing
import threading
from pathlib import Path

import pytest

from memdist import process, rundir
from memdist.train import checkpoint, evaluate, extremes, loop, start
from memdist.train import step as step_
from tests import tiny


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return tiny.data(tmp_path / "data")


def test_scoring_twice_at_once_loses_nothing(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both have measured before either writes: without turns, the later would write the scores that it read too early."""
    run = tmp_path / "run"
    assert loop.train(tiny.run("unet", data), run) == 0
    measured, write = threading.Barrier(2), extremes.Extremes
    failures: list[BaseException] = []

    class Extremes(write):  # type: ignore[misc, valid-type]
        def __init__(self, *rest: object) -> None:
            super().__init__(*rest)
            measured.wait()

    monkeypatch.setattr(extremes, "Extremes", Extremes)

    def score(split: str) -> None:
        try:
            evaluate.evaluate(run, [split])
        except BaseException as error:
            failures.append(error)

    for splits in (("val", "test"), ("test", "test")):
        threads = [threading.Thread(target=score, args=(split,)) for split in splits]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert failures == []
        scores = rundir.read_json(run / rundir.SCORES)
        assert scores.keys() == {"val", "test"}
        lines = (run / rundir.SCORES_CSV).read_text().splitlines()[1:]
        assert {line.split(",")[0] for line in lines} == {"val", "test"} and len(lines) == len(set(lines))
        assert not list(run.rglob("*.tmp"))


def test_scoring_a_run_that_trains_is_harmless(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its checkpoints come and go while they are read; temporary files of who scores survive the start of training."""
    run, often = tmp_path / "run", {"checkpoint.every_minutes": 1e-9}
    whole = tmp_path / "whole"
    assert loop.train(tiny.run("unet", data, **often), whole) == 0
    taken = step_.take_step
    scored: list[int] = []

    def take_step(session: start.Session, *rest: object) -> None:
        taken(session, *rest)  # type: ignore[arg-type]
        if session.step in (4, 7, 11):
            for choice in ("last", "best") if session.step > 5 else ("last",):
                evaluate.evaluate(run, ["test"], choice=choice)
            scored.append(rundir.read_json(run / rundir.SCORES)["test"]["checkpoint"])

    monkeypatch.setattr(step_, "take_step", take_step)
    (run / rundir.SAMPLES).mkdir(parents=True)
    run.joinpath(rundir.SAMPLES).rmdir()
    beside = rundir.temporary(run / rundir.SCORES)
    beside.write_text("half")
    assert loop.train(tiny.run("unet", data, **often), run) == 0
    assert beside.read_text() == "half" and process.this().tag in beside.name
    assert len(scored) == 3
    assert (run / rundir.METRICS).read_bytes() == (whole / rundir.METRICS).read_bytes()
    assert checkpoint.steps(run) == checkpoint.steps(whole)
    assert multiprocessing.active_children() == []


def test_a_checkpoint_that_goes_while_it_is_read_is_chosen_again(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from memdist.train import restore

    run = tmp_path / "run"
    assert loop.train(tiny.run("unet", data, **{"checkpoint.every_minutes": 1e-9}), run) == 0
    load = checkpoint.load_weights
    gone: list[int] = []

    def load_weights(out: Path, step: int, *rest: object, **more: object) -> None:
        if not gone:
            gone.append(step)
            rundir.remove_folder(checkpoint.folder(out, step))
        load(out, step, *rest, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(checkpoint, "load_weights", load_weights)
    import torch

    found = restore.restore(run, "last", ema=True, device=torch.device("cpu"))
    assert gone == [14] and found.step == 13
