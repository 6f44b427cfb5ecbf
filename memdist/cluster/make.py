"""Trainings, scorings and predictions as jobs; what is done or queued already is left out."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from memdist import config, rundir
from memdist import models as registry
from memdist.cluster import book, request, sweep, text, times
from memdist.cluster.request import Site
from memdist.cluster.submit import private
from memdist.cluster.text import Job
from memdist.errors import ConfigError, MemdistError, printable
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
    """What the numbers of an array mean: the same for the same shares or runs."""


def train(
    site: Site, path: Path, overrides: Sequence[str], out: Callable[[Any], Path], *, extend: bool = False
) -> Made:
    """One training. Its settings are those of now: what changes in CONFIG until it starts changes nothing.

    Raises a MemdistError where the folder is of another run; `extend` allows more epochs of one whose rate decays.
    """
    run = registry.resolve(config.read(path, overrides))
    request.ranks_of(site, run.batch.size)
    place = Path(os.path.abspath(out(run)))
    _seen(site, place)
    restore.former_run(run, place, extend)
    if _finished(place, run):
        return Made(skipped=[f"{printable(place)} is finished: there is nothing to submit"])
    if queued := request.live(place, "train"):
        return Made(skipped=[f"{printable(place)} is queued already, as job {', '.join(queued)}"])
    settings = config.dump(run)
    file = book.folder(place) / f"train-{_digest(settings)}.yaml"
    words = ("train", str(file), "--out", str(place), *_extending(extend))
    job = _job(site, "train", place, words)
    return Made(site.split(job), {file: settings}, forecast=_forecast(place, site.seconds))


def sweep_(site: Site, path: Path, overrides: Sequence[str], place: Path, *, extend: bool = False) -> Made:
    """Every run of a sweep, each in a folder of `place`; as `train` otherwise."""
    cells = sweep.expand(overrides)
    place = Path(os.path.abspath(place))
    _seen(site, place)
    lines, waiting, finished, settings = [], [], 0, {}
    for number, cell in enumerate(cells, 1):
        try:
            run = registry.resolve(config.read(path, cell.overrides))
        except ConfigError as error:
            raise ConfigError(f"{error} (run {number} of {len(cells)}: {', '.join(cell.overrides)})") from error
        request.ranks_of(site, run.batch.size)
        folder = place / cell.name
        restore.former_run(run, folder, extend)
        shown = config.dump(run)
        file = book.folder(folder) / f"train-{_digest(shown)}.yaml"
        settings[number] = (file, shown)
        words = ["train", str(file), "--out", str(folder), *_extending(extend)]
        lines.append(json.dumps({"folder": str(folder), "words": words}))
        if _finished(folder, run):
            finished += 1
        else:
            waiting.append(number)
    listing = "\n".join([*lines, ""])
    runs = book.folder(place) / f"runs-{_digest(listing)}.jsonl"
    made = Made(key=runs.name)
    if finished:
        made.skipped.append(f"{finished} of {len(cells)} runs are finished")
    # Another sweep may have the same run at another number.
    names = {json.loads(line)["folder"]: number for number, line in enumerate(lines, 1)}
    busy = {names[folder] for folder in _live_folders(place) if folder in names}
    if taken := busy & set(waiting):
        made.skipped.append(f"{len(taken)} of {len(cells)} runs are queued already")
    waiting = [number for number in waiting if number not in busy]
    if waiting:
        job = _job(site, "train", place, ("train",), runs=runs, numbers=tuple(waiting), total=len(cells))
        made.jobs = site.split(job)
        made.files = {runs: listing} | dict(settings[number] for number in waiting)
    return made


def evaluate(site: Site, run: Path, words: Sequence[str]) -> Made:
    """Score a run."""
    place = Path(os.path.abspath(run))
    _seen(site, place)
    if queued := request.live(place, "evaluate"):
        return Made(skipped=[f"{printable(place)} is queued already to be scored, as job {', '.join(queued)}"])
    return Made([_job(site, "evaluate", place, ("evaluate", str(place), *words))])


def predict(
    site: Site, run: Path, inputs: Sequence[Path], out: Path, shards: int, words: Sequence[str], samples: int
) -> Made:
    """The maps of pictures, in so many shares, and a job that verifies them. `samples` are kept of each picture."""
    place = Path(os.path.abspath(out))
    paths = [Path(os.path.abspath(path)) for path in inputs]
    _seen(site, place)
    for path in paths:
        site.sees(path, "the input")
    pictures = inputs_.find(paths)
    if shards > len(pictures):
        raise ConfigError(
            f"--shards {shards} cannot be: there are {len(pictures)} pictures; give at most as many shares"
        )
    common = ("predict", os.path.abspath(run), *map(str, paths), *words, "--out", str(place))
    made = Made(key=_digest(json.dumps([common, shards, [str(picture.path) for picture in pictures]])))
    layout = maps.Layout.of(len(pictures), samples)
    done = set() if _found_wrong(place) else set(_done(place, pictures, shards, layout, made.key))
    busy = request.live_numbers(place, lambda job: job.kind == "predict" and job.key == made.key) - done
    if done:
        made.skipped.append(f"{len(done)} of {shards} shares are done")
    if busy:
        made.skipped.append(f"{len(busy)} of {shards} shares are queued already")
    waiting = tuple(number for number in range(1, shards + 1) if number not in done | busy)
    if waiting:
        array = _job(site, "predict", place, common, numbers=waiting, total=shards)
        made.jobs = [*site.split(array), _job(site, "verify", place, (*common, "--verify"), behind=("",), gpus=0)]
    return made


def submit(site: Site, made: Made) -> list[str]:
    """Write what the jobs read, and submit them, all or none; gives the sentences to show."""
    said = []
    if made.jobs:
        with _files(made):
            numbers = request.do(site, made.jobs)
        for job, number in zip(made.jobs, numbers, strict=True):
            _record(site, made, job, number)
            size = f", {len(job.numbers)} of {job.total}" if job.numbers else ""
            said.append(f"job {number} on {site.name}: {job.kind}{size} in {printable(job.place)}")
        said.append(f"see: memdist status {text.quoted(os.path.relpath(made.jobs[0].place))}")
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
        legs=site.asked.legs,
        key=made.key if job.numbers else "",
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
        name=text.name(["memdist", kind, place.name, _digest(str(place))]),
        words=words,
        place=place,
        folder=Path.cwd(),
        seconds=site.seconds,
        nodes=1 if alone else site.asked.nodes,
        ranks=1 if alone else site.ranks,
        gpus=gpus,
        after=() if more.get("behind") else site.predecessors(),
        at_most=site.asked.at_most if more.get("numbers") else None,
        **more,
    )


def _seen(site: Site, place: Path) -> None:
    site.sees(place, "the folder")
    site.sees(Path.cwd(), "the current folder")


def _digest(words: str) -> str:
    return hashlib.sha256(words.encode("utf-8", "surrogatepass")).hexdigest()[:8]


def _finished(place: Path, run: Any) -> bool:
    """Whether a run has come to the end that these settings name."""
    try:
        stands = rundir.read_json(place / rundir.STATE)
        if stands.get("state") != "finished":
            return False
        trained = config.read(place / rundir.CONFIG).get("epochs")
    except MemdistError:
        return False  # the job meets it, and tells
    return isinstance(trained, int) and trained >= run.epochs


def _live_folders(place: Path) -> Iterator[str]:
    """Folders of runs of a place that are queued or run."""
    for job in book.submitted(place):
        file = book.folder(place) / job.key
        if not job.key.startswith("runs-") or not file.is_file():
            continue
        numbers = request.live_numbers(place, lambda other, job=job: other.id == job.id)  # type: ignore[misc]
        if numbers:
            for number, line in enumerate(file.read_text().splitlines(), 1):
                if number in numbers:
                    yield json.loads(line)["folder"]


def _done(
    place: Path, pictures: Sequence[inputs_.Picture], shards: int, layout: maps.Layout, key: str
) -> Iterator[int]:
    """Shares that were finished, of these very pictures, and whose maps are there."""
    ours = [job for job in book.submitted(place) if job.key == key]
    for number in range(1, shards + 1):
        attempts = book.attempts(book.attempts_file(place, f"{number}-of-{shards}"))
        finished = attempts and attempts[-1].kind == "finished"
        if finished and any(attempts[-1].job == job.element(number) for job in ours if number in job.numbers):
            own = inputs_.Shard(number, shards).of(pictures)
            if all((place / name).is_file() for picture in own for name in layout.outputs(picture)):
                yield number


def _found_wrong(place: Path) -> bool:
    """Whether the last verification has found something: then all shares look at their maps again."""
    attempts = book.attempts(book.attempts_file(place, "verify"))
    return bool(attempts) and attempts[-1].kind not in (None, "finished")


def _extending(extend: bool) -> tuple[str, ...]:
    return ("--extend",) if extend else ()


def _forecast(place: Path, seconds: int) -> str:
    """How many legs a time limit makes of what is left of a run, by what its steps have taken so far."""
    unknown = "legs: not known before the first steps are timed; a job that is not done goes on in the next one"
    try:
        stands = rundir.read_json(place / rundir.STATE)
        step, steps, taken = (float(stands[key]) for key in ("step", "steps", "train_seconds"))
    except (MemdistError, KeyError, TypeError, ValueError):
        return unknown
    if step <= 0:
        return unknown
    left = (steps - step) * taken / step
    return (
        f"legs: about {max(1, math.ceil(left / seconds))} of {times.shown(seconds)}, as {steps - step:.0f} steps are left and "
        f"each has taken {taken / step:.3g} s so far"
    )
