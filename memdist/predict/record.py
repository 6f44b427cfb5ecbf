"""What a folder of maps says of itself: the weights and settings by which all its maps are made.

The first process makes `predict.json`; all others, on whichever machine, read it and are refused where theirs differs.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from memdist import config, rundir
from memdist.errors import CheckpointError
from memdist.train import mapper, restore
from memdist.train.recipe import Recipe
from memdist.train.restore import Restored

FILE = "predict.json"
FORMAT = 1
"""Of the folder; a change of what the same settings give is a new one."""

_MOST = 2**20
"""Maps at once, and numbered folders, that any record may say."""
_DATA = ("data.size", "data.image_channels", "data.map_channels", "data.crop", "data.resize")


@dataclass(frozen=True)
class Record:
    """A folder's maps: what they are, and how they are made."""

    settings: dict[str, Any]
    """All that a map depends on, by name: other values are other maps."""
    step: int
    """Step of the checkpoint, for sentences: the weights stand among the settings."""
    averaged: bool
    batch: int
    """Maps at once, the same for all shards, so that all have the same bits."""
    compiled: bool
    folders: int
    """Numbered sub-folders; 0: the maps lie in the folder itself."""

    @property
    def fingerprint(self) -> str:
        """Short name of the settings, in each line of a manifest."""
        return config.fingerprint(self.settings, 16)


def settings(found: Restored, run: Any, made: Recipe, each: bool) -> dict[str, Any]:
    """All that maps depend on; where the run lies is no part of it."""
    fixed = config.identity(run)
    model = {key: value for key, value in fixed.items() if key.startswith("model.")}
    sampling = made.record(found.model) or {}
    sampling.pop("evaluations", None)  # it follows from the others
    whole = {
        "format": FORMAT,
        "weights": restore.digest(found.nets),
        "seed": run.seed,
        "precision": mapper.precision_of(run),
        **{f"eval.{key}": value for key, value in sampling.items()},
        "--each": each,
        **{key: fixed[key] for key in _DATA},
        **model,
    }
    return json.loads(json.dumps(whole))  # as it is read again


def read(out: Path) -> Record | None:
    """The record of a folder; None where there is none yet."""
    path = out / FILE
    raw = _waited(path)
    if not raw and not path.exists():
        return None
    raw = raw or _waited(path)  # it may have come just now
    types = {"settings": dict, "step": int, "averaged": bool, "batch": int, "compiled": bool, "folders": int}
    whole = raw.keys() == types.keys() and all(type(raw[key]) is kind for key, kind in types.items())
    # What is damaged must not ask for more memory or folders than there can be.
    if not whole or not 1 <= raw["batch"] <= _MOST or not 0 <= raw["folders"] <= _MOST:
        raise CheckpointError(
            f"{path} does not say how the maps beside it were made: restore it, or name another folder with --out"
        )
    return Record(**raw)


def begin(out: Path, own: Record) -> Record:
    """Make the record of a folder, unless another process came first; gives what stands there."""
    _make(out / FILE, (json.dumps(asdict(own), indent=1) + "\n").encode())
    there = read(out)
    if there is None:
        raise CheckpointError(f"{out / FILE} is gone while maps are made: name another folder with --out")
    return there


def refuse(out: Path, there: Record, own: Mapping[str, Any], found: Restored, folder: Path) -> None:
    """Raise a CheckpointError where a folder holds maps that are made otherwise; the first difference is named."""
    if there.settings == own:
        return
    if there.settings.get("weights") != own["weights"]:
        then, now = _weights(there.step, there.averaged), _weights(found.step, found.averaged)
        raise CheckpointError(
            f"{out} holds maps by other weights ({then}) than those of {folder} ({now}): give the run and the --checkpoint "
            "that they are of, or another folder with --out"
        )
    key = next(key for key in [*own, *there.settings] if there.settings.get(key) != own.get(key))
    raise CheckpointError(
        f"{out} holds maps with {key} = {there.settings.get(key)!r}, not {own.get(key)!r}: give the same, or another folder "
        "with --out"
    )


def _weights(step: int, averaged: bool) -> str:
    return f"step {step}, {'averaged' if averaged else 'not averaged'}"


def _waited(path: Path) -> dict[str, Any]:
    """Read JSON; where a file cannot appear whole, as there are no links, who makes it gets a moment to write it."""
    for _ in range(20):
        try:
            return rundir.read_json(path)
        except CheckpointError as error:
            if isinstance(error.__cause__, OSError):
                raise
            time.sleep(0.1)
    return rundir.read_json(path)


def _make(path: Path, data: bytes) -> None:
    """Make a file with its content, unless there is one: for the file system that is one step, and succeeds once."""
    beside = rundir.temporary(path)
    with rundir.naming(path):
        try:
            _write(beside, data)
            try:
                os.link(beside, path)
            except FileExistsError:
                return
            except OSError:  # there are no links here; what else is wrong will be told once more
                try:
                    _write(path, data)
                except FileExistsError:
                    return
        finally:
            beside.unlink(missing_ok=True)
        rundir.sync_folder(path.parent)


def _write(path: Path, data: bytes) -> None:
    """Write a file that must not be there yet."""
    with open(path, "xb") as file:
        try:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        except OSError:
            path.unlink(missing_ok=True)
            raise
