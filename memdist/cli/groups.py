"""The commands that come in groups: data, models, bench."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from memdist import output
from memdist.cli import arguments
from memdist.cli.arguments import Config, Overrides, RunFolder, RuntimeOverrides, SearchSettings, SearchSpace, Split
from memdist.errors import ConfigError

data = typer.Typer(help="Make example data; check pictures; decode them ahead of training.", **arguments.PLAIN)
models = typer.Typer(help="What can be trained, where, and with which settings.", rich_markup_mode=None)
bench = typer.Typer(help="Measure speed.", **arguments.PLAIN)


@data.command("make")
def data_make(
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder for DIR/images and DIR/maps.")],
    pairs: Annotated[int, typer.Option(help="Pairs of picture and map.")] = 1600,
    size: Annotated[int, typer.Option(help="Height and width in pixels.")] = 128,
    seed: Annotated[int, typer.Option(help="Other seeds give other pictures.")] = 0,
) -> None:
    """Make example data: scenes of textured objects, and maps of what stands out in them."""
    from memdist.data import example

    example.make(out, pairs, size, seed)
    output.show(f"{pairs} pairs in {out}")


@data.command("cache")
def data_cache(config: Config, overrides: Overrides = None) -> None:
    """Decode a configuration's pictures now rather than when training starts."""
    run = arguments.resolve(config, overrides)
    from memdist.train import dataset

    output.show(dataset.cache(run))


@data.command("check")
def data_check(
    config: Config,
    overrides: Overrides = None,
    group_duplicates: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Write groups of near duplicates there, for data.groups=FILE."),
    ] = None,
) -> None:
    """Look at every picture and map before anything trains. Exit code 1: something was found."""
    run = arguments.resolve(config, overrides)
    from memdist.train import survey

    report = survey.survey(run, group_duplicates)
    output.show(report)
    raise typer.Exit(0 if report.clean else 1)


@models.callback(invoke_without_command=True)
def models_list(context: typer.Context) -> None:
    """List what can be trained, where, and with which settings."""
    if context.invoked_subcommand is None:
        from memdist import models as registry

        output.show(registry.listing())


@models.command("show")
def models_show(
    name: Annotated[str, typer.Argument(metavar="NAME", help="A model of `memdist models`, or a shipped CONFIG.")],
) -> None:
    """Print every setting of a model as YAML that is a valid CONFIG: `memdist models show palette > my.yaml`."""
    from memdist import models as registry

    output.show(registry.show(name).rstrip("\n"))


@bench.command("loop")
def bench_loop(
    config: Config = "quick/unet",
    overrides: Overrides = None,
    steps: Annotated[int, typer.Option(min=1, help="Steps of each of the two that are measured.")] = 200,
) -> None:
    """Measure the training loop against a bare loop, written by hand, on the same network, batch and optimiser."""
    run = arguments.resolve(config, overrides)
    from memdist.bench import loop

    loop.main(run, steps=steps)


@bench.command("scale")
def bench_scale(
    config: Config = "quick/unet",
    overrides: Overrides = None,
    gpus: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            min=1,
            help="Ranks; default: one a GPU, or a CPU core, as far as the batch divides by them.",
            show_default=False,
        ),
    ] = None,
    steps: Annotated[int, typer.Option(min=1, help="Steps that each comparison rests on.")] = 200,
) -> None:
    """Measure ranks: ddp against a bare torch DDP loop, weak and strong scaling, each strategy in each precision."""
    from memdist.bench import scale

    scale.main(config, overrides or [], ranks=gpus, steps=steps)


@bench.command("sample")
def bench_sample(
    run: RunFolder,
    overrides: RuntimeOverrides = None,
    split: Annotated[Split, typer.Option(help="The pictures that are sampled.")] = Split.test,
    images: Annotated[
        int | None, typer.Option(min=1, help="So many of them; default: all.", show_default=False)
    ] = None,
) -> None:
    """Measure how a diffusion model's run samples against the plain loop over all trained steps: speed and L1."""
    if split is Split.all:
        raise ConfigError("--split all cannot be measured: it should be train, val or test")
    from memdist.bench import sample

    sample.main(run, split=split.value, images=images, overrides=overrides or [])


@bench.command("search")
def bench_search(
    space: SearchSpace = "quick",
    overrides: SearchSettings = None,
    trials: Annotated[int, typer.Option(min=1, help="Trials that are measured.")] = 8,
) -> None:
    """Measure what a search adds to its trainings: each cell is trained bare, in this process, and as a trial, in turn."""
    from memdist.bench import search

    search.main(space, overrides or [], trials=trials)


@bench.callback()
def _bench() -> None:
    """Measure speed."""
