"""`memdist cluster ...`, and the commands that look at runs from outside: status, logs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from memdist import output
from memdist.cli import arguments

cluster = typer.Typer(help="The clusters that memdist knows, one file each.", **arguments.PLAIN)


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


@cluster.command("init")
def cluster_init(
    name: Annotated[str, typer.Argument(metavar="NAME", help="How you will call the cluster.")],
    partition: Annotated[
        str | None, typer.Option(metavar="P", help="Partition of its jobs.", show_default=False)
    ] = None,
    shared: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="DIR", help="A folder that compute nodes see; default: that of all homes.", show_default=False
        ),
    ] = None,
) -> None:
    """Write the file of a cluster from what sinfo and scontrol tell; call it on a login node."""
    from memdist.cluster import begin

    output.show(begin.init(name, partition, shared or []))


@cluster.command("list")
def cluster_list() -> None:
    """Name the clusters that are known."""
    from memdist.cluster import profile

    output.show(
        "\n".join(
            f"{name}  {profile.folder() / f'{name}.yaml' if name != profile.LOCAL else 'this machine'}"
            for name in profile.known()
        )
    )


@cluster.command("keys")
def cluster_keys() -> None:
    """Say what may stand in the file of a cluster."""
    from memdist.cluster import profile

    lines = []
    for name, field in profile.Cluster.model_fields.items():
        lines.append(f"{name} = {field.get_default(call_default_factory=True)!r}")
        lines.append(f"    {' '.join((field.description or '').split())}")
    output.show("\n".join(lines))
