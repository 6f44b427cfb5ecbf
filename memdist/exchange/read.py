"""Foreign networks in our terms: what the names and shapes of their tensors tell."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

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
