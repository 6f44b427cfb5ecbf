"""Scores of a diffusion model: how its maps were made is said, one sample stands beside k, sheets show them."""

import csv
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from memdist import rundir
from memdist.bench import sample
from memdist.compare import page, table
from memdist.distributed import strategy as strategy_
from memdist.distributed.single import Single
from memdist.errors import ConfigError
from memdist.train import evaluate, loop, mapper, recipe, study
from tests import tiny


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tiny.data(tmp_path_factory.mktemp("data"))
    out = tmp_path_factory.mktemp("run") / "palette"
    assert loop.train(tiny.run("palette x0", folder), out) == 0
    return out


def _l1(run: Path, who: str) -> list[float]:
    rows = csv.DictReader((run / rundir.SCORES_CSV).read_text().splitlines())
    return [float(row["l1"]) for row in rows if row["split"] == "test" and row["predictor"] == who]


@pytest.mark.parametrize("combine", ["mean", "median"])
def test_one_sample_stands_beside_k(run: Path, combine: str, tmp_path: Path) -> None:
    evaluate.evaluate(run, ["test"], overrides=["eval.sampler=unipc", "eval.steps=4", "eval.batch=4"])
    once = rundir.read_json(run / rundir.SCORES)["test"]
    alone = _l1(run, "model")
    assert once["single"] is None and once["sampling"]["evaluations"] == 4 and not _l1(run, "one sample")
    more = ["eval.sampler=unipc", "eval.steps=4", "eval.batch=4", "eval.samples=5", f"eval.combine={combine}"]
    evaluate.evaluate(run, ["test"], overrides=more)
    record = rundir.read_json(run / rundir.SCORES)["test"]
    assert record["sampling"] == {
        **once["sampling"],
        "samples": 5,
        "combine": combine,
        "evaluations": 20,
    }
    # Other batches round otherwise.
    assert _l1(run, "one sample") == pytest.approx(alone, rel=1e-5)
    assert record["single"]["metrics"]["l1"]["mean"] == pytest.approx(once["metrics"]["l1"]["mean"], rel=1e-5)
    assert record["single"]["skill"] == pytest.approx(once["skill"])
    assert _l1(run, "model") != alone
    assert "one sample" not in record["trivial"]
    comparison = table.collect([run])
    lines = table.rows(comparison.groups[0], page=False)
    assert [line.label for line in lines[:3]] == ["palette", "palette, one sample", "black"]
    place = [column.title for column in table.columns(page=False)].index("test L1")
    assert lines[1].cells[place] == f"{once['metrics']['l1']['mean']:.4f}"
    text = page.write(comparison, tmp_path / "page.html").read_text()
    assert f"unipc, {combine} of 5 samples, 5 x 4 evaluations" in text and "palette, one sample" in text


def test_sheets_show_pictures_samples_and_errors(run: Path) -> None:
    evaluate.evaluate(run, ["test", "val"], overrides=["eval.samples=2", "eval.grid=4"], grid=True)
    for name in ("test", "val"):
        (sheet,) = (run / rundir.SAMPLES / f"{name}-grid").iterdir()
        assert sheet.name == "sheet-01.png"
        shape = np.asarray(Image.open(sheet)).shape
        # Image, map, two samples, their mean, error.
        assert shape == (16 + 4 * (6 * tiny.SIZE + 2), 84 + 6 * (6 * tiny.SIZE + 2), 3)
    evaluate.evaluate(run, ["test"])
    assert (run / rundir.SAMPLES / "test-grid").is_dir()


def test_the_bench_measures_speed_and_error_beside_all_steps(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sample.main(run, split="test", images=3, overrides=["eval.compile=never", "eval.steps=2", "eval.batch=3"])
    said = capsys.readouterr().out
    assert "palette, 3 pictures of test, 16 x 16, on cpu" in said
    assert "plain loop: ancestral, 50 evaluations, eager, 3 at once" in said
    assert "this run: ddim, 2 evaluations, eager, fp32, 3 at once" in said
    assert "times as fast, at" in said and "times as fast as plain eager" in said
    with pytest.raises(ConfigError, match="51 sampling steps"):
        sample.main(run, split="test", images=3, overrides=["eval.steps=51"])


def test_settings_that_cannot_be_are_refused_before_anything_is_written(run: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*") if path.is_file()}
    for override, sentence in {
        "eval.sampler=magic": "there is no sampler 'magic'",
        "eval.steps=51": "choose from 1 to 50",
        "eval.steps=0": "eval.steps = 0",
        "eval.samples=0": "eval.samples = 0",
        "eval.combine=mode": "mean",
    }.items():
        with pytest.raises(ConfigError, match=sentence):
            evaluate.evaluate(run, ["test"], overrides=[override])
    with pytest.raises(ConfigError, match="eta belongs to"):
        evaluate.evaluate(run, ["test"], overrides=["eval.eta=0.5", "eval.sampler=heun"])
    assert before == {path: path.stat().st_mtime_ns for path in run.rglob("*") if path.is_file()}


def test_a_device_that_is_full_is_told(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise torch.OutOfMemoryError("full")

    monkeypatch.setattr(mapper.Mapper, "sample", full)
    for given in ([], ["eval.batch=2"]):
        with pytest.raises(ConfigError, match=r"has too little memory now .*: give a smaller eval\.batch=N"):
            evaluate.evaluate(run, ["test"], overrides=["eval.samples=3", *given])
    with pytest.raises(ConfigError, match=r"has too little memory now"):
        study.study(run, overrides=["study.steps=[1]"])


def test_the_main_rank_reads_the_study_for_all(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Each rank reads for itself at first, and a study may end between the two.
    monkeypatch.setattr(Single, "world", 2, raising=False)
    monkeypatch.setattr(recipe, "studied", lambda _: {})
    told: list[bool] = []

    def main(strategy: object, work: object) -> dict[str, object]:
        told.append(True)
        raise InterruptedError

    monkeypatch.setattr(strategy_, "record_from_main", main)
    with pytest.raises(InterruptedError):
        evaluate.evaluate(run, ["test"])
    assert told == [True]
