"""The command `memdist`: parse, call one function, show what it gives.

Exit codes: 0 done; 1 a fault of memdist (with its traceback), the loss of a rank, or `doctor` or `data check` found
something; 2 what was given cannot be used; 75 training was stopped, and the same command takes it up again; 130 interrupted
elsewhere.

Everything is imported inside the functions that use it, so that `memdist --help` and shell completion answer at once.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from memdist import output
from memdist.cli import arguments, cluster, groups, searching, submitting
from memdist.cli.arguments import (
    Choice,
    Config,
    NoEma,
    Overrides,
    RunFolder,
    RuntimeOverrides,
    Sampler,
    Samples,
    Split,
    Steps,
)
from memdist.errors import ConfigError, MemdistError

app = typer.Typer(
    help="Train, score and compare conditional image-to-image models.",
    pretty_exceptions_enable=False,
    **arguments.PLAIN,
)
app.add_typer(groups.data, name="data")
app.add_typer(groups.models, name="models")
app.add_typer(groups.bench, name="bench")
app.add_typer(searching.search, name="search")
app.add_typer(submitting.submit, name="submit")
app.add_typer(cluster.cluster, name="cluster")
app.command()(submitting.cancel)
app.command()(cluster.status)
app.command()(cluster.logs)


@app.command()
def train(
    config: Config,
    overrides: Overrides = None,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="RUN", help="Run folder; an existing one is resumed. Default: runs/CONFIG/<overrides>-<hash>."
        ),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be trained, and touch nothing.")] = False,
    extend: Annotated[
        bool,
        typer.Option(
            "--extend", help="Allow more epochs although the learning rate already decayed towards the old end."
        ),
    ] = False,
    gpus: Annotated[
        int | None,
        typer.Option(
            metavar="N", min=1, help="Ranks to start on this machine, one a GPU, or on its CPU.", show_default=False
        ),
    ] = None,
    max_restarts: Annotated[
        int, typer.Option(metavar="K", min=0, help="How often to go on from the last checkpoint when a rank fails.")
    ] = 0,
) -> None:
    """Train a model, or take a stopped run up again. Exit code 75: stopped; the same command resumes."""
    from memdist.launch import ends, place

    if (gpus is not None or max_restarts) and not dry_run:
        flags = [*(["--out", str(out)] if out else []), *(["--extend"] if extend else [])]
        code = arguments.launch(config, overrides or [], flags, gpus or 1, max_restarts)
        if code is not None:
            raise typer.Exit(code)
    place.take()
    with place.alike():
        run = arguments.resolve(config, overrides)
    if out is None:
        from memdist.train import start

        out = start.default_folder(Path(config).stem if Path(config).is_file() else config, overrides or [], run)
    if dry_run:
        from memdist.train import describe

        output.show(describe.describe(run, out, **({"world": gpus} if gpus else {})))
        return
    from memdist import plan as planning
    from memdist.train import loop

    ends.trains(out)
    raise typer.Exit(loop.train(run, out, extend=extend, look=planning.beforehand))


@app.command()
def plan(
    config: Config,
    overrides: Overrides = None,
    gpus: Annotated[int, typer.Option(metavar="N", help="GPUs, or processes, that share the run.")] = 1,
    gpu: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help="Their kind: h100-80g, a100-40g, t4-16g, ... (a wrong one lists all), or here: this machine's device.",
        ),
    ] = "here",
    gpus_per_node: Annotated[int, typer.Option(metavar="N", help="GPUs of one machine.")] = 8,
    emit: Annotated[
        str | None,
        typer.Option(
            metavar="accelerate|deepspeed",
            help="Rather than the plan, print the settings as an accelerate config or a DeepSpeed JSON.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Say what a run would need on N GPUs, for each strategy: memory, the largest micro-batch, communication, hours.

    Of a space of settings (a file with `parameters`, or quick, search/unet, search/pix2pix ...): what a search of it takes. Of a
    name that a configuration has as well, as unet, search/unet is the space.
    """
    if searching.planned(config, overrides or [], gpus=gpus, gpu=gpu, gpus_per_node=gpus_per_node, emit=emit):
        return
    run = arguments.resolve(config, overrides)
    if emit is not None:
        from memdist.plan import emit as emitting

        emitting.check(emit)
    from memdist.plan import estimate

    made = estimate.plan(run, world=gpus, gpu=gpu, box=gpus_per_node, timed=emit is None)
    if emit is not None:
        output.show(emitting.emit(made, emit).removesuffix("\n"))
        return
    from memdist.plan import table

    output.show(table.render(made))
    searching.point(config)


@app.command()
def evaluate(
    run: RunFolder,
    overrides: RuntimeOverrides = None,
    split: Annotated[
        Split | None, typer.Option(help="The pictures to score; default: test.", show_default=False)
    ] = None,
    checkpoint: Choice = "best",
    no_ema: NoEma = False,
    sampler: Sampler = None,
    steps: Steps = None,
    samples: Samples = None,
    grid: Annotated[bool, typer.Option("--grid", help="Also write sheets of image, map, samples and error.")] = False,
    study: Annotated[
        bool,
        typer.Option(
            "--study", help="Find on val, for a diffusion model, how few evaluations do; keep that as its default."
        ),
    ] = False,
) -> None:
    """Score a run's predictions beside those of the trivial predictors."""
    from memdist.launch import place

    place.take()
    given = [*(overrides or []), *arguments.sampling(sampler, steps, samples)]
    how: dict[str, Any] = {"choice": checkpoint, "ema": not no_ema, "overrides": given}
    if study:
        if split is not None or grid or sampler or steps or samples:
            raise ConfigError(
                "--study looks at val alone and tries samplers itself: give it without --split, --grid, --sampler, --steps "
                "and --samples; study.samplers, study.steps and study.samples say what is tried"
            )
        from memdist.train import study as studying

        output.show(studying.study(run, **how))
        return
    from memdist.train import evaluate as scoring

    chosen = split or Split.test
    splits = [s.value for s in Split if s is not Split.all] if chosen is Split.all else [chosen.value]
    output.show(scoring.evaluate(run, splits, grid=grid, **how))


@app.command()
def predict(
    run: RunFolder,
    inputs: Annotated[
        list[str],
        typer.Argument(
            metavar="IMAGE_OR_FOLDER",
            help="Pictures or folders of them, and runtime settings (device=cpu, eval.steps=100).",
        ),
    ],
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder for the maps.", parser=arguments.place)],
    checkpoint: Choice = "best",
    no_ema: NoEma = False,
    sampler: Sampler = None,
    steps: Steps = None,
    samples: Samples = None,
    each: Annotated[bool, typer.Option("--each", help="Also write each of the K samples of a picture.")] = False,
    shard: Annotated[
        str | None,
        typer.Option(
            metavar="I/N", help="Predict the I-th of N shares of the pictures, 1/N to N/N.", show_default=False
        ),
    ] = None,
    verify: Annotated[
        bool, typer.Option("--verify", help="Predict nothing; prove that every map is there, whole, and no other file.")
    ] = False,
    grid: Annotated[bool, typer.Option("--grid", help="Also write sheets of image, samples and map.")] = False,
) -> None:
    """Predict the maps of pictures; run again, go on. Exit code 1: pictures could not be read, or --verify found something."""
    from memdist.launch import place

    place.take(joins=False)
    overrides, paths = arguments.parted(inputs)
    from memdist.predict import pictures

    report = pictures.predict(
        run,
        paths,
        out,
        choice=checkpoint,
        ema=not no_ema,
        overrides=[*overrides, *arguments.sampling(sampler, steps, samples)],
        each=each,
        shard=shard,
        verify=verify,
        grid=grid,
    )
    output.show(report)
    raise typer.Exit(0 if report.clean else 1)


@app.command("import")
def import_(
    kind: Annotated[str, typer.Argument(metavar="palette|pix2pix|memdist", help="The program that saved the weights.")],
    checkpoint: Annotated[Path, typer.Argument(metavar="CHECKPOINT", help="A .pth or .safetensors file, or a folder.")],
    out: Annotated[Path, typer.Option(metavar="RUN", help="Run folder to make; an existing one is refused.")],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="KEY=VALUE", help="What weights do not tell: data.size=128", show_default=False),
    ] = None,
) -> None:
    """Make a run folder of weights from elsewhere, which evaluates, predicts and fine-tunes."""
    from memdist.exchange import importing

    output.show("\n".join(importing.import_(kind, checkpoint, out, overrides or [])))


@app.command()
def export(
    run: RunFolder,
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder to make; an existing one is refused.")],
    checkpoint: Choice = "best",
) -> None:
    """Write a run as safetensors, settings without paths, and a model card; `import memdist` takes it back."""
    from memdist.exchange import exporting

    output.show("\n".join(exporting.export(run, out, choice=checkpoint)))


@app.command()
def compare(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN", help="Run folders that have been evaluated.")],
    html: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Also write a page with pictures and curves.")
    ] = None,
) -> None:
    """Lay scored runs side by side."""
    from memdist.compare import table

    comparison = table.collect(runs)
    if html is not None:
        from memdist.compare import page

        page.write(comparison, html)
    output.show(table.render(comparison))
    if html is not None:
        output.show(f"page: {html}")


@app.command()
def doctor() -> None:
    """Say what works on this machine, what will not, and why. Exit code 1: something has to be mended."""
    from memdist import doctor as examination

    report, well = examination.report()
    output.show(report)
    raise typer.Exit(0 if well else 1)


def main(words: Sequence[str] | None = None) -> None:
    """Run the command with `words` (default: the process's own) and leave with its exit code."""
    from memdist.launch import ends

    with ends.told():
        _answering(words)


def _answering(words: Sequence[str] | None) -> None:
    try:
        try:
            app(args=words, prog_name="memdist")
        except SystemExit:
            if sys.stdout is not None:
                sys.stdout.flush()  # what was printed last may find no room, which else shows when nobody can answer
            raise
    except (MemdistError, OSError) as error:
        if not output.answer(error):
            raise
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
