"""`memdist status`: once, or again and again until Ctrl-C."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from pathlib import Path

from memdist import output
from memdist.cluster.standing import LIVE, Slurm
from memdist.cluster.survey import Survey, beside, survey
from memdist.cluster.table import Shown

EVERY = 2.0
"""Seconds between two looks."""


def once(folder: Path, *, every: bool = False) -> Shown:
    """How all below a folder stands; `every`: each row is shown."""
    return Shown(survey(folder, _slurm()), str(folder), every)


def watch(folder: Path, *, every: bool = False, pause: Callable[[float], None] = time.sleep) -> None:
    """Show it until Ctrl-C: a terminal shows how it stands, a file or a pipe gets a line for each change of a state."""
    slurm = _slurm()
    found = survey(folder, slurm)  # a mistake is told before anything is shown
    console = output.console(needed=True)
    with contextlib.suppress(KeyboardInterrupt):
        if not console.is_terminal:
            console.print(Shown(found, str(folder), every))
            while True:
                pause(EVERY)
                before, found = found, survey(folder, slurm)
                for line in changes(before, found):
                    console.print(f"{time.strftime('%H:%M:%S')}  {line}", soft_wrap=True)
        from rich.live import Live

        def shown() -> Shown:
            return Shown(found, str(folder), every, time.strftime("%H:%M:%S"), console.size.height - 1)

        with Live(shown(), console=console, auto_refresh=False) as live:
            while True:
                pause(EVERY)
                found = survey(folder, slurm)
                live.update(shown(), refresh=True)


def liveness(place: Path, share: int | None) -> Callable[[], bool]:
    """Asks whether a run, or a share of a folder of maps, may still go on without anybody's doing."""
    slurm = _slurm()

    def live() -> bool:
        found = beside(place, slurm).rows
        if share is not None:
            found = tuple(row for row in found if row.name.startswith(f"{share}/"))
        return any(row.state in LIVE and not row.scoring for row in found)

    return live


def _slurm() -> Slurm:
    return Slurm(here=_alive)


def _alive(number: str) -> bool:
    """Whether a job of this machine still waits or runs; what does them is loaded where there are any."""
    from memdist.cluster import local

    return local.alive(number)


def changes(before: Survey, after: Survey) -> list[str]:
    """What has another state than it had, in a line each."""
    states = {(row.place, row.name): row.state for row in before.rows}
    found = []
    for row in after.rows:
        was = states.pop((row.place, row.name), None)
        if was != row.state:
            name = row.name if row.group in ("", ".") else f"{row.group}/{row.name}"
            why = f" ({row.why})" if row.why and row.state != "finished" else ""
            found.append(f"{name}: {'new' if was is None else was} -> {row.state}{why}")
    return found + [f"{name}: {was} -> gone" for (_, name), was in states.items()]
