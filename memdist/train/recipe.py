"""How a run's maps are made of pictures: sampler, evaluations, how many samples, and what is made of them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from torch import Tensor

from memdist import rundir
from memdist.config import Eval
from memdist.errors import CheckpointError, ConfigError
from memdist.model import Model, Sampling

KEYS = ("sampler", "steps", "eta", "spacing", "bound", "samples", "combine")
"""Settings of `eval` that only a model that samples has."""


@dataclass(frozen=True)
class Recipe:
    """How a map is made."""

    sampling: Sampling
    samples: int = 1
    """Maps sampled for a picture (k)."""
    combine: str = "mean"
    """What is made of them, pixel by pixel: mean or median."""

    @classmethod
    def of(cls, settings: Eval, model: Model) -> Recipe:
        """As the settings say; a model that does not sample makes one map of a picture whatever they say."""
        sampling = Sampling(
            sampler=settings.sampler,
            steps=settings.steps,
            eta=settings.eta,
            spacing=settings.spacing,
            bound=settings.bound,
        )
        return cls(sampling, settings.samples if model.samples else 1, settings.combine)

    def cost(self, model: Model) -> int:
        """Network evaluations that the map of one picture takes."""
        return self.samples * model.evaluations(self.sampling)

    def record(self, model: Model) -> dict[str, Any] | None:
        """What a score or a map says of itself; None for a model that does not sample."""
        if not model.samples:
            return None
        whole = {**asdict(self.sampling), "samples": self.samples, "combine": self.combine}
        return {**{key: whole[key] for key in KEYS}, "evaluations": self.cost(model)}


def combined(samples: Tensor, how: str) -> Tensor:
    """One map a picture, [N, C, H, W], of its samples [N, k, C, H, W]: their mean or median.

    The median of an even k is the mean of the two in the middle.
    """
    if samples.shape[1] == 1:
        return samples[:, 0]
    if how == "mean":
        return samples.mean(dim=1)
    ordered = samples.sort(dim=1).values
    k = samples.shape[1]
    return (ordered[:, (k - 1) // 2] + ordered[:, k // 2]) / 2


def studied(folder: Path) -> dict[str, Any]:
    """Settings of `eval` that a study of this run has found (`evaluate --study`); empty where there was none."""
    chosen = rundir.read_json(folder / rundir.STUDY).get("chosen")
    if chosen is None:
        return {}
    if not isinstance(chosen, dict) or not {*KEYS} <= set(chosen):
        raise CheckpointError(
            f"{folder / rundir.STUDY} does not say what was chosen: delete it, or give `memdist evaluate RUN --study` again"
        )
    return {key: chosen[key] for key in KEYS}


def sound(folder: Path, chosen: Mapping[str, Any], model: Model) -> None:
    """Raise a CheckpointError where the run cannot be sampled as its study is said to have found: nobody gave that."""
    try:
        settings = Eval.model_validate_json(json.dumps(chosen), strict=True)
        model.check(Recipe.of(settings, model).sampling)
    except (ValidationError, ConfigError) as error:
        keys = [str(entry["loc"][0]) for entry in error.errors()] if isinstance(error, ValidationError) else []
        wrong = " and ".join(f"{key} = {chosen[key]!r:.60}" for key in dict.fromkeys(keys)) or str(error).rstrip(".")
        raise CheckpointError(
            f"{folder / rundir.STUDY} says to sample in a way that cannot be ({wrong}): delete it, or give "
            "`memdist evaluate RUN --study` again"
        ) from error


def stale(folder: Path, step: int, averaged: bool, overrides: Sequence[str]) -> str | None:
    """A sentence where the sampling of a run is what a study found for other weights of it; None where that is not so."""
    known = rundir.read_json(folder / rundir.STUDY)
    given = {text.partition("=")[0] for text in overrides}
    if known.get("chosen") is None or {"eval.sampler", "eval.steps"} <= given:
        return None
    if (known.get("checkpoint"), known.get("averaged")) == (step, averaged):
        return None
    then = f"step {known.get('checkpoint')}{', averaged' if known.get('averaged') else ''}"
    return (
        f"how {folder} is sampled was found by a study of other weights ({then}) than these (step {step}"
        f"{', averaged' if averaged else ''}): `memdist evaluate RUN --study` looks anew"
    )


def refuse(model: Model, overrides: Sequence[str]) -> None:
    """Raise a ConfigError for settings of sampling that are given for a model that does not sample."""
    if model.samples:
        return
    for text in overrides:
        key = text.partition("=")[0]
        if key.startswith("eval.") and key.removeprefix("eval.") in KEYS:
            raise ConfigError(
                f"{key} and its flag do not apply to {model.config.name}, which does not sample: leave them out"
            )
