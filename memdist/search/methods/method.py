"""What all ways through a space have in common: they are asked, they are told, and their state is JSON.

method.ask()                            # what to train next; the same trial is never handed out twice
method.tell(trial, until, Result.of(value))
json.dumps(method.state())              # at any time; load() of it goes on exactly there
method.running                          # handed out and not yet told: what has to go on after a restart
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from memdist.errors import SearchError
from memdist.search.candidates import Candidates
from memdist.search.objective import Mode


class Ask(NamedTuple):
    """What a method answers when it is asked."""

    what: Literal["start", "promote", "wait", "done"]
    """start a trial; promote (go on with) one that has paused; wait for results; done, for good."""
    trial: int = -1
    """Its number, in the order in which trials are begun."""
    cell: int = -1
    """The number of its cell among the candidates."""
    until: int = 0
    """The epoch up to which it trains, all told."""


class Result(NamedTuple):
    """What came of a trial's training."""

    value: float | None
    """The objective, a finite number; None of one that failed or diverged."""
    state: Literal["ok", "diverged", "failed"] = "ok"
    ended: bool = False
    """It trains no further, as it has stopped early: its value stands for all later epochs."""

    @classmethod
    def of(cls, value: float | None, *, ended: bool = False) -> Result:
        """The result of a value: one that is no finite number has diverged, none at all is a failure."""
        if value is None:
            return cls(None, "failed")
        return cls(float(value), ended=ended) if math.isfinite(value) else cls(None, "diverged")


@dataclass
class Trial:
    """A cell in training."""

    number: int
    cell: int
    until: int
    """The epoch that it was last asked to reach."""
    results: dict[int, Result] = field(default_factory=dict)
    """By the epoch that it was asked to reach."""

    @property
    def running(self) -> bool:
        """Whether it has been handed out and nothing told of it since."""
        return self.until not in self.results

    @property
    def last(self) -> Result | None:
        """What was told of it last."""
        return self.results[max(self.results)] if self.results else None

    @property
    def ask(self) -> Ask:
        """What was asked of it last."""
        return Ask("promote" if self.results else "start", self.number, self.cell, self.until)


class Method(ABC):
    """A way through the candidates; all trials share one horizon of epochs."""

    name: str

    def __init__(self, candidates: Candidates, epochs: int, mode: Mode = "min", samples: int | None = None) -> None:
        """`samples`: how many trials are begun at most; needed where candidates have no end."""
        if epochs < 1 or (samples is not None and samples < 1):
            raise SearchError(f"a search of {samples or 'all'} trials over {epochs} epochs is none: give at least 1")
        if candidates.space.drawn and samples is None:
            raise SearchError(f"{candidates.space.source} has no end of cells: set search.samples, how many are tried")
        self.candidates, self.epochs, self.mode, self.samples = candidates, epochs, mode, samples
        self.trials: list[Trial] = []

    @abstractmethod
    def ask(self) -> Ask:
        """What to train next; changes the state, unless it is `wait` or `done`."""

    def tell(self, trial: int, until: int, result: Result) -> None:
        """Take note of a trial that was asked to reach an epoch. What is told again does not count."""
        found = self.trials[trial]
        assert until == found.until or until in found.results, (trial, until)
        assert (result.state == "ok") == (result.value is not None and math.isfinite(result.value)), result
        found.results.setdefault(until, result)

    @property
    def running(self) -> list[Ask]:
        """What was handed out and not yet told."""
        return [trial.ask for trial in self.trials if trial.running]

    @property
    def done(self) -> bool:
        """Whether nothing is left to train or to wait for."""
        return self._nothing_left() and not self.running

    def best(self) -> Trial | None:
        """The best of those trials that have come furthest; None where none has a value yet."""
        furthest = max((until for t in self.trials for until, r in t.results.items() if r.state == "ok"), default=0)
        there = [trial for trial in self.trials if self.score(trial, furthest) < math.inf]
        return min(there, key=lambda trial: (self.score(trial, furthest), trial.number), default=None)

    def score(self, trial: Trial, until: int) -> float:
        """What a trial was worth at an epoch: less is better in either mode, infinity is failed, diverged or not there."""
        result = trial.results.get(until)
        if result is None or result.value is None:
            return math.inf
        return result.value if self.mode == "min" else -result.value

    def settings(self) -> dict[str, Any]:
        """What decisions depend on beside results, as JSON's own types."""
        about = {"method": self.name, "epochs": self.epochs, "mode": self.mode, "samples": self.samples}
        return about | self.candidates.settings()

    def state(self) -> dict[str, Any]:
        """All there is to know, as JSON's own types."""
        trials = [[t.cell, t.until, [[until, *result] for until, result in t.results.items()]] for t in self.trials]
        return {"settings": self.settings(), "trials": trials}

    def load(self, state: Any) -> None:
        """Become what a method with the same settings was; raises SearchError where it was another."""
        settings = state.get("settings") if isinstance(state, Mapping) else None
        if not isinstance(settings, Mapping):
            raise SearchError("this is no state of a search: begin the search in another folder")
        for key, mine in self.settings().items():
            if settings.get(key) != mine:
                raise SearchError(
                    f"the search was begun with {key} = {settings.get(key)!r}, and now has {mine!r}: "
                    "go on as it was begun, or search in another folder"
                )
        try:
            self.trials = [
                Trial(number, int(cell), int(until), {int(at): _read(*result) for at, *result in results})
                for number, (cell, until, results) in enumerate(state["trials"])
            ]
        except (KeyError, TypeError, ValueError) as error:
            raise SearchError(f"the state of this search is damaged ({error!r}): restore it, or begin anew") from error

    def _begin(self, until: int) -> Ask | None:
        """Begin the next candidate; None where there is none."""
        place = len(self.trials)
        cell = None if self.samples is not None and place >= self.samples else self.candidates.at(place)
        if cell is None:
            return None
        self.trials.append(Trial(place, cell, until))
        return self.trials[-1].ask

    def _rest(self) -> Ask:
        return Ask("wait") if any(trial.running for trial in self.trials) else Ask("done")

    def _nothing_left(self) -> bool:
        place = len(self.trials)
        return place == self.samples or self.candidates.at(place) is None


def _read(value: Any, state: Any, ended: Any) -> Result:
    found = Result.of(value, ended=bool(ended)) if state == "ok" else Result(None, state, bool(ended))
    if found.state != state or state not in ("ok", "diverged", "failed"):
        raise ValueError(f"{state} with {value}")
    return found
