"""`memdist plan SPACE`: cells, epochs and hours of a search, here and elsewhere."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import Any

from memdist.errors import ConfigError
from memdist.launch import gpus as gpus_
from memdist.launch import local
from memdist.search import cost
from memdist.search.cost import Cost, Work
from memdist.search.run import Asked, ask

_WIDTH = 100


def plan(name: str, words: Sequence[str], *, gpus: int, gpu: str) -> Any:
    """Time a few steps of a few cells of a space and lay out what all of it takes; raises MemdistError."""
    if gpus < 1:
        raise ConfigError(f"--gpus {gpus} cannot be: give a whole number from 1")
    if gpu != "here":
        from memdist.plan import gpus as known

        known.find(gpu)
    asked = ask(name, words, None)
    found = cost.of(asked.space, asked.search, asked.run, gpu)
    own = 0 if asked.run.device == "cpu" else gpus_.count()
    here: int | None = None
    if gpu == "here":
        slots = cost.at_once(asked.search, "cuda" if own else "cpu", local.cores(), own)
        here = cost.as_fast(slots, asked.search.cpus, own)
    return render(asked, found, here=here, there=cost.on_gpus(asked.search, gpus), what=_what(gpus, gpu, own))


def _what(gpus: int, gpu: str, own: int) -> str:
    if gpu != "here":
        return f"{gpus} x {gpu}"
    return (
        f"{gpus} GPU{'s' if gpus > 1 else ''} as here"
        if own
        else f"{gpus} device{'s' if gpus > 1 else ''} as a trial's"
    )


def render(asked: Asked, found: Cost, *, here: int | None, there: int, what: str) -> Any:
    """Everything that is printed."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    columns = [(f"here, {here} at once", here)] if here is not None else []
    columns.append((f"{what}, {there} at once", there))
    many = f"{found.cells:,} cells" if found.cells is not None else "cells without end"
    table = Table(title=f"{many} of {asked.space.source}, {found.epochs} epochs each; hours")
    for at, head in enumerate(("method", "trials", "epochs", "saves", *(head for head, _ in columns))):
        table.add_column(head, justify="right" if at else "left")
    rows = _rows(asked, found)
    whole = rows[0][1].epochs
    for title, work in rows:
        saves = "-" if work.epochs >= whole else f"{100 * (1 - work.epochs / whole):.0f} %"
        hours = [cost.shown(found.seconds(work, slots)) for _, slots in columns]
        most = "<= " if work.at_most else ""
        table.add_row(title, f"{most}{work.trials:,}", f"{most}{work.epochs:,}", saves, *hours)
    lines = [*_timed(found), *_says(asked, found, there, what), *cost.assumed(found)]
    return Group(table, *(Text(textwrap.fill(line, _WIDTH, break_on_hyphens=False)) for line in lines))


def _rows(asked: Asked, found: Cost) -> list[tuple[str, Work]]:
    """The grid, or all samples to the end; the method that the space names, if it is another; ASHA."""
    search = asked.search
    saving, steps = cost.asha(search, found.cells, found.epochs)
    trials = found.cells if found.cells is not None else saving.trials
    whole = "grid" if found.cells is not None else "random"
    rows = [(whole, Work(trials, trials * found.epochs, trials))]
    if asked.method.name not in (whole, "asha"):
        rows.append((asked.method.name, cost.work(asked.method, found.epochs, found.cells)))
    rows.append((f"asha, rungs at {', '.join(map(str, steps))}", saving))
    return rows


def _timed(found: Cost) -> list[str]:
    slow = ", ".join(f"{seconds:.3g} s ({name})" for name, seconds in found.timed)
    return [
        f"Timed: an epoch of {len(found.timed)} cell{'s' if len(found.timed) > 1 else ''}, by a few of their steps: {slow}. "
        f"Reckoned from them for all: {found.mean:.3g} s on average, {found.longest:.3g} s the slowest."
    ]


def _says(asked: Asked, found: Cost, there: int, what: str) -> list[str]:
    rows = _rows(asked, found)
    whole, saving = rows[0][1], rows[-1][1]
    before, after = (found.seconds(one, there) for one in (whole, saving))
    lines = []
    if saving.epochs < whole.epochs:
        lines.append(
            f"ASHA with search.min_epochs={asked.search.min_epochs} search.eta={asked.search.eta} would train "
            f"{saving.epochs:,} epochs rather than {whole.epochs:,}, and save about {cost.length(before - after)} on {what}: "
            "search.method=asha. Promotions that later results do not bear out add some epochs."
        )
    if asked.search.pack == "auto":
        lines.append("search.pack=auto counts as 1 here: it is measured when the search begins.")
    return lines
