"""Asynchronous successive halving (Li et al. 2018, "A System for Massively Parallel Hyperparameter Tuning", algorithm 2).

All trials train up to the first rung and pause there; whoever is among the best 1 / eta that have been seen at a rung goes
on to the next, at once or whenever others turn out to be worse.
"""

from __future__ import annotations

import bisect
import math
from typing import Any

from memdist.errors import SearchError
from memdist.search.candidates import Candidates
from memdist.search.methods.method import Ask, Method, Result, Trial
from memdist.search.objective import Mode


def rungs(epochs: int, min_epochs: int = 1, eta: int = 4) -> list[int]:
    """Epochs at which trials are compared: min_epochs * eta**k below `epochs`, and `epochs` itself; raises SearchError."""
    if eta < 2 or min_epochs < 1:
        raise SearchError(
            f"search.eta = {eta} and search.min_epochs = {min_epochs} make no rungs: they should be whole numbers, "
            "at least 2 and 1"
        )
    if epochs < min_epochs:
        raise SearchError(
            f"epochs = {epochs} are fewer than the first rung, search.min_epochs = {min_epochs}: train longer, or lower it"
        )
    found, rung = [], min_epochs
    while rung < epochs:
        found.append(rung)
        rung *= eta
    return [*found, epochs]


class Asha(Method):
    """Many cells for a few epochs, few for all.

    A trial that diverged or failed is the worst of its rung and stops there. When no candidate is left and nothing runs, the
    best of the highest rung goes on, so that somebody reaches the last epoch however few they were.
    """

    name = "asha"

    def __init__(
        self,
        candidates: Candidates,
        epochs: int,
        mode: Mode = "min",
        samples: int | None = None,
        min_epochs: int = 1,
        eta: int = 4,
    ) -> None:
        super().__init__(candidates, epochs, mode, samples)
        self.eta, self.min_epochs = eta, min_epochs
        self.rungs = rungs(epochs, min_epochs, eta)
        self._sort()

    def ask(self) -> Ask:
        """A promotion where one is due, from the highest rung down; else the next candidate."""
        while (found := self._due()) is not None:
            trial, rung = found
            if self._goes_on(trial, rung):
                return trial.ask
        return self._begin(self.rungs[0]) or self._rest()

    def tell(self, trial: int, until: int, result: Result) -> None:
        """Take note of a trial at a rung."""
        found = self.trials[trial]
        new = until not in found.results
        super().tell(trial, until, result)
        if new:
            self._note(found, until)
            self._settle()

    def _note(self, trial: Trial, until: int) -> None:
        rung = self.rungs.index(until)
        place = self._place(trial, rung)
        bisect.insort(self._seen[rung], place)
        if place[0] < math.inf:
            bisect.insort(self._waiting[rung], place)

    def _goes_on(self, trial: Trial, rung: int) -> bool:
        """Promote a trial from a rung; whether there is anything to train: one that has stopped early is there at once."""
        self._waiting[rung].remove(self._place(trial, rung))
        before, trial.until = trial.results[trial.until], self.rungs[rung + 1]
        if before.ended:
            trial.results[trial.until] = before
            self._note(trial, trial.until)
        return not before.ended

    def _settle(self) -> None:
        """Promote those that have stopped early, at once: the state then follows from asks that were answered and tells alone."""
        for rung in range(len(self.rungs) - 1):
            edge = len(self._seen[rung]) // self.eta
            for place in self._seen[rung][:edge]:
                trial = self.trials[place[1]]
                if trial.until == self.rungs[rung] and trial.results[trial.until].ended:
                    self._goes_on(trial, rung)

    def load(self, state: Any) -> None:
        """Become what a search with the same settings was; raises SearchError where it was another."""
        super().load(state)
        self._sort()

    def hopeful(self, trial: Trial) -> bool:
        """Whether a trial that has paused may still be among the best of its rung, which may yet grow.

        One that is not goes on all the same where all others come to nothing.
        """
        if trial.running or trial.until >= self.epochs or self.score(trial, trial.until) == math.inf:
            return False
        rung = self.rungs.index(trial.until)
        # Ranks only fall, and a rung never holds more than all; its first goes on where nobody else comes to the end.
        return bisect.bisect_left(self._seen[rung], self._place(trial, rung)) < self._most()

    def outdone(self) -> list[int]:
        """Of each rung the trial that has lost its hope of going on from there last."""
        most = self._most()
        return [seen[most][1] for seen in self._seen[:-1] if len(seen) > most]

    def _most(self) -> int:
        """Trials that may go on from a rung, at most."""
        many = min(self.candidates.count, self.samples or math.inf)
        return max(1, int(many // self.eta))

    def settings(self) -> dict[str, Any]:
        """Those of every method, and the rungs'."""
        return super().settings() | {"min_epochs": self.min_epochs, "eta": self.eta}

    def _due(self) -> tuple[Trial, int] | None:
        """The trial to promote next, and the number of the rung that it has paused at."""
        for rung in reversed(range(len(self.rungs) - 1)):
            if self._waiting[rung]:
                best = self._waiting[rung][0]
                if bisect.bisect_left(self._seen[rung], best) < len(self._seen[rung]) // self.eta:
                    return self.trials[best[1]], rung
        if not super()._nothing_left() or any(trial.running for trial in self.trials):
            return None
        if self._seen[-1] and self._seen[-1][0][0] < math.inf:
            return None
        for rung in reversed(range(len(self.rungs) - 1)):
            if self._waiting[rung]:
                return self.trials[self._waiting[rung][0][1]], rung
        return None

    def _nothing_left(self) -> bool:
        return super()._nothing_left() and self._due() is None

    def _place(self, trial: Trial, rung: int) -> tuple[float, int]:
        """Where a trial stands in a rung: of equal ones the earlier is better."""
        return self.score(trial, self.rungs[rung]), trial.number

    def _sort(self) -> None:
        # By rung, sorted: all that were told, and those of them that have paused there and could go on.
        self._seen: list[list[tuple[float, int]]] = [[] for _ in self.rungs]
        self._waiting: list[list[tuple[float, int]]] = [[] for _ in self.rungs]
        for trial in self.trials:
            for rung, until in enumerate(self.rungs):
                if until in trial.results:
                    place = self._place(trial, rung)
                    self._seen[rung].append(place)
                    if place[0] < math.inf and trial.until == until:
                        self._waiting[rung].append(place)
        for level in (*self._seen, *self._waiting):
            level.sort()
