"""What an exported folder holds, and how it is found to be whole.

DIR/
    model.safetensors     the networks that predict, averaged where averages are kept: <network>.<tensor>
    training.safetensors  what fine-tuning needs besides: other networks, and what was averaged
    config.yaml           resolved settings, without the paths of any machine
    manifest.json         size and SHA-256 of the files above
    README.md             the model card
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from memdist import config, models, rundir
from memdist.errors import CheckpointError, MemdistError
from memdist.foreign import standing
from memdist.train import restore

MODEL = "model.safetensors"
TRAINING = "training.safetensors"
CARD = "README.md"
MANIFEST = "manifest.json"
SEALED = (MODEL, TRAINING, rundir.CONFIG)
"""Files that a manifest vouches for; the card may be edited."""


def refuse_existing(out: Path) -> None:
    """Raise a CheckpointError for an --out that is there, or that cannot be."""
    with rundir.naming(out):
        there = out.exists() or out.is_symlink()
    if there:
        raise CheckpointError(f"--out {out} is there already: name a new folder, or remove it first")


def seal(folder: Path) -> dict[str, Any]:
    """Size and SHA-256 of the sealed files of a folder."""
    sealed = {}
    for path in (folder / name for name in SEALED if (folder / name).is_file()):
        with open(path, "rb") as file:
            sealed[path.name] = {
                "bytes": path.stat().st_size,
                "sha256": hashlib.file_digest(file, "sha256").hexdigest(),
            }
    return sealed


def read(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor], dict[str, Tensor]]:
    """Raw settings, tensors that predict and tensors besides, once the files are found to be what was exported."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if standing(folder / MANIFEST) != "file":
        what = {"folder": f"has no {MANIFEST}", "file": "is no folder", "nothing": "does not exist"}[standing(folder)]
        raise CheckpointError(f"{folder} is no exported run: it {what}; give a folder that `memdist export` made")
    manifest = rundir.read_json(folder / MANIFEST)
    if not {MODEL, rundir.CONFIG} <= manifest.keys() <= set(SEALED):
        raise CheckpointError(f"{folder / MANIFEST} does not name what `memdist export` writes; copy the folder anew")
    found = seal(folder)
    for name in manifest:
        if found.get(name) != manifest[name]:
            raise CheckpointError(f"{folder / name} is not what was exported (checksum); copy the folder anew")
    try:
        predicting = load_file(folder / MODEL)
        training = load_file(folder / TRAINING) if TRAINING in manifest else {}
        return config.read(folder / rundir.CONFIG), predicting, training
    except (SafetensorError, MemdistError) as error:
        raise CheckpointError(f"{folder} cannot be read: {error}; export the run anew") from error


def sorted_out(
    run: Any, predicting: Mapping[str, Tensor], training: Mapping[str, Tensor]
) -> tuple[dict[str, dict[str, Tensor]], dict[str, dict[str, Tensor]]]:
    """State dicts of networks and of averages; a CheckpointError where they are not those of the settings."""
    averaged, states = expected(run)
    kept = run.ema.decay is not None
    nets: dict[str, dict[str, Tensor]] = {}
    averages: dict[str, dict[str, Tensor]] = {}
    rest = states.keys() if kept else states.keys() - set(averaged)
    for stored, names in ((predicting, averaged), (training, rest)):
        strange = sorted(key for key in stored if key.partition(".")[0] not in names)
        if strange:
            raise CheckpointError(
                f"the exported weights hold {strange[0]!r}, which no network of their {rundir.CONFIG} has; export the run anew"
            )
    for name, wanted in states.items():
        if name in averaged and kept:
            averages[name] = _part(predicting, name, wanted)
        nets[name] = _part(predicting if name in averaged and not kept else training, name, wanted)
    return nets, averages


def portable(run: Any) -> Any:
    """Settings without paths: where data, caches, lists and former runs lay on this machine is nobody's business."""
    raw = config.plain(run)
    for dotted, info, _ in config.fields(type(run)):
        *groups, last = dotted.split(".")
        value, level = run, raw
        for name in groups:
            value, level = _field(value, name), level[name]
        if isinstance(_field(value, last), Path):
            level[last] = info.default
    raw["device"] = "auto"
    raw["data"] = {**raw["data"], "direction": "AtoB"}
    raw["log"] = {**raw["log"], "wandb": None}
    return models.resolve(raw)


def _field(settings: Any, name: str) -> Any:
    """Value of a field by the name that users write."""
    fields = type(settings).model_fields
    own = next(own for own, info in fields.items() if (info.alias or own) == name)
    return getattr(settings, own)


def expected(run: Any) -> tuple[tuple[str, ...], dict[str, dict[str, Tensor]]]:
    """Networks that predict, and the state dict of every network, without storage."""
    model = restore.model_of(run)
    with torch.device("meta"):
        stage = model.stage()
    return model.averaged(), {name: dict(net.state_dict()) for name, net in stage.nets.items()}


def _part(stored: Mapping[str, Tensor], net: str, wanted: Mapping[str, Tensor]) -> dict[str, Tensor]:
    given = {key[len(net) + 1 :]: value for key, value in stored.items() if key.startswith(net + ".")}

    def alike(key: str) -> bool:
        one, other = given.get(key), wanted.get(key)
        return one is not None and other is not None and (one.shape, one.dtype) == (other.shape, other.dtype)

    wrong = sorted(key for key in given.keys() | wanted.keys() if not alike(key))
    if not wrong:
        lost = sorted(key for key, value in given.items() if not bool(value.isfinite().all()))
        if lost:
            raise CheckpointError(
                f"the exported weights of {net} hold values in {lost[0]} that are no finite numbers: its training had diverged"
            )
    if wrong:
        raise CheckpointError(
            f"the exported weights of {net} are not those of its {rundir.CONFIG}: {len(wrong)} tensors differ, for example "
            f"{wrong[0]}; export the run anew"
        )
    return given
