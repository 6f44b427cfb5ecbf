"""How few evaluations do: samplers, steps and samples tried on val; the cheapest that is good enough becomes the default.

The figures of each sampling are kept in the run folder as soon as they are there: the same command again goes on.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from memdist import rundir
from memdist.distributed import strategy as strategy_
from memdist.errors import ConfigError
from memdist.model import Model, Sampling
from memdist.train import evaluate, mapper, recipe, restore, studyfigure, studytable, validate
from memdist.train import studybench as bench_
from memdist.train.studybench import Plan

_TRIED = {"sampler": "samplers", "steps": "steps", "samples": "samples"}
"""Settings of `eval` that a study tries, and what they are called there; for others see `_refuse`."""


def study(folder: Path, *, choice: str = "best", ema: bool = True, overrides: Sequence[str] = ()) -> Any:
    """Measure samplers, steps and samples on val, write study.json, study.csv and study.svg; gives a table and sentences.

    `overrides` are runtime settings: `study.*`, where the data lie now, the device, spacing and bound.
    """
    _refuse(overrides)
    # What a former study found is no part of this one.
    run = evaluate.settings_for_reading(folder, overrides, studied={})
    plan, reference = plan_of(restore.model_of(run), run)
    strategy = strategy_.reading(run)
    try:
        found = evaluate.opened(
            folder, run, strategy, choice=choice, ema=ema, overrides=overrides, samplings=[reference]
        )
        mapper.check(found, run, strategy)
        data = evaluate.pairs_of(folder, run, strategy)
        if not len(data.rows["val"]):
            raise ConfigError(
                f"{folder} has no val split (data.val is 0), and a study chooses on no other: give --sampler, --steps and "
                "--samples yourself"
            )
        rows = np.sort(validate.first(data.pixels, data.rows["val"], run.study.images, "study"))
        bench = bench_.Bench(folder, run, found, data, rows, strategy, plan)
        with mapper.room(strategy.device):
            bench.measure(mapper.precision_of(run))
        done = studytable.make(bench.settings(mapper.precision_of(run)), reference, run.study.tolerance)
        with mapper.room(strategy.device):
            halved = bench.halved(done.chosen)
        record = {
            "chosen": done.chosen.default(),
            "reference": done.reference.record(),
            "found": done.chosen.record(),
            "tolerance": done.tolerance,
            "checkpoint": found.step,
            "averaged": found.averaged,
            "n": len(rows),
            "split": "val",
        }
        how = f"checkpoint {found.step}{', averaged weights' if found.averaged else ''}"
        title = f"study on val: {len(rows)} pictures, {how}"
        figure = studyfigure.draw(done, f"{folder.resolve().name}: {title}")
        strategy.first(lambda: bench.write(record, studytable.text(done), figure))
    finally:
        strategy.close()
    from rich.console import Group

    names = ", ".join(str(folder / name) for name in (rundir.STUDY, rundir.STUDY_CSV, rundir.STUDY_FIGURE))
    told = studytable.sentences(done, f"memdist evaluate {shlex.quote(str(folder))}")
    return Group(studytable.table(done, title), *told, *halved, f"files: {names}")


def _refuse(overrides: Sequence[str]) -> None:
    """Raise a ConfigError for a setting of what the study itself tries."""
    for text in overrides:
        key = text.partition("=")[0]
        own = key.removeprefix("eval.")
        if key.startswith("eval.") and own in recipe.KEYS and own not in ("spacing", "bound"):
            instead = f"give study.{_TRIED[own]}" if own in _TRIED else "leave it out"
            raise ConfigError(f"{key} is what a study tries itself: {instead}")


def plan_of(model: Model, run: Any) -> tuple[Plan, Sampling]:
    """What is tried, and the sampling that it is measured against; a ConfigError where one of them cannot be."""
    reference = model.slowest()
    if not model.samples or reference is None:
        raise ConfigError(
            f"--study is for models that sample, and {model.config.name} does not: give `memdist evaluate` without it"
        )
    # The first sample is there in any case.
    several = tuple(sorted({1, *run.study.samples}))
    tried: dict[tuple[str, int], Sampling] = {}
    for sampler in run.study.samplers:
        for steps in sorted(run.study.steps):
            one = Sampling(sampler=sampler, steps=steps, spacing=run.eval.spacing, bound=run.eval.bound)
            try:
                model.check(one)
            except ConfigError as error:
                raise ConfigError(
                    f"study.samplers={sampler} with study.steps={steps} cannot be tried: {error}"
                ) from error
            # Heun's sampler takes an even number of steps as it takes the odd one below.
            tried.setdefault((sampler, model.evaluations(one)), one)
    plan = {one: several for one in tried.values()}
    plan.setdefault(reference, (1,))
    return dict(sorted(plan.items(), key=lambda item: item[1][-1] * model.evaluations(item[0]))), reference
