"""A folder of which submitted arrays make many runs."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from memdist import rundir
from memdist.cluster import book, tails
from memdist.cluster.book import Submitted


@dataclass
class Farm:
    """Its runs, by the names of their folders, each with the elements of arrays that were to make it."""

    place: str
    elements: dict[str, list[str]] = field(default_factory=dict)
    """In the order in which they were submitted."""
    names: dict[str, str] = field(default_factory=dict)
    """Of its arrays, by number."""
    begun: set[str] = field(default_factory=set)
    """Runs that have something in a folder."""

    @classmethod
    def of(cls, place: str, submitted: Sequence[Submitted]) -> Farm:
        """Read what the numbers of its arrays mean."""
        farm = cls(place)
        listings: dict[str, list[str]] = {}
        for one in submitted:
            if one.kind != "train" or not one.numbers:
                continue
            farm.names[one.id] = one.name
            if one.key not in listings:
                listings[one.key] = list(_names(place, one.key))
            names = listings[one.key]
            for number in one.numbers:
                known = 0 < number <= len(names) and names[number - 1]
                name = known or f"run {number} of {one.total or len(one.numbers)}"
                farm.elements.setdefault(name, []).append(one.element(number))
        return farm

    def begin(self, path: str, jobs: Sequence[str]) -> list[str]:
        """Note that a run has something in its folder; gives the elements that were to make it."""
        name = path[len(self.place) + 1 :]
        if name not in self.elements and jobs:
            name = next((name for name, some in self.elements.items() if jobs[-1] in some), name)
        self.begun.add(name)
        return self.elements.get(name, [])


def listed(place: Path, job: Submitted) -> list[dict[str, Any]]:
    """What the elements of an array of trainings do, by their numbers: the folder and the words of each."""
    file = book.folder(place) / job.key
    if not job.key.startswith("runs-") or not file.is_file():
        return []
    return [json.loads(line) for line in file.read_text().splitlines()]


def _names(place: str, key: str) -> Iterator[str]:
    """Names of the folders of an array's runs, in the order of their numbers; nothing where that is not written down."""
    if not key.endswith(".jsonl") or os.path.basename(key) != key:
        return
    for line in tails.whole_file(f"{place}/{rundir.JOBS}/{key}").splitlines():
        try:
            yield os.path.basename(json.loads(line)["folder"])
        except (ValueError, TypeError, KeyError, RecursionError):
            yield ""
