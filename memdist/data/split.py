"""Which pairs are trained on, chosen by and reported on; and the file of a run folder that records it."""

from __future__ import annotations

import csv
import hashlib
import io
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from memdist import config, draws, rundir
from memdist.errors import DataError

NAMES = ("train", "val", "test")


class Row(NamedTuple):
    """One pair of a run."""

    stem: str
    split: str
    """One of NAMES."""
    image_hash: str
    """SHA-256 of the picture's file, 64 hexadecimal digits."""
    map_hash: str


def make(stems: Sequence[str], data: config.Data) -> dict[str, list[str]]:
    """Split stems into train, val and test, each sorted, pairwise disjoint.

    A fraction f takes round(f x all pairs), cut from the pairs in no list in the order of `ranked`: test first, then
    val, so that val may change and test does not. Without a list of its own, train is what is left.
    Raises DataError for a list that names a pair that is not there, or one twice, for lists that overlap, and for
    splits that leave train or val empty.
    """
    known = set(stems)
    assert len(known) == len(stems), "stems must differ"
    given = {"train": data.train, "val": data.val, "test": data.test}
    lists = {name: _listed(v, f"data.{name}", known) for name, v in given.items() if isinstance(v, Path)}
    _disjoint(lists)
    rest = ranked(known.difference(*lists.values()), data.split_seed)
    for name in ("test", "val"):
        fraction = given[name]
        if isinstance(fraction, Path) or fraction is None:
            continue
        count = round(fraction * len(stems))
        if count > len(rest):
            raise DataError(
                f"data.{name}={fraction:g} asks for {count} of {len(stems)} pairs, but only {len(rest)} are in no "
                "other split: make it smaller, or leave data.train out and train takes what is left"
            )
        lists[name], rest = rest[:count], rest[count:]
    lists.setdefault("train", rest)
    for name in ("train", "val"):
        if not lists[name]:
            sizes = ", ".join(f"{n} {len(lists[n])}" for n in NAMES)
            raise DataError(
                f"the {name} split would be empty ({sizes} of {len(stems)} pairs): change data.val={_said(data.val)} "
                f"and data.test={_said(data.test)}, or give more pairs"
            )
    return {name: sorted(lists[name]) for name in NAMES}


def ranked(stems: Iterable[str], seed: int) -> list[str]:
    """Sort stems by a hash of the seed and the stem, so that none moves another when pairs come or go."""
    return sorted(stems, key=lambda stem: (draws.key("split", seed, stem), stem))


def rows(
    lists: Mapping[str, Sequence[str]], image_hashes: Mapping[str, str], map_hashes: Mapping[str, str]
) -> list[Row]:
    """Table of a split, by split and stem; hashes by stem."""
    return [Row(s, name, image_hashes[s], map_hashes[s]) for name in NAMES for s in sorted(lists[name])]


def write(path: Path, table: Sequence[Row]) -> None:
    """Write split.csv whole or not at all."""
    rundir.write_text(path, _text(table))


def read(path: Path) -> list[Row]:
    """Read split.csv; a DataError says what is wrong with it."""
    try:
        lines = list(csv.reader(io.StringIO(path.read_text(encoding="utf-8"), newline=""), strict=True))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path} cannot be read as a split: {error}; restore it") from error
    if not lines or tuple(lines[0]) != Row._fields:
        raise DataError(f"{path} is no split: its first line should be {','.join(Row._fields)}; restore it")
    for number, line in enumerate(lines[1:], 2):
        if len(line) != len(Row._fields) or line[1] not in NAMES:
            raise DataError(f"line {number} of {path} is no pair of {', '.join(NAMES)}; restore the file")
    return [Row(*line) for line in lines[1:]]


def stems_of(table: Sequence[Row]) -> dict[str, list[str]]:
    """Stems of each split, as `make` gives them."""
    return {name: [row.stem for row in table if row.split == name] for name in NAMES}


def fingerprint(table: Sequence[Row]) -> str:
    """SHA-256 of what split.csv holds: stems, their splits and the content of their files; 64 hexadecimal digits."""
    return hashlib.sha256(_text(table).encode()).hexdigest()


def _text(table: Sequence[Row]) -> str:
    file = io.StringIO(newline="")
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(Row._fields)
    writer.writerows(table)
    return file.getvalue()


def _listed(path: Path, name: str, known: set[str]) -> list[str]:
    """Read a list of stems, one a line; empty lines are passed over."""
    try:
        stems = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        why = (error.strerror or str(error)).lower() if isinstance(error, OSError) else "not UTF-8 text"
        raise DataError(f"{name} = {path} cannot be read: {why}; give a text file of stems, one a line") from error
    unknown = [stem for stem in stems if stem not in known]
    if unknown:
        ending = " (stems are file names without their ending)" if Path(unknown[0]).stem in known else ""
        raise DataError(
            f"{name} = {path} names {len(unknown)} pairs that are not there, such as {unknown[0]!r}{ending}: "
            "take them out or add their pictures and maps"
        )
    stem, times = Counter(stems).most_common(1)[0] if stems else ("", 0)
    if times > 1:
        raise DataError(f"{name} = {path} names {stem!r} {times} times: name every pair once")
    return stems


def _disjoint(lists: Mapping[str, Sequence[str]]) -> None:
    owner: dict[str, str] = {}
    for name, stems in lists.items():
        for stem in stems:
            if stem in owner:
                raise DataError(
                    f"{stem!r} stands both in data.{owner[stem]} and in data.{name}: a pair belongs to one split"
                )
            owner[stem] = name


def _said(value: float | Path) -> str:
    return str(value) if isinstance(value, Path) else f"{value:g}"
