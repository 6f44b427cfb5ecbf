"""Checkpoints: folders of safetensors and JSON, keyed by names, whole or absent.

checkpoints/<step, 10 digits>/
    nets.safetensors      <network>.<parameter or buffer>
    averages.safetensors  the same, for networks that keep an average
    optim.safetensors     <network>/<state>/<parameter>
    state.json            step, lengths of line files, selection, scalers, sums, watch, anchor, rollbacks
    manifest.json         size and SHA-256 of each file
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from memdist import rundir
from memdist.distributed.pieces import Fetch
from memdist.errors import CheckpointError

NETS = "nets.safetensors"
AVERAGES = "averages.safetensors"
OPTIM = "optim.safetensors"
STATE = "state.json"
MANIFEST = "manifest.json"


def folder(run: Path, step: int) -> Path:
    """Folder of a step's checkpoint."""
    return run / rundir.CHECKPOINTS / f"{step:010d}"


def steps(run: Path) -> list[int]:
    """Steps of which there is a whole checkpoint, ascending."""
    return [step for step in there(run) if (folder(run, step) / MANIFEST).is_file()]


def there(run: Path) -> list[int]:
    """Steps of which there is a folder, ascending; one that has lost its manifest is no checkpoint any more."""
    return sorted(int(path.name) for path in (run / rundir.CHECKPOINTS).glob("[0-9]" * 10))


def safe(run: Path) -> str:
    """What a run whose disk is full or gone has left, for a sentence."""
    found = steps(run)
    if not found:
        return "no checkpoint was written yet, and the same command begins anew"
    return f"the checkpoint of step {found[-1]} is safe, and the same command goes on from there"


def save(
    run: Path, step: int, nets: Mapping[str, nn.Module], averages: Mapping[str, nn.Module], state: Mapping[str, Any]
) -> None:
    """Write a checkpoint of networks that no optimiser has moved yet, whole or not at all."""
    with new(run, step, state) as temporary:
        write_tensors(_weights(nets), temporary / NETS)
        write_tensors(_weights(averages), temporary / AVERAGES)
        write_tensors({}, temporary / OPTIM)


@contextlib.contextmanager
def new(run: Path, step: int, state: Mapping[str, Any]) -> Iterator[Path]:
    """A folder to write the tensors of a checkpoint into; it is whole once the context ends, or absent."""
    # What stands there without a manifest is no checkpoint, and would be in the way of one.
    rundir.remove_folder(folder(run, step))
    with rundir.new_folder(folder(run, step)) as temporary:
        yield temporary
        (temporary / STATE).write_text(json.dumps({"step": step, **state}))
        manifest = {path.name: _seal(path) for path in sorted(temporary.iterdir())}
        (temporary / MANIFEST).write_text(json.dumps(manifest, indent=1))


def prune(run: Path, keep: set[int]) -> None:
    """Remove checkpoints that are not to be kept; called once the next one is whole."""
    for step in steps(run):
        if step not in keep:
            rundir.remove_folder(folder(run, step))


def harm(run: Path, step: int, names: tuple[str, ...] = (NETS, AVERAGES, OPTIM, STATE)) -> str | None:
    """What is wrong with files of a checkpoint, in words; None if they are what was written, and say something."""
    from safetensors import SafetensorError, safe_open

    path = folder(run, step)
    try:
        manifest = rundir.read_json(path / MANIFEST)
        absent = sorted({NETS, AVERAGES, OPTIM, STATE} - manifest.keys())
        if absent:
            return f"{MANIFEST} does not name {absent[0]}"
        for name in names:
            if not (path / name).is_file():
                return f"{name} is not what was written (it is missing)"
            if _seal(path / name) != manifest[name]:
                return f"{name} is not what was written (checksum)"
            if name != STATE:
                with safe_open(path / name, "pt"):
                    pass
        if rundir.read_json(path / STATE).get("step") != step:
            return f"{STATE} is not of step {step}"
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError) as error:
        return f"a file cannot be read: {(error.strerror or str(error)).lower()}"
    except OSError as error:
        raise _unread(path, error) from error
    except SafetensorError as error:
        return f"{name} holds no tensors: {error}"
    except CheckpointError as error:
        if isinstance(error.__cause__, OSError) and not isinstance(error.__cause__, IsADirectoryError):
            raise _unread(path, error.__cause__) from error
        return str(error).removeprefix(f"{path}{os.sep}").partition(";")[0]
    return None


def _unread(path: Path, error: OSError) -> CheckpointError:
    """What a disk that refuses is no fault of: the checkpoint may be whole, and must not be passed over for it."""
    why = (error.strerror or str(error)).lower()
    return CheckpointError(
        f"{path} cannot be read: {why}; nothing was changed: see to the disk and give the same command again, or remove that "
        "folder to go on from the checkpoint before"
    )


def read_state(run: Path, step: int) -> dict[str, Any]:
    """State of a checkpoint, once its files are found to be what was written."""
    wrong = harm(run, step)
    if wrong:
        raise CheckpointError(
            f"the checkpoint {folder(run, step)} cannot be used: {wrong}; name another one with --checkpoint, or train on, "
            "which goes back to the one before"
        )
    return rundir.read_json(folder(run, step) / STATE)


def load_weights(run: Path, step: int, nets: Mapping[str, nn.Module], *, averages: bool) -> None:
    """Copy the weights of the networks (or of their averages) of a checkpoint into `nets`."""
    path = folder(run, step) / (AVERAGES if averages else NETS)
    stored = _read_tensors(path)
    wrong = misfit({key: tuple(value.shape) for key, value in stored.items()}, shapes_of(nets))
    if wrong:
        raise CheckpointError(
            f"{path} is from another network: {wrong}; use the configuration that it was trained with"
        )
    for name, net in nets.items():
        for key, value in net.state_dict().items():
            value.copy_(stored[f"{name}.{key}"])


Shapes = Mapping[str, Mapping[str, tuple[int, ...]]]
"""Shapes of parameters and buffers, by network."""


def shapes_of(nets: Mapping[str, nn.Module]) -> dict[str, dict[str, tuple[int, ...]]]:
    """Shapes of what a checkpoint keeps of networks that are held whole."""
    return {name: {key: tuple(v.shape) for key, v in net.state_dict().items()} for name, net in nets.items()}


def misfit(shapes: Mapping[str, tuple[int, ...]], wanted: Shapes) -> str | None:
    """What keeps stored tensors of these names and shapes out of the networks, in words; None if they fit."""
    for name, own in wanted.items():
        given = {key[len(name) + 1 :]: shape for key, shape in shapes.items() if key.startswith(name + ".")}
        wrong = sorted(key for key in own.keys() | given.keys() if own.get(key) != given.get(key))
        if wrong:
            return f"{name} differs in {len(wrong)} tensors, for example {wrong[0]}"
    return None


@contextlib.contextmanager
def reading(run: Path, step: int, name: str) -> Iterator[Fetch]:
    """Stretches of the tensors in a file of a checkpoint: a rank reads what it holds, and no more."""
    from safetensors import safe_open

    path = folder(run, step) / name
    with _reading(path), safe_open(path, "pt") as file:

        def fetch(key: str, start: int, count: int) -> Tensor:
            part = file.get_slice(key)
            shape = part.get_shape()
            if not shape:
                return file.get_tensor(key).reshape(1)
            per_row = math.prod(shape[1:])
            first, last = start // per_row, -(-(start + count) // per_row)
            return part[first:last].reshape(-1)[start - first * per_row :][:count]

        yield fetch


def _weights(nets: Mapping[str, nn.Module]) -> dict[str, Tensor]:
    return {
        f"{name}.{key}": value.cpu().contiguous()
        for name, net in nets.items()
        for key, value in net.state_dict().items()
    }


def _seal(path: Path) -> dict[str, Any]:
    with open(path, "rb") as file:
        return {"bytes": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


def write_tensors(tensors: Mapping[str, Tensor], path: Path, metadata: dict[str, str] | None = None) -> None:
    """Write a safetensors file; what the file system refuses is an OSError, as elsewhere."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    try:
        save_file(dict(tensors), path, metadata)
    except SafetensorError as error:
        # The library knows only a text: "I/O error: No space left on device (os error 28)".
        found = re.search(r"\(os error (\d+)\)", str(error))
        if found is None:
            raise
        raise OSError(int(found[1]), os.strerror(int(found[1])), str(path)) from error


def _read_tensors(path: Path) -> dict[str, Tensor]:
    from safetensors.torch import load_file

    with _reading(path):
        return load_file(path)


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Turn what goes wrong while a file of tensors is read into a sentence."""
    from safetensors import SafetensorError

    try:
        yield
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"{path} cannot be read: {error}; name another checkpoint, or train on, which goes back to the one before"
        ) from error


def shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the tensors of a file, without their values."""
    from safetensors import safe_open

    with _reading(path), safe_open(path, "pt") as file:
        return {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118
