"""Pictures that stand more than once, and whether a split then knows what another is scored on."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

from memdist.data import duplicates
from memdist.data.examine import Facts
from memdist.data.findings import Finding, Kind
from memdist.data.pairs import PairFile, Part
from memdist.data.split import Row

_BLANK = (Kind.BLACK_MAP, Kind.FLAT_MAP)


def near_pairs(pairs: Sequence[PairFile], facts: Mapping[Part, Facts]) -> list[tuple[int, int]]:
    """Pairs (i < j) of places in `pairs` whose pictures are nearly the same; those that could be decoded."""
    rows = [i for i, pair in enumerate(pairs) if facts[pair.image_part].looks is not None]
    marks = [
        looks.mark for i in rows if (looks := facts[pairs[i].image_part].looks) is not None and looks.mark is not None
    ]
    assert len(marks) == len(rows)
    return [(rows[i], rows[j]) for i, j in duplicates.near(marks)]


def find(
    pairs: Sequence[PairFile],
    facts: Mapping[Part, Facts],
    near: Sequence[tuple[int, int]],
    splits: Mapping[str, str],
    groups: Mapping[str, str],
) -> list[Finding]:
    """Pictures that stand twice, by content or nearly, maps that do, and groups that straddle splits.

    `near` is what `near_pairs` gives, `splits` the split of each stem that is in one, `groups` the group of each stem
    that has one: near duplicates of one group are in order.
    """
    found: list[Finding] = []
    same = _by_content(pairs, facts)
    for members in same:
        for i in members[1:]:
            partners = [pairs[j] for j in members if j != i]
            found.append(_twice(pairs[i], partners, splits, Kind.SAME_ACROSS, Kind.SAME_WITHIN))
    content = {i: at for at, members in enumerate(same) for i in members}
    partners_of: defaultdict[int, list[int]] = defaultdict(list)
    for i, j in near:
        if i in content and content.get(j) == content[i]:
            continue
        if pairs[i].stem in groups and groups[pairs[i].stem] == groups.get(pairs[j].stem):
            continue
        partners_of[j].append(i)
    for j, others in partners_of.items():
        found.append(_twice(pairs[j], [pairs[i] for i in others], splits, Kind.NEAR_ACROSS, Kind.NEAR_WITHIN))
    return found + _maps(pairs, facts, near) + _straddling(pairs, splits, groups)


def group(
    pairs: Sequence[PairFile],
    facts: Mapping[Part, Facts],
    near: Iterable[tuple[int, int]],
    groups: Mapping[str, str],
) -> dict[str, str]:
    """Group of each stem that has a duplicate, near duplicate or member of its own group, named by the first stem."""
    edges = list(near)
    for members in (*_by_content(pairs, facts), *_by_group(pairs, groups)):
        edges += [(members[0], other) for other in members[1:]]
    stems = [pair.stem for pair in pairs]
    return {stems[i]: stems[members[0]] for members in duplicates.groups(len(pairs), edges) for i in members}


def repeated(table: Sequence[Row]) -> list[str]:
    """A sentence on pictures that stand in two splits, by the content of their files, if there are any."""
    places: defaultdict[str, dict[str, str]] = defaultdict(dict)
    for row in table:
        places[row.image_hash].setdefault(row.split, row.stem)
    across = [found for found in places.values() if len(found) > 1]
    if not across:
        return []
    named = " and ".join(f"{stem!r} in {split}" for split, stem in list(across[0].items())[:2])
    pictures = "1 picture stands" if len(across) == 1 else f"{len(across)} pictures stand"
    return [
        f"{pictures} in more than one split, such as {named}: scores are of pictures that were trained on; "
        "take one of each out, or, where fractions cut the splits, group them (`memdist data check CONFIG "
        "--group-duplicates FILE` finds all)"
    ]


def _by_content(pairs: Sequence[PairFile], facts: Mapping[Part, Facts]) -> list[list[int]]:
    places: defaultdict[str, list[int]] = defaultdict(list)
    for i, pair in enumerate(pairs):
        if facts[pair.image_part].sha256:
            places[facts[pair.image_part].sha256].append(i)
    return [members for members in places.values() if len(members) > 1]


def _by_group(pairs: Sequence[PairFile], groups: Mapping[str, str]) -> Iterable[list[int]]:
    places: defaultdict[str, list[int]] = defaultdict(list)
    for i, pair in enumerate(pairs):
        if pair.stem in groups:
            places[groups[pair.stem]].append(i)
    return places.values()


def _twice(
    pair: PairFile, partners: Sequence[PairFile], splits: Mapping[str, str], across: Kind, within: Kind
) -> Finding:
    """What to say of a picture that has `partners`: beside one of another split if there is one."""
    own = splits.get(pair.stem)
    others = [p for p in partners if own and splits.get(p.stem) not in (own, None)]
    other = others[0] if others else partners[0]
    detail = f"{_placed(pair, splits)}, as {other.stem} {_placed(other, splits)}"
    return Finding(across if others else within, pair.image, detail)


def _placed(pair: PairFile, splits: Mapping[str, str]) -> str:
    return f"in {splits[pair.stem]}" if pair.stem in splits else "in no split"


def _maps(pairs: Sequence[PairFile], facts: Mapping[Part, Facts], near: Iterable[tuple[int, int]]) -> list[Finding]:
    """Maps with the content of another picture's, but for blank maps and those of nearly one picture."""
    scenes = {i: members[0] for members in duplicates.groups(len(pairs), near) for i in members}
    first: dict[str, int] = {}
    found = []
    for i, pair in enumerate(pairs):
        map_ = facts[pair.map_part]
        if not map_.sha256 or any(f.kind in _BLANK for f in map_.findings):
            continue
        j = first.setdefault(map_.sha256, i)
        other = pairs[j]
        if facts[other.image_part].sha256 != facts[pair.image_part].sha256 and scenes.get(i, i) != scenes.get(j, j):
            found.append(Finding(Kind.SAME_MAP, pair.map, f"as that of {other.stem}"))
    return found


def _straddling(pairs: Sequence[PairFile], splits: Mapping[str, str], groups: Mapping[str, str]) -> list[Finding]:
    found = []
    for members in _by_group(pairs, groups):
        placed = [pairs[i] for i in members if pairs[i].stem in splits]
        others = [pair for pair in placed if splits[pair.stem] != splits[placed[0].stem]]
        for pair in others:
            detail = (
                f"group {groups[pair.stem]} {_placed(pair, splits)}, but {placed[0].stem} {_placed(placed[0], splits)}"
            )
            found.append(Finding(Kind.GROUP_STRADDLES, pair.image, detail))
    return found
