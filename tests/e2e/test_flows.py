"""From pairs to scores, maps and a page, through the functions that the command calls, on tiny runs."""

import csv
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from memdist import config, models, rundir
from memdist.compare import page, table
from memdist.data import split
from memdist.errors import CheckpointError
from memdist.metrics import METRICS
from memdist.predict import pictures
from memdist.train import checkpoint, describe, evaluate, loop, provenance, restore
from memdist.train.trivial import NAMES
from tests import tiny

RUNS = ["unet batch prior", "pix2pix", "palette"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.data(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def runs(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    made = {}
    for name in RUNS:
        made[name] = tmp_path_factory.mktemp("runs") / name.split()[0]
        assert loop.train(tiny.run(name, folder, **{"log.images": 3, "checkpoint.keep_every": 1}), made[name]) == 0
        evaluate.evaluate(made[name], ["train", "val", "test"])
    return made


@pytest.mark.parametrize("name", RUNS)
def test_a_run_folder_holds_what_it_should(name: str, runs: dict[str, Path]) -> None:
    out = runs[name]
    names = {path.name for path in out.iterdir()}
    locks = {f"{rundir.LOCK}.1", f"{rundir.SCORING_LOCK}.3"}  # trained once, scored thrice
    files = {rundir.CONFIG, rundir.PROVENANCE, rundir.SPLIT, rundir.METRICS, rundir.TIMING, rundir.STATE, *locks}
    assert names == files | {rundir.SCORES, rundir.SCORES_CSV, rundir.SAMPLES, rundir.CHECKPOINTS}
    assert checkpoint.steps(out) == [5, 9, 14]
    assert {p.name for p in (out / rundir.SAMPLES).iterdir()} >= {"epoch-00003.png", "train", "val", "test"}
    provenance = rundir.read_json(out / rundir.PROVENANCE)
    assert {"seed", "split_seed", "split_sha256", "identity", "legs"} == set(provenance)
    assert {"versions", "git", "command", "host", "device", "ranks", "threads"} <= set(provenance["legs"][0])
    state = rundir.read_json(out / rundir.STATE)
    assert state["state"] == "finished" and state["step"] == state["steps"] == 14
    resolved = models.resolve(config.read(out / rundir.CONFIG))
    assert config.identity(resolved) == config.identity(restore.settings(out))


DETERMINISTIC = ("train/", "val/", "lr/", "grad_norm/", "weight_norm/")


@pytest.mark.parametrize("name", RUNS)
def test_clocks_are_kept_apart_from_what_is_deterministic(name: str, runs: dict[str, Path]) -> None:
    for line in rundir.read_lines(runs[name] / rundir.METRICS):
        assert all(key in ("step", "epoch") or key.startswith(DETERMINISTIC) for key in line)
    assert any("steps_per_second" in line for line in rundir.read_lines(runs[name] / rundir.TIMING))


def test_diffusion_logs_its_error_each_epoch(runs: dict[str, Path]) -> None:
    lines = [line for line in rundir.read_lines(runs["palette"] / rundir.METRICS) if "val/loss" in line]
    assert len(lines) == 3


@pytest.mark.parametrize("name", RUNS)
def test_scores_stand_beside_the_trivial_predictors(name: str, runs: dict[str, Path]) -> None:
    scores = rundir.read_json(runs[name] / rundir.SCORES)
    rows = list(csv.DictReader((runs[name] / rundir.SCORES_CSV).read_text().splitlines()))
    stems = split.stems_of(split.read(runs[name] / rundir.SPLIT))
    for part, record in scores.items():
        assert set(record["metrics"]) == set(METRICS) and set(record["trivial"]) == set(NAMES)
        assert record["n"] == len(stems[part])
        assert record["optimistic"] == (part == "val")
        mine = [row for row in rows if row["split"] == part and row["predictor"] == "model"]
        assert [row["stem"] for row in mine] == stems[part]
        assert np.mean([float(row["l1"]) for row in mine]) == pytest.approx(record["metrics"]["l1"]["mean"], rel=1e-4)
        best = min(t["l1"]["mean"] for t in record["trivial"].values())
        assert record["skill"] == pytest.approx(1 - record["metrics"]["l1"]["mean"] / best)
        assert record["trivial"]["black"]["cc"] == {"mean": None, "n": 0, "undefined": record["n"]}
        assert len(list((runs[name] / rundir.SAMPLES / part).iterdir())) == 2 * min(8, record["n"])
    assert (scores["test"]["sampling"] is None) == (name != "palette")


def test_scoring_again_gives_the_same_bytes(runs: dict[str, Path]) -> None:
    before = (runs["palette"] / rundir.SCORES_CSV).read_bytes()
    evaluate.evaluate(runs["palette"], ["test"])
    after = (runs["palette"] / rundir.SCORES_CSV).read_bytes()
    assert sorted(before.splitlines()) == sorted(after.splitlines())


def test_scores_do_not_depend_on_the_batch(runs: dict[str, Path]) -> None:
    def l1() -> float:
        return float(rundir.read_json(runs["palette"] / rundir.SCORES)["test"]["metrics"]["l1"]["mean"])

    before = l1()
    evaluate.evaluate(runs["palette"], ["test"], overrides=["eval.batch=2"])
    assert l1() == pytest.approx(before, rel=1e-4)
    evaluate.evaluate(runs["palette"], ["test"])


def test_other_weights_give_other_scores(runs: dict[str, Path], tmp_path: Path) -> None:
    out = runs["unet batch prior"]
    found = {}
    for choice, ema in (("last", True), ("last", False), ("5", True)):
        restored = restore.restore(out, choice, ema=ema, device=torch.device("cpu"))
        assert restored.averaged == ema and restored.step == (5 if choice == "5" else 14)
        found[choice, ema] = torch.cat([p.flatten() for p in restored.nets["unet"].parameters()])
    assert not torch.equal(found["last", True], found["last", False])
    assert not torch.equal(found["last", True], found["5", True])


def test_runs_are_compared(runs: dict[str, Path], tmp_path: Path) -> None:
    comparison = table.collect(list(runs.values()))
    assert len(comparison.groups) == 1 and len(comparison.groups[0].runs) == 3
    text = page.write(comparison, tmp_path / "page.html").read_text()
    assert all(out.name in text for out in runs.values()) and "data:image/png" in text


@pytest.mark.parametrize("name", RUNS)
def test_maps_of_new_pictures(name: str, runs: dict[str, Path], folder: Path, tmp_path: Path) -> None:
    image = Image.open(next((folder / "images").iterdir()))
    image.resize((40, 25)).save(tmp_path / "mine.png")
    report = pictures.predict(runs[name], [tmp_path / "mine.png", folder / "images"], tmp_path / "maps")
    assert report.clean and report.sentence == f"{tiny.PAIRS + 1} maps in {tmp_path}/maps (0 were there)"
    with Image.open(tmp_path / "maps" / "mine.png") as made:
        assert made.size == (40, 25) and made.mode == "RGB"
    alone = tmp_path / "alone"
    pictures.predict(runs[name], [tmp_path / "mine.png"], alone)
    difference = np.asarray(Image.open(alone / "mine.png")).astype(int) - np.asarray(
        Image.open(tmp_path / "maps" / "mine.png")
    )
    assert np.abs(difference).max() <= 1


def test_a_run_starts_from_anothers_weights(runs: dict[str, Path], folder: Path, tmp_path: Path) -> None:
    former = runs["unet batch prior"]
    run = tiny.run("unet batch prior", folder, **{"init.from": former, "optim.unet.lr": 1e-12, "epochs": 1})
    assert loop.train(run, tmp_path / "tuned") == 0
    best = restore.restore(former, "best", ema=True, device=torch.device("cpu"))
    tuned = restore.restore(tmp_path / "tuned", "last", ema=False, device=torch.device("cpu"))
    for a, b in zip(best.nets["unet"].parameters(), tuned.nets["unet"].parameters(), strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-5)


def test_a_run_without_a_test_split_is_marked(folder: Path, tmp_path: Path) -> None:
    assert loop.train(tiny.run("unet", folder, **{"data.test": 0, "epochs": 1}), tmp_path / "run") == 0
    evaluate.evaluate(tmp_path / "run", ["train", "val", "test"])
    scores = rundir.read_json(tmp_path / "run" / rundir.SCORES)
    assert set(scores) == {"train", "val"} and all(record["optimistic"] for record in scores.values())


def test_other_data_are_not_scored(runs: dict[str, Path], tmp_path: Path) -> None:
    from memdist.data import example

    example.make(tmp_path / "other", tiny.PAIRS, tiny.SIZE, 7, 1)
    overrides = [f"data.images={tmp_path}/other/images", f"data.maps={tmp_path}/other/maps"]
    with pytest.raises(CheckpointError, match="are not those that"):
        evaluate.evaluate(runs["pix2pix"], ["test"], overrides=overrides)


def test_moved_data_are_the_same_data(runs: dict[str, Path], folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "moved")
    overrides = [f"data.images={tmp_path}/moved/images", f"data.maps={tmp_path}/moved/maps"]
    evaluate.evaluate(runs["pix2pix"], ["test"], overrides=overrides)


def test_tensorboard_has_scalars_and_grids(folder: Path, tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = tiny.run("unet", folder, **{"log.tensorboard": "true", "epochs": 1})
    assert loop.train(run, tmp_path / "run") == 0
    events = EventAccumulator(str(tmp_path / "run" / rundir.TENSORBOARD))
    events.Reload()
    assert {"train/loss", "val/l1", "steps_per_second"} <= set(events.Tags()["scalars"])
    assert events.Tags()["images"] == ["val/samples"]


@pytest.mark.parametrize("name", models.REGISTRY)
def test_what_is_shown_of_a_model_is_a_configuration(name: str, tmp_path: Path) -> None:
    (tmp_path / "my.yaml").write_text(models.show(name))
    run = models.resolve(config.read(tmp_path / "my.yaml"))
    assert run.model.name == name


@pytest.mark.parametrize("name", config.shipped())
def test_shipped_configurations_can_be_described(name: str) -> None:
    from rich.console import Console

    run = models.resolve(config.read(config.shipped()[name], ["device=cpu"]))
    console = Console(width=200)
    with console.capture() as shown:
        console.print(describe.describe(run, Path("runs/none")))
    text = shown.get()
    assert "parameters" in text and "for activations at" in text and "no data are given" in text
    head = config.shipped()[name].read_text().split("\nmodel:")[0]
    assert all(word in head for word in (f"memdist train {name}", "Hardware:", "Time:", "Expected:"))


def test_memory_is_what_the_formula_says() -> None:
    from memdist.train import start

    net = {"name": "unet", "channels": 4, "multipliers": [1, 2], "norm": "instance"}
    run = models.resolve({"model": net, "data": {"size": 16}})
    need = describe.memory(run, start.build(run), 1, 16)
    count = sum(p.numel() for p in start.build(run).stage().nets["unet"].parameters())
    assert (need.weights, need.gradients, need.optimiser, need.averages) == (4 * count, 4 * count, 8 * count, 0)
    twice = describe.memory(
        run.model_copy(update={"batch": run.batch.model_copy(update={"size": 32})}), start.build(run), 1, 32
    )
    assert 1.8 < twice.activations / need.activations < 2.05  # gradients that are not there yet are taken off both


def test_provenance_blanks_what_looks_like_a_secret() -> None:
    for word in (
        "wandb_api_key=abc",
        "X_TOKEN=abc",
        "db.password: abc",
        "+export AWS_SECRET='abc'",
        "Authorization: Bearer abc",
        '+os.environ["HF_TOKEN"] = "abc"',
        "+os.environ['HF_TOKEN']='abc'",
        '+token = os.getenv("HF_TOKEN", "abc")',
        '+{"api_key": "abc"}',
        "X_TOKEN=first\nabc",
        "https://abc@host/x",
        "https://abc:x-oauth-basic@host/x",
        "https://me:abc@host/x",
        "https://host/x?a=1&sig=abc",
        "https://host/x?X-Amz-Signature=abc&a=1",
    ):
        assert "abc" not in provenance._without_secrets(word), word
    assert provenance._without_secrets("https://me:abc@host/x") == "https://***@host/x"
    assert provenance._without_secrets("https://host/x?sig=abc&a=1") == "https://host/x?sig=***&a=1"
    for word in (
        "optim.unet.lr=1e-3",
        "data.images=/a/b",
        "https://host/x:y",
        "https://host/@me?design=3&a=b@c",
        "+for key, value in items:",
        '+    "sky", "tokens"',
    ):
        assert provenance._without_secrets(word) == word
    # Tokens without a name beside them are known by how they begin.
    for start, rest in (("hf_", "aB3" * 11), ("ghp_", "aB3" * 12), ("sk-", "proj-aB3_" * 4), ("AKIA", "ABC2" * 4)):
        assert provenance._words([start + rest, f"+login({start}{rest})"]) == [f"{start}***", f"+login({start}***)"]
    for word in ("hf_pictures/train_faces_small", "data.images=/mask-of-many-pictures-and-maps"):
        assert provenance._without_secrets(word) == word
    assert provenance._words(["train", "--wandb-api-key", "abc", "seed=1"]) == [
        "train",
        "--wandb-api-key",
        "***",
        "seed=1",
    ]


def test_provenance_keeps_no_secret(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of the environment wherever they stand, and what a changed file of a checkout has of them."""
    import subprocess
    import sys

    import memdist

    hub, key, short = "hf_REALTOKEN", "-----BEGIN-----\nline-one-of-it\nline-two-of-it", "short"
    (tmp_path / "memdist").mkdir()
    script = tmp_path / "memdist" / "__init__.py"
    script.write_text("first = 1\n")
    who = ["-c", "user.name=me", "-c", "user.email=me@here"]
    for words in (["init", "-q"], ["add", "."], [*who, "commit", "-qm", "first"]):
        subprocess.run(["git", *words], cwd=tmp_path, check=True, env={**os.environ, "GIT_CONFIG_GLOBAL": os.devnull})
    script.write_bytes(
        b'first = 1\nos.environ["HF_TOKEN"] = "hf_REALTOKEN"\nlogin("hf_REALTOKEN")\nclone("https://ghp_REAL@github.com")\n'
        b"line-two-of-it\nname = '\xe9'\nlast = 2 # of a short file\n"
    )
    monkeypatch.setattr(memdist, "__file__", str(script))
    for name, value in (("HF_TOKEN", hub), ("SIGNING_KEY", key), ("DOOR_PASSWORD", short), ("PLACE", "in-the-open")):
        monkeypatch.setenv(name, value)
    place = tmp_path / f"with-{hub}-in-it"
    place.mkdir()
    monkeypatch.chdir(place)
    monkeypatch.setattr(sys, "argv", ["memdist", "train", f"data.images=/data/{hub}/x", "in-the-open", "a short way"])
    changed = {"data.images": [None, f"/data/{hub}/x"], "eval.steps": [1, 2]}
    told = provenance.leg(torch.device("cpu"), 1, changed)
    text = json.dumps(told)
    for secret in (hub, "ghp_REAL", "line-one-of-it", "line-two-of-it"):
        assert secret not in text, secret
    assert told["command"] == ["memdist", "train", "data.images=/data/***/x", "in-the-open", "a short way"]
    assert told["folder"] == str(tmp_path / "with-***-in-it")
    assert told["runtime_changes"] == {"data.images": [None, "/data/***/x"], "eval.steps": [1, 2]}
    assert told["git"]["diff_is_whole"] and len(told["git"]["commit"]) == 40
    added = [line for line in told["git"]["diff"].splitlines() if line.startswith("+") and "+++" not in line]
    assert added == [
        '+os.environ["HF_TOKEN"] = ***',
        '+login("***")',
        '+clone("https://***@github.com")',
        "+***",
        "+name = '\\xe9'",
        "+last = 2 # of a short file",
    ]


@pytest.mark.parametrize(
    ("name", "secret"),
    [
        ("HF_TOKEN", True),
        ("WANDB_API_KEY", True),
        ("AWS_SECRET_ACCESS_KEY", True),
        ("OPENAI_APIKEY", True),
        ("MY_PASSWORD", True),
        ("DB_PASS", True),
        ("XAUTHORITY", False),
        ("KEYBOARD_LAYOUT", False),
        ("GIT_AUTHOR_NAME", False),
    ],
)
def test_which_variables_hold_secrets(name: str, secret: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from memdist.train import provenance

    monkeypatch.setenv(name, "somebody-or-other")
    assert ("somebody" not in provenance._without_secrets("runs/somebody-or-other/a")) is secret
    monkeypatch.setenv(name, str(tmp_path))  # a path that is there is a path
    assert provenance._without_secrets(f"{tmp_path}/a") == f"{tmp_path}/a"


def test_a_dry_run_of_a_run_that_goes_on_needs_no_parent(folder: Path, tmp_path: Path) -> None:
    assert loop.train(tiny.run("unet", folder, epochs=1), tmp_path / "parent") == 0
    run = tiny.run("unet", folder, epochs=1, **{"init.from": tmp_path / "parent"})
    assert loop.train(run, tmp_path / "run") == 0
    (tmp_path / "parent").rename(tmp_path / "elsewhere")
    describe.describe(run, tmp_path / "run")
    with pytest.raises(CheckpointError, match="is no run folder"):
        describe.describe(run, tmp_path / "new")
