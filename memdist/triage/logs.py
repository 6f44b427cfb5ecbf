"""The last lines of logs, whatever is in them: of how many processes they are, and which exceptions those raised."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from memdist.errors import printable

LONGEST = 2000
"""Characters of a line that are looked at."""

_PREFIX = re.compile(r"(?:\s{0,8}\d{1,6}: |\[(?:rank|default)\d{1,6}\]:\s?)+")
_ANSI = re.compile(r"\x1b\[[0-9;?]{0,16}[A-Za-z]")
_FRAME = re.compile(r'\s+File ".*", line \d+')
_RAISED = re.compile(r"[A-Za-z_][\w.]*(?:: |:?$)")


class Line(NamedTuple):
    """One line of a log, as it stands there but for control characters, which are spelled out."""

    where: str
    """Name of the log."""
    text: str


class Said(NamedTuple):
    """A line, and the process that said it."""

    line: Line
    who: str
    """What a launcher puts before the lines of one process of several (`[rank3]: `, srun's `3: `)."""
    bare: str
    """The line without that."""


class Raised(NamedTuple):
    """An exception that ended a traceback."""

    said: Said
    trace: tuple[Line, ...]
    """The place in the code where it was raised."""


def tail(path: Path, size: int = 65536, start: int = 0) -> list[str]:
    """Lines among the last `size` bytes of a file, none from before byte `start`; [] for what is no readable file.

    Blank lines are left out, and a line that `size` has cut; a terminal's colours are taken off, other control characters
    spelled out. NUL bytes, which a machine that fails leaves at a file's end, are passed over.
    """
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):  # a pipe would wait for its writer
            return []
        with open(path, "rb") as file:
            length = file.seek(0, os.SEEK_END)
            begin = max(length - size, start, 0)
            before = begin > start
            # One byte more tells whether a line begins here.
            file.seek(begin - before)
            data = file.read(size + before)
    except (OSError, ValueError):
        return []
    lines = re.split(r"[\r\n]+", data.replace(b"\0", b"").decode("utf-8", "backslashreplace"))
    if before and len(lines) > 1:
        del lines[0]
    return [cleaned for line in lines if (cleaned := clean(line)).strip()]


def clean(line: str) -> str:
    """A line without colours, with control characters spelled out, and not longer than LONGEST."""
    line = _ANSI.sub("", line[: 2 * LONGEST].rstrip("\r\n")).expandtabs(4)
    line = line if line.isprintable() else printable(line)
    return line if len(line) <= LONGEST else f"{line[: LONGEST - 3]}..."


def said(logs: Mapping[str, Sequence[str]]) -> list[Said]:
    """All lines of all logs, in order."""
    found = []
    for where, lines in logs.items():
        for text in map(clean, lines):
            prefix = _PREFIX.match(text)
            end = prefix.end() if prefix else 0
            found.append(Said(Line(where, text), text[:end].strip(), text[end:]))
    return found


def streams(lines: Sequence[Said]) -> list[list[Said]]:
    """Lines of each process by itself."""
    found: dict[tuple[str, str], list[Said]] = {}
    for one in lines:
        found.setdefault((one.line.where, one.who), []).append(one)
    return list(found.values())


def first_raised(stream: Sequence[Said]) -> Raised | None:
    """The exception of the first traceback of a process: what is raised on its way out follows from it."""
    within = ignored = False
    before = ""
    trace: list[Line] = []
    for one in stream:
        if one.bare.startswith("Traceback (most recent call last)"):
            # Such a one is told at the end of a process, or of an object, that goes on.
            within, trace, ignored = True, [], before.startswith("Exception ignored")
        elif _FRAME.match(one.bare):
            # The traceback's head may have been cut off.
            within, trace = True, [one.line]
        elif within and one.bare[:1].isspace():
            if len(trace) == 1:
                trace.append(one.line)
        elif within and _RAISED.match(one.bare):
            if not ignored:
                return Raised(one, tuple(trace))
            within = ignored = False
        else:
            within = False
        before = one.bare
    return None
