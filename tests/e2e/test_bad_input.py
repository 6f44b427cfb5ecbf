"""What a person can get wrong: each gets one sentence a mistake and exit code 2, no traceback, and nothing is written."""

import shutil
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from PIL import Image

from memdist import cli, rundir
from memdist.train import loop
from tests import tiny


class Place(NamedTuple):
    """What the cases below stand on."""

    data: Path
    run: Path
    other: Path
    tmp: Path


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    tmp = tmp_path_factory.mktemp("place")
    data = tiny.data(tmp / "data")
    loop.train(tiny.run("unet", data, epochs=1), tmp / "run")
    loop.train(tiny.run("pix2pix", data, epochs=1), tmp / "other")
    return Place(data, tmp / "run", tmp / "other", tmp)


CONFIG = """
model: {name: unet, channels: 4, multipliers: [1, 2, 2], norm: instance}
epochs: 1
data: {size: 16, val: 0.2, test: 0.2}
batch: {size: 4}
device: cpu
log: {tensorboard: false}
"""


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def make(kind: str, here: Path) -> Path:
    """Inputs of every kind of badness, by name."""
    path = here / kind
    if kind == "empty":
        path.mkdir()
    elif kind == "other stems":
        path.mkdir()
        Image.new("RGB", (16, 16)).save(path / "zebra.png")
    elif kind == "no picture":
        path.mkdir()
        for number in range(tiny.PAIRS):
            (path / f"{number}.png").write_text("I am no picture")
    elif kind == "text.txt":
        path.write_text("words")
    elif kind == "binary.yaml":
        path.write_bytes(b"\x89PNG\r\n\x1a\n\x00\xff")
    elif kind == "empty.yaml":
        path.write_bytes(b"")
    elif kind == "list.yaml":
        path.write_text("- model\n- data\n")
    elif kind == "no model.yaml":
        path.write_text("epochs: 3\n")
    elif kind == "date.yaml":
        path.write_text("model: unet\n2026-01-01: 3\n")
    elif kind == "odd model.yaml":
        path.write_text("model: {name: [unet]}\n")
    elif kind == "torn.yaml":
        path.write_text("model: {name: unet\n")
    elif kind == "full":
        path.mkdir()
        (path / "thesis.tex").write_text("precious")
    return path


# Name -> (arguments, what the sentence says). {data} {run} {other} {out} and make's kinds in <> are filled in.
TRAIN = "train {config} data.images={data}/images data.maps={data}/maps --out {out}"
CASES: dict[str, tuple[str, str]] = {
    "no data": ("train {config} --out {out}", "data.images and data.maps is not set"),
    "images missing": (
        "train {config} data.images={tmp}/nowhere data.maps={data}/maps --out {out}",
        "data.images = {tmp}/nowhere does not exist",
    ),
    "images empty": (
        "train {config} data.images=<empty> data.maps={data}/maps --out {out}",
        "holds no pictures",
    ),
    "no common stems": (
        "train {config} data.images=<other stems> data.maps={data}/maps --out {out}",
        "has the stem of a map",
    ),
    "not a picture": (
        "train {config} data.images={data}/images data.maps=<no picture> --out {out}",
        "cannot be read as a picture",
    ),
    "size below the stride": (TRAIN + " data.size=12", "data.size = 12 does not fit model.multipliers"),
    "batch larger than the split": (TRAIN + " batch.size=400", "batch.size = 400 is larger than the training split"),
    "batch that does not divide": (TRAIN + " batch.micro=3", "batch.size = 4 cannot be shared"),
    "unknown model": (TRAIN + " model.name=unett", "there is no model 'unett'; there are unet, pix2pix, palette"),
    "model that is no word": ("train <odd model.yaml> --out {out}", "there is no model"),
    "unknown key": (TRAIN + " optim.unet.learning_rate=1", "there is no setting 'optim.unet.learning_rate'"),
    "unknown optimiser": (TRAIN + " optim.unet.name=lion", "'sgd', 'adam', 'adamw' or 'adadelta'"),
    "learning rate of fast": (TRAIN + " optim.unet.lr=fast", "optim.unet.lr = 'fast' cannot be"),
    "two mistakes": (TRAIN + " optim.unet.lr=fast epoch=3", "did you mean epochs?"),
    "a layer list that is empty": (TRAIN + " model.multipliers=[]", "model.multipliers = [] cannot be"),
    "far too many channels": (TRAIN + " model.channels=1000000000000", "model.channels = 1000000000000 cannot be"),
    "far too large a size": (TRAIN + " data.size=80000000", "data.size = 80000000 cannot be"),
    "a name that is too long": (TRAIN.replace("{out}", "{tmp}/" + "x" * 300), "file name too long"),
    "a key that is a date": ("train <date.yaml> --out {out}", "a key is a word"),
    "dropout of everything": (TRAIN + " model.dropout=1", "model.dropout = 1 cannot be: it should be less than 1"),
    "a schedule that is flat": (
        "train quick/palette model.schedule.temperature=1e30 data.images={data}/images data.maps={data}/maps --out {out}",
        "flat or undefined",
    ),
    "no setting": (TRAIN + " epochs", "'epochs' is no setting"),
    "unknown metric": (TRAIN + " select.metric=val/loss", "select.metric = 'val/loss' is not measured here"),
    "unknown configuration": ("train unett --out {out}", "did you mean unet"),
    "another model's folder": (
        "train {config} data.images={data}/images data.maps={data}/maps --out {other}",
        "belongs to a pix2pix run",
    ),
    "a changed identity key": (
        "train {run}/config.yaml model.channels=8 seed=3 --out {run}",
        "model.channels = 8 differs from the 4",
    ),
    "other data": ("train {run}/config.yaml data.maps={data}/images --out {run}", "was trained on other data"),
    "a folder of other things": (
        "train {config} data.images={data}/images data.maps={data}/maps --out <full>",
        "holds other files and is no run folder",
    ),
    "an unwritable folder": (
        "train {config} data.images={data}/images data.maps={data}/maps --out /proc/memdist",
        "cannot write /proc/memdist",
    ),
    "a device that is not there": (TRAIN + " device=cuda:63", "device = 'cuda:63' is not on this machine"),
    "no device": (TRAIN + " device=tpu", "auto, cpu, mps, cuda or cuda:N"),
    "fp16 on a CPU": (TRAIN + " precision=fp16", "precision = 'fp16' needs a GPU"),
    "weights of another network": (TRAIN + " init.from={other}", "is from another network"),
    "weights of nothing": (TRAIN + " init.from={tmp}/nowhere", "{tmp}/nowhere is no run folder"),
    "a binary configuration": ("train <binary.yaml> --out {out}", "is not a text file"),
    "an empty configuration": ("train <empty.yaml> --out {out}", "holds no settings"),
    "a list as configuration": ("train <list.yaml> --out {out}", "holds no settings"),
    "a configuration without a model": ("train <no model.yaml> --out {out}", "model.name is not set"),
    "a torn configuration": ("train <torn.yaml> --out {out}", "is not valid YAML"),
    "wandb that is not there": (TRAIN + " log.wandb=project", "needs wandb, which is not installed"),
    "more sampling steps than were trained": (
        "train quick/palette data.size=32 eval.steps=2000 data.images={data}/images data.maps={data}/maps --out {out}",
        "2000 sampling steps are asked for",
    ),
    "an unknown sampler": (
        "train quick/palette validate.sampler=magic data.images={data}/images data.maps={data}/maps --out {out}",
        "there is no sampler 'magic'; choose one of ancestral, ddim",
    ),
    "attention where no level is": (
        "train quick/palette model.attention=[7] data.images={data}/images data.maps={data}/maps --out {out}",
        "7",
    ),
    "fp16 with a penalty": ("train wgan-gp precision=fp16 --out {out}", "pix2pix cannot run with fp16"),
    "evaluating nothing": ("evaluate {tmp}/nowhere", "{tmp}/nowhere is no run folder"),
    "evaluating data": ("evaluate {data}", "is no run folder"),
    "an absent checkpoint": ("evaluate {run} --checkpoint 77", "has no checkpoint '77'"),
    "a checkpoint that is no number": ("evaluate {run} --checkpoint newest", "it should be best, last or the number"),
    "identity when reading": ("evaluate {run} model.channels=8", "cannot be changed when it is read"),
    "predict on text": ("predict {run} <text.txt> --out {out}", "cannot be read as a picture"),
    "predict on nothing": ("predict {run} {tmp}/nowhere.png --out {out}", "does not exist"),
    "predict on an empty folder": ("predict {run} <empty> --out {out}", "holds no pictures"),
    "predict into a file": ("predict {run} {data}/images --out <text.txt>", "is a file"),
    "comparing what is no run": ("compare {data}", "is no run folder"),
    "comparing what was not scored": ("compare {other}", "memdist evaluate"),
    "an unknown model to show": ("models show resnet", "there is no model 'resnet'"),
}


@pytest.mark.parametrize("name", CASES)
def test_it_gets_one_sentence_and_nothing_is_written(
    name: str, place: Place, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments, says = CASES[name]
    (tmp_path / "config.yaml").write_text(CONFIG)
    words = {"data": place.data, "run": place.run, "other": place.other, "tmp": place.tmp}
    words |= {"out": tmp_path / "out", "config": tmp_path / "config.yaml"}
    text = arguments
    while "<" in text:
        start, _, rest = text.partition("<")
        kind, _, after = rest.partition(">")
        text = start + str(make(kind, tmp_path)).replace(" ", "\0") + after
    line = [word.replace("\0", " ").format(**words) for word in text.split(" ")]
    if name == "not a picture":
        bad = tmp_path / "no picture"
        for number, path in enumerate(sorted((place.data / "maps").iterdir())):
            (bad / f"{number}.png").rename(bad / path.name)
    monkeypatch.setenv("MEMDIST_CACHE", str(tmp_path / "cache"))
    before = files(place.tmp), files(tmp_path)
    with pytest.raises(SystemExit) as ended:
        cli.main(line)
    captured = capfd.readouterr()
    assert ended.value.code == 2, captured
    sentences = captured.err.strip().splitlines()
    sentences = [s for s in sentences if not s.startswith(("decoding", "making"))]
    assert sentences and all(s.startswith("memdist: ") for s in sentences), captured.err
    assert says.format(**words) in captured.err
    assert "Traceback" not in captured.err + captured.out
    kept = {path for path in files(tmp_path) if not path.startswith("cache")}
    assert (files(place.tmp), kept) == before


def test_every_case_of_a_mistake_in_settings_is_told_at_once(
    place: Place, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "config.yaml").write_text(CONFIG)
    with pytest.raises(SystemExit):
        cli.main(["train", str(tmp_path / "config.yaml"), "optim.unet.lr=fast", "epoch=3", "data.size=0"])
    assert len(capfd.readouterr().err.strip().splitlines()) == 3


def test_decaying_rates_are_not_extended_unasked(
    place: Place, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "config.yaml").write_text(CONFIG)
    line = ["train", str(tmp_path / "config.yaml"), f"data.images={place.data}/images", f"data.maps={place.data}/maps"]
    line += ["optim.unet.schedule.name=cosine", "--out", str(tmp_path / "out")]

    def code(*more: str) -> object:
        with pytest.raises(SystemExit) as ended:
            cli.main([*line, *more])
        return ended.value.code

    assert code() == 0
    before = (tmp_path / "out" / rundir.METRICS).read_bytes()
    assert code("epochs=2") == 2
    assert "--extend" in capfd.readouterr().err
    assert (tmp_path / "out" / rundir.METRICS).read_bytes() == before
    assert code("epochs=2", "--extend") == 0
    assert (tmp_path / "out" / rundir.METRICS).read_bytes().startswith(before[:50])


def test_a_torn_checkpoint_is_named(place: Place, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    shutil.copytree(place.run, run)
    weights = next(run.glob("checkpoints/*/nets.safetensors"))
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x7f")
    with pytest.raises(SystemExit) as ended:
        cli.main(["evaluate", str(run)])
    assert ended.value.code == 2 and "nets.safetensors is not what was written" in capfd.readouterr().err


def test_bf16_where_it_cannot_run(monkeypatch: pytest.MonkeyPatch) -> None:
    from memdist.distributed import strategy
    from memdist.errors import ConfigError

    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: False)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "an old card")
    with pytest.raises(ConfigError, match="cannot run on an old card"):
        strategy.check_precision("bf16", torch.device("cuda"))
