"""What a job, or an element of an array, has to do, and how far it has come."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from memdist import rundir
from memdist.cluster import book
from memdist.cluster.decide import LINE
from memdist.cluster.slurm import Here
from memdist.errors import MemdistError
from memdist.launch.local import newest


@dataclass(frozen=True)
class Task:
    """What is done here."""

    words: tuple[str, ...]
    home: Path
    """Folder that it makes: in its book the attempts are written down, and what its ranks print."""
    share: str = ""
    """Which part of it, for what is shared out."""

    @property
    def trains(self) -> bool:
        """Whether it is a training, or a search of many, which writes checkpoints when it is told to leave."""
        return self.words[0] in ("train", "search")

    @property
    def measured(self) -> bool:
        """Whether it leaves something of what it has done where it is interrupted."""
        return self.trains or "-of-" in self.share

    def progress(self) -> int:
        """How far it has come: the step of its last checkpoint, or the maps that its share has made."""
        if self.words[0] == "search":
            # A line for each decision and each result; what is trained meanwhile has checkpoints.
            ledger = self.home / "ledger.jsonl"
            lines = ledger.read_bytes().count(b"\n") if ledger.is_file() else 0
            return lines * LINE + sum(newest(run.parent) for run in self.home.glob(f"trials/*/{rundir.CHECKPOINTS}"))
        if self.trains:
            return newest(self.home)
        if "-of-" in self.share:
            # A line for each map.
            files = (self.home / "manifest").glob(f"{self.share}-*.jsonl")
            return sum(file.read_bytes().count(b"\n") for file in files)
        return 0

    def scores(self) -> dict[str, Any]:
        """What the run's folder has of each split that is scored here, with the seconds that it took; else nothing."""
        if self.words[0] != "evaluate" or "--study" in self.words:
            return {}
        at = self.words.index("--split") if "--split" in self.words else None
        split = next((word.partition("=")[2] for word in self.words if word.startswith("--split=")), "test")
        split = split if at is None else self.words[at + 1]
        found = rundir.read_json(self.home / rundir.SCORES)
        return {name: found.get(name) for name in (("train", "val", "test") if split == "all" else (split,))}


def task(options: argparse.Namespace, here: Here) -> Task:
    """What this job, or this element of an array, is to do."""
    place: Path = options.place
    words = tuple(options.words)
    if here.index is None:
        return Task(words, place, "" if words[0] in ("train", "search") else _verb(words))
    number = here.index + options.offset
    if options.runs is not None:
        with open(options.runs, encoding="utf-8") as lines:
            line = next((line for at, line in enumerate(lines, 1) if at == number), None)
        if line is None:
            raise MemdistError(f"{options.runs} has no run {number}: submit again")
        run = json.loads(line)
        return Task(tuple(run["words"]), Path(run["folder"]))
    return Task((*words, "--shard", f"{number}/{options.total}"), place, f"{number}-of-{options.total}")


def _verb(words: Sequence[str]) -> str:
    if words[0] == "evaluate":
        # Several splits may be scored at a time: none answers for another.
        return f"evaluate-{book.digest(json.dumps(words))}"
    return "verify" if "--verify" in words else words[0]
