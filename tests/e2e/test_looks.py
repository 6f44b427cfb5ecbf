"""Scores against fixations and by FID or KID, from a run folder to the table and the page."""

import csv
import io
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console

from memdist import draws, metrics, rundir, saliency
from memdist.compare import page, table
from memdist.data import example
from memdist.train import dataset, distribution, evaluate, loop, trivial
from memdist.train import scored as scored_
from memdist.train.trivial import NAMES
from tests import looks, tiny

WITHOUT = ("0003", "0004", "0005", "0006", "0007", "0008", "0009")


@pytest.fixture(scope="module")
def scored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on pictures larger than it is trained at: val scored plainly, test with everything."""
    folder = tmp_path_factory.mktemp("looks")
    example.make(folder / "data", tiny.PAIRS, 24, 0, 1)
    run = tiny.run("unet", folder / "data", **{"epochs": 1, "log.images": 0})
    assert loop.train(run, folder / "run") == 0
    stems = sorted(path.stem for path in (folder / "data" / "images").iterdir())
    looks.fixations(folder / "data" / "images", folder / "fixations.npz", [stems[int(number)] for number in WITHOUT])
    evaluate.evaluate(folder / "run", ["val"])
    _evaluate(folder, "test")
    return folder


def _evaluate(folder: Path, split: str, *more: str, run: str = "run") -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(distribution, "load", lambda path, device: looks.EXTRACTOR)
        overrides = [f"data.fixations={folder}/fixations.npz", *more]
        return evaluate.evaluate(folder / run, [split], overrides=overrides)


def _lines(folder: Path) -> list[dict[str, str]]:
    return list(csv.DictReader((folder / "run" / rundir.SCORES_CSV).read_text().splitlines()))


def test_all_predictors_have_them_and_the_record_says_what_they_rest_on(scored: Path) -> None:
    record = rundir.read_json(scored / "run" / rundir.SCORES)["test"]
    assert set(record["trivial"]) == set(NAMES)
    for means in (record["metrics"], *record["trivial"].values()):
        assert list(means) == [*metrics.METRICS, *saliency.METRICS]
    known = record["fixations"]
    assert len(known["sha256"]) == 64 and known["ignored"] == 0
    assert known["negatives"] == {"split": "train", "others": 10, "splits": 100}
    missing = record["n"] - known["pictures"]
    assert 0 < missing < record["n"]
    assert record["metrics"]["nss"]["undefined"] == missing
    assert record["trivial"]["black"]["nss"] == {"mean": None, "n": 0, "undefined": record["n"]}
    for name in ("auc-judd", "auc-borji", "sauc"):
        assert record["trivial"]["black"][name] == {"mean": 0.5, "n": known["pictures"], "undefined": missing}
    found = record["distribution"]
    assert (found["kind"], found["n"], found["layer"]) == ("kid", record["n"], "quarters (4)")
    assert set(found["trivial"]) == set(NAMES) and found["model"]["std"] > 0


def test_the_figures_are_those_of_the_pure_functions_at_the_pictures_own_size(scored: Path) -> None:
    run = evaluate.settings_for_reading(scored / "run", [])
    data = dataset.load(run)
    mean = trivial.mean_map(data.pixels, data.rows["train"])
    own = metrics.resize(mean[None].double(), (24, 24))[0].numpy()
    arrays = np.load(scored / "fixations.npz")
    checked = 0
    for line in (line for line in _lines(scored) if (line["split"], line["predictor"]) == ("test", "mean")):
        if line["stem"] not in arrays:
            assert line["nss"] == line["sauc"] == ""
            continue
        row = data.pixels.stems.index(line["stem"])
        x, y = np.floor(arrays[line["stem"]][:, :2]).astype(int).T
        fixated = np.unique(y * 24 + x)
        values = saliency.intensity(own)
        assert float(line["nss"]) == pytest.approx(saliency.nss(values, fixated), rel=1e-5)
        assert float(line["auc-judd"]) == pytest.approx(saliency.auc_judd(values, fixated), rel=1e-5)
        negatives = saliency.anywhere(draws.key("gaze", data.pixels.image_hashes[row]), len(fixated), 576)
        borji = saliency.auc_of_draws(values, fixated, negatives).mean()
        assert float(line["auc-borji"]) == pytest.approx(borji, rel=1e-5)
        checked += 1
    assert checked >= 3


def test_shuffled_negatives_are_other_pictures_of_train(scored: Path) -> None:
    from memdist.train import gaze

    run = evaluate.settings_for_reading(scored / "run", [f"data.fixations={scored / 'fixations.npz'}"])
    data = dataset.load(run)
    looked = gaze.read(run.data, data.pairs, data.pixels, data.rows["train"])
    assert looked is not None
    train = {int(row) for row in data.rows["train"]}
    arrays = np.load(scored / "fixations.npz")
    chosen = [looked.others(row) for row in range(len(data.pixels.stems))]
    for row, others in enumerate(chosen):
        assert len(set(others)) == 10 and set(others) <= train - {row}
        assert all(data.pixels.stems[other] in arrays for other in others)
    assert len({tuple(others) for others in chosen}) > 20
    # Another order of the training rows is the same choice.
    again = gaze.read(run.data, data.pairs, data.pixels, data.rows["train"][::-1].copy())
    assert again is not None and [again.others(row) for row in range(len(chosen))] == chosen
    stem = next(stem for stem in data.pixels.stems if stem in arrays)
    picture = looked.picture(data.pixels.stems.index(stem))
    union = np.concatenate([arrays[data.pixels.stems[o]] for o in looked.others(data.pixels.stems.index(stem))])
    assert set(picture.elsewhere.flat) <= {int(y) * 24 + int(x) for x, y, _ in union}


def test_neither_batch_nor_time_changes_them(scored: Path, tmp_path: Path) -> None:
    shutil.copytree(scored / "run", tmp_path / "run")
    shutil.copy(scored / "fixations.npz", tmp_path)
    before = rundir.read_json(tmp_path / "run" / rundir.SCORES)["test"]
    _evaluate(tmp_path, "test", "eval.batch=2")
    after = rundir.read_json(tmp_path / "run" / rundir.SCORES)["test"]
    assert (
        after["trivial"] == before["trivial"] and after["distribution"]["trivial"] == before["distribution"]["trivial"]
    )
    for name in saliency.METRICS:
        assert after["metrics"][name]["mean"] == pytest.approx(before["metrics"][name]["mean"], abs=1e-3)


def test_columns_come_and_go_with_the_splits_that_have_them(scored: Path, tmp_path: Path) -> None:
    lines = _lines(scored)
    assert list(lines[0]) == ["split", "predictor", "stem", *metrics.METRICS, *saliency.METRICS]
    plain = [line for line in lines if line["split"] == "val"]
    assert len(plain) == 6 * 6 and all(line["nss"] == "" and line["l1"] for line in plain)
    shutil.copytree(scored / "run", tmp_path / "run")
    evaluate.evaluate(tmp_path / "run", ["test"])
    lines = _lines(tmp_path)
    assert list(lines[0]) == ["split", "predictor", "stem", *metrics.METRICS]
    assert {line["split"] for line in lines} == {"val", "test"}
    record = rundir.read_json(tmp_path / "run" / rundir.SCORES)["test"]
    assert (
        record["fixations"] is None
        and record["distribution"] is None
        and set(record["metrics"]) == set(metrics.METRICS)
    )


def _text(renderable: Any) -> str:
    console = Console(width=250, file=io.StringIO())
    with console.capture() as capture:
        console.print(renderable)
    return capture.get()


def test_what_is_printed(scored: Path) -> None:
    scores = rundir.read_json(scored / "run" / rundir.SCORES)
    told = _text(scored_.table(scores, ["test"]))
    assert "against fixations" in told and "auc-borji (higher is better)" in told and "KID to the true maps" in told
    assert f"fixations of {scores['test']['fixations']['pictures']} of 6 pictures" in told
    assert "fixations" not in _text(scored_.table(scores, ["val"]))


def test_comparisons_show_them_and_say_who_lacks_them(scored: Path, tmp_path: Path) -> None:
    shutil.copytree(scored / "run", tmp_path / "plain")
    evaluate.evaluate(tmp_path / "plain", ["test"])
    alone = _text(table.render(table.collect([tmp_path / "plain"])))
    assert "NSS" not in alone and "KID" not in alone
    both = table.collect([tmp_path / "plain", scored / "run"])
    titles = [column.title for column in table.columns(page=True, group=both.groups[0])]
    shown = {row.label: dict(zip(titles, row.cells, strict=True)) for row in table.rows(both.groups[0], page=True)}
    assert shown["plain"]["test NSS"] == shown["plain"]["test KID"] == "–"
    assert shown["black"]["test AUC-JUDD"].startswith("0.500") and "±" in shown["mean map"]["test KID"]
    notes = "\n".join(table.footnotes(both.groups[0]))
    assert "plain: test was not scored against fixations" in notes and "eval.fid_weights=FILE" in notes
    html = page.write(both, tmp_path / "page.html").read_text()
    assert "<th>test SAUC</th>" in html and "AUC-BORJI" in html and "-inf to inf" in html
    assert "AUC-BORJI" not in page.write(table.collect([tmp_path / "plain"]), tmp_path / "page.html").read_text()


def test_other_fixations_are_not_comparable(scored: Path, tmp_path: Path) -> None:
    shutil.copytree(scored / "run", tmp_path / "other")
    looks.fixations(scored / "data" / "images", tmp_path / "fixations.npz")
    _evaluate(tmp_path, "test", run="other")
    notes = "\n".join(table.footnotes(table.collect([tmp_path / "other", scored / "run"]).groups[0]))
    assert "Not all runs were scored with the same fixations" in notes and "weights of Inception" not in notes


def test_weights_are_read_before_anything_is_predicted(scored: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from memdist.errors import ConfigError

    monkeypatch.setattr(dataset, "load", lambda *_: pytest.fail("the data were opened"))
    with pytest.raises(ConfigError, match="does not exist"):
        evaluate.evaluate(scored / "run", ["test"], overrides=["eval.fid_weights=nowhere.pth"])
    assert torch.is_grad_enabled()
