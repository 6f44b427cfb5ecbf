"""How a search stands, for a person: a table that is drawn anew while it runs, and a line for each trial in a log."""

from __future__ import annotations

import math
import time
from collections import Counter
from types import TracebackType
from typing import Any

from memdist import output, times
from memdist.search.driver import Driver
from memdist.search.ledger import Told
from memdist.search.methods.asha import Asha
from memdist.search.methods.method import Trial
from memdist.search.objective import Mode

_EVERY = 1.0
"""Seconds between two drawings."""
_RECENT = 50
"""Results of which the speed is reckoned."""


class Board:
    """Shows a search on standard output until its context ends."""

    def __init__(self, driver: Driver, begun: float) -> None:
        """Nothing is shown yet. `begun`: when this process began to train, in seconds since 1970."""
        self.driver, self.begun = driver, begun
        self._drawn = 0.0
        self._said = len(driver.ledger.told)
        self._console = output.console(needed=False)
        self._live: Any = None

    def __enter__(self) -> Board:
        """Begin to show."""
        if self._console.is_terminal:
            from rich.live import Live

            self._live = Live(console=self._console, auto_refresh=False, transient=True)
            self._live.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Take the table away; what has come since is said."""
        if self._live is not None:
            self._live.__exit__(kind, error, trace)
        self._speak()

    def look(self) -> None:
        """Show what is new, if it is time."""
        if time.monotonic() - self._drawn < _EVERY:
            return
        self._drawn = time.monotonic()
        if self._live is not None:
            self._live.update(self.table(), refresh=True)
        else:
            self._speak()

    def table(self) -> Any:
        """What is running, and how the search stands."""
        from rich.console import Group
        from rich.table import Table

        table = Table(box=None, pad_edge=False)
        for name in ("trial", "until epoch", "cell"):
            least = None if name == "cell" else len(name)  # what is too long is cut off the cell
            table.add_column(name, no_wrap=True, overflow="ellipsis", min_width=least)
        room = max(3, self._console.height - 8)
        handed = sorted(self.driver.handed.values(), key=lambda one: one.ask.trial)
        for one in handed[:room]:
            table.add_row(str(one.ask.trial), str(one.ask.until), one.folder)
        if len(handed) > room:
            table.add_row(f"and {len(handed) - room} more", "", "")
        return Group(*standing(self.driver, self.begun), table)

    def _speak(self) -> None:
        if self._live is not None:
            return
        told = self.driver.ledger.told
        for one in told[self._said :]:
            self._console.print(line(self.driver, one), soft_wrap=True)
        self._said = len(told)


def standing(driver: Driver, begun: float) -> list[str]:
    """How a search stands, in a few lines."""
    method, told = driver.method, driver.ledger.told
    best = method.best()
    states = Counter(trial.last.state for trial in method.trials if trial.last is not None)
    paused = sum(not trial.running and _waits(method, trial) for trial in method.trials)
    counts = [f"{len(driver.handed)} running", f"{states['ok'] - paused} trained"]
    counts += [f"{paused} paused"] if paused else []
    counts += [f"{states[state]} {state}" for state in ("diverged", "failed") if states[state]]
    said = [f"{method.name} over {_many(driver)}: {', '.join(counts)}"]
    if best is not None and best.last is not None:
        value = best.results[max(best.results)].value
        said.append(
            f"best {driver.search.metric} {value:.6g} at epoch {max(best.results)}: trial {best.number}, "
            f"{driver.ledger.folders[best.number]}"
        )
    if isinstance(method, Asha):
        at = Counter(until for trial in method.trials for until in trial.results)
        said.append("rungs: " + ", ".join(f"epoch {rung}: {at[rung]}" for rung in method.rungs))
    if speed := _speed(told, begun):
        rest = left(driver)
        ahead = f", about {times.shown(rest / speed)} left" if rest is not None else ""
        each = 3600 * len([one for one in told if one.at >= begun][-_RECENT:])
        said.append(f"{each / max(1e-9, _span(told, begun)):.3g} results/hour, {3600 * speed:.4g} epochs/hour{ahead}")
    return said


def _waits(method: Any, trial: Trial) -> bool:
    return isinstance(method, Asha) and method.hopeful(trial)


def _many(driver: Driver) -> str:
    many = driver.method.candidates.count
    return "cells drawn at random" if many == math.inf else f"{many:.0f} cells"


def _span(told: list[Told], begun: float) -> float:
    mine = [one for one in told if one.at >= begun][-_RECENT:]
    return mine[-1].at - (begun if len(mine) < _RECENT else mine[0].at) if mine else 0.0


def _speed(told: list[Told], begun: float) -> float | None:
    """Epochs a second of late, over all trials at once; None before anything was trained."""
    mine = [one for one in told if one.at >= begun][-_RECENT:]
    span = _span(told, begun)
    epochs = sum(one.until - _before(told, one) for one in mine)
    return epochs / span if span > 0 and epochs else None


def _before(told: list[Told], one: Told) -> int:
    """The epoch that a trial had reached before."""
    return max((other.until for other in told if other.trial == one.trial and other.until < one.until), default=0)


def left(driver: Driver) -> float | None:
    """Epochs that a search still trains; of ASHA, and of spaces without end, None: nobody knows."""
    method = driver.method
    if isinstance(method, Asha) or method.name == "descent":
        return None
    many = min(method.samples or math.inf, method.candidates.count)
    if many == math.inf:
        return None
    ended = sum(not trial.running for trial in method.trials)
    return (many - ended) * method.epochs


def line(driver: Driver, told: Told) -> str:
    """A sentence on one result."""
    found, name = told.outcome, driver.ledger.folders[told.trial]
    mode: Mode = driver.method.mode
    values = [
        one.outcome.value for one in driver.ledger.told if one.until == told.until and one.outcome.value is not None
    ]
    if found.state == "ok" and found.value is not None:
        best = (min if mode == "min" else max)(values)
        what = f"{driver.search.metric} {found.value:.6g} at epoch {told.until}" + (
            ", the best so far there" if found.value == best else ""
        )
    else:
        what = f"{found.state}: {found.why}"
    return f"trial {told.trial} ({times.shown(found.seconds)}): {name}: {what}"
