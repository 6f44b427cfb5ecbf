"""What sampling costs as a run does it, against the loop over all trained steps, and one evaluation of its network."""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from memdist import metrics
from memdist.config import words
from memdist.data import loader
from memdist.distributed.single import Single
from memdist.distributed.strategy import device_of
from memdist.errors import ConfigError
from memdist.train import evaluate, mapper, score
from memdist.train.recipe import Recipe

PLAIN_BATCH = 64
"""Maps that the plain loop samples at once, at most."""
TURNS = 10
"""Evaluations of each kind that are measured."""


def main(folder: Path, *, split: str, images: int | None, overrides: Sequence[str]) -> None:
    """Print how much faster a run samples than the plain loop, at which L1, and how much faster its network is.

    The plain loop is what one would write: ancestral, all trained steps, eager. Both sample the same pictures of a split,
    batch by batch in turn, so that what else the machine does meets both; so do single evaluations of the network.
    """
    run = evaluate.settings_for_reading(folder, overrides)
    strategy = Single(device_of(run.device), mapper.precision_of(run))
    found = evaluate.opened(folder, run, strategy, choice="best", ema=True, overrides=overrides)
    slowest, made = found.model.slowest(), Recipe.of(run.eval, found.model)
    if slowest is None:
        raise ConfigError(f"{run.model.name} does not sample: `bench sample` is for diffusion models")
    data = evaluate.pairs_of(folder, run, strategy)
    rows = data.rows[split][:images]
    if not len(rows):
        raise ConfigError(f"{folder} has no {split} split (data.{split} is 0); give another --split")
    _, truth = evaluate.truths(run, data, rows, strategy)

    # Parts of nearly one size, so that neither fills up batches.
    at_once = -(-len(rows) // -(-len(rows) // PLAIN_BATCH))
    plain = mapper.Mapper(copy.deepcopy(found), Recipe(slowest), strategy.device, "fp32", at_once)
    fast = mapper.prepare(folder, found, run, made, strategy, maps=at_once * made.samples)
    if run.eval.compile == "auto" and not fast.compiled and mapper.can_compile(strategy.device):
        fast = mapper.Mapper(found, made, strategy.device, fast.precision, fast.batch, compiled=True)
    before = time.perf_counter()
    mapper.seconds(fast, fast.batch)
    if fast.compiled:
        print(f"compiling: {time.perf_counter() - before:.1f} s, once")

    ours, theirs = [], []
    for _ in range(TURNS):
        theirs.append(mapper.seconds(plain, fast.batch))
        ours.append(mapper.seconds(fast, fast.batch))
    ratios = [a / b for a, b in zip(theirs, ours, strict=True)]

    slow_seconds, fast_seconds, slow_l1, fast_l1 = 0.0, 0.0, [], []
    for part in loader.batches(data.pixels, rows, seed=run.seed, batch=at_once, device=strategy.device):
        hashes = [data.pixels.image_hashes[row] for row in part.rows[: part.valid]]
        image, these = part.pair.image[: part.valid], part.rows[: part.valid]
        seeds = mapper.seeds(run.seed, hashes, made.samples, strategy.device)
        spent, maps = _timed(fast, image, seeds)
        fast_seconds += spent
        fast_l1 += _l1(maps, these, truth)
        spent, maps = _timed(plain, image, seeds[:, :1])
        slow_seconds += spent
        slow_l1 += _l1(maps, these, truth)

    what = f"{len(rows)} pictures of {split}, {run.data.size} x {run.data.size}"
    print(f"{run.model.name}, {what}, on {strategy.device} ({mapper.name_of(strategy.device)})")
    reference = words.sampling(Recipe(slowest).record(found.model) or {})
    print(f"plain loop: {reference}, eager, {plain.batch} at once: {slow_seconds:.1f} s, L1 {np.mean(slow_l1):.4f}")
    how = f"{'compiled' if fast.compiled else 'eager'}, {fast.precision}, {fast.batch} at once"
    chosen = words.sampling(made.record(found.model) or {})
    print(f"this run: {chosen}, {how}: {fast_seconds:.2f} s, L1 {np.mean(fast_l1):.4f}")
    print(
        f"sampling: {slow_seconds / fast_seconds:.0f} times as fast, at {np.mean(fast_l1) / np.mean(slow_l1):.4f} of the plain "
        "loop's L1 (aim: at least 100, at most 1.01)"
    )
    print(
        f"one evaluation of the network, a batch of {fast.batch}: {1000 * statistics.median(ours):.2f} ms; "
        f"{statistics.median(ratios):.2f} times as fast as plain eager (median of {TURNS} pairs; aim on a CPU: 1.5)"
    )


def _timed(by: mapper.Mapper, image: Tensor, seeds: Tensor) -> tuple[float, Tensor]:
    before = time.perf_counter()
    made = by.maps(image, seeds)
    if by.device.type == "cuda":
        torch.cuda.synchronize(by.device)
    return time.perf_counter() - before, made


def _l1(maps: Tensor, rows: Any, truth: Callable[[int], Tensor]) -> list[float]:
    """L1 of each map at the size of its truth."""
    errors = torch.empty(len(rows))
    for index, resized, truths in score.by_size(maps, rows, truth):
        errors[index.cpu()] = metrics.score(resized, truths)["l1"].float().cpu()
    return errors.tolist()
