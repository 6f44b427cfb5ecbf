"""Files that grow, read quickly: a folder of trials has tens of thousands of them."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterator
from typing import Any

SHORT, LONG = 2048, 65536
"""Bytes that are read of a file's end: a few lines, mostly enough; as many as are read where they are not."""


def whole_file(path: str) -> bytes:
    """All of a file; empty where there is none."""
    return tail(path, None)


def tail(path: str, size: int | None = SHORT) -> bytes:
    """The last bytes of a file; empty where there is none."""
    try:
        # A pipe that nobody writes into is empty, and not waited for.
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    except FileNotFoundError:
        return b""
    try:
        length = os.fstat(handle).st_size
        return os.pread(handle, length if size is None else size, max(0, length - size) if size is not None else 0)
    finally:
        os.close(handle)


def records(data: bytes) -> Iterator[dict[str, Any]]:
    """Whole records of a line file's end, the last one first; what is no record is passed over."""
    end = data.rfind(b"\n")
    while end >= 0:
        start = data.rfind(b"\n", 0, end)
        try:
            record = json.loads(data[start + 1 : end].decode())
        except (ValueError, RecursionError):
            record = None
        if isinstance(record, dict):
            yield record
        end = start


def last(path: str, pick: Callable[[dict[str, Any]], float | None]) -> tuple[dict[str, Any], float | None]:
    """The last record of a line file, and the last value that `pick` finds in a record near the end."""
    newest: dict[str, Any] = {}
    for size in (SHORT, LONG):
        data = tail(path, size)
        newest = {}
        for record in records(data):
            newest = newest or record
            if (value := pick(record)) is not None:
                return newest, value
        if len(data) < size:
            break  # that was all of it
    return newest, None


def number(value: object) -> float | None:
    """A finite number; None for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        return float(value) if math.isfinite(value) else None
    except OverflowError:
        return None


def whole(value: object) -> int | None:
    """A whole number; None for anything else."""
    found = number(value)
    return None if found is None or not found.is_integer() or abs(found) > 2**62 else int(found)
