"""Final scores of a run, beside those of the trivial predictors, into its run folder."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from memdist import config, locks, models, rundir
from memdist.data import cache as cache_
from memdist.data import fixations, loader, sources
from memdist.data import split as split_
from memdist.data.pairs import View
from memdist.distributed import strategy as strategy_
from memdist.errors import CheckpointError, ConfigError
from memdist.model import Pair, Sampling
from memdist.train import (
    dataset,
    distribution,
    extremes,
    gaze,
    imported,
    mapper,
    recipe,
    restore,
    score,
    scored,
    sheets,
    trivial,
)
from memdist.train.recipe import Recipe
from memdist.train.score import Predictor, Rows

Truths = Callable[[int], Tensor]
"""A true map by its row."""


def evaluate(
    folder: Path,
    splits: Sequence[str],
    *,
    choice: str = "best",
    ema: bool = True,
    overrides: Sequence[str] = (),
    grid: bool = False,
) -> Any:
    """Score splits of a run and write scores.json, scores.csv and samples/<split>; gives a table of them.

    `overrides` are runtime settings for this time only: where the data lie now, the device, the sampler. `grid` also writes
    sheets of picture, map, samples and error to samples/<split>-grid.
    """
    run = settings_for_reading(folder, overrides)
    strategy = strategy_.reading(run)
    try:
        if strategy.world > 1:
            # Read once for all ranks: a study may be ending meanwhile, and all have to sample alike.
            known = strategy_.record_from_main(strategy, lambda: recipe.studied(folder))
            run = settings_for_reading(folder, overrides, studied=known)
        found = opened(folder, run, strategy, choice=choice, ema=ema, overrides=overrides)
        mapper.check(found, run, strategy)
        made = Recipe.of(run.eval, found.model)
        extractor = distribution.load(run.eval.fid_weights, strategy.device)
        fixations.check(run.data.fixations)
        strategy.first(lambda: scored.ready(folder))
        data, foreign = pairs_of(folder, run, strategy), imported.is_imported(folder)
        chosen = [name for name in splits if len(data.rows[name])]
        if not chosen:
            raise ConfigError(
                f"{folder} has no {splits[0]} split (data.{splits[0]} is 0); evaluate --split val instead"
            )
        looked = gaze.read(run.data, data.pairs, data.pixels, data.rows["train"])
        if foreign:
            strategy.first(lambda: imported.adopt(folder, data.table))
        trivials = trivial.fit(data.pixels, data.rows["train"], strategy.device)
        maps = max(-(-len(data.rows[name]) // strategy.world) for name in chosen) * made.samples
        with mapper.room(strategy.device):
            ours = mapper.prepare(folder, found, run, made, strategy, maps=maps)
            if ours.compiled:
                mapper.seconds(ours, ours.batch)  # compiles now: the seconds of a score are those of sampling
            for name in chosen:
                _score_split(folder, run, name, ours, data, trivials, looked, extractor, strategy, choice, grid)
        return scored.table(
            rundir.read_json(folder / rundir.SCORES), chosen, imported.said(folder) if foreign else None
        )
    finally:
        strategy.close()


def settings_for_reading(folder: Path, overrides: Sequence[str], *, studied: Mapping[str, Any] | None = None) -> Any:
    """Settings of a run folder with runtime overrides; the device is chosen anew, as a run may be read elsewhere.

    What a study has found is the default; `studied` says what that is, where it is known already.
    """
    trained = restore.settings(folder)
    plain = config.plain(trained)
    found = recipe.studied(folder) if studied is None else studied
    if found:
        recipe.sound(folder, found, restore.model_of(trained))
    known = {**plain, "device": "auto", "eval": {**plain["eval"], **found}}
    raw = config.override(known, overrides)
    run = models.resolve(raw)
    then, now = config.identity(trained), config.identity(run)
    free = imported.SPLIT_KEYS if imported.is_imported(folder) else ()
    changed = [key for key in now if now[key] != then[key] and key not in free]
    if changed:
        raise ConfigError(
            f"{changed[0]} says what {folder} is and cannot be changed when it is read; runtime settings can"
        )
    return run


def opened(
    folder: Path,
    run: Any,
    strategy: strategy_.Strategy,
    *,
    choice: str,
    ema: bool,
    overrides: Sequence[str],
    samplings: Sequence[Sampling] = (),
) -> restore.Restored:
    """The networks of a run, once it is known that it can be sampled so: as its settings say, or in all of `samplings`."""
    # Chosen once for all ranks: the run may be training meanwhile.
    step = strategy_.from_main(strategy, lambda: restore.chosen_step(folder, choice)) if strategy.world > 1 else None
    model = restore.model_of(run)
    recipe.refuse(model, overrides)
    for sampling in samplings or [Recipe.of(run.eval, model).sampling]:
        model.check(sampling)
    found = restore.restore(folder, choice, ema=ema, device=strategy.device, step=step)
    if not samplings and strategy.main and (stale := recipe.stale(folder, found.step, found.averaged, overrides)):
        with contextlib.suppress(OSError):
            print(f"memdist: {stale}", file=sys.stderr)
    return found


def pairs_of(folder: Path, run: Any, strategy: strategy_.Strategy) -> dataset.Dataset:
    """The pairs of a run; a CheckpointError where they are not those that it was trained on."""
    data = dataset.load(run, strategy)
    if not imported.is_imported(folder) and split_.fingerprint(
        split_.read(folder / rundir.SPLIT)
    ) != split_.fingerprint(data.table):
        raise CheckpointError(
            f"the pictures, maps or split of {sources.said(run.data)} are not those that {folder} was trained on "
            f"(its {rundir.SPLIT}); restore them, or say where the same data lie now ({sources.example(run.data)})"
        )
    return data


def truths(run: Any, data: dataset.Dataset, rows: Rows, strategy: strategy_.Strategy) -> tuple[cache_.Truth, Truths]:
    """The maps of rows at the size at which they are compared, and one of them [C, h, w] in [-1, 1] by its row."""
    place = {pair.stem: pair for pair in data.pairs}
    opened: list[cache_.Truth] = []

    def decode() -> None:
        files = [place[data.pixels.stems[row]] for row in rows]
        opened.append(cache_.truth(files, View.of(run.data, run.eval.size), run.data.cache, run.workers))

    strategy.first(decode)
    if not opened:
        decode()
    at = {int(row): i for i, row in enumerate(rows)}
    return opened[0], lambda row: loader.floats(torch.from_numpy(opened[0][at[row]]).to(strategy.device))


class Sampled:
    """Predictors that share the samples of a batch: what is made of k of them, and the first alone."""

    def __init__(
        self, ours: mapper.Mapper, pixels: cache_.Pixels, seed: int, samples: int, sampling: Sampling | None = None
    ) -> None:
        """Sample so many maps of each picture, by the run's seed; in another way than the mapper's recipe where one is given."""
        self.mapper, self.samples, self.sampling = ours, samples, sampling
        self.seconds = 0.0
        """Spent in sampling so far."""
        self.drawn = torch.empty(0)
        """Samples [N, k, C, H, W] of the latest batch."""
        self._pixels, self._seed = pixels, seed
        self._of: Tensor | None = None

    def draw(self, pair: Pair, rows: Rows) -> Tensor:
        """Samples [N, k, C, H, W] of a batch, drawn once."""
        if self._of is pair.image:
            return self.drawn
        hashes = [self._pixels.image_hashes[row] for row in rows]
        seeds = mapper.seeds(self._seed, hashes, self.samples, pair.image.device)
        before = time.perf_counter()
        self.drawn = self.mapper.sample(pair.image, seeds, self.sampling)
        if self.drawn.device.type == "cuda":
            torch.cuda.synchronize(self.drawn.device)
        self.seconds += time.perf_counter() - before
        self._of = pair.image
        return self.drawn

    def combined(self, k: int, how: str) -> Predictor:
        """Predict by the first k samples."""
        return lambda pair, rows: recipe.combined(self.draw(pair, rows)[:, :k], how)


def _score_split(
    folder: Path,
    run: Any,
    name: str,
    ours: mapper.Mapper,
    data: dataset.Dataset,
    trivials: Mapping[str, Predictor],
    looked: gaze.Gaze | None,
    extractor: distribution.Extractor | None,
    strategy: strategy_.Strategy,
    choice: str,
    grid: bool,
) -> None:
    pixels, rows, found, made = data.pixels, data.rows[name], ours.found, ours.recipe
    there, truth = truths(run, data, rows, strategy)
    sampled = Sampled(ours, pixels, run.seed, made.samples)
    seen = extremes.Extremes(pixels)
    predictors = {"model": sampled.combined(made.samples, made.combine)}
    if made.samples > 1:
        predictors[scored.SINGLE] = sampled.combined(1, made.combine)
    predictors |= trivials
    distance = distribution.Distance(extractor, list(predictors), len(rows), truth, strategy) if extractor else None
    lines = sheets.Lines(pixels, rows, run.eval.grid) if grid else None

    def see(part: loader.Part, maps: Mapping[str, Tensor], errors: Mapping[str, Tensor]) -> None:
        seen.see(part, maps["model"], errors["model"])
        if lines is not None:
            lines.see(part, sampled.drawn, maps["model"])
        if distance is not None:
            distance.see(part, maps)

    values = score.measure(
        predictors,
        pixels,
        rows,
        strategy,
        seed=run.seed,
        batch=ours.pictures(made.samples),
        truth=truth,
        beside=looked.measure if looked else None,
        seen=see,
    )
    spent = float(strategy.gather(torch.tensor([sampled.seconds], device=strategy.device)).max())
    strips = seen.strips(rows, values["model"]["l1"], strategy)
    pages = lines.sheets(made, strategy) if lines is not None else None
    sizes = sorted(set(there.sizes))
    means = {who: {m: scored.summary(v) for m, v in by.items()} for who, by in values.items()}
    own, alone = means.pop("model"), means.pop(scored.SINGLE, None)
    reached = [v["l1"]["mean"] for v in means.values() if v["l1"]["mean"] is not None]

    def skill(l1: float | None) -> float | None:
        return None if l1 is None or not reached or min(reached) == 0 else 1 - l1 / min(reached)

    record: dict[str, Any] = {
        "checkpoint": found.step,
        "choice": choice,
        "ema": found.averaged,
        "n": len(rows),
        "size": list(sizes[0]) if len(sizes) == 1 else None,
        "sampling": made.record(found.model),
        "seconds": spent,
        "optimistic": name == "val" or len(data.rows["test"]) == 0,
        "metrics": own,
        "skill": skill(own["l1"]["mean"]),
        "single": {"metrics": alone, "skill": skill(alone["l1"]["mean"])} if alone else None,
        "trivial": means,
        "fixations": looked.record(rows) if looked else None,
        "distribution": distance.record() if distance else None,
    }
    with contextlib.ExitStack() as held:
        # Another process may score the same run: they take turns, so that neither loses what the other wrote.
        def wait_our_turn() -> None:
            held.enter_context(locks.hold(folder, rundir.SCORING_LOCK, queue=True))

        strategy.first(wait_our_turn)
        strategy.first(lambda: scored.write(folder, name, record, pixels, rows, values, strips, pages))
