"""The commands that look at runs from outside: status, logs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from memdist import output
from memdist.cli import arguments


def status(
    folder: Annotated[
        Path, typer.Argument(metavar="DIR", help="A folder of runs, or one run.", parser=arguments.place)
    ] = Path("runs"),
    watch: Annotated[bool, typer.Option("--watch", help="Look again every 2 s, until Ctrl-C.")] = False,
    every: Annotated[bool, typer.Option("--all", help="Show each row, of large groups too.")] = False,
) -> None:
    """Say how every run and every share of maps in a folder stands."""
    from memdist.cluster import watching

    if watch:
        watching.watch(folder, every=every)
    else:
        output.show(watching.once(folder, every=every))


def logs(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a run or of maps.", parser=arguments.place)],
    rank: Annotated[
        int | None,
        typer.Option(metavar="N", min=0, help="Of this rank; default: 0.", show_default=False),
    ] = None,
    job: Annotated[
        str | None,
        typer.Option(metavar="ID", help="Of this job, 123 or 123_4; default: the newest.", show_default=False),
    ] = None,
    shard: Annotated[
        int | None,
        typer.Option(metavar="I", min=1, help="Of this share of a folder of maps.", show_default=False),
    ] = None,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Go on as it grows, until the run is over or Ctrl-C.")
    ] = False,
) -> None:
    """Print what the newest attempt at a run has printed."""
    from memdist.cluster import logs as reading
    from memdist.cluster import watching

    wanted = reading.Wanted(run, rank, job, shard)
    try:
        if follow:
            reading.follow(wanted, watching.liveness(run, shard))
        else:
            reading.show(wanted)
    except BrokenPipeError:
        output.mute()  # who reads has seen enough: logs are long
