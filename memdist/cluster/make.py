"""Trainings, scorings and predictions as jobs; what is done or queued already is left out."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from memdist import config, rundir
from memdist import models as registry
from memdist.cluster import book, farm, forecast, here, request, scoring, shares, text, underway
from memdist.cluster.request import Site
from memdist.cluster.submit import private
from memdist.cluster.text import Job
from memdist.errors import ClusterError, ConfigError, MemdistError, printable
from memdist.predict import folder as maps
from memdist.predict import inputs as inputs_
from memdist.train import restore


@dataclass
class Made:
    """Jobs that are to be submitted together, and what must be there before."""

    jobs: list[Job] = field(default_factory=list)
    files: dict[Path, str] = field(default_factory=dict)
    """Files that the jobs read."""
    skipped: list[str] = field(default_factory=list)
    """What is not submitted, and why."""
    forecast: str = ""
    """For a dry run: how many jobs it may take, one after the other."""
    key: str = ""
    """What the numbers of an array mean, or a scoring does: the same for the same shares, runs or words."""
    pictures: int = 0
    """That an array shares out."""
    before: int = 0
    """Jobs that were written down of the place when these were made."""


def train(
    site: Site, path: Path, overrides: Sequence[str], out: Callable[[Any], Path], *, extend: bool = False
) -> Made:
    """One training. Its settings are those of now: what changes in CONFIG until it starts changes nothing.

    Raises a MemdistError where the folder is of another run; `extend` allows more epochs of one whose rate decays.
    """
    run = registry.resolve(config.read(path, overrides))
    request.ranks_of(site, run.batch.size)
    place = Path(os.path.abspath(out(run)))
    before = _seen(site, place)
    former = restore.former_run(run, place, extend)
    if _finished(place, run, former):
        return Made(skipped=[f"{printable(place)} is finished: there is nothing to submit"])
    settings = config.dump(run)
    file = book.folder(place) / f"train-{book.digest(settings)}.yaml"
    if queued := underway.jobs(place, "train"):
        if not file.exists():
            raise _otherwise(place)
        return Made(skipped=[f"{printable(place)} is queued already, as job {', '.join(queued)}"])
    site.sees_data(run)
    job = _job(site, "train", place, ("train", str(file), "--out", str(place), *_extending(extend)))
    return Made(site.split(job), {file: settings}, forecast=forecast.legs(place, site.seconds), before=before)


def sweep(
    site: Site, path: Path, cells: Sequence[tuple[tuple[str, ...], str]], place: Path, *, extend: bool = False
) -> Made:
    """Every run of a sweep, of which `cells` has the settings and the name of its folder in `place`; as `train` otherwise."""
    place = Path(os.path.abspath(place))
    before = _seen(site, place)
    lines, waiting, finished, settings = [], [], 0, {}
    for number, (overrides, name) in enumerate(cells, 1):
        try:
            run = registry.resolve(config.read(path, overrides))
        except ConfigError as error:
            raise ConfigError(f"{error} (run {number} of {len(cells)}: {', '.join(overrides)})") from error
        request.ranks_of(site, run.batch.size)
        folder = place / name
        former = restore.former_run(run, folder, extend)
        shown = config.dump(run)
        file = book.folder(folder) / f"train-{book.digest(shown)}.yaml"
        settings[number] = (file, shown)
        words = ["train", str(file), "--out", str(folder), *_extending(extend)]
        lines.append(json.dumps({"folder": str(folder), "words": words}))
        if _finished(folder, run, former):
            finished += 1
        else:
            waiting.append(number)
            site.sees_data(run)
    listing = "\n".join([*lines, ""])
    runs = book.folder(place) / f"runs-{book.digest(listing)}.jsonl"
    made = Made(key=runs.name, before=before)
    if finished:
        made.skipped.append(f"{finished} of {len(cells)} runs are finished")
    # Another sweep may have the same run at another number.
    names = {json.loads(line)["folder"]: number for number, line in enumerate(lines, 1)}
    live = {names[folder]: theirs for folder, theirs in _live_folders(place).items() if folder in names}
    for number, theirs in live.items():
        if theirs != str(settings[number][0]):
            raise _otherwise(settings[number][0].parent.parent)
    busy = set(live)
    if taken := busy & set(waiting):
        made.skipped.append(f"{len(taken)} of {len(cells)} runs are queued already")
    waiting = [number for number in waiting if number not in busy]
    if waiting:
        job = _job(site, "train", place, ("train",), runs=runs, numbers=tuple(waiting), total=len(cells))
        made.jobs = site.split(job)
        made.files = {runs: listing} | dict(settings[number] for number in waiting)
    return made


def search(site: Site, place: Path, words: Sequence[str], files: dict[Path, str], run: Any, cpus: int | None) -> Made:
    """One search on all nodes of a job, in each of which one task lends its machine to it.

    `words`: what it is given, of which `files` are read; `run`: settings of one of its cells.
    """
    place = Path(os.path.abspath(place))
    before = _seen(site, place)
    if rundir.read_json(place / rundir.STATE).get("state") == "finished":
        return Made(skipped=[f"{printable(place)} is finished: there is nothing to submit"])
    if queued := underway.jobs(place, "search"):
        return Made(skipped=[f"{printable(place)} is queued already, as job {', '.join(queued)}"])
    site.sees_data(run)
    words = ("search", "run", *words, "--out", str(place))
    cpus = cpus or site.cluster.cpus_per_gpu * max(1, site.gpus)
    return Made(site.split(_job(site, "search", place, words, cpus=cpus)), files, before=before)


def evaluate(site: Site, run: Path, words: Sequence[str], wanted: scoring.Wanted | None = None) -> Made:
    """Score a run; `wanted` says what that comes to, where it can be told."""
    place = Path(os.path.abspath(run))
    before = _seen(site, place)
    words = ("evaluate", str(place), *words)
    key = book.digest(json.dumps(words))
    if queued := underway.jobs(place, "evaluate", key=key):
        return Made(skipped=[f"{printable(place)} is queued already to be scored so, as job {', '.join(queued)}"])
    # What is trained until then may be better than what was scored.
    if not site.predecessors() and scoring.done(place, key, wanted):
        return Made(skipped=[f"{printable(place)} is scored so already: there is nothing to submit"])
    return Made(site.split(_job(site, "evaluate", place, words)), key=key, before=before)


def predict(
    site: Site, run: Path, inputs: Sequence[Path], out: Path, shards: int, words: Sequence[str], samples: int
) -> Made:
    """The maps of pictures, in so many shares, and a job that verifies them. `samples` are kept of each picture."""
    place = Path(os.path.abspath(out))
    paths = [Path(os.path.abspath(path)) for path in inputs]
    before = _seen(site, place)
    site.sees(Path(os.path.abspath(run)), "the run")
    for path in paths:
        site.sees(path, "the input")
    pictures = inputs_.find(paths)
    if shards > len(pictures):
        raise ConfigError(
            f"--shards {shards} cannot be: there are {len(pictures)} pictures; give at most as many shares"
        )
    common = ("predict", os.path.abspath(run), *map(str, paths), *words, "--out", str(place))
    key = book.digest(json.dumps([common, shards, [str(picture.path) for picture in pictures]]))
    made = Made(key=key, pictures=len(pictures), before=before)
    layout = maps.Layout.of(len(pictures), samples)
    done = set() if shares.found_wrong(place) else set(shares.done(place, pictures, shards, layout, made.key))
    live = underway.elements(place, lambda job: job.kind == "predict" and job.key == made.key)
    busy = {number for _, number in live} - done
    if done:
        made.skipped.append(f"{len(done)} of {shards} shares are done")
    if busy:
        made.skipped.append(f"{len(busy)} of {shards} shares are queued already")
    waiting = tuple(number for number in range(1, shards + 1) if number not in done | busy)
    if waiting:
        array = _job(site, "predict", place, common, numbers=waiting, total=shards)
        made.jobs = site.split(array)
    if waiting or not (busy or shares.verified(place, made.key) or underway.jobs(place, "verify")):
        # All shares are looked at: those that are queued already must have ended as well.
        behind = ("", *dict.fromkeys(job.id for job, _ in live))
        made.jobs.append(_job(site, "verify", place, (*common, "--verify"), behind=behind, gpus=0))
    return made


def submit(site: Site, made: Made) -> list[str]:
    """Write what the jobs read, and submit them, all or none; gives the sentences to show."""
    said = []
    if made.jobs:
        with here.alone(place := made.jobs[0].place), _files(made):
            if len(book.submitted(place)) != made.before:
                raise ClusterError(
                    f"somebody else has just submitted jobs of {printable(place)}: give the command again to see what is left"
                )
            numbers = request.do(site, made.jobs)
            try:
                for job, number in zip(made.jobs, numbers, strict=True):
                    _record(site, made, job, number)
            except BaseException as error:
                # Of jobs that nobody has written down nobody would know.
                request.take_back(site, made.jobs, numbers, error)
                raise
        for job, number in zip(made.jobs, numbers, strict=True):
            size = f", {len(job.numbers)} of {job.total}" if job.numbers else ""
            said.append(f"job {number} on {site.name}: {job.kind}{size} in {printable(job.place)}")
        said.append(f"see: memdist status {text.quoted(os.path.relpath(place))}")
    return [*said, *made.skipped, *site.notes]


def _record(site: Site, made: Made, job: Job, number: str) -> None:
    entry = book.Submitted(
        id=number,
        kind=job.kind,
        cluster=site.name,
        name=job.name,
        numbers=job.numbers,
        offset=job.offset,
        total=job.total,
        pictures=made.pictures,
        legs=site.asked.legs,
        key=made.key,
    )
    with private():
        book.note(job.place, entry)


@contextlib.contextmanager
def _files(made: Made) -> Iterator[None]:
    """Write what jobs read; where they cannot be submitted, nothing of that is left that was not there before."""
    new: list[Path] = []
    try:
        with private():
            for file, content in made.files.items():
                new += [path for path in (file, *file.parents) if not os.path.lexists(path)]
                rundir.make_folder(file.parent)
                rundir.write_text(file, content)
        for logs in {book.logs(job.place) for job in made.jobs}:
            new += [path for path in (logs, *logs.parents) if not os.path.lexists(path)]
        yield
    except request.Standing:
        raise  # its jobs read them
    except BaseException:
        for path in sorted(new, key=lambda path: len(path.parts), reverse=True):
            with contextlib.suppress(OSError):  # a folder with more in it stays
                path.rmdir() if path.is_dir() else path.unlink()
        raise


def _job(site: Site, kind: book.Kind, place: Path, words: tuple[str, ...], **more: Any) -> Job:
    """A job with what was asked for all of them."""
    gpus = more.pop("gpus", site.gpus)
    alone = kind == "verify"
    return Job(
        kind=kind,
        name=text.name(
            ["memdist", kind, place.name[:60], book.digest(str(place))]
        ),  # what is cut off would tell places apart
        words=words,
        place=place,
        folder=Path.cwd(),
        seconds=site.without_gpus() if alone else site.seconds,
        nodes=1 if alone else site.asked.nodes,
        ranks=1 if alone else site.ranks,
        gpus=gpus,
        after=() if more.get("behind") else site.predecessors(),
        at_most=site.asked.at_most if more.get("numbers") else None,
        **more,
    )


def _seen(site: Site, place: Path) -> int:
    """Check that compute nodes see a place; gives how many jobs are written down of it."""
    site.sees(place, "the folder")
    site.sees(Path.cwd(), "the current folder")
    return len(book.submitted(place))


def _finished(place: Path, run: Any, former: Any) -> bool:
    """Whether a run, which was last started with `former` settings (None: never), has come to the end that these name."""
    try:
        return (
            former is not None
            and former.epochs >= run.epochs
            and rundir.read_json(place / rundir.STATE)["state"] == "finished"
        )
    except (MemdistError, KeyError):
        return False  # the job meets it, and tells


def _otherwise(place: Path) -> ConfigError:
    return ConfigError(
        f"{printable(place)} is queued already, with other settings: cancel it first (memdist cancel), or choose another folder "
        "with --out"
    )


def _live_folders(place: Path) -> dict[str, str]:
    """Folders of runs of a place that are queued or run, each with the file of its settings."""
    live = underway.elements(place, lambda job: job.key.startswith("runs-"))
    listings = {job.key: farm.listed(place, job) for job, _ in live}
    lines = [listings[job.key][number - 1] for job, number in live if 0 < number <= len(listings[job.key])]
    return {line["folder"]: line["words"][1] for line in lines}


def _extending(extend: bool) -> tuple[str, ...]:
    return ("--extend",) if extend else ()
