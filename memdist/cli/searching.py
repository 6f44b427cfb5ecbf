"""`memdist search`: spaces of configurations, searched."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from memdist import output
from memdist.cli import arguments
from memdist.cli.arguments import Budget, SearchSettings, SearchSpace
from memdist.errors import ConfigError

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
    budget: Budget = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would be trained and what room it needs, and touch nothing.")
    ] = False,
) -> None:
    """Search a space, or go on with a search. Exit code 75: stopped; the same command resumes."""
    from memdist.search import run

    asked = run.ask(space, overrides or [], out, budget)
    if dry_run:
        from memdist.search import disk

        output.show("\n".join(disk.dry(asked, ray)))
        return
    raise typer.Exit(run.search(asked, ray))


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


def planned(name: str, overrides: list[str], *, gpus: int, gpu: str, gpus_per_node: int, emit: str | None) -> bool:
    """Whether `memdist plan` is asked for a space, and that is shown."""
    from memdist import config

    found = config.space(name)
    if found is None:
        return False
    if emit is not None or gpus_per_node != 8:
        flag = "--gpus-per-node" if emit is None else "--emit"
        raise ConfigError(f"{flag} is for one configuration, and {name} is a space of them: leave it out")
    from memdist.search import costtable

    output.show(costtable.plan(found, overrides, gpus=gpus, gpu=gpu))
    return True


def point(name: str) -> None:
    """Say that a configuration's name is a space's as well, where it is."""
    from memdist import config

    if not Path(name).is_file() and name in config.spaces():
        output.show(f"This is the configuration {name}; `memdist plan search/{name}` plans the space of that name.")
