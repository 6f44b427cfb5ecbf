"""A safetensors file that is filled piece by piece: no process needs to hold all of what it writes.

The format: eight bytes with the length of a JSON header, the header (type, shape and place of each tensor), then the
tensors' values in row-major order. Reading is the library's.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType

import torch
from torch import Tensor

_TYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}

Kinds = Mapping[str, tuple[tuple[int, ...], torch.dtype]]
"""Shape and type of each tensor, by name."""


class TensorFile:
    """A new file for tensors of these names, shapes and types; every value has to be put before it is closed."""

    def __init__(self, path: Path, kinds: Kinds) -> None:
        """Write the header and take room for the values; an OSError says why not."""
        # As the library orders them: larger types first, so that all lie at multiples of their size.
        ordered = sorted(kinds, key=lambda name: (-kinds[name][1].itemsize, name))
        header, self._at, end = {}, {}, 0
        for name in ordered:
            shape, dtype = kinds[name]
            size = math.prod(shape) * dtype.itemsize
            header[name] = {"dtype": _TYPES[dtype], "shape": list(shape), "data_offsets": [end, end + size]}
            self._at[name] = (end, dtype)
            end += size
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        text += b" " * (-len(text) % 8)
        self._begin, self._size, self._written = 8 + len(text), end, set[tuple[int, int]]()
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            self._write(len(text).to_bytes(8, "little") + text, 0)
        except BaseException:
            os.close(self._file)
            raise

    def put(self, name: str, start: int, flat: Tensor) -> None:
        """Write values of a tensor, 1-D and on the CPU, from its flattened value `start` on."""
        place, dtype = self._at[name]
        assert flat.dtype == dtype, f"{name}: {flat.dtype} is to be written as {dtype}"
        if flat.numel():
            data = flat.reshape(-1).contiguous().view(torch.uint8).numpy().data
            begin = place + start * dtype.itemsize
            self._write(data, self._begin + begin)
            # Two ranks may hold one step count.
            self._written.add((begin, len(data)))

    def _write(self, data: bytes | memoryview, place: int) -> None:
        rest = memoryview(data)
        while rest:
            done = os.pwrite(self._file, rest, place)
            rest, place = rest[done:], place + done

    def __enter__(self) -> TensorFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the file."""
        os.close(self._file)
        if kind is None:
            written = sum(size for _, size in self._written)
            assert written == self._size, f"{written} of {self._size} bytes of tensors were written"
