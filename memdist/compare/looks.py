"""What only some runs have been scored by: fixations, and the distance of distributions (FID or KID)."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from memdist.compare import Group, Run

DASH = "–"


def has_fixations(group: Group) -> bool:
    """Whether some run's test split was scored against fixations."""
    return any(run.splits["test"].fixations for run in group.runs if "test" in run.splits)


def distribution(run: Run) -> Mapping[str, Any] | None:
    """FID or KID of a run's test split, with what it rests on."""
    return run.splits["test"].distribution if "test" in run.splits else None


def kind(group: Group) -> str | None:
    """`fid` or `kid`: which of them the group's test split has; one split has one."""
    return next((found["kind"] for run in group.runs if (found := distribution(run))), None)


def cell(figure: Mapping[str, float | None] | None) -> str:
    """A figure of FID or KID."""
    if figure is None or figure["mean"] is None:
        return DASH
    return f"{figure['mean']:.4f}" + (f" ± {figure['std']:.4f}" if figure["std"] is not None else "")


def of_run(run: Run) -> str:
    """FID or KID of a run's predictions of test."""
    found = distribution(run)
    return cell(found["model"] if found else None)


def of_trivial(group: Group, name: str) -> str:
    """FID or KID of a trivial predictor, as the first run that has it says."""
    found = (distribution(run) for run in group.runs)
    return cell(next((each["trivial"].get(name) for each in found if each), None))


def notes(group: Group) -> list[str]:
    """What a reader must know of these columns, and what gives the figures that are missing."""
    lines: list[str] = []
    if has_fixations(group):
        lines.append(
            "NSS and AUCs: against fixations, at the pictures' own size; SAUC's negatives are other training pictures' fixations."
        )
        lines += _missing(
            group, [run for run in group.runs if not _sha(run)], "against fixations", "data.fixations=FILE"
        )
        lines += _differing({run.label: _sha(run) for run in group.runs}, "fixations", "NSS and AUCs")
    name = kind(group)
    if name:
        found = next(each for run in group.runs if (each := distribution(run)))
        how = f"{name.upper()}: predicted to true maps of test, {found['n']:,} pictures, Inception's {found['layer']}"
        if name == "kid":
            how += f", mean ± standard deviation of {found['subsets']} subsets of {found['subset']}"
        lines.append(f"{how}; lower is better.")
        lines += _missing(
            group, [run for run in group.runs if not distribution(run)], f"by {name.upper()}", "eval.fid_weights=FILE"
        )
        weights = {run.label: (distribution(run) or {}).get("weights_sha256") for run in group.runs}
        lines += _differing(weights, "weights of Inception", name.upper())
    return lines


def _sha(run: Run) -> str | None:
    return run.splits["test"].fixations if "test" in run.splits else None


def _missing(group: Group, runs: Sequence[Run], what: str, setting: str) -> list[str]:
    return [
        f"{DASH} {run.label}: test was not scored {what}; `memdist evaluate {shlex.quote(str(run.path))} {setting}` gives it."
        for run in runs
        if run.pictures.get("test")
    ]


def _differing(known: Mapping[str, str | None], what: str, figures: str) -> list[str]:
    of = {label: sha for label, sha in known.items() if sha}
    if len(set(of.values())) < 2:
        return []
    each = "; ".join(f"{label}: {sha[:8]}" for label, sha in of.items())
    return [f"Not all runs were scored with the same {what} ({each}), so their {figures} are not comparable."]
