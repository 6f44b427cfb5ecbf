"""Files of weights from outside, read so that nothing in them runs: tensors by name, and nothing else."""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from memdist.errors import CheckpointError

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
    raw = _safetensors(path) if path.suffix.lower() == ".safetensors" else _pickled(path)
    if isinstance(raw, Mapping) and not any(isinstance(value, Tensor) for value in raw.values()):
        raw = next((raw[key] for key in NESTED if isinstance(raw.get(key), Mapping)), raw)
    if not isinstance(raw, Mapping) or not raw:
        raise CheckpointError(f"{path} holds no weights by name: give the state dict that the program saved")
    strange = [key for key, value in raw.items() if not isinstance(key, str) or not isinstance(value, Tensor)]
    if strange:
        raise CheckpointError(
            f"{path} holds more than weights, such as {_named(strange[0])}: give a file of the network's state dict alone"
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
    if (wrong := _archive_fault(path)) is not None:
        raise CheckpointError(f"{path} is no whole checkpoint of PyTorch: {wrong}; copy it anew")
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


def _archive_fault(path: Path) -> str | None:
    """What is wrong with an archive of torch.save, in words: torch itself looks at no checksum when it reads one.

    None for what is whole, and for what is no such archive or cannot be opened as one: torch finds that.
    """
    with open(path, "rb") as file:
        if file.read(4) != b"PK\x03\x04":
            return None
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
            # Stored is how torch writes; a small file can unpack to any size.
            packed = [entry.filename for entry in entries if entry.compress_type != zipfile.ZIP_STORED]
            if packed:
                return f"its part {_named(packed[0])} is compressed, which torch.save never does"
            # Checksums can be left out, and are 0 then.
            torn = archive.testzip() if any(entry.CRC for entry in entries) else None
    except Exception:  # what is torn fails in as many ways as there are bytes
        return None
    return None if torn is None else f"its part {_named(torn)} is not what was written (checksum)"


def _named(key: object) -> str:
    """A name from a file, as a sentence can hold it."""
    text = repr(key)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _is_checkpoint(path: Path) -> bool:
    """Whether a file begins like one that torch.save wrote: a zip archive, or a pickle of protocol 2 and up."""
    with open(path, "rb") as file:
        return file.read(4).startswith((b"PK\x03\x04", b"\x80"))


def _plain(path: Path, key: str, value: Tensor) -> Tensor:
    value = value.detach()
    if value.layout != torch.strided or value.is_quantized or value.is_complex() or value.device.type != "cpu":
        raise CheckpointError(
            f"{path} holds {_named(key)} in a form that is no plain tensor: save it dense and unquantised"
        )
    if value.untyped_storage().nbytes() < value.numel() * value.element_size():
        raise CheckpointError(
            f"{path} says that {_named(key)} is {list(value.shape)}, and holds fewer numbers: copy it anew"
        )
    if not value.is_floating_point():
        return value.long()
    value = value.float()
    if not bool(value.isfinite().all()):
        raise CheckpointError(
            f"{path} holds values in {_named(key)} that are no finite numbers: its training had diverged"
        )
    return value
