"""Which pairs are trained on, chosen by and reported on; and the file of a run folder that records it."""

from __future__ import annotations

import csv
import hashlib
import io
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from memdist import config, draws, rundir
from memdist.data import groups as groups_
from memdist.data import sheet
from memdist.data.pairs import PairFile
from memdist.data.survey import beside
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


class Dealt(NamedTuple):
    """The pairs of a source by split."""

    stems: dict[str, list[str]]
    """As `make` gives them."""
    notes: list[str]
    """Sentences that a person should read."""


def deal(pairs: Sequence[PairFile], data: config.Data) -> Dealt:
    """Split the pairs of a source, with the splits that it names and all groups; raises DataError as `make` does."""
    together, notes = groups_.merged(pairs, data)
    splits = {pair.stem: pair.split for pair in pairs if pair.split is not None}
    made = make([pair.stem for pair in pairs], data, splits, together)
    if together:
        count = len(set(together.values()))
        notes.append(f"{len(together)} pairs are in {counted(count, 'group')}, which no split parts")
    for name in ("val", "test"):
        if splits and name not in splits.values() and made[name] and not isinstance(getattr(data, name), Path):
            fraction = f"data.{name}={_said(getattr(data, name))}"
            cut = f"{len(made[name])} {'pair is' if len(made[name]) == 1 else 'pairs are'} cut"
            notes.append(f"the data name no {name} split: {cut} from their train ({fraction})")
    if not made["test"] and not isinstance(data.test, Path) and data.test > 0:
        whole = ", as groups are kept whole" if together else ""
        notes.append(
            f"data.test={_said(data.test)} takes none of {counted(len(pairs), 'pair')}{whole}: scores are marked as selected on"
        )
    if splits and data.csv is None:
        others = [path for top in (data.images, data.maps, data.side_by_side) if top for path in beside(top, NAMES)]
        folders = ", ".join(f"{str(path)!r}" for path in others if path.is_dir())
        if folders:
            notes.append(f"only the sub-folders {', '.join(NAMES)} are read: {folders} passed over")
    return Dealt(made, notes)


def make(
    stems: Sequence[str],
    data: config.Data,
    splits: Mapping[str, str] | None = None,
    groups: Mapping[str, str] | None = None,
) -> dict[str, list[str]]:
    """Split stems into train, val and test, each sorted, pairwise disjoint.

    `splits` is what the data themselves say, of all stems or none; a split that they do not name is cut from their train.
    A fraction f takes round(f x all pairs), cut from the pairs in no list in the order of `ranked`: test first, then
    val, so that val may change and test does not. Without a list of its own, train is what is left.
    `groups` (of stems that have one) are never parted: each ranks by a hash of its name and is taken whole if that brings
    the split nearer to its count, else passed over.
    Raises DataError for a list that names a pair that is not there, or one twice, for lists that overlap, for a list of a
    split that the data name, for groups that lists or the data part, and for splits that leave train or val empty.
    """
    known = set(stems)
    splits, groups = splits or {}, groups or {}
    assert len(known) == len(stems), "stems must differ"
    assert not splits or splits.keys() == known, "all have a split, or none"
    given = {"train": data.train, "val": data.val, "test": data.test}
    named = [name for name in NAMES if name in splits.values()]
    for name in named:
        if isinstance(given[name], Path):
            raise DataError(
                f"data.{name} = {given[name]} lists a split that the data name themselves: leave it out, or give the data "
                "without splits"
            )
    lists = {name: _listed(v, f"data.{name}", known) for name, v in given.items() if isinstance(v, Path)}
    fixed = {name: [stem for stem in stems if splits[stem] == name] for name in named if name != "train"}
    _disjoint({f"data.{name}": part for name, part in lists.items()} | {f"the data's {n}": p for n, p in fixed.items()})
    lists |= fixed
    rest = units(known.difference(*lists.values()), data.split_seed, groups)
    # A group that a list holds a part of is not dealt out: were it cut elsewhere, whether it is parted would be chance.
    held = {groups[stem] for part in lists.values() for stem in part if stem in groups}
    for name in ("test", "val"):
        fraction = given[name]
        if isinstance(fraction, Path) or fraction is None or name in named:
            continue
        count, left = round(fraction * len(stems)), sum(map(len, rest))
        if count > left:
            raise DataError(
                f"data.{name}={fraction:g} asks for {count} of {len(stems)} pairs, but only {left} are in no "
                "other split: make it smaller, or leave data.train out and train takes what is left"
            )
        lists[name], rest = _cut(rest, count, lambda unit: groups.get(unit[0]) in held)
    lists.setdefault("train", [stem for unit in rest for stem in unit])
    _whole(lists, groups)
    for name in ("train", "val"):
        if not lists[name]:
            sizes = ", ".join(f"{n} {len(lists[n])}" for n in NAMES)
            why = ", with groups kept whole" if groups else ""
            raise DataError(
                f"the {name} split would be empty ({sizes} of {len(stems)} pairs{why}): change data.val={_said(data.val)} "
                f"and data.test={_said(data.test)}, or give more pairs"
            )
    return {name: sorted(lists[name]) for name in NAMES}


def ranked(stems: Iterable[str], seed: int) -> list[str]:
    """Sort stems by a hash of the seed and the stem, so that none moves another when pairs come or go."""
    return [stem for unit in units(stems, seed, {}) for stem in unit]


def units(stems: Iterable[str], seed: int, groups: Mapping[str, str]) -> list[list[str]]:
    """What is dealt out whole, in order: groups by a hash of the seed and their name, other stems by one of the stem."""
    members: dict[tuple[int, str], list[str]] = {}
    for stem in sorted(stems):
        kind, name = ("split group", groups[stem]) if stem in groups else ("split", stem)
        members.setdefault((draws.key(kind, seed, name), name), []).append(stem)
    return [members[rank] for rank in sorted(members)]


def _cut(rest: Sequence[list[str]], count: int, held: Callable[[list[str]], bool]) -> tuple[list[str], list[list[str]]]:
    """Stems of the units that are taken, as near to `count` as they come in their order, and the other units."""
    taken: list[str] = []
    left: list[list[str]] = []
    for unit in rest:
        nearer = abs(len(taken) + len(unit) - count) < abs(len(taken) - count)
        if nearer and not held(unit):
            taken += unit
        else:
            left.append(unit)
    return taken, left


def _whole(lists: Mapping[str, Sequence[str]], groups: Mapping[str, str]) -> None:
    """Raise for a group that is in two splits."""
    home: dict[str, tuple[str, str]] = {}
    for name, stems in lists.items():
        for stem in stems:
            if stem not in groups:
                continue
            other, first = home.setdefault(groups[stem], (name, stem))
            if other != name:
                raise DataError(
                    f"the group {groups[stem]!r} stands in {other} ({first!r}) and in {name} ({stem!r}): pairs of one group "
                    "belong into one split, so move them together or part the group"
                )


def counted(count: int, name: str) -> str:
    """A number of things in words: 1 pair, 2 pairs."""
    return f"{count} {name}{'' if count == 1 else 's'}"


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
    text = sheet.text(path, f"{name} = {path}", "a text file with a stem on each line")
    stems = [line.strip() for line in text.splitlines() if line.strip()]
    unknown = [stem for stem in stems if stem not in known]
    if unknown:
        missing = "1 pair that is not there" if len(unknown) == 1 else f"{len(unknown)} pairs that are not there"
        ending = " (stems are file names without their ending)" if Path(unknown[0]).stem in known else ""
        raise DataError(
            f"{name} = {path} names {missing}, such as {unknown[0][:80]!r}{ending}: "
            "take such lines out, or add the pictures and maps"
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
                raise DataError(f"{stem!r} stands both in {owner[stem]} and in {name}: a pair belongs to one split")
            owner[stem] = name


def _said(value: float | Path) -> str:
    return str(value) if isinstance(value, Path) else f"{value:g}"
