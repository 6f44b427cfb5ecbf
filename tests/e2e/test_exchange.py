"""Weights come in, predict, are scored, are trained on; a run goes out and comes back with every bit."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import load_file

from memdist import cli, config, models, rundir
from memdist.compare import table
from memdist.errors import CheckpointError, ConfigError, MemdistError
from memdist.exchange import bundle, exporting, importing
from memdist.predict import pictures
from memdist.train import checkpoint, evaluate, loop, restore
from tests import foreign, tiny


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.data(tmp_path_factory.mktemp("data"))


def run(*words: object) -> int:
    with pytest.raises(SystemExit) as ended:
        cli.main([str(word) for word in words])
    return int(ended.value.code or 0)


def maps(out: Path) -> dict[str, bytes]:
    return {path.name: np.asarray(Image.open(path)).tobytes() for path in sorted(out.glob("*.png"))}


FOREIGN: dict[str, tuple[str, list[str]]] = {
    "guided": ("palette", ["model.heads=1", "eval.steps=2", "validate.steps=2"]),
    "sr3": ("palette", ["model.norm_groups=4", "eval.steps=2", "validate.steps=2"]),
    "pix2pix": ("pix2pix", []),
}


@pytest.mark.parametrize("name", ["guided", pytest.param("sr3", marks=pytest.mark.slow), "pix2pix"])
def test_weights_from_elsewhere_work_like_a_run(
    name: str, folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    kind, given = FOREIGN[name]
    source = foreign.save_pix2pix(tmp_path / "in") if kind == "pix2pix" else foreign.save_palette(tmp_path / "in", name)
    out, data = tmp_path / "run", [f"data.images={folder / 'images'}", f"data.maps={folder / 'maps'}"]
    assert run("import", kind, source, "data.size=16", "device=cpu", *given, "--out", out) == 0
    assert "assumed, as weights do not tell it" in capfd.readouterr().out
    names = {path.name for path in out.iterdir()}
    assert names == {rundir.CONFIG, rundir.PROVENANCE, rundir.STATE, rundir.CHECKPOINTS}
    assert checkpoint.steps(out) == [0]

    assert run("predict", out, folder / "images", "device=cpu", "--out", tmp_path / "maps") == 0
    assert len(maps(tmp_path / "maps")) == tiny.PAIRS

    assert run("evaluate", out, "device=cpu") == 2, "there are no data yet"
    assert "no data are given" in capfd.readouterr().err
    assert run("evaluate", out, *data, "device=cpu") == 0
    assert "whether its weights have seen these pictures is not known" in " ".join(capfd.readouterr().out.split())
    assert rundir.read_json(out / rundir.SCORES)["test"]["n"] == 6
    assert run("evaluate", out, *data, "device=cpu", "data.test=0.1") == 0, "an imported run has no split of its own"
    assert rundir.read_json(out / rundir.SCORES)["test"]["n"] == 3
    assert run("evaluate", out, *data, "device=cpu", "data.test=0.1", "--split", "val") == 0
    assert set(rundir.read_json(out / rundir.SCORES)) == {"test", "val"}
    assert table.collect([out]).runs[0].state == "imported at epoch 0"

    # Training goes elsewhere.
    before = sorted(path.name for path in out.rglob("*"))
    tuning = [out / rundir.CONFIG, *data, f"init.from={out}", "epochs=1", "batch.size=4", "log.tensorboard=false"]
    assert run("train", *tuning, "--out", out) == 2
    assert f"was imported and has no training to go on with: start from it in another folder, init.from={out}" in (
        capfd.readouterr().err
    )
    assert sorted(path.name for path in out.rglob("*")) == before
    assert run("train", *tuning, "--out", tmp_path / "tuned") == 0
    assert checkpoint.steps(tmp_path / "tuned")
    assert run("evaluate", tmp_path / "tuned") == 0


def test_tuning_starts_from_the_averages(folder: Path, tmp_path: Path) -> None:
    """With a learning rate of almost nothing, what is trained is what was averaged."""
    source = foreign.save_palette(tmp_path / "in")
    importing.import_("palette", source, tmp_path / "run", ["data.size=16", "model.heads=1"])
    raw = {"optim.denoiser.lr": 1e-30, "init.from": tmp_path / "run", "data.images": folder / "images"}
    raw |= {"data.maps": folder / "maps", "epochs": 1, "batch.size": 4, "device": "cpu", "log.tensorboard": "false"}
    raw |= {"eval.steps": 2, "validate.steps": 2}
    settings = models.resolve(
        config.read(tmp_path / "run" / rundir.CONFIG, [f"{key}={value}" for key, value in raw.items()])
    )
    assert loop.train(settings, tmp_path / "tuned") == 0
    start = load_file(checkpoint.folder(tmp_path / "run", 0) / checkpoint.AVERAGES)
    end = load_file(checkpoint.folder(tmp_path / "tuned", checkpoint.steps(tmp_path / "tuned")[-1]) / checkpoint.NETS)
    assert start.keys() == end.keys() and all(start[key].allclose(end[key], atol=1e-6) for key in start)


VARIANTS: dict[str, dict[str, Any]] = {
    "unet batch prior": {},
    "unet": {},
    "pix2pix": {"ema.decay": 0.9},
    "pix2pix vanilla batch": {},
    "palette": {},
}


@pytest.fixture(scope="module")
def trained(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    made: dict[str, Path] = {}
    for name, more in VARIANTS.items():
        made[name] = tmp_path_factory.mktemp("runs") / "run"
        assert loop.train(tiny.run(name, folder, epochs=2, **more), made[name]) == 0
        evaluate.evaluate(made[name], ["val", "test"])
    return made


@pytest.mark.parametrize("name", VARIANTS)
def test_what_goes_out_comes_back_with_every_bit(
    name: str, trained: dict[str, Path], folder: Path, tmp_path: Path
) -> None:
    source, out, back = trained[name], tmp_path / "out", tmp_path / "back"
    exporting.export(source, out)
    importing.import_("memdist", out, back)
    step = restore.chosen_step(source, "best")
    for file in (checkpoint.NETS, checkpoint.AVERAGES):
        then, now = load_file(checkpoint.folder(source, step) / file), load_file(checkpoint.folder(back, 0) / file)
        assert then.keys() == now.keys() and all(then[key].equal(now[key]) for key in then), file
    for place in (source, back):
        pictures.predict(place, [folder / "images"], tmp_path / place.name / "maps", overrides=["device=cpu"])
    assert maps(tmp_path / source.name / "maps") == maps(tmp_path / back.name / "maps")
    evaluate.evaluate(back, ["val", "test"], overrides=[f"data.images={folder}/images", f"data.maps={folder}/maps"])
    was, is_ = rundir.read_json(source / rundir.SCORES), rundir.read_json(back / rundir.SCORES)
    for split in ("val", "test"):
        assert was[split]["metrics"] == is_[split]["metrics"] and was[split]["trivial"] == is_[split]["trivial"]
    # And once more, from what was imported: the same bytes.
    exporting.export(back, tmp_path / "again")
    for file in (bundle.MODEL, bundle.TRAINING):
        if (out / file).exists() or (tmp_path / "again" / file).exists():
            first, second = load_file(out / file), load_file(tmp_path / "again" / file)
            assert first.keys() == second.keys() and all(first[key].equal(second[key]) for key in first)


def test_tuning_an_export_is_tuning_the_run(trained: dict[str, Path], folder: Path, tmp_path: Path) -> None:
    for name in ("pix2pix", "palette"):
        exporting.export(trained[name], tmp_path / name)
        importing.import_("memdist", tmp_path / name, tmp_path / f"{name}-back")
        ends: list[bytes] = []
        for start in (trained[name], tmp_path / f"{name}-back"):
            to = tmp_path / f"{name}-tuned-{len(ends)}"
            more = {"init.from": start, "epochs": 1, **VARIANTS[name]}
            assert loop.train(tiny.run(name, folder, **more), to) == 0
            ends.append((checkpoint.folder(to, checkpoint.steps(to)[-1]) / checkpoint.NETS).read_bytes())
        assert ends[0] == ends[1], name


def test_nothing_of_the_machine_goes_along(trained: dict[str, Path], folder: Path, tmp_path: Path) -> None:
    lists = tmp_path / "lists"
    lists.mkdir()
    stems = sorted(path.stem for path in (folder / "images").iterdir())
    (lists / "val.txt").write_text("\n".join(stems[:6]))
    more: dict[str, Any] = {"data.val": lists / "val.txt", "init.from": trained["unet"], "data.cache": tmp_path / "c"}
    assert loop.train(tiny.run("unet", folder, epochs=1, **more), tmp_path / "run") == 0
    exporting.export(tmp_path / "run", tmp_path / "out")
    for name in (rundir.CONFIG, bundle.CARD, bundle.MANIFEST):
        text = (tmp_path / "out" / name).read_text()
        assert not any(str(path) in text for path in (tmp_path, folder, trained["unet"], Path.cwd())), name
        assert not any(stem in text for stem in stems if len(stem) > 3), name


def test_the_card_says_what_it_is(trained: dict[str, Path], tmp_path: Path) -> None:
    exporting.export(trained["palette"], tmp_path / "best")
    text = (tmp_path / "best" / bundle.CARD).read_text()
    told = rundir.read_json(trained["palette"] / rundir.PROVENANCE)
    scores = rundir.read_json(trained["palette"] / rundir.SCORES)
    assert told["split_sha256"] in text and "train 18, val 6, test 6" in text
    assert f"{scores['test']['metrics']['l1']['mean']:.4f}" in text and "| nearest |" in text
    assert text.count("Selected on: optimistic") == 1, "val was chosen by, test was not"
    assert "moving averages" in text and "- torch " in text and "step 9 of 9" in text
    first = checkpoint.steps(trained["unet"])[0]
    exporting.export(trained["unet"], tmp_path / "first", choice=str(first))
    best = rundir.read_json(trained["unet"] / rundir.SCORES)["test"]["checkpoint"]
    text = (tmp_path / "first" / bundle.CARD).read_text()
    assert ("have not been scored" in text) == (first != best)


@pytest.mark.parametrize("name", [bundle.MODEL, bundle.TRAINING, rundir.CONFIG])
@pytest.mark.parametrize("how", ["cut", "flipped", "gone"])
def test_a_torn_copy_is_named(name: str, how: str, trained: dict[str, Path], tmp_path: Path) -> None:
    exporting.export(trained["pix2pix"], tmp_path / "out")
    file = tmp_path / "out" / name
    content = file.read_bytes()
    file.write_bytes(content[:-1] if how == "cut" else content[:-2] + bytes([content[-2] ^ 1]) + content[-1:])
    if how == "gone":
        file.unlink()
    with pytest.raises(CheckpointError, match=f"{name} is not what was exported"):
        importing.import_("memdist", tmp_path / "out", tmp_path / "back")
    assert not (tmp_path / "back").exists()


def test_what_a_study_found_goes_along(trained: dict[str, Path], tmp_path: Path) -> None:
    run_folder = tmp_path / "run"
    shutil.copytree(trained["palette"], run_folder)
    found = {"sampler": "unipc", "steps": 7, "eta": None, "spacing": "snr", "bound": "clamp", "samples": 3}
    rundir.write_json(run_folder / rundir.STUDY, {"chosen": {**found, "combine": "median"}})
    assert run("export", run_folder, "--out", tmp_path / "out") == 0
    settings = config.read(tmp_path / "out" / rundir.CONFIG)["eval"]
    assert {key: settings[key] for key in found} == found and settings["combine"] == "median"


def test_the_card_may_be_edited(trained: dict[str, Path], tmp_path: Path) -> None:
    exporting.export(trained["unet"], tmp_path / "out")
    (tmp_path / "out" / bundle.CARD).write_text("mine")
    importing.import_("memdist", tmp_path / "out", tmp_path / "back", ["device=cpu"])
    with pytest.raises(ConfigError, match="seed says what"):
        importing.import_("memdist", tmp_path / "out", tmp_path / "other", ["seed=4"])


def test_an_unfinished_training_is_told(folder: Path, trained: dict[str, Path], tmp_path: Path) -> None:
    run_ = tmp_path / "run"
    shutil.copytree(trained["unet"], run_)
    state = rundir.read_json(run_ / rundir.STATE)
    rundir.write_json(run_ / rundir.STATE, {**state, "state": "stopped", "step": 5})
    lines = exporting.export(run_, tmp_path / "out")
    assert lines[-1] == "its training is not finished: stopped at step 5 of 9"
    assert "stopped at step 5 of 9" in (tmp_path / "out" / bundle.CARD).read_text()
    shutil.rmtree(run_ / rundir.CHECKPOINTS)
    with pytest.raises(MemdistError, match="has no checkpoint yet"):
        exporting.export(run_, tmp_path / "none")
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize(
    ("file", "value"),
    [
        (rundir.SCORES, {"val": {}}),
        (rundir.SCORES, {"test": "x"}),
        (rundir.SCORES, {"test": [1]}),
        (rundir.PROVENANCE, {"imported": 1}),
        (rundir.PROVENANCE, {"split_sha256": "x", "legs": 3}),
        (rundir.PROVENANCE, {"split_sha256": "x", "legs": [{"git": {"commit": "x"}}]}),
        (rundir.PROVENANCE, {"split_sha256": "x", "legs": [{"versions": []}]}),
        (rundir.STATE, {"state": "stopped", "steps": 9}),
    ],
    ids=range(8),
)
def test_a_damaged_record_is_named_and_nothing_is_exported(
    file: str, value: dict[str, Any], trained: dict[str, Path], tmp_path: Path
) -> None:
    run_ = tmp_path / "run"
    shutil.copytree(trained["unet"], run_)
    rundir.write_json(run_ / file, value)
    with pytest.raises(CheckpointError, match=f"{file} is not as this version of memdist writes it .*; restore it or"):
        exporting.export(run_, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_score_of_any_size_is_named(trained: dict[str, Path], tmp_path: Path) -> None:
    run_ = tmp_path / "run"
    shutil.copytree(trained["unet"], run_)
    scores = rundir.read_json(run_ / rundir.SCORES)
    scores["test"]["metrics"]["l1"]["mean"] = 10**400
    rundir.write_json(run_ / rundir.SCORES, scores)
    with pytest.raises(CheckpointError, match=f"{rundir.SCORES} is not as this version of memdist writes it"):
        exporting.export(run_, tmp_path / "out")


def test_half_of_a_character_is_spelled_out_on_the_card(trained: dict[str, Path], tmp_path: Path) -> None:
    run_ = tmp_path / "run"
    shutil.copytree(trained["unet"], run_)
    rundir.write_json(run_ / rundir.STATE, {"state": "\ud800"})
    exporting.export(run_, tmp_path / "out")
    assert "\\ud800 at an unknown step" in (tmp_path / "out" / bundle.CARD).read_text()


def test_an_export_that_finds_no_room_leaves_nothing(
    trained: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    import safetensors.torch
    from safetensors import SafetensorError

    def full(*_: object, **__: object) -> None:
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(safetensors.torch, "save_file", full)
    assert run("export", trained["unet"], "--out", tmp_path / "to" / "out") == 2
    (sentence,) = capfd.readouterr().err.splitlines()
    assert sentence.startswith("memdist: cannot write ") and "no space left on device; " in sentence
    assert list((tmp_path / "to").iterdir()) == []
