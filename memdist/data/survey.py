"""What a source of pairs holds, and what is wrong with it."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from memdist.data.pairs import PairFile


class Problem(NamedTuple):
    """Something that is wrong with a source."""

    file: Path
    """What it is about: a picture, a folder or the CSV file."""
    kind: str
    """partner: without one, and left out; stem: a second file with it; name: cannot be listed; empty: a folder without
    pictures, or a source without pairs; line: of the CSV file, no pair; absent: a file that the CSV file names;
    again: a picture that it names twice; split: no name of one, or missing."""
    sentence: str
    line: int | None = None
    """Of the CSV file."""
    fatal: bool = True
    """Whether nothing can be trained before it is mended."""


class Survey(NamedTuple):
    """What a source holds, with all that is wrong with it."""

    pairs: list[PairFile]
    """Those that can be used, by stem."""
    problems: list[Problem]
    """In the order of folders and files, or of lines."""


def beside(folder: Path, read: Sequence[str]) -> list[Path]:
    """What lies in a folder of sub-folders beside those that are read, sorted; [] where it cannot be read."""
    try:
        return sorted(path for path in folder.iterdir() if path.name not in read)
    except OSError:
        return []


def odd(stem: str) -> str | None:
    """Say why a name cannot be listed, one a line and as text; None where it can."""
    if stem.isprintable():
        return None
    kinds = {unicodedata.category(character) for character in stem}
    if "Cs" in kinds:
        return "is not UTF-8"
    return "has a line break or control character" if kinds & {"Cc", "Zl", "Zp"} else None
