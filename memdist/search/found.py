"""What a search folder has found so far, read from its ledger alone: the space need not be there any more."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from memdist import config, rundir
from memdist.errors import SearchError, printable
from memdist.search import folder
from memdist.search.driver import QUIET


@dataclass
class Found:
    """A trial, as the ledger has it."""

    number: int
    folder: Path
    """Its run folder."""
    values: dict[int, float] = field(default_factory=dict)
    """The objective by epoch."""
    states: dict[int, str] = field(default_factory=dict)
    """What came of it, by the epoch that it was asked to reach."""

    @property
    def furthest(self) -> int:
        """The last epoch at which it has a value; 0: at none."""
        return max(self.values, default=0)


def trials(search: Path) -> list[Found]:
    """All trials of a search, in the order in which they were begun; raises SearchError for what is no search folder."""
    epochs = folder.settings(search)["epochs"]
    found: list[Found] = []
    for line in rundir.read_lines(search / folder.LEDGER):
        if "folder" in line:
            found.append(Found(len(found), search / folder.TRIALS / str(line["folder"])))
        elif "tell" in line:
            number, until = line["tell"]
            found[number].states[until] = line["state"]
            if line["value"] is not None:
                found[number].values[until] = line["value"]
                if line.get("ended"):  # it trains no further: its value stands for all later epochs
                    found[number].values[epochs] = line["value"]
    return found


def ranked(search: Path) -> list[Found]:
    """Trials with a value: those that have come furthest first, and of these the best; raises SearchError where none has."""
    sign = -1 if folder.settings(search)["mode"] == "max" else 1
    there = [one for one in trials(search) if one.values]
    if not there:
        raise SearchError(f"no trial of {printable(search)} has a value yet: go on with the search first")
    return sorted(there, key=lambda one: (-one.furthest, sign * one.values.get(one.furthest, math.inf), one.number))


def best(search: Path) -> str:
    """The configuration of the best trial, as YAML that `memdist train` takes; raises SearchError."""
    about, first = folder.settings(search), ranked(search)[0]
    head = (
        f"# The best of {len(trials(search))} trials of {search.name} by {about['metric']} ({about['scope']}) at epoch "
        f"{first.furthest}: {first.values[first.furthest]:.6g}, on which it was chosen.\n"
        f"# Trial {first.number}: {first.folder.name}\n"
    )
    return head + config.written(plain(first.folder))


def plain(run: Path) -> dict[str, Any]:
    """Settings of a trial without those that were the search's affair; raises CheckpointError where there are none."""
    from memdist.train import restore

    raw = config.plain(restore.settings(run))
    raw.pop("until", None)
    for name, value in QUIET.items():
        group, _, key = name.rpartition(".")
        if raw[group].get(key) == value:
            del raw[group][key]
    return raw
