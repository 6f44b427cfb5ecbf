"""Pairs in folders: two folders of pictures with the same stems, or one of pictures whose halves are image and map.

Both kinds are flat, or hold sub-folders train, val and test, which then are the splits.
"""

from __future__ import annotations

import os
from pathlib import Path

from memdist.data.pairs import SUFFIXES, Half, PairFile
from memdist.data.split import NAMES
from memdist.data.survey import Problem, Survey, odd
from memdist.errors import DataError


def two_folders(images: Path, maps: Path) -> Survey:
    """Pair the pictures of two folders by stem."""
    parts = _parts(images, "data.images")
    others = _parts(maps, "data.maps")
    if parts != others:
        raise DataError(
            f"data.images = {images} {_layout(parts)} and data.maps = {maps} {_layout(others)}: give both the same "
            f"sub-folders (train, and val and test if there are any), or none"
        )
    found: list[PairFile] = []
    problems: list[Problem] = []
    for part in parts:
        here, there = images / (part or ""), maps / (part or "")
        left, faults = _pictures(here, "data.images")
        right, more = _pictures(there, "data.maps")
        problems += faults + more
        common = left.keys() & right.keys()
        if left and right and not common:
            problems.append(
                Problem(
                    here,
                    "empty",
                    f"no picture in {here} (such as {min(left.values()).name}) has the stem of a map in {there} (such as "
                    f"{min(right.values()).name}): a picture and its map must have the same name up to the ending",
                )
            )
        # Of an empty folder one problem is enough.
        for stem in sorted(left.keys() ^ right.keys()) if left and right else ():
            file, what, where = (left[stem], "map", there) if stem in left else (right[stem], "picture", here)
            problems.append(Problem(file, "partner", f"{file} has no {what} in {where}: it is left out", None, False))
        found += [PairFile(_named(part, stem), left[stem], right[stem], part) for stem in common]
    return Survey(sorted(found), problems)


def side_by_side(folder: Path, direction: str) -> Survey:
    """Take each picture of a folder for a pair; AtoB: the left half is the image, BtoA: the right."""
    image: Half = "left" if direction == "AtoB" else "right"
    map_: Half = "right" if direction == "AtoB" else "left"
    found: list[PairFile] = []
    problems: list[Problem] = []
    for part in _parts(folder, "data.side_by_side"):
        files, faults = _pictures(folder / (part or ""), "data.side_by_side")
        problems += faults
        found += [
            PairFile(_named(part, stem), file, file, part, image_half=image, map_half=map_)
            for stem, file in files.items()
        ]
    return Survey(sorted(found), problems)


def pictures(folder: Path, name: str) -> dict[str, Path]:
    """Pictures of a folder (not of those within it) by stem, sorted; hidden files are passed over.

    `name` is what the folder is called in messages (`data.images`). Raises DataError for a folder that is not there, cannot
    be read or has no pictures, and for two files with one stem.
    """
    found, problems = _pictures(folder, name)
    for problem in problems:
        raise DataError(problem.sentence)
    return found


def _parts(folder: Path, name: str) -> list[str | None]:
    """Sub-folders that are splits, in the order of NAMES; [None] for a flat folder."""
    _check_folder(folder, name)
    parts: list[str | None] = [part for part in NAMES if (folder / part).is_dir()]
    if not parts:
        return [None]
    flat = any(_is_picture(entry) for entry in _entries(folder, name))
    if "train" not in parts:
        if flat:
            return [None]
        raise DataError(f"{name} = {folder} {_layout(parts)} and no train: give the pictures to train on in train")
    if flat:
        raise DataError(
            f"{name} = {folder} holds both pictures and a sub-folder train: move the pictures into train, val and test, "
            "or give another folder"
        )
    return parts


def _layout(parts: list[str | None]) -> str:
    named = [part for part in parts if part is not None]
    return f"has the sub-folders {', '.join(named)}" if named else "has none of the sub-folders train, val, test"


def _pictures(folder: Path, name: str) -> tuple[dict[str, Path], list[Problem]]:
    """Pictures of a folder by stem, sorted, and what is wrong with their names."""
    _check_folder(folder, name)
    files = [folder / entry for entry in sorted(e.name for e in _entries(folder, name) if _is_picture(e))]
    found: dict[str, Path] = {}
    problems: list[Problem] = []
    if not files:
        endings = ", ".join(suffix[1:] for suffix in SUFFIXES)
        sentence = f"{name} = {folder} holds no pictures: give a folder of pictures ({endings})"
        problems.append(Problem(folder, "empty", sentence))
    for file in files:
        if why := odd(file.stem):
            problems.append(
                Problem(file, "name", f"{name} = {folder} holds {file.name!r}, whose name {why}: rename it")
            )
        elif file.stem in found:
            sentence = (
                f"{name} = {folder} holds two pictures with the stem {file.stem!r}: {found[file.stem].name} and "
                f"{file.name}; keep one of them"
            )
            problems.append(Problem(file, "stem", sentence))
        else:
            found[file.stem] = file
    return found, problems


def _check_folder(folder: Path, name: str) -> None:
    if not folder.is_dir():
        what = "is not a folder" if folder.exists() else "does not exist"
        endings = ", ".join(suffix[1:] for suffix in SUFFIXES)
        raise DataError(f"{name} = {folder} {what}: give a folder of pictures ({endings})")


def _entries(folder: Path, name: str) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except OSError as error:
        why = (error.strerror or str(error)).lower()
        raise DataError(f"{name} = {folder} cannot be read: {why}; give a folder that you may read") from error


def _is_picture(entry: os.DirEntry[str]) -> bool:
    """Whether a name is a picture's: a file's, or a broken link's, of which the decoder tells; no folder's, no pipe's."""
    if entry.name.startswith(".") or os.path.splitext(entry.name)[1].lower() not in SUFFIXES:
        return False
    # Not of the entry, which raises for a link that leads to itself.
    return os.path.isfile(entry.path) or (entry.is_symlink() and not os.path.exists(entry.path))


def _named(part: str | None, stem: str) -> str:
    return stem if part is None else f"{part}/{stem}"
