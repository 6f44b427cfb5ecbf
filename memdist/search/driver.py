"""Hands out trials and takes in what came of them: pure bookkeeping between a method, its ledger and whoever trains."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

from memdist import config, rundir
from memdist.search import cells, folder, tidy
from memdist.search.cells import Space
from memdist.search.hands import Task
from memdist.search.ledger import Ledger
from memdist.search.methods.method import Ask, Method
from memdist.search.outcome import Outcome
from memdist.search.parameter import ABSENT
from memdist.search.rows import Row
from memdist.search.settings import Search

QUIET: Mapping[str, Any] = {"log.tensorboard": False, "log.images": 0, "checkpoint.every": 1_000_000}
"""Settings of trials that neither the space nor the command line names: few files, a checkpoint where it is needed."""


class Handed(NamedTuple):
    """A trial that is being trained, up to an epoch."""

    ask: Ask
    folder: str


class Driver:
    """A search in its folder."""

    def __init__(
        self,
        place: Path,
        space: Space,
        search: Search,
        method: Method,
        key: Callable[[cells.Cell], str],
        elsewhere: Mapping[str, Path],
        score: str = "",
    ) -> None:
        """Take up the search where its ledger stands; raises SearchError. `score`: split on which finished trials are scored."""
        self._score = score
        self.place, self.space, self.search, self.method = place, space, search, method
        self.ledger = Ledger(place / folder.LEDGER, method, key, {k: str(path) for k, path in elsewhere.items()})
        self._again: list[Ask] = method.running
        self.handed: dict[int, Handed] = {}
        """By trial, what is being trained now."""
        self.stopping = False
        self._quiet = [
            f"{name}={config.line(value)}" for name, value in QUIET.items() if cells.lookup(space.raw, name) is ABSENT
        ]

    def next(self) -> Ask:
        """What to train now: wait and done are answers too."""
        if self.stopping:
            return Ask("done")
        busy = {handed.folder for handed in self.handed.values()}
        for ask in self._again:
            # Two cells that train the same share a folder: one after the other.
            if self.ledger.folders[ask.trial] not in busy:
                self._again.remove(ask)
                return self._hand(ask)
        ask = self.ledger.ask()
        if ask.what not in ("start", "promote"):
            return Ask("wait") if self._again or self.handed else ask
        if self.ledger.folders[ask.trial] in busy:
            self._again.append(ask)
            return Ask("wait")
        return self._hand(ask)

    def _hand(self, ask: Ask) -> Ask:
        self.handed[ask.trial] = Handed(ask, self.ledger.folders[ask.trial])
        if ask.what == "promote":
            tidy.afresh(self.folder(ask.trial), self.place / folder.TRIALS, ask.until)
        return ask

    def task(self, ask: Ask, ranks: int = 1) -> Task:
        """A trial as those who train it need it."""
        cell = self.method.candidates.cell(ask.cell)
        pause = [] if ask.until >= self.method.epochs else [f"until={ask.until}"]
        run = cells.resolve(self.space, cell, (*self._quiet, *pause))
        return Task(
            settings=config.plain(run),
            out=str(self.folder(ask.trial)),
            until=ask.until,
            metric=self.search.metric,
            scope=self.search.scope,
            mode=self.method.mode,
            failures=self.search.failures,
            ranks=ranks,
            score=self._score,
        )

    def folder(self, trial: int) -> Path:
        """Run folder of a trial."""
        return self.place / folder.TRIALS / self.ledger.folders[trial]

    def tell(self, ask: Ask, outcome: Outcome) -> None:
        """What came of a trial that was handed out."""
        self.handed.pop(ask.trial, None)
        if outcome.state == "stopped":
            self._again.append(ask)
            return
        self.ledger.tell(ask.trial, ask.until, outcome)
        self.note("running")
        tidy.after(self.place / folder.TRIALS, self.method, self.ledger.folders, ask.trial, self.search.keep)

    @property
    def done(self) -> bool:
        """Whether all that is to be found is found."""
        return self.method.done and not self.handed

    def rows(self) -> list[Row]:
        """What has become of each trial."""
        why = {one.trial: one.outcome.why for one in self.ledger.told}
        rows = []
        for trial in self.method.trials:
            values = {until: result.value for until, result in trial.results.items() if result.value is not None}
            reached = max(values, default=0)
            last = trial.last
            rows.append(
                Row(
                    trial.number,
                    self.method.candidates.cell(trial.cell),
                    reached,
                    "running" if trial.running or last is None else last.state,
                    values.get(reached),
                    f"{folder.TRIALS}/{self.ledger.folders[trial.number]}",
                    why.get(trial.number, ""),
                )
            )
        return rows

    def note(self, state: Literal["running", "stopped", "finished"], why: str = "") -> None:
        """Say in state.json how the search stands, for whoever looks at the folder."""
        best, many = self.method.best(), min(self.method.candidates.count, self.method.samples or math.inf)
        record = {
            "state": state,
            "why": why,
            "search": self.method.name,
            "trials": len(self.method.trials),
            "of": None if many == math.inf else int(many),
            "results": len(self.ledger.told),
            "failed": sum(1 for one in self.ledger.told if one.outcome.state != "ok"),
            "best": None if best is None else {"trial": best.number, "folder": self.ledger.folders[best.number]},
        }
        rundir.write_json(self.place / rundir.STATE, record)

    def end(self) -> None:
        """Note how it ends, and make room where all is found."""
        if self.done:
            tidy.end(self.place / folder.TRIALS, self.method, self.ledger.folders, self.search.keep)
        self.note("finished" if self.done else "stopped", "" if self.done else "a signal")

    def close(self) -> None:
        """Close the ledger."""
        self.ledger.close()
