"""The decisions and results of a search, appended line by line before anything follows from them.

Whatever is killed, the same decisions are made again from these lines: a method is asked and told in the same order. Of a
trial that was handed out and never told of, `running` says so, and its run goes on from its checkpoint.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from memdist import rundir
from memdist.errors import SearchError
from memdist.search.cells import Cell
from memdist.search.methods.method import Ask, Method
from memdist.search.outcome import Outcome


class Told(NamedTuple):
    """A result, when and after how long."""

    trial: int
    until: int
    outcome: Outcome
    at: float
    """Seconds since 1970."""


class Ledger:
    """A method whose every step is on the disk before it counts."""

    def __init__(
        self, path: Path, method: Method, key: Callable[[Cell], str], elsewhere: Mapping[str, str] | None = None
    ) -> None:
        """Become what the lines say; raises SearchError where the method decides otherwise now.

        `key`: of a cell's training. `elsewhere`: run folders, by key, in which such a training has come to its end.
        """
        self.method = method
        self.told: list[Told] = []
        self.folders: list[str] = []
        """Name of the run folder of each trial."""
        self._key = key
        self._names: dict[str, str] = dict(elsewhere or {})
        """Folder by key: what is spelt otherwise but trains the same shares one."""
        for number, line in enumerate(rundir.read_lines(path), 1):
            try:
                self._replay(line)
            except (AssertionError, IndexError, KeyError, TypeError, ValueError) as error:
                raise SearchError(
                    f"line {number} of {path} does not follow from those before it ({type(error).__name__}: {error}): restore "
                    "the file, or search in another folder"
                ) from error
        self._lines = rundir.Lines(path)

    def ask(self) -> Ask:
        """What to train next, written down."""
        ask = self.method.ask()
        if ask.what == "start":
            cell = self.method.candidates.cell(ask.cell)
            key = self._key(cell)
            self._begin(key, self._names.get(key, cell.name))
            self._lines.write({"ask": list(ask), "key": key, "folder": self.folders[-1], "at": time.time()})
        elif ask.what == "promote":
            self._lines.write({"ask": list(ask), "at": time.time()})
        return ask

    def tell(self, trial: int, until: int, outcome: Outcome) -> None:
        """What came of a trial, written down."""
        assert outcome.state != "stopped", outcome
        self._lines.write({"tell": [trial, until], **outcome._asdict(), "at": time.time()})
        self._lines.length()  # on the disk
        self._tell(Told(trial, until, outcome, time.time()))

    def close(self) -> None:
        """Close the file."""
        self._lines.close()

    def _begin(self, key: str, folder: str) -> None:
        self._names[key] = folder
        self.folders.append(folder)

    def _tell(self, told: Told) -> None:
        self.method.tell(told.trial, told.until, told.outcome.result)
        self.told.append(told)

    def _replay(self, line: dict[str, Any]) -> None:
        if "ask" in line:
            ask = self.method.ask()
            if list(ask) != line["ask"]:
                raise ValueError(f"{list(ask)} is asked for now")
            if ask.what == "start":
                self._begin(line["key"], line["folder"])
        else:
            trial, until = line["tell"]
            outcome = Outcome(**{name: line[name] for name in Outcome._fields if name in line})
            if outcome.state not in ("ok", "diverged", "failed"):
                raise ValueError(f"there is no state {outcome.state!r}")
            self._tell(Told(trial, until, outcome, line["at"]))
