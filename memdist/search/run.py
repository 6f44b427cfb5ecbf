"""A search from the command line: checked, taken up where its folder stands, trained, and summed up."""

from __future__ import annotations

import contextlib
import json
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from memdist import config, locks, output, rundir, times
from memdist.errors import ConfigError, SearchError
from memdist.launch import gpus as gpus_
from memdist.launch import local
from memdist.launch import place as place_
from memdist.launch.ends import RESUME_ME
from memdist.search import allocation, cells, cost, folder, found, on_ray, packing, settings, summary
from memdist.search import budget as budgets
from memdist.search import confirm as confirming
from memdist.search.board import Board, standing
from memdist.search.cells import Space
from memdist.search.driver import Driver
from memdist.search.key import Keys, trained
from memdist.search.methods.asha import Asha
from memdist.search.methods.method import Method
from memdist.search.settings import Search
from memdist.search.space import read


@dataclass(frozen=True)
class Asked:
    """A search, checked without data."""

    space: Space
    search: Search
    run: Any
    """Settings of its first cell."""
    method: Method
    place: Path
    budget: int | None = None
    """Seconds in which to end: the method is picked when it is known what trains (`within`)."""
    picked: Mapping[str, Any] = field(default_factory=dict)
    """What was, to be written down."""

    def about(self, split: str) -> dict[str, Any]:
        """What a folder is of this search alone by, as JSON's own types."""
        mine = {"format": folder.FORMAT, "split": split}
        mine |= {"metric": self.search.metric, "scope": self.search.scope} | self.method.settings() | dict(self.picked)
        found: dict[str, Any] = json.loads(json.dumps(mine))
        return found


def ask(name: str, words: Sequence[str], out: Path | None, budget: str | None = None) -> Asked:
    """Read a space and how it is to be searched; raises ConfigError and SearchError for what cannot be."""
    mine, theirs = settings.parted(words)
    for word in theirs:
        if word.partition("=")[0] == "until":
            raise ConfigError("until cannot be set for a search, which pauses trials itself: leave it out")
    space = read(name, theirs)
    search = settings.read(space.search, mine)
    first = cells.draw(space, search.seed, 0) if space.drawn else cells.cell(space, 0)
    run = cells.resolve(space, first)
    _check(search, run)
    stem = Path(name).stem if Path(name).is_file() else name
    if budget is not None:
        seconds = times.seconds(budget, "--budget")
        known = {"space": space.fingerprint, "epochs": run.epochs, "budget": seconds, **budgets.given(search)}
        place = out or Path("searches", stem, f"budget-{config.fingerprint(known)}")
        # What stands for what is picked later.
        stand_in = search.model_copy(update={"samples": search.samples or 1, "method": "random"})
        return Asked(space, search, run, stand_in.way(space, run.epochs), place, seconds)
    method = _way(space, search, run)
    return Asked(space, search, run, method, out or Path("searches", stem, f"{method.name}-{_digest(space, method)}"))


def _way(space: Space, search: Search, run: Any) -> Method:
    method = search.way(space, run.epochs)
    if isinstance(method, Asha) and search.metric.removeprefix("val/") in _of_maps():
        _rungs(method, run.validate_.every, search.metric)
    return method


def within(asked: Asked, address: str | None) -> Asked:
    """What is searched within the budget, picked by timing a few cells where the trials are to run; raises MemdistError."""
    if asked.budget is None:
        return asked
    space, run = asked.space, asked.run
    every = run.validate_.every if asked.search.metric.removeprefix("val/") in _of_maps() else 1
    with trains(asked, address) as (need, slots, time):
        slots = cost.as_fast(slots, need["CPU"], need["GPU"])
        search, picked = budgets.settle(space, asked.search, run, every, asked.place, asked.budget, slots, time)
    return replace(asked, search=search, method=_way(space, search, run), picked=picked)


@contextlib.contextmanager
def trains(asked: Asked, address: str | None) -> Iterator[tuple[dict[str, float], int, cost.Timer | None]]:
    """What a trial needs, how many run at once, and who times steps of them: a Ray cluster at an address, or this machine."""
    if address is None:
        cpus, gpus = local.cores(), 0 if asked.run.device == "cpu" else gpus_.count()
        need = _need(asked.search, {"CPU": float(cpus), "GPU": float(gpus)}, asked.run.device)
        yield need, cost.at_once(asked.search, "cuda" if gpus else "cpu", cpus, gpus), None
        return
    with on_ray.cluster(address, 0, 0):
        need = _need(asked.search, on_ray.resources(), asked.run.device)
        on_ray.fits(need)
        yield need, on_ray.room(need), lambda *given: on_ray.there(need, cost.epoch, *given)


def _digest(space: Space, method: Method) -> str:
    return config.fingerprint(json.loads(json.dumps({"space": space.fingerprint, **method.settings()})))


def _of_maps() -> tuple[str, ...]:
    from memdist import metrics

    return tuple(metrics.METRICS)


def _check(search: Search, run: Any) -> None:
    """The first cell can be trained here or elsewhere, and reports the metric."""
    from memdist.train import select, start

    if not search.metric.startswith("val/"):
        raise ConfigError(
            f"search.metric = {search.metric!r} cannot be: what chooses sees val alone; give one such as val/l1"
        )
    model = start.build(run, here=False)
    try:
        select.check(run.select.model_copy(update={"metric": search.metric}), model.scores)
    except ConfigError as error:
        raise ConfigError(str(error).replace("select.metric", "search.metric")) from error


def _rungs(method: Asha, every: int, metric: str) -> None:
    if method.rungs[0] < every:
        raise SearchError(
            f"the first rung, epoch {method.rungs[0]}, comes before {metric} is first measured (validate.every = {every}): give "
            f"search.min_epochs={every} or more, or validate.every={method.rungs[0]}"
        )


def search(asked: Asked, address: str | None) -> int:
    """Search, or go on; the exit code is 0, or RESUME_ME where a signal came. Raises MemdistError.

    As one of several tasks of srun, one on each node, it makes a Ray cluster of them.
    """

    def drive(address: str | None) -> int:
        keys = Keys(asked.space)
        mine = within(asked, address)
        about = mine.about(keys.split(mine.run))
        elsewhere = trained(mine.search.reuse)
        with _driven(mine, about, keys, elsewhere, address) as driver:
            if driver.done:
                mode, metric, epochs = mine.method.mode, mine.search.metric, mine.method.epochs
                place = Path(os.path.relpath(driver.place))
                output.show(summary.write(place, mine.space, driver.rows(), mode=mode, metric=metric, epochs=epochs))
            else:
                output.show("\n".join(standing(driver, time.time())))
            return _end(driver)

    return _somewhere(asked.place, address, drive)


def confirm(folder_: Path, top: int, seeds: int, words: Sequence[str], address: str | None) -> int:
    """Train the best `top` trials of a search again from `seeds` other seeds, or go on; the exit code is as of `search`."""
    mine, theirs = settings.parted(words)
    if theirs:
        raise ConfigError(
            f"{theirs[0]} cannot be given: finalists are trained as they were searched; search.cpus, search.gpus and search.pack "
            "can"
        )
    about = folder.settings(folder_)
    finalists, chosen = confirming.finalists(folder_, top, seeds)
    how = settings.read({"metric": about["metric"], "scope": about["scope"], "mode": about["mode"]}, mine)
    how = how.model_copy(update={"keep": int(finalists.count)})
    method = confirming.Again(finalists, about["epochs"], about["mode"])
    run = cells.resolve(finalists.space, finalists.cell(0))
    asked = Asked(finalists.space, how, run, method, folder_ / confirming.FOLDER)

    def drive(address: str | None) -> int:
        keys = Keys(asked.space)
        with _driven(asked, asked.about(keys.split(run)), keys, {}, address, confirming.REPORTED) as driver:
            code = _end(driver)
        if code == 0:
            rows = confirming.lines(chosen, found.trials(asked.place), seeds, method.mode)
            confirming.write(folder_, rows)
            output.show(confirming.table(rows, about, seeds))
        return code

    return _somewhere(asked.place, address, drive)


def _somewhere(place: Path, address: str | None, drive: Callable[[str | None], int]) -> int:
    """Do it on a Ray cluster: of this machine, at an address, or of the machines of this step of srun."""
    here = place_.take(joins=address is None)
    if here.world == 1 or address is not None:
        return drive(address)
    if here.rank > 0:
        allocation.lend(place.absolute(), os.environ)
        return 0
    with allocation.head(place.absolute(), here, os.environ) as address:
        return drive(address)


@contextlib.contextmanager
def _driven(
    asked: Asked, about: dict[str, Any], keys: Keys, elsewhere: Mapping[str, Path], address: str | None, score: str = ""
) -> Iterator[Driver]:
    """Train until all is found or a signal comes; gives the driver as it then stands."""
    place = asked.place.absolute()
    begun = folder.check(place, about)
    own = 0 if asked.run.device == "cpu" else gpus_.count()
    with on_ray.cluster(address, local.cores(), own):
        need = _need(asked.search, on_ray.resources(), asked.run.device)
        on_ray.fits(need)
        rundir.make_folder(place)
        with locks.hold(place, give_up=lambda: 0):
            if not begun:
                folder.begin(place, about)
            most = None
            if packing.asked(asked.search):
                pack = packing.settled(place, asked.space, asked.search, asked.run, need, away=address is not None)
                how = asked.search.model_copy(update={"pack": pack})
                need = _need(how, on_ray.resources(), asked.run.device)
                most = None if need["GPU"] else pack
            with contextlib.closing(
                Driver(place, asked.space, asked.search, asked.method, keys, elsewhere, score)
            ) as driver:
                output.console(needed=False).print(_opening(asked, place, need, begun), soft_wrap=True)
                driver.note("running")
                with Board(driver, time.time()) as board:
                    ranks = max(1, int(need["GPU"]))
                    on_ray.search(driver, need, place / folder.WORKERS, board.look, ranks=ranks, most=most)
                driver.end()
                yield driver


def _end(driver: Driver) -> int:
    if driver.done:
        return 0
    output.show(f"stopped; the same command goes on from there; search folder {os.path.relpath(driver.place)}")
    return RESUME_ME


def _need(search: Search, there: dict[str, float], device: str) -> dict[str, float]:
    """CPUs and GPUs of one trial."""
    gpus = search.gpus
    if gpus is None:
        pack = search.pack if isinstance(search.pack, int) else 1
        gpus = 1 / pack if there["GPU"] and device != "cpu" else 0.0
    if gpus > 1 and gpus != int(gpus):
        raise ConfigError(
            f"search.gpus = {gpus:g} cannot be: a trial has a part of one GPU (0.5), or a whole number of them"
        )
    return {"CPU": search.cpus, "GPU": float(gpus)}


def _opening(asked: Asked, place: Path, need: dict[str, float], begun: bool) -> str:
    method, search = asked.method, asked.search
    count = method.candidates.count
    many = "cells drawn at random" if count == math.inf else f"{count:.0f} cells"
    trial = " and ".join(f"{much:g} {kind}" for kind, much in need.items() if much)
    better = "smallest" if method.mode == "min" else "largest"
    return (
        f"{'going on with' if begun else 'searching'} {many} of {asked.space.source} by {method.name}, at most "
        f"{method.epochs} epochs each, for the {better} {search.metric} ({search.scope}); each trial has {trial}; search folder "
        f"{os.path.relpath(place)}"
    )
