"""Scores, written into the run folder and shown."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from memdist import metrics, rundir, saliency
from memdist.config import words
from memdist.data import cache as cache_
from memdist.errors import CheckpointError
from memdist.train import distribution, gaze, score, validate
from memdist.train.score import Rows

SINGLE = "one sample"
"""What the model's first sample is called beside what is made of k of them."""

_HEAD = ("split", "predictor", "stem")
"""What tells the lines of scores.csv apart."""


def summary(values: np.ndarray) -> dict[str, Any]:
    """Mean of a metric over pictures, as scores.json has it."""
    found = metrics.summarise(values)
    return {"mean": found.mean, "n": found.n, "undefined": found.undefined}


def ready(folder: Path) -> None:
    """Raise a CheckpointError where scores could not be put once they are there, before hours are spent on them."""
    probe = rundir.temporary(folder / rundir.SCORES)
    with rundir.naming(folder):
        # Rights say nothing of a disk that is full or mounted read-only.
        try:
            probe.write_bytes(bytes(4096))
        finally:
            probe.unlink(missing_ok=True)
    rundir.samples(folder)
    rundir.read_json(folder / rundir.SCORES)
    _former_lines(folder)


def _former_lines(folder: Path) -> list[dict[str, str]]:
    """Lines of scores.csv, unless it has other columns than are written now."""
    path = folder / rundir.SCORES_CSV
    if not path.is_file():
        return []
    try:
        former = csv.DictReader(io.StringIO(path.read_text(encoding="utf-8"), newline=""))
        whole = set(former.fieldnames or ()) >= {*_HEAD, *metrics.METRICS}
        return list(former) if whole else []
    except (OSError, ValueError, csv.Error) as error:
        raise CheckpointError(f"{path} cannot be read as a table: {error}; restore it or delete it") from error


def _show(folder: Path, strips: Mapping[str, Tensor]) -> None:
    """Put strips in place of a folder of former ones, which stay until the new ones are whole."""
    rundir.sweep(rundir.samples(folder.parent.parent))
    with rundir.new_folder(folder) as beside:
        for name, strip in strips.items():
            validate.write_png(beside / name, strip)
        if folder.is_symlink() or folder.is_file():
            folder.unlink()
        else:
            rundir.remove_folder(folder)


def write(
    folder: Path,
    name: str,
    record: Mapping[str, Any],
    pixels: cache_.Pixels,
    rows: Rows,
    values: Mapping[str, score.Values],
    strips: Mapping[str, Tensor],
    pages: Mapping[str, Tensor] | None,
) -> None:
    """Put a split's scores in place of its former ones; scores.csv first, so that scores.json never speaks of absent lines."""
    lines = [line for line in _former_lines(folder) if line["split"] != name]
    _show(folder / rundir.SAMPLES / name, strips)
    if pages is not None:
        _show(folder / rundir.SAMPLES / f"{name}-grid", pages)
    shown = [*metrics.METRICS, *(m for m in saliency.METRICS if m in values["model"])]
    for who, by_metric in values.items():
        for at, row in enumerate(rows):
            figures = {m: "" if np.isnan(by_metric[m][at]) else f"{by_metric[m][at]:.6g}" for m in shown}
            lines.append({"split": name, "predictor": who, "stem": pixels.stems[row], **figures})
    # Columns that only some splits have are empty in the others' lines.
    columns = [*_HEAD, *metrics.METRICS]
    columns += [m for m in saliency.METRICS if m in shown or any(line.get(m) for line in lines)]
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, restval="", extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    rundir.write_text(folder / rundir.SCORES_CSV, text.getvalue())
    scores = rundir.read_json(folder / rundir.SCORES)
    rundir.write_json(folder / rundir.SCORES, {**scores, name: dict(record)})


def table(scores: Mapping[str, Any], splits: Sequence[str], note: str | None = None) -> Any:
    """Scores of splits as a table: the model above the trivial predictors; `note` below."""
    from rich.console import Group
    from rich.table import Table

    parts: list[Any] = []
    for name in splits:
        record = scores[name]
        how = f"checkpoint {record['checkpoint']} ({record['choice']}{', averaged weights' if record['ema'] else ''})"
        if record["sampling"]:
            how += f", {words.sampling(record['sampling'])}"
        selected = "; selected on: optimistic" if record["optimistic"] else ""
        shown = Table(title=f"{name}: {record['n']} pictures, {how}{selected}", title_justify="left")
        shown.add_column("predictor")
        for metric in metrics.METRICS.values():
            shown.add_column(
                f"{metric.name} ({'lower' if metric.better == 'lower' else 'higher'} is better)", justify="right"
            )
        single = [(SINGLE, record["single"]["metrics"])] if record.get("single") else []
        for who, means in (("model", record["metrics"]), *single, *record["trivial"].items()):
            shown.add_row(who, *(_cell(means[metric]) for metric in metrics.METRICS))
        parts.append(shown)
        if record["skill"] is not None:
            parts.append(f"skill over the best trivial predictor (1 - L1 / its L1): {record['skill']:+.3f}\n")
        if record["fixations"]:
            parts += [gaze.table(name, record, _cell), gaze.sentence(record["fixations"], record["n"]) + "\n"]
        if record["distribution"]:
            parts.append(distribution.sentence(record["distribution"]) + "\n")
    if any(scores[name]["distribution"] is None for name in splits):
        parts.append(distribution.UNASKED)
    return Group(*parts, *([note] if note else []))


def _cell(summary: Mapping[str, Any]) -> str:
    if summary["mean"] is None:
        return f"undefined for all {summary['undefined']}"
    undefined = f" ({summary['undefined']} undefined)" if summary["undefined"] else ""
    return f"{summary['mean']:.4f}{undefined}"
