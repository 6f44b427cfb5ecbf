"""Measuring for a study: each sampling once, with as many samples as are asked for; kept as soon as it is there."""

from __future__ import annotations

import contextlib
import datetime
import hashlib
import json
import math
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

import memdist
from memdist import locks, rundir
from memdist.config import words as words_
from memdist.distributed import strategy as strategy_
from memdist.errors import CheckpointError
from memdist.model import Sampling
from memdist.train import evaluate, mapper, restore, score, studytable
from memdist.train.recipe import Recipe
from memdist.train.score import Rows
from memdist.train.studybegun import Begun, Key, recipes
from memdist.train.studytable import Setting

Plan = dict[Sampling, tuple[int, ...]]
"""How many maps are sampled of a picture (k, ascending), by sampling; the cheapest first."""

KEPT = 600.0
"""Seconds of sampling after which what is there is kept."""


def has_bf16(device: torch.device) -> bool:
    """Whether bf16 is the device's own; a CPU's seldom pays."""
    return device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)


@dataclass
class Bench:
    """Measures what is not measured yet; all ranks do the same."""

    folder: Path
    run: Any
    found: restore.Restored
    data: Any
    rows: Rows
    strategy: strategy_.Strategy
    plan: Plan

    def __post_init__(self) -> None:
        # The main process's: nodes may have other devices, and what is left to measure has to be the same for all ranks.
        self.circumstances = strategy_.record_from_main(self.strategy, self._circumstances)
        kept = strategy_.record_from_main(self.strategy, self._kept)
        self.measured = _parsed(self.folder, kept, self.circumstances)
        self._begun = Begun.read(kept.get("begun")) if kept.get("circumstances") == self.circumstances else None
        # Asked before hours are spent: whether anything can be written there.
        self.strategy.first(self._keep)
        self._mapper: mapper.Mapper | None = None
        self._truth: evaluate.Truths | None = None

    def settings(self, precision: str) -> list[Setting]:
        """What was measured of the plan."""
        return [
            one
            for sampling, several in self.plan.items()
            for one in self.measured[sampling, precision]
            if one.recipe.samples in several
        ]

    def measure(self, precision: str) -> None:
        """Measure what is missing of the plan, and keep it."""
        missing = {s: several for s, several in self.plan.items() if not self._has((s, precision), several)}
        if not missing:
            return
        ours = self._ours()
        self._truths()
        batches = math.ceil(self._share() / ours.batch)
        # The first use of a network takes longer, by minutes if it is compiled.
        pace, beside, spent, done = mapper.seconds(ours, ours.batch), 0.0, 0.0, 0
        whole = self._evaluations(missing)
        for number, (sampling, several) in enumerate(missing.items()):
            each = self.found.model.evaluations(sampling)
            words = words_.sampling({"sampler": sampling.sampler, "evaluations": each, "spacing": sampling.spacing})
            clock = (whole - done) * batches * pace + (len(missing) - number) * beside
            self._say(
                f"study: {number + 1} of {len(missing)}: {words}, {several[-1]} of each of {len(self.rows)} pictures; "
                f"about {datetime.timedelta(seconds=round(clock))} left"
            )
            before = time.perf_counter()
            self.measured[sampling, precision] = figures = self._try(ours, (sampling, precision), several, pace)
            self._begun = None
            self.strategy.first(self._keep)
            # What sampling takes grows with the evaluations, the scores take as long each time.
            spent, done = spent + figures[-1].seconds, done + several[-1] * each
            pace = spent / (done * batches)
            beside = max(0.0, time.perf_counter() - before - figures[-1].seconds)

    def halved(self, chosen: Setting) -> list[str]:
        """A sentence on the chosen setting in bf16, where the device has it and the run was left in fp32."""
        device, run = self.strategy.device, self.run
        asked = mapper.precision_of(run) == "fp32" and run.eval.precision == "run"
        if not asked or "bf16" in self.found.model.refuses() or not has_bf16(device):
            return []
        sampling, several = chosen.recipe.sampling, (chosen.recipe.samples,)
        if not self._has((sampling, "bf16"), several):
            self._say(f"study: {chosen.said()} in bf16")
            # The networks are the same ones: where they are compiled, they stay so.
            ours = mapper.Mapper(self.found, chosen.recipe, device, "bf16", self._ours().batch)
            pace = mapper.seconds(ours, ours.batch)
            self.measured[sampling, "bf16"] = self._try(ours, (sampling, "bf16"), several, pace)
            self._begun = None
            self.strategy.first(self._keep)
        one = next(s for s in self.measured[sampling, "bf16"] if s.recipe == chosen.recipe)
        if one.l1 is None or one.seconds >= chosen.seconds:
            return []
        return [f"eval.precision=bf16 takes {one.seconds / chosen.seconds:.2f} of the seconds, at L1 {one.l1:.4f}."]

    def write(self, record: Mapping[str, Any], table: str, figure: str) -> None:
        """Put what was found in place of what was before; study.json last, so that it never speaks of absent lines."""
        with locks.hold(self.folder, rundir.SCORING_LOCK, queue=True):
            rundir.write_text(self.folder / rundir.STUDY_CSV, table)
            rundir.write_text(self.folder / rundir.STUDY_FIGURE, figure)
            rundir.write_json(self.folder / rundir.STUDY, {**record, "measured": self._merged()})

    def _try(self, ours: mapper.Mapper, key: Key, several: Sequence[int], pace: float) -> list[Setting]:
        """Figures of what is made of k samples, each k the first of the same ones; `pace`: seconds of an evaluation.

        What takes longer than KEPT seconds is kept in parts, so that a study that is killed loses no more.
        """
        sampling, made = key[0], recipes(key[0], several)
        each = self.found.model.evaluations(sampling)
        begun = self._begun if self._begun is not None and self._begun.fits(key, made) else Begun(key, made)
        batches = strategy_.from_main(self.strategy, lambda: max(1, int(KEPT / (pace * several[-1] * each))))
        part = ours.batch * self.strategy.world * batches
        while begun.count < len(self.rows):
            rows = self.rows[begun.count : begun.count + part]
            sampled = evaluate.Sampled(ours, self.data.pixels, self.run.seed, several[-1], sampling)
            values = score.measure(
                {str(at): sampled.combined(one.samples, one.combine) for at, one in enumerate(made)},
                self.data.pixels,
                rows,
                self.strategy,
                seed=self.run.seed,
                batch=ours.pictures(several[-1]),
                truth=self._truths(),
            )
            # Every rank takes its share: the slowest one's time counts. Batches are full, so that a sample costs as another.
            mine = torch.tensor([sampled.seconds], device=self.strategy.device)
            begun.add(values, float(self.strategy.gather(mine).max()))
            if begun.count < len(self.rows):
                self._begun = begun
                self.strategy.first(self._keep)
        return begun.settings(each)

    def _ours(self) -> mapper.Mapper:
        """Prepared for the whole study, also where a part of it is left: the seconds have to be of one kind."""
        if self._mapper is None:
            # As many maps as pictures: one sample of all is the reference, which takes by far the longest; k samples
            # then fill k times as many batches.
            evaluations = self._evaluations(self.plan)
            slowest = Recipe(list(self.plan)[-1])
            self._mapper = mapper.prepare(
                self.folder, self.found, self.run, slowest, self.strategy, maps=self._share(), evaluations=evaluations
            )
        return self._mapper

    def _truths(self) -> evaluate.Truths:
        if self._truth is None:
            _, self._truth = evaluate.truths(self.run, self.data, self.rows, self.strategy)
        return self._truth

    def _share(self) -> int:
        """Pictures of a rank, at most."""
        return math.ceil(len(self.rows) / self.strategy.world)

    def _evaluations(self, plan: Plan) -> int:
        """Evaluations for a picture, in all."""
        return sum(several[-1] * self.found.model.evaluations(one) for one, several in plan.items())

    def _has(self, key: Key, several: Sequence[int]) -> bool:
        there = {one.recipe for one in self.measured.get(key, ())}
        return there >= {*recipes(key[0], several)}

    def _circumstances(self) -> dict[str, Any]:
        """What the figures depend on, beside the sampling; what was measured under others does not count."""
        pixels = self.data.pixels
        pairs = "".join(pixels.image_hashes[row] + pixels.map_hashes[row] for row in self.rows)
        return {
            "checkpoint": self.found.step,
            "averaged": self.found.averaged,
            "weights": restore.digest(self.found.nets),
            "n": len(self.rows),
            "pairs": hashlib.sha256(pairs.encode()).hexdigest(),
            "size": self.run.eval.size,
            "device": mapper.name_of(self.strategy.device),
            "ranks": self.strategy.world,
            "memdist": memdist.__version__,
        }

    def _kept(self) -> dict[str, Any]:
        kept = rundir.read_json(self.folder / rundir.STUDY).get("measured")
        return kept if isinstance(kept, dict) else {}

    def _keep(self) -> None:
        """Put what is measured beside what else the record says."""
        # Two studies of one run take turns, and neither loses what the other has measured.
        with locks.hold(self.folder, rundir.SCORING_LOCK, queue=True):
            record = rundir.read_json(self.folder / rundir.STUDY)
            rundir.write_json(self.folder / rundir.STUDY, {**record, "measured": self._merged()})

    def _merged(self) -> dict[str, Any]:
        both = {**_parsed(self.folder, self._kept(), self.circumstances), **self.measured}
        groups = [
            {"sampling": asdict(s), "precision": p, "figures": [studytable.written(one) for one in found]}
            for (s, p), found in both.items()
        ]
        groups.sort(key=lambda group: json.dumps([group["precision"], group["sampling"]]))
        begun = {"begun": self._begun.record()} if self._begun is not None else {}
        return {"circumstances": self.circumstances, "groups": groups, **begun}

    def _say(self, sentence: str) -> None:
        if self.strategy.main:
            with contextlib.suppress(OSError):
                print(f"memdist: {sentence}", file=sys.stderr, flush=True)


def _parsed(folder: Path, kept: Mapping[str, Any], circumstances: Mapping[str, Any]) -> dict[Key, list[Setting]]:
    """What was measured under these circumstances."""
    if kept.get("circumstances") != circumstances:
        return {}
    found: dict[Key, list[Setting]] = {}
    try:
        for group in kept["groups"]:
            sampling = Sampling(**group["sampling"])
            found[sampling, group["precision"]] = [studytable.read(sampling, one) for one in group["figures"]]
    except (KeyError, TypeError) as error:
        raise CheckpointError(
            f"{folder / rundir.STUDY} does not say what was measured: delete it, and give the command again"
        ) from error
    return found
