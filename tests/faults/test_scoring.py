"""Scoring a run while it trains, and twice at once: everybody comes to the end, and nobody's scores are lost."""

import multiprocessing
import os
import shutil
import threading
from pathlib import Path

import pytest

from memdist import process, rundir
from memdist.errors import CheckpointError
from memdist.train import checkpoint, evaluate, extremes, loop, restore, score, start, validate
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


@pytest.fixture(scope="module")
def scored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    here = tmp_path_factory.mktemp("scored")
    assert loop.train(tiny.run("unet", tiny.data(here / "data"), epochs=1), here / "run") == 0
    evaluate.evaluate(here / "run", ["val", "test"])
    return here / "run"


def contents(run: Path) -> dict[str, bytes]:
    """Everything that scoring leaves behind; a lock has another number each time it is taken."""
    return {
        str(path.relative_to(run)): path.read_bytes()
        for path in run.rglob("*")
        if path.is_file() and not path.name.startswith(rundir.SCORING_LOCK)
    }


@pytest.mark.parametrize("number", [28, 5])
def test_pictures_that_find_no_room_leave_the_former_ones(
    number: int, scored: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, write = contents(scored), validate.write_png
    written: list[Path] = []

    def refuse(path: Path, *rest: object) -> None:
        if len(written) == 5:
            raise OSError(number, os.strerror(number), str(path))
        written.append(path)
        write(path, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(validate, "write_png", refuse)
    with pytest.raises(CheckpointError, match=f"cannot write .*samples/test: {os.strerror(number).lower()}; what was"):
        evaluate.evaluate(scored, ["test"])
    assert len(written) == 5 and contents(scored) == before


def test_pictures_are_whole_before_the_former_ones_go(scored: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    samples, remove = scored / rundir.SAMPLES / "test", rundir.remove_folder
    there: list[set[str]] = []

    def look(path: Path) -> None:
        if path == samples:
            (beside,) = (scored / rundir.SAMPLES).glob(".test.*.tmp")
            there.append({file.name for file in beside.iterdir()})
        remove(path)

    monkeypatch.setattr(rundir, "remove_folder", look)
    evaluate.evaluate(scored, ["test"])
    assert there == [{file.name for file in samples.iterdir()}] and len(there[0]) == 12
    assert not list(scored.rglob("*.tmp"))


def linked(link: str, scored: Path, tmp_path: Path) -> tuple[Path, Path]:
    """A scored run of which a folder of pictures is a link, and where it leads."""
    run, outside = tmp_path / "run", tmp_path / "outside"
    shutil.copytree(scored, run)
    (outside / "test").mkdir(parents=True)
    (outside / "precious").write_text("mine")
    (outside / "test" / "best-01-mine.png").write_text("mine")
    shutil.rmtree(run / link)
    (run / link).symlink_to(outside, target_is_directory=True)
    return run, outside


def test_a_link_in_place_of_the_pictures_of_a_split_gives_way(scored: Path, tmp_path: Path) -> None:
    run, outside = linked("samples/test", scored, tmp_path)
    before = contents(outside)
    evaluate.evaluate(run, ["test"])
    assert contents(outside) == before
    samples = run / rundir.SAMPLES / "test"
    assert not samples.is_symlink() and len(list(samples.iterdir())) == 12
    assert not list(run.rglob("*.tmp"))


def test_a_link_in_place_of_all_pictures_is_refused(scored: Path, tmp_path: Path) -> None:
    run, outside = linked("samples", scored, tmp_path)
    before = contents(outside)
    for act in (lambda: evaluate.evaluate(run, ["test"]), lambda: loop.train(restore.settings(run), run)):
        with pytest.raises(CheckpointError, match="samples is a link, .*: remove the link"):
            act()
    assert contents(outside) == before and (run / "samples").is_symlink()


def test_a_folder_that_cannot_be_written_is_found_before_anything_is_predicted(
    scored: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path, *_: object) -> int:
        raise OSError(30, "Read-only file system", str(path))

    monkeypatch.setattr(Path, "write_bytes", refuse)
    monkeypatch.setattr(score, "measure", lambda *_, **__: pytest.fail("something was predicted"))
    with pytest.raises(CheckpointError, match="cannot write .*run: read-only file system; .*mount it writable"):
        evaluate.evaluate(scored, ["test"])


@pytest.mark.parametrize(
    ("name", "content"),
    [
        (rundir.SCORES_CSV, b"split,predictor,stem\n\xff,b,c\n"),
        (rundir.SCORES_CSV, b"split,predictor,stem\n" + b"x" * 300_000 + b",b,c\n"),
        (rundir.SCORES, b"{"),
        (rundir.SCORES, b"[]"),
    ],
    ids=range(4),
)
def test_former_scores_that_cannot_be_read_are_named_before_anything_is_predicted(
    name: str, content: bytes, scored: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    shutil.copytree(scored, run)
    (run / name).write_bytes(content)
    if name == rundir.SCORES_CSV and b"\xff" not in content:
        header = (scored / name).read_bytes().split(b"\n")[0]
        (run / name).write_bytes(content.replace(b"split,predictor,stem", header))
    before = contents(run)
    monkeypatch.setattr(score, "measure", lambda *_, **__: pytest.fail("something was predicted"))
    with pytest.raises(CheckpointError, match=f"{name} .*; restore it or delete it"):
        evaluate.evaluate(run, ["test"])
    assert contents(run) == before
