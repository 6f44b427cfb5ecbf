"""Pairs that belong together: the groups of the source, and those of data.groups, merged where they meet."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from memdist import config
from memdist.data import sheet
from memdist.data.pairs import PairFile
from memdist.errors import DataError

_Node = tuple[int, str]
"""A group as one of the two names it: 0, the source; 1, data.groups; and the group's name."""


def merged(pairs: Sequence[PairFile], data: config.Data) -> tuple[dict[str, str], list[str]]:
    """Group of each pair that has one, by stem, and sentences on what a person should know.

    Two pairs are in one group if groups of the source and of data.groups lead from one to the other. A group is named after
    those that it was merged from. Stems in data.groups that are no pair's are passed over, with a sentence: what was taken
    out since the file was written parts nobody. Raises DataError for a file that cannot be read, that names a stem twice, or
    that knows none of the pairs.
    """
    listed, notes = _listed({pair.stem for pair in pairs}, data)
    nodes: dict[str, list[_Node]] = {}
    for pair in pairs:
        named: list[_Node] = [(0, pair.group)] if pair.group else []
        named += [(1, listed[pair.stem])] if pair.stem in listed else []
        if named:
            nodes[pair.stem] = named
    leader: dict[_Node, _Node] = {}

    def lead(node: _Node) -> _Node:
        while leader.setdefault(node, node) != node:
            leader[node] = leader[leader[node]]
            node = leader[node]
        return node

    for named in nodes.values():
        leader[lead(named[-1])] = lead(named[0])
    members = defaultdict(set)
    for node in list(leader):
        members[lead(node)].add(node)
    names: dict[_Node, str] = {}
    taken: set[str] = set()
    for top in sorted(members, key=lambda top: sorted(members[top])):  # the source's before those of data.groups alone
        name = " + ".join(dict.fromkeys(text for _, text in sorted(members[top])))
        while name in taken:
            name = f"{name} of data.groups"
        taken.add(name)
        names[top] = name
    return {stem: names[lead(named[0])] for stem, named in nodes.items()}, notes


def _listed(known: set[str], data: config.Data) -> tuple[dict[str, str], list[str]]:
    """Group by stem as data.groups has it, without stems that are no pair's."""
    if data.groups is None:
        return {}, []
    said = f"data.groups = {data.groups}"
    table = sheet.read(data.groups, "data.groups", ("stem", "group"))
    if table.faults:
        raise DataError(table.faults[0].sentence)
    first: dict[str, int] = {}
    found: dict[str, str] = {}
    for number, values in table.lines:
        stem = values["stem"]
        if stem in first:
            raise DataError(f"line {number} of {said} names the stem {stem!r} again (line {first[stem]} did): keep one")
        first[stem] = number
        if stem in known and values["group"].strip():
            found[stem] = values["group"].strip()
    unknown = [stem for stem in first if stem not in known]
    if first and len(unknown) == len(first):
        raise DataError(
            f"{said} names none of the pairs (but {unknown[0][:80]!r}, which is not one): give the file that belongs to "
            "these data"
        )
    if unknown:
        no_pairs = "1 stem" if len(unknown) == 1 else f"{len(unknown)} stems"
        return found, [f"no pair has {no_pairs} of {said}, such as {unknown[0][:80]!r}: passed over"]
    return found, []
