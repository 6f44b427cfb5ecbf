"""`memdist search`: spaces of configurations, searched."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from memdist import output
from memdist.cli import arguments
from memdist.cli.arguments import SearchSettings, SearchSpace

search = typer.Typer(help="Search a space of configurations.", **arguments.PLAIN)

Folder = Annotated[Path, typer.Argument(metavar="SEARCH", help="A search folder that `memdist search run` made.")]
Ray = Annotated[
    str | None,
    typer.Option(
        "--ray",
        metavar="ADDRESS",
        help="A Ray cluster that is already there; default: this machine.",
        show_default=False,
    ),
]


@search.command("run")
def search_run(
    space: SearchSpace,
    overrides: SearchSettings = None,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="SEARCH", help="Search folder; an existing one goes on. Default: searches/SPACE/<method>-<hash>."
        ),
    ] = None,
    ray: Ray = None,
) -> None:
    """Search a space, or go on with a search. Exit code 75: stopped; the same command resumes."""
    from memdist.search import run

    raise typer.Exit(run.search(run.ask(space, overrides or [], out), ray))


@search.command("best")
def search_best(folder: Folder) -> None:
    """Print the configuration of the best trial, which `memdist train` takes."""
    from memdist.search import found

    output.show(found.best(folder).removesuffix("\n"))


@search.command("confirm")
def search_confirm(
    folder: Folder,
    overrides: SearchSettings = None,
    top: Annotated[int, typer.Option(metavar="K", min=1, max=1000, help="Best trials to train again.")] = 5,
    seeds: Annotated[int, typer.Option(metavar="N", min=1, max=1000, help="Other seeds of each.")] = 5,
    ray: Ray = None,
) -> None:
    """Train the best trials again from other seeds: ranked by their mean on val, reported on test with its spread."""
    from memdist.search import run

    raise typer.Exit(run.confirm(folder, top, seeds, overrides or [], ray))
