"""CSV files that people write: read strictly and within bounds; what is wrong is told line by line."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
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


class Fault(NamedTuple):
    """A line that cannot be read."""

    number: int
    sentence: str
    """Why not."""


class Sheet(NamedTuple):
    """What a file holds."""

    lines: list[Line]
    """Empty ones are passed over."""
    faults: list[Fault]


def read(path: Path, name: str, required: Sequence[str], optional: Sequence[str] = ()) -> Sheet:
    """Read a UTF-8 CSV file (with or without a byte order mark) whose first line names its columns.

    `name` is the setting that gave the file, for messages. Raises DataError where the whole file cannot be used: not there,
    no UTF-8 text, too large, without a column that is required, or with one that is called nearly as one that is asked for;
    what is wrong with a line stands in `Sheet.faults`.
    """
    lines: list[Line] = []
    faults: list[Fault] = []
    for line in walk(path, name, required, optional):
        if isinstance(line, Line):
            lines.append(line)
        else:
            faults.append(line)
    return Sheet(lines, faults)


def walk(path: Path, name: str, required: Sequence[str], optional: Sequence[str] = ()) -> Iterator[Line | Fault]:
    """Lines and faults of a file one by one, for what would be too many at once; else as `read`."""
    said = f"{name} = {path}"
    reader = csv.reader(io.StringIO(text(path, said), newline=""), strict=True)
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
            yield Fault(number, f"line {number} of {said} is no CSV: {error}; mend it")
            break
        if not fields:
            continue
        if not places:
            places, width = _header(fields, said, required, optional), len(fields)
        elif len(fields) != width:
            count = f"{len(fields)} field{'s' * (len(fields) != 1)}"
            why = f"line {number} of {said} has {count} where the header has {width}: quote fields that hold a comma"
            yield Fault(number, why)
        else:
            yield Line(number, {column: fields[at] for column, at in places.items()})
    if not places:
        raise DataError(f"{said} is empty: its first line should name the columns {','.join(required)}")


def text(path: Path, said: str, what: str = "a CSV file") -> str:
    """Text of a regular file within bounds; a DataError that begins with `said` and asks for `what` says why there is none."""
    try:
        if not path.is_file():  # to open a pipe would wait for ever, and a device may have no end
            raise DataError(f"{said} {'is not a file' if path.exists() else 'does not exist'}: give {what}")
        with open(path, "rb") as file:
            raw = file.read(LARGEST + 1)
    except OSError as error:
        why = (error.strerror or str(error)).lower()
        raise DataError(f"{said} cannot be read: {why}; give {what} that you may read") from error
    if len(raw) > LARGEST:
        raise DataError(f"{said} is larger than {LARGEST // 2**20} MiB: give {what}")
    at = raw.find(b"\0")
    if at >= 0:
        raise DataError(f"line {_line(raw, at)} of {said} holds a NUL character: give {what} in UTF-8")
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"line {_line(raw, error.start)} of {said} is not UTF-8 text: give {what} in UTF-8") from error


def _line(raw: bytes, at: int) -> int:
    return raw.count(b"\n", 0, at) + 1


def _header(fields: Sequence[str], said: str, required: Sequence[str], optional: Sequence[str]) -> dict[str, int]:
    """Place of each column that is asked for."""
    found = [field.strip() for field in fields]
    for column in (*required, *optional):
        for given in found:
            if given != column and "".join(given.split()).casefold() == column:
                raise DataError(
                    f"{said} has a column {given!r}, which would be passed over: call it {column}, or something else if "
                    "it is another thing"
                )
    missing = [column for column in required if column not in found]
    if missing:
        names = ", ".join(repr(field[:40]) for field in found[:10])
        raise DataError(
            f"{said} has no column {' and no column '.join(missing)}: its first line should hold {','.join(required)} "
            f"with commas between them, and holds {names}"
        )
    wanted = [column for column in (*required, *optional) if column in found]
    twice = [column for column in wanted if found.count(column) > 1]
    if twice:
        raise DataError(f"{said} has {found.count(twice[0])} columns {twice[0]}: keep one")
    return {column: found.index(column) for column in wanted}
