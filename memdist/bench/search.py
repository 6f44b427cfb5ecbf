"""What a search costs over the trainings that it consists of.

Bare is each training by itself: `memdist train`'s own loop, called one after the other in one process that has everything
loaded, with the same settings, pictures and threads. Beside it the search trains the same cell, as a trial: decided, written
down, handed to a worker by Ray Tune, trained, reported, told and tidied up. The two take turns, one trial at a time, so that
what else the machine does meets both. What comes once (Ray and the first worker start) is told by itself.
"""

from __future__ import annotations

import contextlib
import io
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from memdist import config, models, rundir
from memdist.data import example, sources
from memdist.launch import local
from memdist.search import cells, folder, on_ray, run
from memdist.search.driver import Driver
from memdist.search.key import Keys
from memdist.search.methods.method import Ask
from memdist.search.outcome import Outcome
from memdist.train import loop

LONG = 60
"""Seconds of a trial for which the overhead is told."""
PAIRS = 200


class Turn(NamedTuple):
    """One training, bare and as a trial."""

    bare: float
    """Seconds."""
    trial: float
    """Seconds from where the search would have asked for it to where it would ask for the next one."""


class Alternating(Driver):
    """A driver that trains each cell bare, here, before it hands it out."""

    turns: list[Turn]
    first: float | None = None
    """Seconds from the beginning to the end of the first trial, which nothing is compared with."""

    def prepare(self, bare: Path, begun: float) -> None:
        """Where bare trainings lie, and when the search began."""
        self._bare_folder, self._mark, self._spent, self.turns = bare, begun, 0.0, []

    def next(self) -> Ask:
        """What to train now, once it has been trained bare."""
        ask = super().next()
        if ask.what in ("start", "promote"):
            before = time.perf_counter()
            self._train(ask)
            self._spent = time.perf_counter() - before
        return ask

    def tell(self, ask: Ask, outcome: Outcome) -> None:
        """What came of a trial; the clock of the next one begins after it is written down and tidied up."""
        super().tell(ask, outcome)
        now = time.perf_counter()
        trial = now - self._mark - self._spent
        if self.first is None:
            self.first = trial
        elif outcome.state == "ok":
            self.turns.append(Turn(self._spent, trial))
        self._mark = now

    def _train(self, ask: Ask) -> None:
        task = self.task(ask)
        with contextlib.redirect_stdout(io.StringIO()):
            loop.train(models.resolve(task.settings), self._bare_folder / Path(task.out).name)


def main(name: str, words: Sequence[str], *, trials: int) -> None:
    """Print seconds of each pair, the seconds that a search adds to a trial, and their share of a trial of a minute."""
    import torch

    with tempfile.TemporaryDirectory(prefix="memdist-bench-") as temporary:
        place = Path(temporary)
        given = [*words, "search.method=random", f"search.samples={trials + 1}", "search.pack=1"]
        asked = run.ask(name, given, place / "search")
        if not sources.given(asked.run.data):
            example.make(place / "data", PAIRS, asked.run.data.size, 0, 1)
            given += [f"data.images={place / 'data' / 'images'}", f"data.maps={place / 'data' / 'maps'}"]
            given.append(f"data.cache={place / 'cache'}")
            asked = run.ask(name, given, place / "search")
        asked = replace(asked, search=asked.search.model_copy(update={"cpus": float(local.cores())}))
        torch.set_num_threads(local.cores())
        keys = Keys(asked.space)
        about = asked.about(keys.split(asked.run))
        _warm(asked, place / "warm")
        begun = time.perf_counter()
        gpus = torch.cuda.device_count() if asked.run.device != "cpu" else 0
        with on_ray.cluster(None, local.cores(), gpus):
            folder.begin(rundir.make_folder(asked.place), about)
            with contextlib.closing(
                Alternating(asked.place, asked.space, asked.search, asked.method, keys, {})
            ) as driver:
                driver.prepare(place / "bare", begun)
                need = {"CPU": float(local.cores()), "GPU": float(gpus > 0)}
                on_ray.search(driver, need, asked.place / folder.WORKERS, lambda: None)
                turns, first = driver.turns, driver.first
    print("\n".join(said(turns, first or 0.0, asked.method.epochs, local.cores())))


def _warm(asked: run.Asked, out: Path) -> None:
    """Train one here that does not count, so that nothing is loaded or decoded on the clock."""
    settings = config.plain(cells.resolve(asked.space, asked.method.candidates.cell(0)))
    with contextlib.redirect_stdout(io.StringIO()):
        loop.train(models.resolve({**settings, "epochs": 1}), out)


def said(turns: Sequence[Turn], first: float, epochs: int, cores: int) -> list[str]:
    """What was measured, in sentences."""
    if not turns:
        return ["no trial came to its end: look at one with `memdist search run`"]
    added = [turn.trial - turn.bare for turn in turns]
    bare, middle = statistics.median(turn.bare for turn in turns), statistics.median(added)
    ratio = statistics.median(turn.trial / turn.bare for turn in turns)
    share = 100 * max(0.0, middle) / LONG
    return [
        f"{len(turns)} trials of {epochs} epochs, one at a time on {cores} cores, each trained bare and as a trial in turn",
        f"bare: {bare:.2f} s a training; as a trial: {ratio:.3f} times as long (median of {len(turns)} pairs)",
        f"a search adds {middle:+.2f} s to a trial (median; {min(added):+.2f} to {max(added):+.2f})",
        f"that is {share:.1f} % of a trial of {LONG} s, as it does not grow with the trial (aim: under 5 %)",
        f"once, beside trials: {first:.1f} s until the first one was through (Ray and its worker start)",
    ]
