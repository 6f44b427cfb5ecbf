"""A study of a tiny run: what it finds is what it is measured to be, is kept, and is the run's default from then on."""

import csv
import dataclasses
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from memdist import metrics, rundir
from memdist.cli import main
from memdist.data import loader, split
from memdist.errors import CheckpointError, ConfigError
from memdist.model import Sampling
from memdist.models.palette import Palette
from memdist.train import dataset, evaluate, loop, restore, score, study, studybench
from tests import tiny

ROOT = Path(__file__).parents[2]
HOW = ["study.samplers=[ddim,dpmpp_2m]", "study.steps=[1,3]", "study.samples=[1,2]", "eval.batch=8"]
FILES = (rundir.STUDY, rundir.STUDY_CSV, rundir.STUDY_FIGURE)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("study")
    tiny.data(folder / "data")
    run = tiny.run("palette", folder / "data", **{"log.images": 0, "checkpoint.keep_every": 1, "validate.every": 3})
    assert loop.train(run, folder / "run") == 0
    return folder / "run"


@pytest.fixture(scope="module")
def studied(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Only looked at."""
    folder = tmp_path_factory.mktemp("studied") / "run"
    shutil.copytree(trained, folder)
    study.study(folder, overrides=HOW)
    return folder


@pytest.fixture
def mine(studied: Path, tmp_path: Path) -> Path:
    shutil.copytree(studied, tmp_path / "run")
    return tmp_path / "run"


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Sampling]]:
    """Samplings that the model was asked for."""
    asked: list[Sampling] = []
    predict = Palette.predict

    def told(self: Any, nets: Any, image: Any, seed: Any, sampling: Sampling) -> Any:
        asked.append(sampling)
        return predict(self, nets, image, seed, sampling)

    monkeypatch.setattr(Palette, "predict", told)
    yield asked


def figures(folder: Path) -> dict[tuple[str, ...], dict[str, str]]:
    """Lines of study.csv but for the seconds."""
    lines = csv.DictReader((folder / rundir.STUDY_CSV).read_text().splitlines())
    keys = ("sampler", "steps", "samples", "combine")
    return {tuple(line[key] for key in keys): {k: v for k, v in line.items() if k != "seconds"} for line in lines}


def timeless(value: Any) -> Any:
    """A record without its seconds."""
    if isinstance(value, dict):
        return {key: timeless(one) for key, one in value.items() if key != "seconds"}
    return [timeless(one) for one in value] if isinstance(value, list) else value


def test_all_is_there(studied: Path) -> None:
    record, lines = rundir.read_json(studied / rundir.STUDY), figures(studied)
    tried = {(s, n, k, "mean") for s in ("ddim", "dpmpp_2m") for n in ("1", "3") for k in ("1", "2")}
    assert set(lines) == tried | {("ancestral", "50", "1", "mean")}
    assert [key for key, line in lines.items() if line["chosen"] == "true"] == [
        tuple(str(record["chosen"][key]) for key in ("sampler", "steps", "samples", "combine"))
    ]
    stems = split.stems_of(split.read(studied / rundir.SPLIT))
    assert record["n"] == len(stems["val"]) and record["split"] == "val" and record["tolerance"] == 0.01
    assert record["reference"]["sampler"] == "ancestral" and record["reference"]["steps"] == 50
    assert record["found"]["l1"] <= 1.01 * record["reference"]["l1"]
    assert record["checkpoint"] == restore.chosen_step(studied, "best") and record["averaged"]
    for line in lines.values():
        good = float(line["l1"]) <= 1.01 * record["reference"]["l1"] + 1e-9
        assert line["within"] == str(good).lower()
        assert not good or int(line["evaluations_in_all"]) >= record["found"]["evaluations"]


def test_the_figures_are_those_of_maps_made_by_hand(studied: Path) -> None:
    found = restore.restore(studied, "best", ema=True, device=torch.device("cpu"))
    data = dataset.load(found.run)
    rows, pixels = data.rows["val"], data.pixels
    image, truth = (loader.floats(torch.from_numpy(part[rows])) for part in (pixels.images, pixels.maps))
    sampling = Sampling(sampler="dpmpp_2m", steps=3)
    maps = []
    for replicate in (0, 1):
        seeds = [loader.picture_seed(found.run.seed, pixels.image_hashes[row], replicate) for row in rows]
        with torch.no_grad():
            maps.append(found.model.predict(found.nets, image, torch.tensor(seeds), sampling).clamp(-1, 1))
    for k, combined in (("1", maps[0]), ("2", (maps[0] + maps[1]) / 2)):
        line, values = figures(studied)["dpmpp_2m", "3", k, "mean"], metrics.score(combined, truth)
        assert float(line["l1"]) == pytest.approx(float(values["l1"].mean()), rel=1e-4)
        assert float(line["cc"]) == pytest.approx(float(values["cc"].nanmean()), rel=1e-3, abs=1e-5)


def test_what_was_chosen_is_the_default(mine: Path) -> None:
    record = rundir.read_json(mine / rundir.STUDY)
    evaluate.evaluate(mine, ["val"])
    scores = rundir.read_json(mine / rundir.SCORES)["val"]
    assert {key: scores["sampling"][key] for key in record["chosen"]} == record["chosen"]
    assert scores["sampling"]["evaluations"] == record["found"]["evaluations"]
    assert scores["metrics"]["l1"]["mean"] == pytest.approx(record["found"]["l1"], rel=1e-4)
    settings = evaluate.settings_for_reading(mine, ["eval.steps=7"]).eval
    assert settings.steps == 7 and settings.sampler == record["chosen"]["sampler"]
    (mine / rundir.STUDY).unlink()
    assert evaluate.settings_for_reading(mine, []).eval.steps == 3


def test_again_measures_nothing(mine: Path, calls: list[Sampling]) -> None:
    before = {name: (mine / name).read_bytes() for name in FILES}
    study.study(mine, overrides=HOW)
    assert calls == []
    assert {name: (mine / name).read_bytes() for name in FILES} == before


def test_a_former_study_is_no_part_of_a_new_one(mine: Path, calls: list[Sampling]) -> None:
    record = rundir.read_json(mine / rundir.STUDY)
    rundir.write_json(mine / rundir.STUDY, {**record, "chosen": {**record["chosen"], "spacing": "karras", "steps": 9}})
    study.study(mine, overrides=HOW)
    assert calls == [] and rundir.read_json(mine / rundir.STUDY) == record


def test_only_what_is_new_is_measured(mine: Path, calls: list[Sampling]) -> None:
    before = rundir.read_json(mine / rundir.STUDY)["measured"]
    study.study(mine, overrides=[*HOW, "study.steps=[1,4]", "study.samplers=[ddim]"])
    assert {one.steps for one in calls} == {1, 4}  # 1: the pace, and what is tried is known
    assert {one.sampler for one in calls} == {"ddim"}
    after = rundir.read_json(mine / rundir.STUDY)["measured"]
    assert all(group in after["groups"] for group in before["groups"])
    assert set(figures(mine)) == {("ddim", n, k, "mean") for n in "14" for k in "12"} | {
        ("ancestral", "50", "1", "mean")
    }


@pytest.mark.parametrize("other", ["checkpoint", "weights", "images", "size"])
def test_under_other_circumstances_all_is_measured_anew(other: str, mine: Path, calls: list[Sampling]) -> None:
    how: dict[str, Any] = {"overrides": HOW}
    if other == "checkpoint":
        how["choice"] = "5"
    if other == "weights":
        how["ema"] = False
    if other == "images":
        how["overrides"] = [*HOW, "study.images=2"]
    if other == "size":
        # That of the maps it is compared at; it belongs to the run.
        record = rundir.read_json(mine / rundir.STUDY)
        record["measured"]["circumstances"]["size"] = 8
        rundir.write_json(mine / rundir.STUDY, record)
    study.study(mine, **how)
    assert {(one.sampler, one.steps) for one in calls} >= {("ancestral", 50), ("dpmpp_2m", 3), ("ddim", 3)}
    record = rundir.read_json(mine / rundir.STUDY)
    assert len(record["measured"]["groups"]) == 5
    assert record["n"] == (2 if other == "images" else 6)


class Killed(BaseException):
    pass


@pytest.mark.parametrize("after", [0, 2, 4])
def test_what_was_killed_goes_on(
    after: int, trained: Path, studied: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, calls: list[Sampling]
) -> None:
    shutil.copytree(trained, tmp_path / "run")
    measure, left = score.measure, [after]

    def killed(*args: Any, **more: Any) -> Any:
        left[0] -= 1
        if left[0] < 0:
            raise Killed
        return measure(*args, **more)

    with monkeypatch.context() as patch:
        patch.setattr(score, "measure", killed)
        with pytest.raises(Killed):
            study.study(tmp_path / "run", overrides=HOW)
    # Nothing is chosen yet: the run is read as it was.
    assert evaluate.settings_for_reading(tmp_path / "run", []).eval.sampler == "ddim"
    assert not (tmp_path / "run" / rundir.STUDY_CSV).exists()
    calls.clear()
    study.study(tmp_path / "run", overrides=HOW)
    assert len({one for one in calls if one.steps > 1}) == min(3, 5 - after)
    assert figures(tmp_path / "run") == figures(studied)
    records = [timeless(rundir.read_json(folder / rundir.STUDY)) for folder in (tmp_path / "run", studied)]
    assert records[0] == records[1]


def test_what_takes_long_is_kept_in_parts(
    trained: Path, studied: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(studybench, "KEPT", 0.0)
    how = [*HOW[:-1], "eval.batch=2"]
    shutil.copytree(trained, tmp_path / "run")
    measure, seen, enough = score.measure, list[int](), [5]

    def counted(predictors: Any, pixels: Any, rows: Any, *args: Any, **more: Any) -> Any:
        if len(seen) == enough[0]:
            raise Killed
        seen.append(len(rows))
        return measure(predictors, pixels, rows, *args, **more)

    monkeypatch.setattr(score, "measure", counted)
    # Six pictures, two at a time: the second sampling is cut off before its last two.
    with pytest.raises(Killed):
        study.study(tmp_path / "run", overrides=how)
    assert seen == [2, 2, 2, 2, 2]
    kept = rundir.read_json(tmp_path / "run" / rundir.STUDY)["measured"]
    assert len(kept["groups"]) == 1 and len(kept["begun"]["l1"][0]) == 4
    enough[0] = 100
    study.study(tmp_path / "run", overrides=how)
    assert len(seen) == 5 * 3
    assert "begun" not in rundir.read_json(tmp_path / "run" / rundir.STUDY)["measured"]
    ours, theirs = figures(tmp_path / "run"), figures(studied)
    assert ours.keys() == theirs.keys()
    for key, line in ours.items():
        assert float(line["l1"]) == pytest.approx(float(theirs[key]["l1"]), rel=1e-4)  # of other batches


def test_only_val_is_looked_at(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(trained, tmp_path / "run")
    seen: set[int] = set()
    decoded: set[int] = set()
    measure, truths = score.measure, evaluate.truths

    def measured(predictors: Any, pixels: Any, rows: Any, strategy: Any, **more: Any) -> Any:
        def watch(part: loader.Part, *_: Any) -> None:
            seen.update(part.rows.tolist())

        return measure(predictors, pixels, rows, strategy, **more, seen=watch)

    def read(run: Any, data: Any, rows: Any, strategy: Any) -> Any:
        decoded.update(rows.tolist())
        return truths(run, data, rows, strategy)

    monkeypatch.setattr(score, "measure", measured)
    monkeypatch.setattr(evaluate, "truths", read)
    study.study(tmp_path / "run", overrides=HOW)
    assert seen == decoded == set(dataset.load(restore.settings(tmp_path / "run")).rows["val"].tolist())


def test_maps_without_numbers_are_never_chosen(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(trained, tmp_path / "run")
    predict = Palette.predict

    def lost(self: Any, nets: Any, image: Any, seed: Any, sampling: Sampling) -> Any:
        maps = predict(self, nets, image, seed, sampling)
        return (
            maps
            if sampling.sampler == "ancestral"
            else torch.where(seed[:, None, None, None] % 2 == 0, maps, torch.nan)
        )

    monkeypatch.setattr(Palette, "predict", lost)
    study.study(tmp_path / "run", overrides=[*HOW, "study.samples=[4]"])
    assert rundir.read_json(tmp_path / "run" / rundir.STUDY)["chosen"]["sampler"] == "ancestral"


def test_two_studies_lose_nothing_of_each_other(mine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While one measures, another process puts down what it has measured."""
    record = rundir.read_json(mine / rundir.STUDY)
    groups = record["measured"]["groups"]
    theirs = next(
        group for group in groups if group["sampling"] == {**group["sampling"], "sampler": "ddim", "steps": 3}
    )
    kept = {**record, "measured": {**record["measured"], "groups": [g for g in groups if g != theirs]}}
    rundir.write_json(mine / rundir.STUDY, kept)
    measure = studybench.Bench._try

    def slow(self: Any, *args: Any) -> Any:
        found = measure(self, *args)
        rundir.write_json(mine / rundir.STUDY, record)
        return found

    monkeypatch.setattr(studybench.Bench, "_try", slow)
    study.study(mine, overrides=[*HOW, "study.samplers=[unipc]", "study.steps=[3]"])
    names = [
        (g["sampling"]["sampler"], g["sampling"]["steps"])
        for g in rundir.read_json(mine / rundir.STUDY)["measured"]["groups"]
    ]
    assert ("ddim", 3) in names and ("unipc", 3) in names and len(names) == 6


@pytest.mark.parametrize("key", ["sampler=ddim", "steps=4", "samples=2", "combine=median", "eta=0.5"])
def test_what_a_study_tries_cannot_be_given(key: str, trained: Path) -> None:
    with pytest.raises(
        ConfigError, match=f"eval.{key.partition('=')[0]} is what a study tries itself: (give study|leave)"
    ):
        study.study(trained, overrides=[f"eval.{key}"])
    assert not (trained / rundir.STUDY).exists()


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("study.samplers=[nosuch]", "there is no sampler 'nosuch'; choose one of ancestral"),
        ("study.steps=[0]", "study.steps"),
        ("study.steps=[51]", "study.steps=51 cannot be tried: 51 sampling steps are asked for"),
        ("study.samples=[0]", "study.samples"),
        ("eval.steps=4", "give study.steps"),
        ("data.size=32", "data.size says what"),
    ],
)
def test_mistakes_are_told_before_anything_is_sampled(
    override: str, says: str, trained: Path, calls: list[Sampling], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        main(["evaluate", str(trained), "--study", override])
    told = capsys.readouterr().err
    assert end.value.code == 2 and says in told and told.startswith("memdist: ")
    assert calls == [] and not (trained / rundir.STUDY).exists()


def test_a_record_that_says_nothing_is_told(mine: Path) -> None:
    record = rundir.read_json(mine / rundir.STUDY)
    record["measured"]["groups"] = [{"sampling": {"sampler": "ddim"}}]
    rundir.write_json(mine / rundir.STUDY, record)
    with pytest.raises(CheckpointError, match="does not say what was measured: delete it"):
        study.study(mine, overrides=HOW)


def test_a_run_without_val_or_without_samples_is_refused(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = trained.parent / "data"
    assert loop.train(tiny.run("unet", data, **{"epochs": 1, "log.images": 0}), tmp_path / "unet") == 0
    with pytest.raises(ConfigError, match="for models that sample, and unet does not"):
        study.study(tmp_path / "unet")
    pairs = evaluate.pairs_of

    def without(*args: Any) -> Any:
        data = pairs(*args)
        data.rows["val"] = data.rows["val"][:0]
        return data

    monkeypatch.setattr(evaluate, "pairs_of", without)
    with pytest.raises(ConfigError, match="has no val split"):
        study.study(trained, overrides=HOW)
    assert not (trained / rundir.STUDY).exists()


def test_the_command_says_what_was_found(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(trained, tmp_path / "run")
    with pytest.raises(SystemExit) as end:
        main(["evaluate", str(tmp_path / "run"), "--study", *HOW])
    told = capsys.readouterr()
    assert end.value.code in (0, None)
    assert "study: 5 of 5: ancestral, 50 evaluations" in told.err and "left" in told.err
    assert "cheapest within 1 %" in told.out and "is this run's default now" in told.out and "study.svg" in told.out


@pytest.mark.parametrize("seconds", [1e-9, 1e9])
def test_where_bf16_is_at_hand_it_is_told_and_not_chosen(
    seconds: float,
    mine: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    calls: list[Sampling],
) -> None:
    before = rundir.read_json(mine / rundir.STUDY)
    monkeypatch.setattr(studybench, "has_bf16", lambda device: True)
    measure = studybench.Bench._try

    def paced(self: Any, *args: Any) -> Any:
        return [dataclasses.replace(one, seconds=seconds) for one in measure(self, *args)]

    monkeypatch.setattr(studybench.Bench, "_try", paced)
    for _ in range(2):
        calls.clear()
        with pytest.raises(SystemExit):
            main(["evaluate", str(mine), "--study", *HOW])
        assert ("eval.precision=bf16 takes" in capsys.readouterr().out) == (seconds < 1)
    assert calls == []
    record = rundir.read_json(mine / rundir.STUDY)
    assert record["chosen"] == before["chosen"] and record["found"] == before["found"]
    assert [group["precision"] for group in record["measured"]["groups"]] == ["bf16"] + 5 * ["fp32"]


@pytest.mark.slow
@pytest.mark.distributed
def test_two_ranks_study_as_one(trained: Path, studied: Path, tmp_path: Path) -> None:
    shutil.copytree(trained, tmp_path / "run")
    (tmp_path / "command.py").write_text("from memdist.cli import main\nmain()\n")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command += [str(tmp_path / "command.py"), "evaluate", str(tmp_path / "run"), "--study", *HOW]
    for _ in range(2):
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr[-4000:]
        assert done.stdout.count("is this run's default now") == 1
    assert "study: " not in done.stderr  # nothing was left to measure
    two, one = figures(tmp_path / "run"), figures(studied)
    assert list(two) == list(one)
    for key, line in one.items():
        assert float(two[key]["l1"]) == pytest.approx(float(line["l1"]), rel=1e-4)
        assert two[key]["chosen"] == line["chosen"]
    chosen = [rundir.read_json(folder / rundir.STUDY)["chosen"] for folder in (tmp_path / "run", studied)]
    assert chosen[0] == chosen[1]
