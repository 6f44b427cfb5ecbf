"""What a search costs before it begins: epochs by its method, hours by how many trials run at once, and what ASHA would save."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from memdist import config, times
from memdist.search import cells, measure, spread
from memdist.search.cells import Space
from memdist.search.measure import Pairs
from memdist.search.methods.asha import Asha, rungs
from memdist.search.methods.method import Method
from memdist.search.settings import Search

TRIAL = 1.5
"""Seconds of a trial beside its epochs: it is begun, opened, closed and taken in (measured on 2 CPU cores)."""
START = 20.0
"""Seconds until the first trial trains, once: Ray and its workers start (as measured there)."""


@dataclass(frozen=True)
class Work:
    """What a method trains."""

    trials: int
    epochs: int
    """Of all trials together."""
    stretches: int
    """How often a trial is begun or gone on with."""
    at_most: bool = False
    """It may be less: nobody knows beforehand what will be decided."""


@dataclass(frozen=True)
class Cost:
    """What trials of a space take on one kind of device."""

    cells: int | None
    """None: values are drawn at random, and there is no end of cells."""
    epochs: int
    """Of a whole training."""
    mean: float
    """Seconds of an epoch, on average over the cells."""
    longest: float
    """Of the slowest cell."""
    timed: tuple[tuple[str, float], ...] = ()
    """Names of the cells that were timed, and seconds of an epoch."""
    pairs: Pairs = Pairs(0, 0, False)

    def seconds(self, work: Work, slots: int) -> float:
        """Of a search by so many trials at once: never less than one whole training."""
        spent = work.epochs * self.mean + work.stretches * TRIAL
        return START + max(spent / max(1, min(slots, work.trials)), self.epochs * self.longest + TRIAL)


def asha_work(trials: int, steps: Sequence[int], eta: int) -> Work:
    """What ASHA trains, expected: all come to the first of `steps`, 1 / eta of those to the next, one at least to the end."""
    epochs, stretches, here, before = 0, 0, trials, 0
    for step in steps:
        epochs += max(1, here) * (step - before)
        stretches += max(1, here)
        here, before = here // eta, step
    return Work(trials, epochs, stretches)


def work(method: Method, epochs: int, many: int | None) -> Work:
    """Trials and epochs of a method over so many cells, expected; None: no end of them."""
    samples = method.samples if many is None else min(many, method.samples or many)
    if isinstance(method, Asha):
        assert samples is not None, "drawn cells have a number of samples"
        return asha_work(samples, method.rungs, method.eta)
    if method.name == "descent":
        space, rounds = method.candidates.space, int(method.settings()["rounds"])
        varied = sum(len(parameter.options) - 1 for parameter in space.parameters)
        trials = min(1 + rounds * varied, many or 1 + rounds * varied)
        return Work(trials, trials * epochs, trials, at_most=True)
    assert samples is not None, "drawn cells have a number of samples"
    return Work(samples, samples * epochs, samples)


def at_once(search: Search, device: str, cpus: int, gpus: int) -> int:
    """Trials that run at once on so many cores and GPUs; pack=auto counts as 1 until it has been measured."""
    by_cpu = int(cpus / search.cpus + 1e-6)
    if device == "cpu" or not gpus:
        return max(1, by_cpu)
    return max(1, min(by_cpu, on_gpus(search, gpus)))


def as_fast(slots: int, cpus: float, gpus: float) -> int:
    """Trials that get on as fast as one alone, of so many at once: on CPUs those that share a core take their turns."""
    return slots if gpus else max(1, int(slots * min(1.0, cpus) + 1e-6))


def on_gpus(search: Search, gpus: int) -> int:
    """Trials that run at once on so many GPUs, where cores are no matter."""
    pack = search.pack if isinstance(search.pack, int) else 1
    share = search.gpus or 1 / pack
    return max(1, int(gpus / share + 1e-6) if share >= 1 else gpus * int(1 / share + 1e-6))


def shown(seconds: float) -> str:
    """Seconds for a table: hours, with days beside them where they are many."""
    hours = seconds / 3600
    return f"{hours:.3g}" if hours < 1000 else f"{hours:,.0f}"


Timer = Callable[[dict[str, Any], Pairs, int, str], float]
"""Who times an epoch: settings of a run, its pairs, threads and the kind of GPU."""


def epoch(settings: dict[str, Any], there: Pairs, threads: int, gpu: str) -> float:
    """Seconds of an epoch of a run, whose settings may have come from another process."""
    from memdist import models

    return measure.epoch(models.resolve(settings), Pairs(*there), threads, gpu)


def of(space: Space, search: Search, run: Any, gpu: str = "here", time: Timer | None = None) -> Cost:
    """The cost of a space by a few timed steps of a few of its cells; raises ConfigError, DataError and SearchError."""
    there = measure.pairs(run)
    threads, by = max(1, int(search.cpus)), time or epoch
    found = spread.spread(
        space,
        lambda cell: measure.look(cells.resolve(space, cell)),
        lambda cell: by(config.plain(cells.resolve(space, cell)), there, threads, gpu),
    )
    many = None if space.drawn else cells.count(space)
    return Cost(many, run.epochs, found.mean, found.longest, found.timed, there)


def asha(search: Search, many: int | None, epochs: int) -> tuple[Work, list[int]]:
    """What ASHA with the space's settings trains, and its rungs."""
    steps = rungs(epochs, min(search.min_epochs, epochs), search.eta)
    trials = min(many, search.samples or many) if many is not None else search.samples or 1
    return asha_work(trials, steps, search.eta), steps


def assumed(cost: Cost) -> list[str]:
    """Sentences on what the hours rest on."""
    lines = []
    if cost.pairs.assumed:
        lines.append(
            f"Assumed: {cost.pairs.train} train pairs and {cost.pairs.val} of val, as no data are named: add data.images=DIR "
            "data.maps=DIR for yours."
        )
    lines.append(
        f"Assumed: a prediction takes a third of a training step; {TRIAL:g} s a trial beside its epochs, {START:g} s once; "
        "trials that share a device do not slow one another; what changes neither networks, batch nor precision is as fast; "
        "nothing stops early."
    )
    return lines


def length(seconds: float) -> str:
    """Seconds as people read them, a fraction of a minute included."""
    return times.shown(seconds) if seconds >= 2 else f"{seconds:.2g}s"
