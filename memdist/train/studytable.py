"""What a study found: the settings tried with their figures, the cheapest that is good enough, as CSV and as a table."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from memdist.config import words as words_
from memdist.errors import CheckpointError
from memdist.model import Sampling
from memdist.train import recipe as recipe_
from memdist.train.recipe import Recipe

LINES = 40
"""Lines of the table, at most; the file has all."""

COLUMNS = (
    "sampler",
    "steps",
    "spacing",
    "bound",
    "evaluations",
    "samples",
    "combine",
    "evaluations_in_all",
    "l1",
    "cc",
    "seconds",
    "within",
    "chosen",
)
"""Of study.csv."""


@dataclass(frozen=True)
class Setting:
    """A way to make maps, and its figures on all the pictures of a study."""

    recipe: Recipe
    evaluations: int
    """Of the network, for one sample."""
    l1: float | None
    """None where it is undefined for a picture: a mean over the others would be that of other pictures."""
    cc: float | None
    seconds: float
    """Of sampling all the pictures."""

    @property
    def cost(self) -> int:
        """Evaluations of the network for a picture, in all."""
        return self.recipe.samples * self.evaluations

    def record(self) -> dict[str, Any]:
        """Its recipe and its figures."""
        figures = {"evaluations": self.cost, "l1": self.l1, "cc": self.cc, "seconds": self.seconds}
        return {**self.default(), **figures}

    def default(self) -> dict[str, Any]:
        """Its recipe as settings of `eval`."""
        whole = {**asdict(self.recipe.sampling), "samples": self.recipe.samples, "combine": self.recipe.combine}
        return {key: whole[key] for key in recipe_.KEYS}

    def said(self) -> str:
        """Its recipe in words."""
        return words_.sampling({**self.default(), "evaluations": self.cost})


@dataclass(frozen=True)
class Study:
    """All settings tried, and what comes of them."""

    settings: Sequence[Setting]
    """By evaluations in all."""
    reference: Setting
    tolerance: float

    @property
    def limit(self) -> float:
        """Largest L1 that is good enough."""
        if self.reference.l1 is None:
            raise CheckpointError(
                f"the maps of the reference ({self.reference.said()}) have values that are no finite numbers: the weights are "
                "not sound; choose others with --checkpoint"
            )
        return self.reference.l1 * (1 + self.tolerance)

    def within(self, one: Setting) -> bool:
        """Whether a setting is good enough."""
        return one.l1 is not None and one.l1 <= self.limit

    @property
    def chosen(self) -> Setting:
        """The one of fewest evaluations in all that is good enough; of several, that of the lowest L1; of these ddim."""

        def rank(one: Setting) -> tuple[int, float, bool]:
            # With one evaluation all samplers are one and the same but for rounding, which is not to choose between them.
            return one.cost, round(one.l1 or 0.0, 6), one.recipe.sampling.sampler != "ddim"

        return min(filter(self.within, self.settings), key=rank)

    def alone(self) -> dict[Sampling, Setting]:
        """Settings of one sample, by sampling."""
        return {one.recipe.sampling: one for one in self.settings if one.recipe.samples == 1}

    def together(self) -> dict[Sampling, Setting]:
        """Of each sampling that of several samples whose L1 is lowest."""
        best: dict[Sampling, Setting] = {}
        for one in self.settings:
            if one.recipe.samples > 1 and one.l1 is not None:
                former = best.setdefault(one.recipe.sampling, one)
                assert former.l1 is not None
                best[one.recipe.sampling] = one if one.l1 < former.l1 else former
        return best


def make(settings: Sequence[Setting], reference: Sampling, tolerance: float) -> Study:
    """Put settings in order; one of them is one sample of the reference."""
    ordered = sorted(settings, key=lambda one: (one.cost, one.recipe.sampling.sampler, one.recipe.samples))
    slowest = next(one for one in ordered if one.recipe == Recipe(reference))
    return Study(ordered, slowest, tolerance)


def text(study: Study) -> str:
    """study.csv: a line for each setting."""
    chosen = study.chosen
    lines = io.StringIO()
    writer = csv.DictWriter(lines, COLUMNS, lineterminator="\n")
    writer.writeheader()
    for one in study.settings:
        record = one.record()
        figures = {name: "" if record[name] is None else f"{record[name]:.6g}" for name in ("l1", "cc", "seconds")}
        told = {**record, **figures, "evaluations": one.evaluations, "evaluations_in_all": one.cost}
        told |= {"within": str(study.within(one)).lower(), "chosen": str(one == chosen).lower()}
        writer.writerow({name: told[name] for name in COLUMNS})
    return lines.getvalue()


def table(study: Study, title: str) -> Any:
    """A line for each sampling, cheapest first, below the reference: one sample, and the best of what several make."""
    from rich.table import Table

    chosen, alone, together = study.chosen, study.alone(), study.together()
    if chosen.recipe.samples > 1:
        together[chosen.recipe.sampling] = chosen
    shown = Table(title=title, title_justify="left")
    for name in ("sampler", "evaluations", "L1", "CC", "seconds", "several samples", "evaluations", "L1", "CC"):
        shown.add_column(name, justify="left" if name in ("sampler", "several samples") else "right")
    shown.add_column("seconds", justify="right")
    shown.add_column("")

    def cells(one: Setting) -> list[str]:
        mark = " *" if study.within(one) else ""
        l1 = "undefined" if one.l1 is None else f"{one.l1:.4f}{mark}"
        return [str(one.cost), l1, "undefined" if one.cc is None else f"{one.cc:.4f}", f"{one.seconds:.3g}"]

    reference = study.reference.recipe.sampling
    others = [sampling for sampling in alone if sampling != reference]
    listed = others[: LINES - 1]
    if chosen.recipe.sampling not in (reference, *listed):
        listed[-1] = chosen.recipe.sampling
    for sampling in (reference, *listed):
        several = together.get(sampling)
        made = [f"{several.recipe.combine} of {several.recipe.samples}", *cells(several)] if several else ["-"] * 5
        marks = ["reference"] if sampling == reference else []
        if sampling == chosen.recipe.sampling:
            which = "" if several is None else ": one sample" if chosen.recipe.samples == 1 else f": {made[0]}"
            marks.append(f"cheapest within {100 * study.tolerance:g} %{which}")
        shown.add_row(sampling.sampler, *cells(alone[sampling]), *made, ", ".join(marks))
    if len(listed) < len(others):
        shown.caption = f"{len(others) - len(listed)} more in the file"
    return shown


def sentences(study: Study, command: str) -> list[str]:
    """What a reader has to know; `command` scores the run."""
    chosen, reference = study.chosen, study.reference
    assert chosen.l1 is not None and reference.l1 is not None
    share = "" if reference.l1 == 0 else f" ({chosen.l1 / reference.l1:.4f} of it)"
    found = [
        "* no worse than "
        f"{1 + study.tolerance:g} of the L1 of the reference; the best by L1 of several samples stands beside one; seconds are "
        "those of sampling all the pictures, of K samples the share of k where k are taken",
    ]
    if chosen == reference:
        found.append(f"Nothing cheaper is as good as the reference, {chosen.said()}, which is this run's default now.")
    else:
        found.append(
            f"{chosen.said()} is this run's default now: L1 {chosen.l1:.4f} against the reference's "
            f"{reference.l1:.4f}{share}, for {_part(chosen.cost, reference.cost)} of the evaluations and "
            f"{_part(chosen.seconds, reference.seconds)} of the seconds."
        )
    found.append(
        "L1 rewards blur: few evaluations, and the mean or median of several samples, do better in it than they look sharp; "
        "CC stands beside it, and `--grid` shows them."
    )
    found.append(f"This was selected on val: `{command}` scores it on test.")
    found.append(
        "Others for once: --sampler, --steps, --samples, eval.combine=mean|median; without study.json the defaults are those of "
        "config.yaml again."
    )
    return found


def _part(cheap: float, dear: float) -> str:
    ratio = dear / max(cheap, 1e-9)
    return f"1/{ratio:.0f}" if ratio >= 10 else f"1/{ratio:.2g}" if ratio >= 1.05 else f"{1 / max(ratio, 1e-9):.2g}"


def written(setting: Setting) -> dict[str, Any]:
    """A setting as it is kept between two tries, without its sampling."""
    figures = {key: getattr(setting, key) for key in ("evaluations", "l1", "cc", "seconds")}
    return {"samples": setting.recipe.samples, "combine": setting.recipe.combine, **figures}


def read(sampling: Sampling, record: Mapping[str, Any]) -> Setting:
    """What `written` gave; a KeyError or a TypeError for what it never gives."""
    counts, seconds = [record[key] for key in ("samples", "evaluations")], record["seconds"]
    figures = [seconds, *(record[key] for key in ("l1", "cc") if record[key] is not None)]
    numbers = all(type(one) in (int, float) and math.isfinite(one) for one in figures) and seconds >= 0
    if not numbers or any(type(one) is not int or one < 1 for one in counts):
        raise TypeError("a figure is no number")
    made = Recipe(sampling, record["samples"], str(record["combine"]))
    return Setting(made, record["evaluations"], record["l1"], record["cc"], seconds)
