"""Where pairs come from: two folders, one folder of side-by-side pictures, or a CSV file of paths."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from memdist import config
from memdist.data import folders, pathlist
from memdist.data.folders import pictures
from memdist.data.pairs import PairFile
from memdist.data.survey import Problem, Survey
from memdist.errors import DataError

__all__ = ["KEYS", "Found", "Problem", "Survey", "example", "find", "given", "pictures", "place", "said", "survey"]

KEYS = ("images", "maps", "side_by_side", "csv", "groups")
"""Settings of `data` that say where the data lie."""
_CHOICES = (
    "data.images=DIR data.maps=DIR (two folders of pictures with the same stems), data.side_by_side=DIR (one folder of "
    "pictures whose halves are image and map) or data.csv=FILE (paths of images and maps)"
)


class Found(NamedTuple):
    """The pairs of a source that nothing fatal is wrong with."""

    pairs: list[PairFile]
    """Sorted by stem."""
    unpaired: list[str]
    """Sorted stems that only one of two folders has; they are left out."""


def given(data: config.Data) -> list[str]:
    """Sources that the settings name, as `data.csv`; [] for none; two folders are one."""
    return [f"data.{n}" for n in ("images", "side_by_side", "csv") if getattr(data, n) is not None] or (
        ["data.images"] if data.maps is not None else []
    )


def place(data: config.Data) -> dict[str, str]:
    """Where the data lie, by the key of `data`; keys that are not set are left out."""
    return {key: str(path) for key in KEYS if (path := getattr(data, key)) is not None}


def said(data: config.Data) -> str:
    """The source as messages name it: `data.csv = FILE`."""
    name = next(key for key in ("csv", "side_by_side", "images") if key in place(data))
    return f"data.{name} = {getattr(data, name)}"


def find(data: config.Data) -> Found:
    """Find the pairs of the one source that is given.

    Raises DataError for no source or more than one, and for the first fatal problem of `survey`.
    """
    survey_ = survey(data)
    fatal = [problem for problem in survey_.problems if problem.fatal]
    if fatal:
        more = f" ({len(fatal) - 1} more such fault{'s' * (len(fatal) > 2)})" if len(fatal) > 1 else ""
        raise DataError(fatal[0].sentence + more)
    return Found(survey_.pairs, sorted(_stem_of(data, p.file) for p in survey_.problems if p.kind == "partner"))


def survey(data: config.Data) -> Survey:
    """Look at names alone, opening no picture, and list what is wrong.

    Raises DataError only where nothing can be listed: no source or more than one, a folder or CSV file that cannot be read,
    sub-folders that do not go together.
    """
    _one(data)
    if data.csv is not None:
        return pathlist.survey(data.csv)
    if data.side_by_side is not None:
        return folders.side_by_side(data.side_by_side, data.direction)
    assert data.images is not None and data.maps is not None
    return folders.two_folders(data.images, data.maps)


def example(data: config.Data) -> str:
    """How the source is given: `data.csv=FILE`."""
    if data.csv is not None:
        return "data.csv=FILE"
    return "data.images=DIR data.maps=DIR" if data.side_by_side is None else "data.side_by_side=DIR"


def _one(data: config.Data) -> None:
    """Raise unless one source is given whole."""
    names = given(data)
    both = [key for key in ("images", "maps") if getattr(data, key) is None]
    if not names:
        raise DataError(f"no data are given: set {_CHOICES}; `memdist data make --out DIR` makes example data")
    if len(names) > 1 or (names != ["data.images"] and len(both) < 2):
        named = ", ".join(f"data.{key}" for key in KEYS[:4] if getattr(data, key) is not None)
        raise DataError(f"{named} are given together: set one of {_CHOICES}, and the others to null")
    if names == ["data.images"] and both:
        raise DataError(f"data.{both[0]} is not set: set {_CHOICES}; `memdist data make --out DIR` makes example data")
    if data.direction != "AtoB" and data.side_by_side is None:
        raise DataError(f"data.direction = {data.direction} is for data.side_by_side alone: leave it out, or set AtoB")


def _stem_of(data: config.Data, file: Path) -> str:
    """Stem of a file of two folders."""
    split = file.parent not in (data.images, data.maps)
    return f"{file.parent.name}/{file.stem}" if split else file.stem
