"""Maps of pictures that are no part of any split: each exactly once, by any number of processes.

A map is a function of the run, the content of the picture and the settings alone. So nobody needs to ask anybody: a process
takes its share of the pictures, passes over those whose outputs are there (`folder`), and makes the others. Killed and
started again, or started twice, it makes the same ones.
"""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from memdist import metrics, output, rundir
from memdist.data import loader, pairs, quiet
from memdist.distributed import strategy as strategy_
from memdist.distributed.single import Single
from memdist.errors import CheckpointError, ConfigError, DataError, printable
from memdist.predict import batch
from memdist.predict import inputs as inputs_
from memdist.predict import record as record_
from memdist.predict import shown as shown_
from memdist.predict import verify as verify_
from memdist.predict.ahead import ahead, threads
from memdist.predict.folder import MANIFEST, Folder, Layout
from memdist.predict.inputs import Picture, Shard
from memdist.predict.progress import Progress
from memdist.predict.record import Record
from memdist.predict.report import Report, several
from memdist.predict.writer import Writer
from memdist.train import evaluate, mapper, recipe, validate
from memdist.train.recipe import Recipe

_ATTEMPTS = 3


def predict(
    folder: Path,
    inputs: Sequence[Path],
    out: Path,
    *,
    choice: str = "best",
    ema: bool = True,
    overrides: Sequence[str] = (),
    each: bool = False,
    shard: str | None = None,
    verify: bool = False,
    grid: bool = False,
) -> Report:
    """Write the map of every picture, at the picture's own size, into `out` (`folder` says where), or go on doing so.

    Where the run crops, that size is of the picture's centred square. `each` also writes each sample, `shard` (I/N) takes a
    share of the pictures, `grid` also writes sheets of `eval.grid` pictures of this share, `verify` writes nothing and proves
    that all is there. Everything is checked before the first map is written; raises a MemdistError for what cannot be. A
    picture that cannot be read is none: it stands in the report, which then is not clean.
    """
    share = inputs_.shard(shard).within(dict(os.environ))
    if verify and (shard is not None or grid):
        raise ConfigError("--verify looks at all pictures and writes nothing: give it without --shard and --grid")
    run = evaluate.settings_for_reading(folder, overrides)
    pictures = inputs_.find(inputs)
    if out.exists() and not out.is_dir():
        raise CheckpointError(f"--out {out} is a file; name a folder for the maps")
    device = torch.device("cpu") if verify else strategy_.device_of(run.device)
    strategy = Single(device, mapper.precision_of(run))
    if not verify:
        strategy_.check_precision(strategy.precision, device)
    found = evaluate.opened(folder, run, strategy, choice=choice, ema=ema, overrides=overrides)
    if each and not found.model.samples:
        raise ConfigError(f"--each does not apply to {found.model.config.name}, which does not sample: leave it out")
    made = Recipe.of(run.eval, found.model)
    settings = record_.settings(found, run, made, each)
    there = record_.read(out)
    if there is not None:
        record_.refuse(out, there, settings, found, folder)
    kept = made.samples if each else 0
    if verify:
        if there is None:
            raise CheckpointError(
                f"{out} has no {record_.FILE}, so that there is nothing to verify: predict into it first"
            )
        whole = Folder(out, there, Layout(there.folders, kept), pictures)
        return verify_.verify(whole, pictures, threads(run.workers))
    own = share.of(pictures)

    def apart(layout: Layout) -> Layout:
        outputs = (out / name for picture in pictures for name in layout.outputs(picture))
        inputs_.keep_apart(inputs, inputs_.places(pictures), out, outputs)
        return layout

    layout = apart(Layout(there.folders, kept) if there else Layout.of(len(pictures), kept))
    if there is None:
        _refuse_what_stands(out, layout, pictures)
    rundir.make_folder(out)
    how = batch.How(folder, run, made, strategy, choice, ema, overrides, -(-len(pictures) // share.total))
    ours, record = how.first(found, out, settings, layout) if there is None else (how.following(found, there), there)
    if there is None:
        record_.refuse(out, record, settings, found, folder)
        layout = apart(Layout(record.folders, kept)) if record.folders != layout.folders else layout
    place = Folder(out, record, layout, own)
    place.make()
    job = _Job(run, ours, place, record, share, grid)
    return job.report(job.do(own, pictures))


def _refuse_what_stands(out: Path, layout: Layout, pictures: Sequence[Picture]) -> None:
    """Raise a CheckpointError where files stand under the names of maps that memdist did not make, such as true maps."""
    if (out / rundir.CONFIG).is_file():
        raise CheckpointError(f"--out {out} is a run folder, which is no place for maps: name another folder")
    if not out.is_dir() or (out / MANIFEST).is_dir():  # a folder of maps whose record was deleted stays one
        return
    stands = inputs_.taken(out, layout.within(), {name for picture in pictures for name in layout.outputs(picture)})
    # Whoever makes maps has made the record before.
    if stands is not None and record_.read(out) is None:
        raise CheckpointError(
            f"{out / stands} is there already, and {out} has no {record_.FILE} that says it was predicted: a map would be "
            "written over it; name another folder with --out, or remove it"
        )


@dataclass(frozen=True)
class _Looked:
    """A picture that was looked at."""

    picture: Picture
    error: str | None = None
    """Why it cannot be read."""
    done: bool = False
    """Whether its outputs are there."""
    digest: str = ""
    """SHA-256 of its file."""
    pixels: npt.NDArray[np.uint8] | None = None
    """[C, S, S] as the model sees it; None where it is not wanted."""
    size: tuple[int, int] = (0, 0)
    """Height and width of its map."""


class _Job:
    """One process's share of the pictures."""

    def __init__(self, run: Any, ours: mapper.Mapper, place: Folder, record: Record, share: Shard, grid: bool) -> None:
        self.run, self.ours, self.place, self.record, self.share, self.grid = run, ours, place, record, share, grid
        self.view = pairs.View.of(run.data, run.data.size)
        self.threads = threads(run.workers)
        self.at_once = max(1, ours.batch // ours.recipe.samples)
        self.unread: list[str] = []
        self.there = 0
        self.sheets: shown_.Sheets | None = None

    def do(self, own: Sequence[Picture], pictures: Sequence[Picture]) -> int:
        """Make what is not there; gives how many maps that were."""
        layout = self.place.layout
        maps = {layout.map(picture) for picture in pictures}
        progress = Progress(self.place.manifests, maps, self.place.said, self.share.total)
        self.sheets = shown_.Sheets(self.ours.recipe, own, self.run.eval.grid) if self.grid else None
        made = 0
        with contextlib.ExitStack() as held:
            # Threads decode from here to the end: no other part of the process may set filters of warnings meanwhile.
            held.enter_context(quiet.quiet())
            held.enter_context(progress.shown() if output.speaks() else contextlib.nullcontext())
            far = self.at_once + 4 * self.threads
            writer = held.enter_context(
                Writer(self.place, self.record, self.share, self.threads, far * (1 + layout.samples))
            )
            looks = held.enter_context(contextlib.closing(ahead(self._look, own, self.threads, far)))
            for part in self._batches(looks, progress):
                samples, combined, seconds = self._sample(part)
                for at, one in enumerate(part):
                    if self.sheets is not None:
                        self.sheets.see(one.picture, one.pixels, samples[at], combined[at])
                    if not one.done:
                        outputs = [*samples[at, : layout.samples], combined[at]]
                        replicates = [*range(1, layout.samples + 1), None]
                        # One by one: at the size of the picture, all of them at once may be more than there is memory for.
                        for name, out, replicate in zip(layout.outputs(one.picture), outputs, replicates, strict=True):
                            shown = validate.to_bytes(metrics.resize(out[None], one.size)[0])
                            writer.put(name, one.digest, shown, seconds / len(part), replicate)
                        made += 1
            writer.finish()
            if self.sheets is not None:
                self.sheets.write(self.place.out, self.share)
        return made

    def report(self, made: int) -> Report:
        """What was done; a process that does not speak for all tells on standard error what it could not read."""
        of = "" if self.share.total == 1 else f"of shard {self.share} "
        verb = "was" if self.there == 1 else "were"
        sentence = f"{several(made + self.there, 'map')} {of}in {self.place.out} ({self.there} {verb} there)"
        noun = "picture" if len(self.unread) == 1 else "pictures"
        report = Report(sentence, {f"{noun} could not be read": self.unread})
        if not output.speaks() and not report.clean:
            with contextlib.suppress(OSError):
                for line in report.lines()[1:]:
                    print(f"memdist (rank {os.environ['RANK']}): {printable(line.strip())}", file=sys.stderr)
        return report

    def _batches(self, looks: Iterator[_Looked], progress: Progress) -> Iterator[list[_Looked]]:
        """Pictures to predict, as many at once as a batch of maps has room for, in order."""
        part: list[_Looked] = []
        for one in looks:
            self.there += one.done
            if one.error is not None:
                self.unread.append(one.error)
            if not one.done:
                progress.lost(self.place.layout.map(one.picture))
            if one.pixels is not None:
                part.append(one)
            if len(part) == self.at_once:
                yield part
                part = []
        if part:
            yield part

    def _look(self, picture: Picture) -> _Looked:
        """Hash a picture, see whether its outputs are there, and decode it if it is wanted."""
        try:
            for _ in range(_ATTEMPTS):
                digest = pairs.content_hash(picture.path)
                done = self.place.done(picture, digest)
                if done and not (self.sheets and picture in self.sheets.wanted):
                    return _Looked(picture, done=True)
                pixels = self.view.decode((picture.path, None, "image"))
                _, (left, top, right, bottom) = pairs.shown(picture.path, crop=self.run.data.crop)
                # The pixels must be of the file that the seeds are of.
                if pairs.content_hash(picture.path) == digest:
                    return _Looked(picture, None, done, digest, pixels, (bottom - top, right - left))
        except DataError as error:
            return _Looked(picture, str(error))
        return _Looked(picture, f"{picture.path} changes while it is read: run again when it is whole")

    def _sample(self, part: Sequence[_Looked]) -> tuple[Tensor, Tensor, float]:
        """Samples [N, k, C, S, S] and maps [N, C, S, S] of pictures, and the seconds that they took."""
        ours, start = self.ours, time.perf_counter()
        pixels = torch.from_numpy(np.stack([one.pixels for one in part if one.pixels is not None]))
        seeds = mapper.seeds(self.run.seed, [one.digest for one in part], ours.recipe.samples, ours.device)
        with mapper.room(ours.device):
            samples = ours.sample(loader.floats(pixels.to(ours.device)), seeds)
        # Picture by picture: a reduction may sum in another order where there are more of them.
        maps = torch.cat([recipe.combined(samples[at : at + 1], ours.recipe.combine) for at in range(len(part))])
        lost = (~maps.isfinite()).flatten(1).any(dim=1).nonzero().tolist()  # waits for the device
        if lost:
            narrow = "" if ours.precision == "fp32" else f", or {ours.precision} is too narrow for them"
            raise CheckpointError(
                f"the map of {part[lost[0][0]].picture.path} has values that are no finite numbers: the weights of step "
                f"{ours.found.step} are not sound{narrow}; choose others with --checkpoint"
            )
        return samples, maps, time.perf_counter() - start
