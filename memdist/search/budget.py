"""`--budget 24h`: the largest grid that fits, or else the settings of ASHA that make the most of the time.

What was picked is written down with the search, so that the same command goes on although no two timings are alike.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from memdist import output, rundir
from memdist.errors import SearchError
from memdist.search import cost, folder, spread
from memdist.search.cells import Space
from memdist.search.cost import Cost, Work
from memdist.search.methods.asha import rungs
from memdist.search.settings import Search

SPARE = 0.1
"""Of the budget what is left for what was not foreseen: other speeds, and promotions that later results do not bear out."""
PICKED = "picked"
BUDGET = "budget"


class Pick(NamedTuple):
    """What is searched within a budget."""

    settings: dict[str, Any]
    """Settings of the search."""
    work: Work
    why: str
    """A sentence."""


def settle(
    space: Space, search: Search, run: Any, every: int, place: Path, seconds: int, slots: int, time: cost.Timer | None
) -> tuple[Search, dict[str, Any]]:
    """The settings of a search with what its folder, or else a few timed steps, picks; and what to write down.

    `every`: epochs between two values of the metric. Raises MemdistError.
    """
    noted = rundir.read_json(place / folder.SEARCH)
    if PICKED not in noted:
        say = output.console(needed=False).print
        say(f"timing a few steps of at most {spread.TIMED} cells", soft_wrap=True)
        found = pick(cost.of(space, search, run, time=time), search, every, seconds, slots)
        say(found.why, soft_wrap=True)
        noted = {BUDGET: seconds, PICKED: found.settings}
    return search.model_copy(update=dict(noted[PICKED])), {BUDGET: seconds, PICKED: noted[PICKED]}


def given(search: Search) -> Mapping[str, Any]:
    """What a budget's search is, before anything is picked, as JSON's own types."""
    names = ("method", "mode", "order", "samples", "seed", "min_epochs", "eta", "rounds", "parameters")
    found = search.model_dump(mode="json")
    return {name: found[name] for name in names}


def pick(found: Cost, search: Search, every: int, seconds: float, slots: int) -> Pick:
    """Settings with which a search ends within a budget; raises SearchError where none does."""
    room = seconds * (1 - SPARE)
    said = f"{cost.length(seconds)} at {slots} trial{'s' if slots > 1 else ''} at once"
    named = search.method if "method" in search.model_fields_set else None
    if found.seconds(Work(1, found.epochs, 1), slots) > room:
        raise SearchError(
            f"--budget {cost.length(seconds)} is too short: one training of {found.epochs} epochs takes about "
            f"{cost.length(found.seconds(Work(1, found.epochs, 1), 1))}; give more time, or fewer epochs"
        )
    if named == "descent":
        raise SearchError(
            "--budget picks for grid, asha and random, and search.method = descent leaves it nothing to pick: leave one out"
        )
    if named == "random":
        trials = _most(lambda n: found.seconds(_whole(n, found.epochs), slots) <= room, search.samples or found.cells)
        work = _whole(trials, found.epochs)
        return Pick(
            {"method": "random", "samples": trials},
            work,
            f"picked search.samples={trials}, the most cells that fit {said}: {_takes(found, work, slots)}",
        )
    if found.cells is not None and named in (None, "grid"):
        work = _whole(found.cells, found.epochs)
        if found.seconds(work, slots) <= room:
            takes = _takes(found, work, slots)
            return Pick({"method": "grid"}, work, f"picked the whole grid, which fits {said}: {takes}")
        if named == "grid":
            raise SearchError(
                f"the grid of {found.cells:,} cells does not fit {said}: {_takes(found, work, slots)}; give more time, or "
                "leave search.method=grid out, and ASHA is picked"
            )
    return _asha(found, search, every, room, slots, said)


def _asha(found: Cost, search: Search, every: int, room: float, slots: int, said: str) -> Pick:
    """All cells with the longest first rung that fits, or else as many cells as fit with the shortest one."""
    if search.min_epochs > found.epochs:
        rungs(found.epochs, search.min_epochs, search.eta)  # raises
    many = search.samples if found.cells is None else min(found.cells, search.samples or found.cells)
    fixed = "min_epochs" in search.model_fields_set
    firsts = [search.min_epochs] if fixed else _firsts(found.epochs, every, search.eta)

    def work(trials: int, first: int) -> Work:
        return cost.asha_work(trials, rungs(found.epochs, first, search.eta), search.eta)

    first = next((f for f in firsts if many is not None and found.seconds(work(many, f), slots) <= room), firsts[-1])
    trials = _most(lambda n: found.seconds(work(n, first), slots) <= room, many)
    done = work(trials, first)
    what = f"all {trials:,} cells" if trials == many else f"{trials:,} cells, the most that fit"
    why = (
        f"picked search.method=asha search.samples={trials} search.min_epochs={first} for {said}: {what}, rungs at "
        f"{', '.join(map(str, rungs(found.epochs, first, search.eta)))}; {_takes(found, done, slots)}"
    )
    return Pick({"method": "asha", "samples": trials, "min_epochs": first}, done, why)


def _firsts(epochs: int, every: int, eta: int) -> list[int]:
    """First rungs to try, the longest first: each leaves another rung before the last epoch where it can."""
    found, first = [], epochs
    while (first := first // eta) >= max(1, every):
        found.append(first)
    return found or [min(max(1, every), epochs)]


def _whole(trials: int, epochs: int) -> Work:
    return Work(trials, trials * epochs, trials)


def _takes(found: Cost, work: Work, slots: int) -> str:
    return f"{work.epochs:,} epochs, about {cost.length(found.seconds(work, slots))}"


def _most(fits: Callable[[int], bool], most: int | None) -> int:
    """The largest number up to `most` (None: no end) that fits; 1 is taken for one that does."""
    low, high = 1, (most or 2**31) + 1
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low
