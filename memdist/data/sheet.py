"""CSV files that people write: read strictly and within bounds; what is wrong is told line by line."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from memdist.errors import DataError

LARGEST = 2**28
"""Bytes of the largest file that is read: some millions of lines."""


class Line(NamedTuple):
    """One line below the header."""

    number: int
    """Where it starts, from 1."""
    values: dict[str, str]
    """By column; columns that nobody asked for are left out."""


class Sheet(NamedTuple):
    """What a file holds."""

    columns: frozenset[str]
    """Of those asked for, the ones that it has."""
    lines: list[Line]
    """Empty ones are passed over."""
    faults: list[tuple[int, str]]
    """Number of a line that cannot be read, and the sentence that says why."""


def read(path: Path, name: str, required: Sequence[str], optional: Sequence[str] = ()) -> Sheet:
    """Read a UTF-8 CSV file (with or without a byte order mark) whose first line names its columns.

    `name` is the setting that gave the file, for messages. Raises DataError where the whole file cannot be used: not there,
    no UTF-8 text, too large, or without a column that is required; what is wrong with a line stands in `Sheet.faults`.
    """
    said = f"{name} = {path}"
    text = _text(path, said)
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    lines: list[Line] = []
    faults: list[tuple[int, str]] = []
    places: dict[str, int] = {}
    width = 0
    while True:
        number = reader.line_num + 1
        try:
            fields = next(reader)
        except StopIteration:
            break
        except csv.Error as error:
            if not places:
                raise DataError(f"line {number} of {said} is no CSV: {error}; mend it") from error
            # What follows a quote that is never closed cannot be told into lines.
            faults.append((number, f"line {number} of {said} is no CSV: {error}; mend it"))
            break
        if not fields:
            continue
        if not places:
            places, width = _header(fields, said, required, optional), len(fields)
        elif len(fields) != width:
            count = f"{len(fields)} field{'s' * (len(fields) != 1)}"
            why = f"line {number} of {said} has {count} where the header has {width}: quote fields that hold a comma"
            faults.append((number, why))
        else:
            lines.append(Line(number, {column: fields[at] for column, at in places.items()}))
    if not places:
        raise DataError(f"{said} is empty: its first line should name the columns {','.join(required)}")
    return Sheet(frozenset(places), lines, faults)


def _text(path: Path, said: str) -> str:
    try:
        if not path.is_file():
            raise DataError(f"{said} {'is not a file' if path.exists() else 'does not exist'}: give a CSV file")
        with open(path, "rb") as file:
            raw = file.read(LARGEST + 1)
    except OSError as error:
        why = (error.strerror or str(error)).lower()
        raise DataError(f"{said} cannot be read: {why}; give a CSV file that you may read") from error
    if len(raw) > LARGEST:
        raise DataError(f"{said} is larger than {LARGEST // 2**20} MiB: give a CSV file of paths")
    at = raw.find(b"\0")
    if at >= 0:
        raise DataError(f"line {_line(raw, at)} of {said} holds a NUL character: give a CSV file in UTF-8")
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(
            f"line {_line(raw, error.start)} of {said} is not UTF-8 text: save it as CSV in UTF-8"
        ) from error


def _line(raw: bytes, at: int) -> int:
    return raw.count(b"\n", 0, at) + 1


def _header(fields: Sequence[str], said: str, required: Sequence[str], optional: Sequence[str]) -> dict[str, int]:
    """Place of each column that is asked for."""
    found = [field.strip() for field in fields]
    missing = [column for column in required if column not in found]
    if missing:
        given = ", ".join(repr(field[:40]) for field in found[:10])
        raise DataError(
            f"{said} has no column {' and no column '.join(missing)}: its first line should hold {','.join(required)} "
            f"with commas between them, and holds {given}"
        )
    wanted = [column for column in (*required, *optional) if column in found]
    twice = [column for column in wanted if found.count(column) > 1]
    if twice:
        raise DataError(f"{said} has {found.count(twice[0])} columns {twice[0]}: keep one")
    return {column: found.index(column) for column in wanted}
