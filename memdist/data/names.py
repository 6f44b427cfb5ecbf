"""What the names in the folders of a source tell; no file is opened."""

from __future__ import annotations

import unicodedata
from pathlib import Path
from typing import cast

from memdist import config
from memdist.data.findings import Finding, Kind
from memdist.data.pairs import SUFFIXES, Role
from memdist.data.split import NAMES
from memdist.data.survey import beside, odd

LEFT_BY_SYSTEMS = frozenset((".ds_store", "thumbs.db", "desktop.ini", ".gitignore", ".gitkeep", ".directory"))
"""Files, in lower case, that nobody put there on purpose and that need no word."""


def folders(data: config.Data) -> dict[Path, Role]:
    """Folders whose entries are the pictures, and what these are."""
    tops: dict[Path, Role] = {}
    for top, role in ((data.images, "image"), (data.maps, "map"), (data.side_by_side, "image")):
        if top is not None:
            parts = [top / name for name in NAMES if (top / "train").is_dir() and (top / name).is_dir()]
            tops |= dict.fromkeys(parts or [top], cast(Role, role))
    return tops


def folded(stem: str) -> str:
    """A name as file systems see it that pass over case and the ways to write an accent."""
    return unicodedata.normalize("NFC", stem).casefold()


def scan(data: config.Data) -> list[Finding]:
    """What is odd in the folders of pictures, and what lies beside sub-folders that are splits."""
    parts = folders(data)
    tops = dict.fromkeys(path.parent for path in parts if path not in (data.images, data.maps, data.side_by_side))
    found = [finding for folder in parts for finding in _scan(folder)]
    return found + [f for top in tops for path in beside(top, NAMES) if (f := _passed_over(path)) is not None]


def _scan(folder: Path) -> list[Finding]:
    """What the names in a folder of pictures tell."""
    try:
        files = sorted(folder.iterdir())
    except OSError:
        return []  # `sources.survey` has read it
    found: list[Finding] = []
    names: dict[str, Path] = {}
    stems: set[str] = set()
    for path in files:
        if path.name.startswith(".") or path.suffix.lower() not in SUFFIXES:
            if (passed := _passed_over(path)) is not None:
                found.append(passed)
            continue
        if path.is_dir():
            found.append(Finding(Kind.FOLDER, path))
        elif path.exists() and not path.is_file():
            found.append(Finding(Kind.SPECIAL, path))
        elif odd(path.stem) or path.stem != path.stem.strip():
            found.append(Finding(Kind.ODD_NAME, path))
        elif path.stem not in stems and (other := names.setdefault(folded(path.stem), path)) is not path:
            found.append(Finding(Kind.SIMILAR_NAMES, path, f"like {other.name}"))
        stems.add(path.stem)
    return found


def _passed_over(path: Path) -> Finding | None:
    if path.name.lower() in LEFT_BY_SYSTEMS:
        return None
    return Finding(Kind.PASSED_OVER, path, "a folder" if path.is_dir() else "")
