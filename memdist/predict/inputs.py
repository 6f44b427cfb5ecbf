"""Which pictures are to be predicted, and which of them are this process's share."""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Collection, Iterable, Sequence, Set
from pathlib import Path
from typing import NamedTuple

from memdist import rundir
from memdist.data import sources
from memdist.errors import CheckpointError, ConfigError, DataError


class Picture(NamedTuple):
    """A picture, and the name that its maps have."""

    name: str
    """File name without its ending; other stems have other names."""
    path: Path


class Shard(NamedTuple):
    """The i-th of n shares, i = 1 .. n."""

    number: int = 1
    total: int = 1

    def __str__(self) -> str:
        """As it is given."""
        return f"{self.number}/{self.total}"

    def of(self, pictures: Sequence[Picture]) -> list[Picture]:
        """Its share of sorted pictures: each is in one share, and shares differ by one picture at most."""
        return list(pictures[self.number - 1 :: self.total])

    def within(self, environment: dict[str, str]) -> Shard:
        """The share of this share that a process has which a launcher such as torchrun started."""
        given = {key: environment.get(key, default) for key, default in (("WORLD_SIZE", "1"), ("RANK", ""))}
        if given["WORLD_SIZE"] == "1":
            return self
        # A script that sets one of them for something else would else silently get a part of the pictures, or none.
        if not all(re.fullmatch("[0-9]{1,9}", text) for text in given.values()) or not (
            (rank := int(given["RANK"])) < (world := int(given["WORLD_SIZE"]))
        ):
            raise ConfigError(
                f"WORLD_SIZE={given['WORLD_SIZE']} and RANK={given['RANK'] or '(not set)'} in the environment say no share of "
                "the pictures: they are set by a launcher such as torchrun, RANK from 0 to WORLD_SIZE - 1; unset them, and "
                "give --shard I/N"
            )
        return Shard((self.number - 1) * world + rank + 1, self.total * world)


def shard(text: str | None) -> Shard:
    """Read `I/N`; None is the whole."""
    if text is None:
        return Shard()
    found = re.fullmatch(r"([0-9]{1,9})/([0-9]{1,9})", text)
    if found is None or not 1 <= int(found[1]) <= int(found[2]):
        raise ConfigError(
            f"--shard {text!r} cannot be: it is I/N, the I-th of N shares, I from 1 to N, such as 1/8 to 8/8"
        )
    return Shard(int(found[1]), int(found[2]))


def find(inputs: Iterable[Path]) -> list[Picture]:
    """Pictures and those of folders (not of folders within), sorted by name.

    Raises DataError for a path that is not there, for a folder without pictures, and for two pictures with one stem.
    """
    files: list[Path] = []
    for path in inputs:
        if path.is_dir():
            files += sources.pictures(path, "IMAGE_OR_FOLDER").values()
        elif path.is_file():
            files.append(path)
        elif path.exists():
            raise DataError(f"{path} is neither a file nor a folder: give pictures or folders of pictures")
        else:
            raise DataError(f"{path} does not exist: give pictures or folders of pictures")
    seen: dict[str, Path] = {}
    for path in files:
        if path.stem in seen and os.path.realpath(seen[path.stem]) != os.path.realpath(path):
            raise DataError(
                f"{seen[path.stem]} and {path} would both become {path.stem}.png: predict them into two folders"
            )
        seen.setdefault(path.stem, path)
    return sorted(Picture(rundir.file_name(stem), path) for stem, path in seen.items())


def places(pictures: Sequence[Picture]) -> set[Path]:
    """Where the files of pictures really are, whatever links lead there."""

    @functools.cache
    def real(folder: Path) -> Path:
        return folder.resolve()

    # A look at each file alone: of a hundred thousand, resolving all the way would take long.
    return {
        path.resolve() if os.path.islink(path) else real(path.parent) / path.name for path in (p.path for p in pictures)
    }


def taken(out: Path, folders: Iterable[str], outputs: Set[str]) -> str | None:
    """One of `outputs`, names within `out`, that is there already in one of its `folders`; None: none is."""
    for folder in folders:
        try:
            names = os.listdir(out / folder)
        except (FileNotFoundError, NotADirectoryError):
            continue
        found = outputs & {os.path.normpath(os.path.join(folder, name)) for name in names}
        if found:
            return min(found)
    return None


def keep_apart(inputs: Iterable[Path], files: Collection[Path], out: Path, outputs: Iterable[Path]) -> None:
    """Raise a CheckpointError where `outputs`, paths within `out`, would be put over pictures or among them.

    `files` are the pictures' `places`.
    """
    folders = {path.resolve(): path for path in inputs if path.is_dir()}

    @functools.cache
    def real(folder: Path) -> Path:
        return folder.resolve()

    for path in outputs:
        if real(path.parent) in folders:
            raise CheckpointError(
                f"maps would be put among the pictures of {folders[real(path.parent)]}, and be taken for pictures the next "
                f"time: name another folder than --out {out}"
            )
        if real(path.parent) / path.name in files:
            raise CheckpointError(
                f"the map {path} would be written over a picture of that name in --out {out}: name another folder"
            )
