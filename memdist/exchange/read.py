"""Files from outside, read so that nothing in them runs: tensors by name, and nothing else."""

from __future__ import annotations

import pickle
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from memdist.errors import CheckpointError


class Converted(NamedTuple):
    """A foreign network in our terms."""

    derived: dict[str, Any]
    """Settings that names and shapes tell, by dotted name."""
    assumed: dict[str, Any]
    """Settings that they do not tell, as the public code has them by default."""
    weights: dict[str, Tensor]
    """Our network's state dict."""


NESTED = ("state_dict", "model_state_dict", "params")
"""Keys under which some programs keep the tensors beside other things."""


def tensors(path: Path) -> dict[str, Tensor]:
    """Tensors of a .safetensors, .pth or .pt file by name, on the CPU: float32, or int64 for counters.

    A .pth is unpickled with torch's restricted loader alone, which builds tensors and plain containers and calls nothing
    else. Raises CheckpointError with one sentence for whatever else the file is.
    """
    if standing(path) != "file":
        what = "is a folder" if standing(path) == "folder" else "does not exist"
        raise CheckpointError(f"{path} {what}: give a .pth, .pt or .safetensors file of weights")
    raw = _safetensors(path) if path.suffix == ".safetensors" else _pickled(path)
    if isinstance(raw, Mapping) and not any(isinstance(value, Tensor) for value in raw.values()):
        raw = next((raw[key] for key in NESTED if isinstance(raw.get(key), Mapping)), raw)
    if not isinstance(raw, Mapping) or not raw:
        raise CheckpointError(f"{path} holds no weights by name: give the state dict that the program saved")
    strange = [key for key, value in raw.items() if not isinstance(key, str) or not isinstance(value, Tensor)]
    if strange:
        raise CheckpointError(
            f"{path} holds more than weights, such as {strange[0]!r}: give a file of the network's state dict alone"
        )
    return {key: _plain(path, key, value) for key, value in raw.items()}


def standing(path: Path) -> Literal["file", "folder", "nothing"]:
    """What stands at a path; a CheckpointError for one that cannot even be looked at."""
    try:
        return "file" if path.is_file() else "folder" if path.is_dir() else "nothing"
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {(error.strerror or str(error)).lower()}") from error


def _safetensors(path: Path) -> Any:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError, KeyError) as error:
        raise CheckpointError(f"{path} is no safetensors file, or a part of one ({error}): copy it anew") from error


def _pickled(path: Path) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if not _is_checkpoint(path):
            raise CheckpointError(
                f"{path} is no checkpoint of PyTorch: give the file that the program saved"
            ) from error
        raise CheckpointError(
            f"{path} would have to run code to be read, and memdist runs none from outside: save the network's state dict "
            "alone, or convert it to safetensors where you trust it"
        ) from error
    except Exception as error:  # what is torn fails in as many ways as there are bytes
        raise CheckpointError(
            f"{path} is no checkpoint of PyTorch, or a part of one ({type(error).__name__}): copy it anew"
        ) from error


def _is_checkpoint(path: Path) -> bool:
    """Whether a file begins like one that torch.save wrote: a zip archive, or a pickle of protocol 2 and up."""
    with open(path, "rb") as file:
        return file.read(4).startswith((b"PK\x03\x04", b"\x80"))


def _plain(path: Path, key: str, value: Tensor) -> Tensor:
    value = value.detach()
    if value.layout != torch.strided or value.is_quantized or value.is_complex() or value.device.type != "cpu":
        raise CheckpointError(f"{path} holds {key!r} in a form that is no plain tensor: save it dense and unquantised")
    if value.untyped_storage().nbytes() < value.numel() * value.element_size():
        raise CheckpointError(f"{path} says that {key!r} is {list(value.shape)}, and holds fewer numbers: copy it anew")
    if not value.is_floating_point():
        return value.long()
    value = value.float()
    if not bool(value.isfinite().all()):
        raise CheckpointError(f"{path} holds values in {key!r} that are no finite numbers: its training had diverged")
    return value


def stripped(state: Mapping[str, Tensor], prefixes: Sequence[str]) -> dict[str, Tensor]:
    """State dict without the wrappers' prefixes, however many are on top of one another."""
    found: dict[str, Tensor] = {}
    for key, value in state.items():
        name = key
        while prefix := next((p for p in prefixes if name.startswith(p)), ""):
            name = name[len(prefix) :]
        if name in found:
            raise CheckpointError(f"holds two tensors that are both {name!r} without their prefixes: give one network")
        found[name] = value
    return found


def width(state: Mapping[str, Tensor], key: str, axis: int) -> int:
    """Length of an axis of a tensor that a known architecture has; a CheckpointError where it has it not."""
    shape = state[key].shape if key in state else ()
    if len(shape) <= axis or shape[axis] < 1:
        raise CheckpointError(f"has no {key!r} of the kind that it should have ({_names(list(state))})")
    return shape[axis]


def multiples(widths: Sequence[int], base: int) -> list[int]:
    """Widths of levels in units of the base; a CheckpointError when they are no multiples."""
    if any(w % base for w in widths):
        raise CheckpointError(
            f"has levels of {', '.join(map(str, widths))} channels, which are no multiples of its base of {base}"
        )
    return [w // base for w in widths]


def match(
    state: Mapping[str, Tensor], shapes: Mapping[str, torch.Size], foreign: Mapping[str, str], what: str
) -> dict[str, Tensor]:
    """Our state dict from a foreign one; `foreign` gives their name of each of ours.

    1x1 convolutions may lack trailing axes of length 1, and batch normalisation of old torch its counter. Raises a
    CheckpointError that names the first few keys that are missing, unknown or of another shape.
    """
    missing = [foreign[name] for name in shapes if foreign[name] not in state]
    unknown = sorted(state.keys() - set(foreign.values()))
    found: dict[str, Tensor] = {}
    shaped = []
    for name, shape in shapes.items():
        value = state.get(foreign[name])
        if value is None and name.endswith("num_batches_tracked"):
            value = torch.zeros((), dtype=torch.int64)
            missing.remove(foreign[name])
        if value is None:
            continue
        if tuple(value.shape) + (1,) * (len(shape) - value.ndim) != tuple(shape):
            shaped.append(f"{foreign[name]} ({list(value.shape)} instead of {list(shape)})")
            continue
        found[name] = value.reshape(shape)
    faults = [
        f"{word}: {_names(keys)}"
        for word, keys in (("missing", missing), ("unknown", unknown), ("shape", shaped))
        if keys
    ]
    if faults:
        raise CheckpointError(f"is not the {what} that its names begin like ({'; '.join(faults)})")
    return found


def _names(keys: Sequence[str], most: int = 3) -> str:
    more = f" and {len(keys) - most} more" if len(keys) > most else ""
    return ", ".join(map(str, keys[:most])) + more
