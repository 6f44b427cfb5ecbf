"""`memdist submit ...` and `memdist cancel`: jobs on a cluster, or queued on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from memdist import output
from memdist.cli import arguments
from memdist.cli.arguments import (
    Budget,
    Choice,
    Config,
    NoEma,
    Overrides,
    RunFolder,
    RuntimeOverrides,
    Sampler,
    Samples,
    SearchSettings,
    SearchSpace,
    Split,
    Steps,
)

submit = typer.Typer(
    help="Submit trainings, predictions and scorings to Slurm, or queue them on this machine.", **arguments.PLAIN
)

Cluster = Annotated[
    str,
    typer.Option(
        "--cluster", metavar="NAME", help="Where to: a file of `memdist cluster list`, or local, this machine."
    ),
]
Time = Annotated[
    str | None,
    typer.Option(
        "--time", metavar="TIME", help="Time limit of a job: 8h, 90m, or as Slurm writes it.", show_default=False
    ),
]
Nodes = Annotated[int, typer.Option("--nodes", metavar="N", min=1, help="Machines of a job.")]
Gpus = Annotated[
    int | None,
    typer.Option(
        "--gpus-per-node",
        metavar="N",
        min=0,
        help="GPUs of each; default 1, or 0 where there are none.",
        show_default=False,
    ),
]
Ranks = Annotated[
    int | None,
    typer.Option(
        "--ranks-per-node", metavar="N", min=1, help="Processes of each; default: one a GPU.", show_default=False
    ),
]
Legs = Annotated[
    int,
    typer.Option(
        "--legs",
        metavar="N",
        min=1,
        max=1000,
        help="Jobs that go on one after the other, where none may requeue itself.",
    ),
]
After = Annotated[
    list[Path] | None,
    typer.Option("--after", metavar="RUN", help="Start once this run's jobs have succeeded.", show_default=False),
]
AtMost = Annotated[
    int | None,
    typer.Option("--at-most", metavar="N", min=1, help="Jobs of an array that run at once.", show_default=False),
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Print what would be submitted, and touch nothing.")]


def _site(where: str, dry: bool, **asked: Any) -> Any:
    from memdist.cluster import request

    asked["after"] = tuple(asked.get("after") or ())
    return request.Site(request.Asked(cluster=where, **asked), dry=dry)


def _end(site: Any, made: Any, dry: bool) -> None:
    from memdist.cluster import make, request

    if dry:
        output.show(
            request.describe(site, made.jobs, [*made.skipped, *([made.forecast] if made.forecast else [])])
            if made.jobs
            else "\n".join([*made.skipped, *site.notes])
        )
    else:
        output.show("\n".join(make.submit(site, made)))


@submit.command("train")
def submit_train(
    config: Config,
    where: Cluster,
    overrides: Overrides = None,
    out: Annotated[
        Path | None,
        typer.Option(metavar="RUN", help="Run folder, or with -m the folder of the runs. Default: as `memdist train`."),
    ] = None,
    multirun: Annotated[
        bool, typer.Option("-m", "--multirun", help="Settings with commas or range() stand for many runs: lr=1e-3,1e-4")
    ] = False,
    extend: Annotated[
        bool, typer.Option("--extend", help="Allow more epochs although the learning rate already decayed.")
    ] = False,
    time: Time = None,
    nodes: Nodes = 1,
    gpus: Gpus = None,
    ranks: Ranks = None,
    legs: Legs = 1,
    after: After = None,
    at_most: AtMost = None,
    dry_run: DryRun = False,
) -> None:
    """Train on a cluster, however often the job is interrupted. Give the same command again: what is done is not submitted."""
    from memdist import config as settings
    from memdist.errors import ConfigError

    if multirun and (out is None or legs > 1):
        why = "--legs, which chains single jobs" if legs > 1 else "no --out, the folder of the runs"
        raise ConfigError(f"-m makes an array of runs, and there is {why}: give -m with --out DIR and without --legs")
    if at_most is not None and not multirun:
        raise ConfigError("--at-most bounds the runs of an array: give it with -m")
    site = _site(
        where, dry_run, time=time, nodes=nodes, gpus=gpus, ranks=ranks, legs=legs, after=after, at_most=at_most
    )
    from memdist.cluster import make

    path = settings.find(config)
    if multirun:
        assert out is not None
        from memdist.search import sweep

        made = make.sweep(site, path, sweep.expand(overrides or []), out, extend=extend)
    else:

        def folder(run: Any) -> Path:
            from memdist.train import start

            return out or start.default_folder(path.stem if Path(config).is_file() else config, overrides or [], run)

        made = make.train(site, path, overrides or [], folder, extend=extend)
    _end(site, made, dry_run)


@submit.command("predict")
def submit_predict(
    run: RunFolder,
    inputs: Annotated[
        list[str], typer.Argument(metavar="IMAGE_OR_FOLDER", help="Pictures or folders of them, and runtime settings.")
    ],
    where: Cluster,
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder for the maps.", parser=arguments.place)],
    shards: Annotated[int, typer.Option(metavar="N", min=1, max=1_000_000, help="Jobs that share the pictures.")] = 1,
    checkpoint: Choice = "best",
    no_ema: NoEma = False,
    sampler: Sampler = None,
    steps: Steps = None,
    samples: Samples = None,
    each: Annotated[bool, typer.Option("--each", help="Also write each of the K samples of a picture.")] = False,
    time: Time = None,
    gpus: Gpus = None,
    after: After = None,
    at_most: AtMost = None,
    dry_run: DryRun = False,
) -> None:
    """Predict the maps of pictures in an array of jobs; a last one verifies that every map is there."""
    settings, paths = arguments.parted(inputs)
    site = _site(where, dry_run, time=time, gpus=gpus, ranks=1, after=after, at_most=at_most)
    given = [*settings, *arguments.sampling(sampler, steps, samples)]
    kept = 0
    from memdist import rundir

    if (run / rundir.CONFIG).is_file() or not after:
        from memdist.train import evaluate as scoring

        kept = scoring.settings_for_reading(run, given).eval.samples if each else 0
    words = [*given, f"--checkpoint={checkpoint}", *(["--no-ema"] if no_ema else []), *(["--each"] if each else [])]
    from memdist.cluster import make

    _end(site, make.predict(site, run, paths, out, shards, words, kept), dry_run)


@submit.command("search")
def submit_search(
    space: SearchSpace,
    where: Cluster,
    overrides: SearchSettings = None,
    out: Annotated[
        Path | None,
        typer.Option(metavar="SEARCH", help="Search folder. Default: as `memdist search run`.", show_default=False),
    ] = None,
    time: Time = None,
    nodes: Nodes = 1,
    gpus: Annotated[
        int | None,
        typer.Option("--gpus-per-node", metavar="N", min=0, help="GPUs of each; default: all.", show_default=False),
    ] = None,
    cpus: Annotated[
        int | None,
        typer.Option(
            "--cpus-per-node",
            metavar="N",
            min=1,
            help="CPUs of each; default: as many as belong to its GPUs.",
            show_default=False,
        ),
    ] = None,
    budget: Budget = None,
    legs: Legs = 1,
    after: After = None,
    dry_run: DryRun = False,
) -> None:
    """Search a space on all machines of one job, with Ray. Give the same command again: what is done stays done."""
    site = _site(where, dry_run, time=time, nodes=nodes, gpus=gpus, whole=True, ranks=1, legs=legs, after=after)
    from memdist.cluster import make
    from memdist.search import folder, frozen, run

    asked = run.ask(space, overrides or [], out, budget)
    about = asked.about("")
    # The job reads the data; within a budget it picks the method.
    known = ("format", "metric", "scope", "space") if budget else [name for name in about if name != "split"]
    folder.check(asked.place, {name: about[name] for name in known})
    file, files = frozen.copies(space, asked.place)
    words = [str(file), *(overrides or []), *(["--budget", budget] if budget else [])]
    _end(site, make.search(site, asked.place, words, files, asked.run, cpus), dry_run)


@submit.command("evaluate")
def submit_evaluate(
    run: RunFolder,
    where: Cluster,
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
    study: Annotated[bool, typer.Option("--study", help="Find how few evaluations a diffusion model needs.")] = False,
    time: Time = None,
    nodes: Nodes = 1,
    gpus: Gpus = None,
    ranks: Ranks = None,
    after: After = None,
    dry_run: DryRun = False,
) -> None:
    """Score a run on a cluster."""
    from memdist import rundir

    site = _site(where, dry_run, time=time, nodes=nodes, gpus=gpus, ranks=ranks, after=after)
    given = [*(overrides or []), *arguments.sampling(sampler, steps, samples)]
    settings = None
    if (run / rundir.CONFIG).is_file() or not after:
        from memdist.train import evaluate as evaluating

        settings = evaluating.settings_for_reading(run, given)
        site.sees_data(settings, scored=True)
    flags = {"--no-ema": no_ema, "--grid": grid, "--study": study}
    words = [*given, f"--checkpoint={checkpoint}", *([f"--split={split.value}"] if split else [])]
    words += [flag for flag, on in flags.items() if on]
    from memdist.cluster import make, scoring

    splits = ("train", "val", "test") if split is Split.all else (split.value if split else Split.test.value,)
    # Sheets and studies leave no word of what they were made with.
    told = not (grid or study)
    wanted = scoring.Wanted(run=settings, splits=splits, choice=checkpoint, ema=not no_ema) if told else None
    _end(site, make.evaluate(site, run, words, wanted), dry_run)


def cancel(
    run: Annotated[
        Path, typer.Argument(metavar="RUN", help="Folder of a run, of runs or of maps.", parser=arguments.place)
    ],
) -> None:
    """Cancel all jobs of a run, of a folder of runs, or of maps. What is trained is written to a checkpoint first."""
    from memdist.cluster import cancelling

    output.show(cancelling.cancel(run))
