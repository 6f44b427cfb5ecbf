"""Lay runs side by side, from nothing but their folders.

`collect` reads run folders into a Comparison; `table.render` shows it on a terminal; `page.write` makes one HTML file
of it, with pictures and curves. Neither torch nor a model is loaded.

Runs stand together where their split and the size they were scored at are the same, and only there.
"""

from __future__ import annotations

import csv
import hashlib
import json
import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from memdist import config, rundir
from memdist.config import words
from memdist.errors import CheckpointError, ConfigError
from memdist.metrics import Summary

SPLITS = ("train", "val", "test")
LARGEST = 1e12
"""No figure of a run is larger: what is was not written by memdist."""


@dataclass(frozen=True)
class Split:
    """One split in scores.json: `seconds` to predict all `n` pictures; `size`: (height, width), or the maps' own."""

    n: int
    size: tuple[int, int] | None
    weights: str
    seconds: float | None
    optimistic: bool
    metrics: Mapping[str, Summary]
    skill: float | None
    trivial: Mapping[str, Mapping[str, Summary]]
    fixations: str | None = None
    """SHA-256 of the file of fixations, where it was scored against any."""
    distribution: Mapping[str, Any] | None = None
    """FID or KID as scores.json has it, where it was taken."""
    samples: int = 1
    """Maps that were sampled for each picture (k)."""
    single: Mapping[str, Summary] | None = None
    """Scores of one of them alone, where there are several; and its skill."""
    single_skill: float | None = None


@dataclass(frozen=True)
class Run:
    """One run folder: `label` tells it from the others, `data` is the hash of its split, `pictures` counts it."""

    path: Path
    label: str
    model: str
    settings: Mapping[str, str]
    state: str
    parameters: Mapping[str, int]
    train_seconds: float | None
    data: str
    pictures: Mapping[str, int]
    splits: Mapping[str, Split]

    def alone(self) -> Run | None:
        """The run with one sample of each picture, where it was scored by several; what that does not have is left out."""
        splits = {
            name: replace(
                split, metrics=split.single, skill=split.single_skill, seconds=None, distribution=None, weights=""
            )
            for name, split in self.splits.items()
            if split.single is not None
        }
        return replace(self, splits=splits, parameters={}, train_seconds=None, state="") if splits else None

    @property
    def reported(self) -> Split:
        """The split whose weights and time are shown: test if it was scored, else val, else train."""
        return next(self.splits[name] for name in reversed(SPLITS) if name in self.splits)


@dataclass(frozen=True)
class Group:
    """Runs on the same data, with the trivial predictors of that data: split -> predictor -> metric -> mean."""

    runs: tuple[Run, ...]
    trivial: Mapping[str, Mapping[str, Mapping[str, Summary]]]

    def best_trivial(self, split: str) -> tuple[str, float] | None:
        """Name and L1 of the trivial predictor with the lowest L1 on the split; None where none was scored."""
        means = {name: scores["l1"].mean for name, scores in self.trivial.get(split, {}).items() if "l1" in scores}
        return min(((k, v) for k, v in means.items() if v is not None), key=lambda item: item[1], default=None)


@dataclass(frozen=True)
class Comparison:
    """Groups of comparable runs, in the order in which the runs were given."""

    groups: tuple[Group, ...]

    @property
    def runs(self) -> tuple[Run, ...]:
        """All runs of all groups."""
        return tuple(run for group in self.groups for run in group.runs)


def collect(paths: Sequence[Path]) -> Comparison:
    """Read scored run folders; a CheckpointError names the first that is no run folder or has no scores."""
    if not paths:
        raise CheckpointError("no run folder was given to compare; name one or more folders that `memdist train` made")
    folders = list(dict.fromkeys(Path(path).resolve() for path in paths))
    runs = [_read(folder, label) for folder, label in zip(folders, _labels(folders), strict=True)]
    groups: dict[tuple[object, ...], list[Run]] = {}
    for run in runs:
        groups.setdefault((run.data, frozenset(split.size for split in run.splits.values())), []).append(run)
    return Comparison(tuple(Group(tuple(members), _trivial(members)) for members in groups.values()))


def _labels(folders: Sequence[Path]) -> list[str]:
    """The folders' names, each with as many parents as all need to differ."""
    for depth in range(1, max(len(folder.parts) for folder in folders) + 1):
        labels = ["/".join(folder.parts[-depth:]) for folder in folders]
        if len(set(labels)) == len(labels):
            return labels
    raise AssertionError(f"folders were not distinct: {folders}")


def _read(folder: Path, label: str) -> Run:
    again = f"`memdist evaluate {shlex.quote(str(folder))} --split all`"
    for name in (rundir.CONFIG, rundir.SPLIT):
        if not (folder / name).is_file():
            raise CheckpointError(
                f"{folder} is no run folder: it has no {name}; give a folder that `memdist train` made"
            )
    scores = rundir.read_json(folder / rundir.SCORES)
    if not scores:
        raise CheckpointError(f"{folder} has no scores yet; {again} gives them")
    state = rundir.read_json(folder / rundir.STATE)
    try:
        settings = config.parse((folder / rundir.CONFIG).read_text(encoding="utf-8"), rundir.CONFIG)
        with open(folder / rundir.SPLIT, newline="", encoding="utf-8") as file:
            rows = sorted(
                tuple(row[k] for k in ("stem", "split", "image_hash", "map_hash")) for row in csv.DictReader(file)
            )
        return Run(
            path=folder,
            label=label,
            model=str(settings["model"]["name"]),
            settings=dict(_leaves(settings)),
            state=_state(state),
            parameters={str(k): _of(v, int) for k, v in (state.get("parameters") or {}).items()},
            train_seconds=_of(state.get("train_seconds"), int, float, None),
            data=hashlib.sha256(json.dumps(rows).encode()).hexdigest(),
            pictures=Counter(row[1] for row in rows),
            splits=_splits(scores),
        )
    except (
        ArithmeticError,
        AttributeError,
        LookupError,
        OSError,
        TypeError,
        ValueError,
        csv.Error,
        ConfigError,
    ) as error:
        kind = "" if isinstance(error, ConfigError) else f"{type(error).__name__}: "
        what = " ".join(f"{kind}{error}".split())
        raise CheckpointError(
            f"{folder} is not as this version of memdist writes a run folder ({what}); restore it or score it anew with"
            f" {again}"
        ) from error


def _splits(scores: Mapping[str, Any]) -> dict[str, Split]:
    found = {name: _split(scores[name]) for name in SPLITS if name in scores}
    if not found:
        raise ValueError(f"{rundir.SCORES} has no scores of {', '.join(SPLITS)}")
    return found


def _split(entry: Mapping[str, Any]) -> Split:
    weights = [f"step {entry['checkpoint']}" + (f" ({entry['choice']})" if entry["choice"] in ("best", "last") else "")]
    weights += ["EMA"] if entry["ema"] else []
    if entry["sampling"]:
        weights.append(words.sampling(entry["sampling"]))
    single = entry.get("single")
    samples = _of((entry["sampling"] or {}).get("samples", 1), int)
    return Split(
        n=max(_of(entry["n"], int), 1),
        size=(_of(entry["size"][0], int), _of(entry["size"][1], int)) if entry["size"] else None,
        weights=" · ".join(weights),
        seconds=_of(entry["seconds"], float, int),
        optimistic=_of(entry["optimistic"], bool),
        metrics=_summaries(entry["metrics"]),
        skill=_of(entry["skill"], float, int, None),
        trivial={predictor: _summaries(metrics) for predictor, metrics in entry["trivial"].items()},
        fixations=_of((entry.get("fixations") or {}).get("sha256"), str, None),
        distribution=_distribution(entry.get("distribution")),
        samples=samples,
        single=_summaries(single["metrics"]) if single else None,
        single_skill=_of(single["skill"], float, int, None) if single else None,
    )


def _distribution(entry: Any) -> Mapping[str, Any] | None:
    """FID or KID as `evaluate` writes it; raises TypeError, ValueError or KeyError."""
    if entry is None:
        return None
    if entry["kind"] not in ("fid", "kid"):
        raise ValueError(f"{entry['kind']!r} is neither fid nor kid")
    for figure in (entry["model"], *entry["trivial"].values()):
        _of(figure["mean"], float, int, None), _of(figure["std"], float, int, None)
    for name in ("n", "subsets", "subset") if entry["kind"] == "kid" else ("n",):
        _of(entry[name], int)
    _of(entry["layer"], str), _of(entry.get("weights_sha256"), str, None)
    return dict(entry)


def _of(value: Any, *kinds: type | None) -> Any:
    """A value of one of these types, of an ordinary size if it is a number; raises TypeError."""
    whole = any(value is None if kind is None else type(value) is kind for kind in kinds)
    if not whole or (isinstance(value, float | int) and not abs(value) <= LARGEST):
        said = repr(value)
        raise TypeError(f"{said if len(said) <= 40 else said[:37] + '...'} stands where it cannot")
    return value


def _summaries(metrics: Mapping[str, Any]) -> dict[str, Summary]:
    return {
        name: Summary(_of(entry["mean"], float, int, None), _of(entry["n"], int), _of(entry["undefined"], int))
        for name, entry in metrics.items()
    }


def _state(state: Mapping[str, Any]) -> str:
    """What a reader must know of a run that has not finished; empty if it has."""
    name = state.get("state", "")
    if name in ("", "finished"):
        return ""
    where = f"{name} at epoch {state['epoch']:.4g}"
    return f"{where}: {state['why']}" if name in ("failed", "diverged") and state.get("why") else where


def _leaves(tree: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    leaves: list[tuple[str, str]] = []
    for key, value in tree.items():
        if isinstance(value, dict) and value:
            leaves += _leaves(value, f"{prefix}{key}.")
        else:
            leaves.append((f"{prefix}{key}", value if isinstance(value, str) else json.dumps(value, default=str)))
    return leaves


def _trivial(runs: Sequence[Run]) -> dict[str, dict[str, Mapping[str, Summary]]]:
    """The same data gives the same trivial predictors, so the first run that has a figure of theirs speaks for all."""
    first: dict[str, dict[str, Mapping[str, Summary]]] = {}
    for run in runs:
        for name, split in run.splits.items():
            for predictor, scores in split.trivial.items():
                known = first.setdefault(name, {})
                known[predictor] = {**scores, **known.get(predictor, {})}
    return first
