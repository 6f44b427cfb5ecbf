"""What a person can get wrong: each gets one sentence a mistake and exit code 2, no traceback, and nothing is written."""

import os
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from memdist import cli, rundir
from memdist.train import loop
from tests import foreign, tiny


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


class Evil:
    """Unpickled by an ordinary loader, it would write a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.system, (f"touch '{self.path}'",)


CONFIG = """
model: {name: unet, channels: 4, multipliers: [1, 2, 2], norm: instance}
epochs: 1
data: {size: 16, val: 0.2, test: 0.2}
batch: {size: 4}
device: cpu
log: {tensorboard: false}
"""


STEMS = [f"scene-{number:05}" for number in range(tiny.PAIRS)]


def files(folder: Path) -> set[str]:
    # A lock has another number each time it is taken.
    found = (path for path in folder.rglob("*") if not path.name.startswith(rundir.LOCK))
    return {str(path.relative_to(folder)) for path in found}


def save(path: Path, places: Any) -> None:
    """The same fixations of every picture."""
    arrays: dict[str, Any] = {stem: places for stem in STEMS}
    np.savez(path, **arrays)


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
    elif kind in CONFIGURATIONS:
        path.write_bytes(CONFIGURATIONS[kind])
    elif kind in TABLES:
        path.write_bytes(TABLES[kind])
    elif kind == "odd widths":
        path.mkdir()
        for number in range(tiny.PAIRS):
            Image.new("RGB", (31, 16)).save(path / f"{number}.png")
    elif kind == "twins":
        path.mkdir()
        Image.new("RGB", (32, 16)).save(path / "a.png")
        Image.new("RGB", (32, 16)).save(path / "a.bmp")
    elif kind == "no train":
        (path / "test").mkdir(parents=True)
        Image.new("RGB", (32, 16)).save(path / "test" / "a.png")
    elif kind == "line breaks":
        path.mkdir()
        Image.new("RGB", (32, 16)).save(path / "a\nb.png")
    elif kind == "pictures and train":
        (path / "train").mkdir(parents=True)
        Image.new("RGB", (32, 16)).save(path / "a.png")
    elif kind == "nan.npz":
        save(path, np.array([[1.0, np.nan]]))
    elif kind == "outside.npz":
        save(path, np.array([[1, 2], [16, 2]]))
    elif kind == "pickled.npz":
        save(path, np.array([{}], dtype=object))
    elif kind == "columns.csv":
        path.write_text("picture,x,y\n1,1,1\n")
    elif kind == "torn.npz":
        path.write_bytes(b"PK\x03\x04 and no more")
    elif kind == "words.pth":
        path.write_text("I am no weights")
    elif kind == "other.pth":
        torch.save({"weight": torch.zeros(3)}, path)
    elif kind in ("text.pth", "text.safetensors"):
        path.write_text("I am no weights")
    elif kind in ("empty.pth", "empty.safetensors"):
        path.write_bytes(b"")
    elif kind == "evil.pth":
        torch.save({"weight": torch.zeros(2), "extra": Evil(here / "mark")}, path)
    elif kind == "torn.pth":
        torch.save(foreign.denoiser(), path)
        path.write_bytes(path.read_bytes()[:5000])
    elif kind == "other.safetensors":
        save_file({"conv1.weight": torch.zeros(2), "fc.bias": torch.zeros(1)}, path)
    elif kind == "palette.pth":
        torch.save(foreign.denoiser() | foreign.tables(), path)
    elif kind in SPACES:
        path.write_text(SPACES[kind])
    elif kind == "other search":
        path.mkdir()
        (path / "search.json").write_text('{"format": 1, "split": "x", "metric": "val/cc"}')
    elif kind == "full":
        path.mkdir()
        (path / "thesis.tex").write_text("precious")
    return path


# Configurations that cannot be used, by name.
CONFIGURATIONS = {
    "dash.yaml": b"model: unet\nlearning-rate: 3\n",
    "bomb.yaml": b"model: unet\na: &a [x, x, x]\nb: &b [*a, *a, *a]\nc: [*b, *b, *b]\n",
    "half.yaml": b'model: unet\ndata: {images: "\\ud800x"}\n',
}

# Spaces that cannot be searched, by name.
_BASE = "base: quick/unet\n"
SPACES = {
    "no parameters.yaml": _BASE,
    "empty parameters.yaml": _BASE + "parameters: {}\n",
    "no choices.yaml": _BASE + "parameters: {model.channels: []}\n",
    "foreign key.yaml": _BASE + "parameters: {model.generator.channels: [4, 8]}\n",
    "contradiction.yaml": _BASE
    + "parameters: {augment.flip: [0.0], augment.cutout: [0.5]}\nconstraints: [{equal: [augment.flip, augment.cutout]}]\n",
    "wrong search.yaml": _BASE + "parameters: {model.channels: [4, 8]}\nsearch: {eta: 1}\n",
    "list search.yaml": _BASE + "parameters: {model.channels: [4, 8]}\nsearch: [asha]\n",
}

# CSV files that cannot be used, by name.
TABLES = {
    "empty.csv": b"",
    "no columns.csv": b"picture;map\n1;2\n",
    "no pairs.csv": b"image,map\n",
    "slip.csv": b"image,map,Split\n1,2,test\n",
    "nul.csv": b"image,map\na\0,b\n",
    "latin.csv": b"image,map\n\xe9,b\n",
    "absent.csv": b"image,map\n/nowhere/a.png,/nowhere/b.png\n",
    "short.csv": b"image,map\n\n/nowhere/a.png\n",
    "endless.csv": b"image,map\n" + b"x" * 200_000 + b",b\n",
    "groups of others.csv": b"stem,group\nzebra,1\n",
    "no groups.csv": b"stem,cluster\nzebra,1\n",
}

SEARCH = "search run quick data.images={data}/images data.maps={data}/maps device=cpu --out {out}"
DATA = " data.images={data}/images data.maps={data}/maps --out {out}"
# Name -> (arguments, what the sentence says). {data} {run} {other} {out} and make's kinds in <> are filled in.
TRAIN = "train {config} data.images={data}/images data.maps={data}/maps --out {out}"
CASES: dict[str, tuple[str, str]] = {
    "no data": ("train {config} --out {out}", "no data are given: set data.images=DIR data.maps=DIR"),
    "images alone": ("train {config} data.images={data}/images --out {out}", "data.maps is not set"),
    "two sources": (TRAIN + " data.csv={data}/pairs.csv", "data.images, data.maps, data.csv are given together"),
    "a source of a wrong kind": (TRAIN + " data.csv=7", "data.csv = 7 cannot be"),
    "an unknown direction": (TRAIN + " data.direction=BtoB", "data.direction = 'BtoB' cannot be"),
    "a direction of two folders": (TRAIN + " data.direction=BtoA", "data.direction = BtoA is for data.side_by_side"),
    "two channels": (TRAIN + " data.image_channels=2", "data.image_channels = 2 cannot be"),
    "a filter that is not there": (TRAIN + " data.resize=nearest", "data.resize = 'nearest' cannot be"),
    "halves of nothing": ("train {config} data.side_by_side={tmp}/nowhere --out {out}", "nowhere does not exist"),
    "odd widths": ("train {config} data.side_by_side=<odd widths> --out {out}", "is 31 pixels wide, an odd number"),
    "two with one stem": ("train {config} data.side_by_side=<twins> --out {out}", "two pictures with the stem 'a'"),
    "no train": ("train {config} data.side_by_side=<no train> --out {out}", "has the sub-folders test and no train"),
    "splits and pictures": (
        "train {config} data.side_by_side=<pictures and train> --out {out}",
        "both pictures and a sub-folder train",
    ),
    "names that cannot be listed": (
        "train {config} data.side_by_side=<line breaks> --out {out}",
        "whose name has a line break",
    ),
    "no CSV": ("train {config} data.csv={tmp}/nowhere.csv --out {out}", "nowhere.csv does not exist"),
    "a folder for a CSV": ("train {config} data.csv={data} --out {out}", "is not a file"),
    "an empty CSV": ("train {config} data.csv=<empty.csv> --out {out}", "is empty"),
    "a CSV without its columns": ("train {config} data.csv=<no columns.csv> --out {out}", "has no column image"),
    "a CSV with a misspelt column": (
        "train {config} data.csv=<slip.csv> --out {out}",
        "has a column 'Split', which would be passed over: call it split",
    ),
    "a list of stems that has no end": (
        TRAIN + " data.val=/dev/zero",
        "data.val = /dev/zero is not a file: give a text file",
    ),
    "a CSV without pairs": ("train {config} data.csv=<no pairs.csv> --out {out}", "has a header and no pairs"),
    "a CSV with NUL": ("train {config} data.csv=<nul.csv> --out {out}", "line 2 of data.csv"),
    "a CSV in Latin-1": ("train {config} data.csv=<latin.csv> --out {out}", "is not UTF-8 text"),
    "a CSV of absent files": (
        "train {config} data.csv=<absent.csv> --out {out}",
        "names the image '/nowhere/a.png', which is not there",
    ),
    "a short line": ("train {config} data.csv=<short.csv> --out {out}", "line 3 of data.csv"),
    "an endless field": ("train {config} data.csv=<endless.csv> --out {out}", "field larger than field limit"),
    "groups of other data": (TRAIN + " data.groups=<groups of others.csv>", "names none of the pairs"),
    "groups without groups": (TRAIN + " data.groups=<no groups.csv>", "has no column group"),
    "groups that are not there": (TRAIN + " data.groups={tmp}/nowhere.csv", "does not exist"),
    "a crop when reading": ("evaluate {run} data.crop=true", "data.crop says what"),
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
        "30 files cannot be trained on: ",
    ),
    "checking data that are not there": (
        "data check {config} data.images={tmp}/nowhere data.maps={data}/maps",
        "data.images = {tmp}/nowhere does not exist",
    ),
    "groups that cannot be written": (
        "data check {config} data.images={data}/images data.maps={data}/maps --group-duplicates {tmp}/nowhere/groups.csv",
        "cannot write {tmp}/nowhere/groups.csv",
    ),
    "images in nobody's home": (
        "train {config} data.images=~nobody-of-that-name/x data.maps={data}/maps --out {out}",
        "data.images = '~nobody-of-that-name/x' cannot be",
    ),
    "a setting with a dash": ("train <dash.yaml> --out {out}", "there is no setting 'learning-rate'; "),
    "a value that stands for others": ("train <bomb.yaml> --out {out}", "line 3: *a stands for another value"),
    "half of a character": ("train <half.yaml> --out {out}", "line 2: '\\ud800x' holds half of a character"),
    "a number of thousands of digits": (TRAIN + " seed=0x" + "f" * 4500, "it has 4502 characters, and may have 100"),
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
    "an answer to divergence that is none": (TRAIN + " on_divergence=ignore", "on_divergence = 'ignore' cannot be"),
    "a rollback to higher rates": (
        TRAIN + " divergence.rate=2",
        "divergence.rate = 2 cannot be: it should be less than 1",
    ),
    "a rollback to no rate": (
        TRAIN + " divergence.rate=0",
        "divergence.rate = 0 cannot be: it should be greater than 0",
    ),
    "rollbacks without end": (TRAIN + " divergence.rollbacks=null", "divergence.rollbacks = None cannot be"),
    "every gradient an explosion": (TRAIN + " divergence.gradient=1", "divergence.gradient = 1 cannot be"),
    "a collapse of no step": (TRAIN + " divergence.collapse_steps=0", "divergence.collapse_steps = 0 cannot be"),
    "an unknown key of divergence": (TRAIN + " divergence.floor=1", "there is no setting 'divergence.floor'"),
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
    "a search without parameters": ("search run <no parameters.yaml>" + DATA, "parameters"),
    "a search of no parameter": ("search run <empty parameters.yaml>" + DATA, "parameters"),
    "a search of no choices": ("search run <no choices.yaml>" + DATA, "model.channels"),
    "a search of what the model does not have": ("search run <foreign key.yaml>" + DATA, "model.generator"),
    "a search of contradictions": ("search run <contradiction.yaml>" + DATA, "constraints"),
    "a search with a wrong setting": ("search run <wrong search.yaml>" + DATA, "search.eta = 1 cannot be"),
    "a search with a list": ("search run <list search.yaml>" + DATA, "search should be a group of keys and values"),
    "an unknown space": (SEARCH.replace("run quick", "run quikc"), "quikc"),
    "a search that pauses itself": (SEARCH + " until=3", "until cannot be set for a search"),
    "an unknown setting of a search": (SEARCH + " search.metod=asha", "there is no setting 'search.metod'"),
    "an unknown method": (SEARCH + " search.method=bayes", "search.method = 'bayes' cannot be"),
    "a search that chooses by test": (SEARCH + " search.metric=test/l1", "what chooses sees val alone"),
    "a metric that no run reports": (
        SEARCH + " search.metric=val/nothing",
        "search.metric = 'val/nothing' is not measured",
    ),
    "fewer epochs than the first rung": (
        SEARCH + " search.method=asha search.min_epochs=17",
        "epochs = 16 are fewer than the first rung, search.min_epochs = 17",
    ),
    "a rung before the first validation": (
        SEARCH + " search.method=asha validate.every=2",
        "the first rung, epoch 1, comes before val/l1 is first measured",
    ),
    "a parameter that a descent does not have": (
        SEARCH + " search.method=descent search.parameters=[x]",
        "no parameter 'x'",
    ),
    "a searched key that is set": (SEARCH + " model.channels=4", "model.channels"),
    "a folder of another search": (SEARCH.replace("{out}", "<other search>"), "was begun with"),
    "a search in a folder of other things": (SEARCH.replace("{out}", "<full>"), "is no search folder"),
    "reuse of what is not there": (SEARCH + " search.reuse=[{tmp}/nowhere]", "search.reuse names {tmp}/nowhere"),
    "a search without data": ("search run quick --out {out}", "no data are given"),
    "a device that is not there": (TRAIN + " device=cuda:63", "device = 'cuda:63' is not on this machine"),
    "no device": (TRAIN + " device=tpu", "auto, cpu, mps, cuda or cuda:N"),
    "tf32 on a CPU": (TRAIN + " precision=tf32", "precision = 'tf32' needs an NVIDIA GPU"),
    "an unknown strategy": (TRAIN + " strategy=horovod", "'ddp', 'fsdp' or 'deepspeed'"),
    "weights moved to the host without stage 3": (
        TRAIN + " strategy=deepspeed deepspeed.stage=2 deepspeed.offload=all",
        "only stage 3 moves weights to the host",
    ),
    "compiled stage 3": (
        TRAIN + " strategy=deepspeed deepspeed.stage=3 compile=true",
        "compile=true cannot be with deepspeed.stage = 3",
    ),
    "recomputed stage 3": (
        TRAIN + " strategy=deepspeed deepspeed.stage=3 activation_checkpointing=true",
        "activation_checkpointing=true cannot be with deepspeed.stage = 3",
    ),
    "recomputed batch normalisation": (
        TRAIN + " model.norm=batch activation_checkpointing=true",
        "cannot be with batch normalisation in unet",
    ),
    "a penalty under deepspeed": ("train wgan-gp strategy=deepspeed --out {out}", "pix2pix cannot run with deepspeed"),
    "a penalty that is recomputed": (
        "train wgan-gp activation_checkpointing=true --out {out}",
        "pix2pix cannot run with activation_checkpointing",
    ),
    "synchronised statistics on a CPU": (TRAIN + " sync_batch_norm=true", "sync_batch_norm=true needs GPUs"),
    "moved to the host on a CPU": (TRAIN + " strategy=fsdp fsdp.offload=true", "fsdp.offload=true needs GPUs"),
    "fp16 on a CPU": (TRAIN + " precision=fp16", "precision = 'fp16' needs a GPU"),
    "weights of another network": (TRAIN + " init.from={other}", "is from another network"),
    "weights of nothing": (TRAIN + " init.from={tmp}/nowhere", "{tmp}/nowhere is no run folder"),
    "weights of another network, only described": (TRAIN + " init.from={other} --dry-run", "is from another network"),
    "weights of nothing, only described": (
        TRAIN + " init.from={tmp}/nowhere --dry-run",
        "{tmp}/nowhere is no run folder",
    ),
    "a binary configuration": ("train <binary.yaml> --out {out}", "is not a text file"),
    "an empty configuration": ("train <empty.yaml> --out {out}", "holds no settings"),
    "a list as configuration": ("train <list.yaml> --out {out}", "holds no settings"),
    "a configuration without a model": ("train <no model.yaml> --out {out}", "model.name is not set"),
    "a torn configuration": ("train <torn.yaml> --out {out}", "is not valid YAML"),
    "wandb that is not there": (TRAIN + " log.wandb=project", "needs wandb, which is not installed"),
    "more sampling steps than were trained": (
        "train quick/palette data.size=32 eval.steps=2001 data.images={data}/images data.maps={data}/maps --out {out}",
        "2001 sampling steps are asked for",
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
    "a checkpoint of thousands of digits": (
        "evaluate {run} --checkpoint " + "7" * 5000,
        "has no checkpoint '77777",
    ),
    "an absent checkpoint": ("evaluate {run} --checkpoint 77", "has no checkpoint '77'"),
    "a checkpoint that is no number": ("evaluate {run} --checkpoint newest", "it should be best, last or the number"),
    "identity when reading": ("evaluate {run} model.channels=8", "cannot be changed when it is read"),
    "predict on nothing": ("predict {run} {tmp}/nowhere.png --out {out}", "does not exist"),
    "predict on an empty folder": ("predict {run} <empty> --out {out}", "holds no pictures"),
    "predict on a device": ("predict {run} /dev/null --out {out}", "/dev/null is neither a file nor a folder"),
    "predict among the pictures": (
        "predict {run} {data}/images --out {data}/images",
        "would be put among the pictures",
    ),
    "predict a share that is none": ("predict {run} {data}/images --out {out} --shard 9/8", "I from 1 to N"),
    "predict each sample of one": ("predict {run} {data}/images --out {out} --each", "--each does not apply to unet"),
    "verify nothing": ("predict {run} {data}/images --out {out} --verify", "there is nothing to verify"),
    "verify a share": (
        "predict {run} {data}/images --out {out} --verify --shard 1/8",
        "give it without --shard and --grid",
    ),
    "predict into a file": ("predict {run} {data}/images --out <text.txt>", "is a file"),
    "evaluations of what does not sample": (
        "evaluate {run} --steps 5",
        "eval.steps and its flag do not apply to unet, which does not sample",
    ),
    "samples of what does not sample": (
        "predict {run} {data}/images --samples 2 --out {out}",
        "eval.samples and its flag do not apply to unet",
    ),
    "a sampler of what does not sample": ("evaluate {run} eval.sampler=ddim", "do not apply to unet"),
    "measuring what does not sample": ("bench sample {run}", "unet does not sample"),
    "no samples": ("evaluate {run} --samples 0", "eval.samples"),
    "no evaluations": ("evaluate {run} --steps none", "eval.steps"),
    "comparing what is no run": ("compare {data}", "is no run folder"),
    "comparing what was not scored": ("compare {other}", "memdist evaluate"),
    "fixations that are not there": (
        "evaluate {run} data.fixations={tmp}/nowhere.npz",
        "data.fixations = {tmp}/nowhere.npz does not exist",
    ),
    "fixations that are not there, in training": (
        TRAIN + " data.fixations={tmp}/nowhere.npz",
        "does not exist: give an .npz",
    ),
    "fixations of another kind": ("evaluate {run} data.fixations=<text.txt>", "ends in neither .npz nor .csv"),
    "fixations that are no number": ("evaluate {run} data.fixations=<nan.npz>", "is not a number; leave out"),
    "fixations outside their picture": (
        "evaluate {run} data.fixations=<outside.npz>",
        "at x = 16, y = 2 is outside its picture of 16 x 16 pixels",
    ),
    "fixations that are pickled": ("evaluate {run} data.fixations=<pickled.npz>", "would have to be unpickled"),
    "fixations without a column": ("evaluate {run} data.fixations=<columns.csv>", "has no column stem"),
    "fixations that are torn": ("evaluate {run} data.fixations=<torn.npz>", "cannot be read as an .npz"),
    "weights of FID that are not there": (
        "evaluate {run} eval.fid_weights={tmp}/nowhere.pth",
        "eval.fid_weights = {tmp}/nowhere.pth does not exist",
    ),
    "weights of FID that are not there, in training": (TRAIN + " eval.fid_weights={tmp}/nowhere.pth", "does not exist"),
    "weights of FID that are words": ("evaluate {run} eval.fid_weights=<words.pth>", "is no checkpoint of PyTorch"),
    "weights of another network for FID": ("evaluate {run} eval.fid_weights=<other.pth>", "it lacks 'Conv2d_1a_3x3"),
    "importing nothing": ("import palette {tmp}/nowhere.pth --out {out}", "{tmp}/nowhere.pth does not exist"),
    "importing with a wrong word": (
        "import pallete <palette.pth> --out {out}",
        "choose one of palette, pix2pix, memdist",
    ),
    "importing text": ("import palette <text.pth> --out {out}", "text.pth is no checkpoint of PyTorch"),
    "importing an empty file": ("import palette <empty.pth> --out {out}", "empty.pth is no checkpoint of PyTorch"),
    "importing text as safetensors": ("import palette <text.safetensors> --out {out}", "is no safetensors file"),
    "importing an empty safetensors": ("import palette <empty.safetensors> --out {out}", "is no safetensors file"),
    "importing a torn file": (
        "import palette <torn.pth> --out {out}",
        "torn.pth is no checkpoint of PyTorch, or a part",
    ),
    "importing what runs code": ("import palette <evil.pth> --out {out}", "memdist runs none from outside"),
    "importing another model": ("import palette <other.safetensors> --out {out}", "neither of Palette's U-Nets"),
    "importing another generator": (
        "import pix2pix <other.safetensors> --out {out}",
        "holds no U-Net generator of pix2pix",
    ),
    "importing palette as pix2pix": ("import pix2pix <palette.pth> --out {out}", "holds no U-Net generator of pix2pix"),
    "importing a folder of nothing": ("import pix2pix <empty> --out {out}", "has no latest_net_G.pth"),
    "importing a folder as palette": ("import palette <empty> --out {out}", "is a folder"),
    "importing with a setting against the weights": (
        "import palette <palette.pth> model.channels=64 data.size=16 --out {out}",
        "model.channels = 64 cannot be: the weights",
    ),
    "importing into a folder that is there": (
        "import palette <palette.pth> --out {run}",
        "--out {run} is there already",
    ),
    "importing into an unwritable place": (
        "import palette <palette.pth> model.heads=1 data.size=16 --out /proc/memdist",
        "cannot write /proc",
    ),
    "importing what is no export": ("import memdist {run} --out {out}", "is no exported run: it has no manifest.json"),
    "importing an export that is not there": ("import memdist {tmp}/nowhere --out {out}", "it does not exist"),
    "importing a file as an export": ("import memdist <text.txt> --out {out}", "it is no folder"),
    "importing from a name that is too long": ("import palette " + "x" * 300 + " --out {out}", "file name too long"),
    "importing into a name that is too long": (
        "import palette <palette.pth> --out {tmp}/" + "x" * 300,
        "file name too long",
    ),
    "exporting nothing": ("export {tmp}/nowhere --out {out}", "{tmp}/nowhere is no run folder"),
    "exporting data": ("export {data} --out {out}", "is no run folder"),
    "exporting an absent checkpoint": ("export {run} --checkpoint 77 --out {out}", "has no checkpoint '77'"),
    "exporting into a folder that is there": ("export {run} --out {other}", "--out {other} is there already"),
    "an unknown cluster": (
        "submit train unet --cluster nowhere --out {out}",
        "there is no cluster 'nowhere': known are ",
    ),
    "many runs in no folder": (
        "submit train unet -m seed=1,2 --cluster local",
        "there is no --out, the folder of the runs",
    ),
    "more shares than pictures": (
        "submit predict {run} {data}/images --shards 31 --cluster local --out {out}",
        "--shards 31 cannot be: there are 30 pictures",
    ),
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


def test_a_training_that_diverges_ends_with_one_sentence(
    place: Place, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "config.yaml").write_text(CONFIG)
    line = ["train", str(tmp_path / "config.yaml"), f"data.images={place.data}/images", f"data.maps={place.data}/maps"]
    with pytest.raises(SystemExit) as ended:
        cli.main([*line, "optim.unet.lr=1e30", "--out", str(tmp_path / "out")])
    assert ended.value.code == 2
    (sentence,) = capfd.readouterr().err.strip().splitlines()
    assert sentence.startswith("memdist: ") and "has diverged: " in sentence and "at step 2; " in sentence
    assert rundir.read_json(tmp_path / "out" / rundir.STATE)["state"] == "diverged"
    assert not (tmp_path / "out" / rundir.CHECKPOINTS).exists()


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
