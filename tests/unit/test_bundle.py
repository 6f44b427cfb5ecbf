"""Exported folders that somebody changed and sealed anew: what no export holds is refused."""

import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from torch import Tensor

from memdist import config, rundir
from memdist.errors import CheckpointError, MemdistError
from memdist.exchange import bundle, importing
from memdist.train import checkpoint, restore
from tests import tiny


def exported(folder: Path) -> Path:
    """An exported folder of a small GAN; it says nothing of where its weights come from."""
    run = tiny.run("pix2pix", folder)
    model = restore.model_of(run)
    nets = model.stage().nets
    state = {f"{net}.{key}": value for net, module in nets.items() for key, value in module.state_dict().items()}
    out = folder / "export"
    out.mkdir(parents=True)
    save_file({k: v for k, v in state.items() if k.startswith("generator.")}, out / bundle.MODEL)
    save_file({k: v for k, v in state.items() if k.startswith("discriminator.")}, out / bundle.TRAINING)
    (out / rundir.CONFIG).write_text(config.dump(bundle.portable(run)))
    rundir.write_json(out / bundle.MANIFEST, bundle.seal(out))
    return out


def weights(change: Callable[[dict[str, Tensor]], Any], name: str = bundle.MODEL) -> Callable[[Path], None]:
    def apply(out: Path) -> None:
        state = load_file(out / name)
        change(state)
        save_file(state, out / name)

    return apply


def setting(key: str, value: Any) -> Callable[[Path], None]:
    def apply(out: Path) -> None:
        raw = config.override(config.read(out / rundir.CONFIG), [f"{key}={value}"])
        (out / rundir.CONFIG).write_text(yaml.safe_dump(raw))

    return apply


FIRST = "generator.output.weight"
CHANGED: dict[str, tuple[Callable[[Path], None], str]] = {
    "no number": (weights(lambda s: s[FIRST].view(-1)[0].fill_(math.nan)), "values in output.weight that are no finite numbers"),
    "half": (weights(lambda s: s.update({FIRST: s[FIRST].half()})), "1 tensors differ, for example output.weight"),
    "integers": (weights(lambda s: s.update({FIRST: s[FIRST].int()})), "1 tensors differ, for example output.weight"),
    "another": (weights(lambda s: s.update({"zzz.foo": torch.zeros(1)})), "'zzz.foo', which no network of their config.yaml has"),
    "twice": (weights(lambda s: s.update({FIRST: torch.zeros(1)}), bundle.TRAINING), f"'{FIRST}', which no network"),
    "a cache": (setting("data.cache", "/tmp/elsewhere"), "sets data.cache = '/tmp/elsewhere', which belongs to a machine"),
    "data": (setting("data.images", "/tmp/pictures"), "sets data.images = '/tmp/pictures'"),
    "a list": (setting("data.val", "/tmp/val.txt"), "sets data.val = '/tmp/val.txt'"),
    "a service": (setting("log.wandb", "somebody"), "sets log.wandb = 'somebody'"),
    "a parent": (setting("init.from", "/tmp/run"), "sets init.from = '/tmp/run'"),
    "a giant": (setting("model.generator.channels", 1000000), "tensors differ"),
}  # fmt: skip


@pytest.mark.parametrize("name", CHANGED)
def test_an_export_that_was_changed_and_sealed_anew(name: str, tmp_path: Path) -> None:
    change, says = CHANGED[name]
    out = exported(tmp_path)
    change(out)
    rundir.write_json(out / bundle.MANIFEST, bundle.seal(out))
    with pytest.raises(MemdistError, match=re.escape(says)) as told:
        importing.import_("memdist", out, tmp_path / "run")
    assert len(str(told.value).splitlines()) == 1 and not (tmp_path / "run").exists()


def test_an_export_that_was_not_changed(tmp_path: Path) -> None:
    out = exported(tmp_path)
    importing.import_("memdist", out, tmp_path / "run")
    found = load_file(checkpoint.folder(tmp_path / "run", 0) / checkpoint.NETS)
    assert torch.equal(found[FIRST], load_file(out / bundle.MODEL)[FIRST])


def test_what_comes_to_be_meanwhile_is_not_touched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out, saved = exported(tmp_path), checkpoint.save

    def save(*arguments: Any) -> None:
        (tmp_path / "run").mkdir()
        (tmp_path / "run" / "mine").write_text("mine")
        saved(*arguments)

    monkeypatch.setattr(checkpoint, "save", save)
    with pytest.raises(CheckpointError, match="has come to be while it was written"):
        importing.import_("memdist", out, tmp_path / "run")
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["mine"]
