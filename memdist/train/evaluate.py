"""Final scores of a run, beside those of the trivial predictors, into its run folder."""

from __future__ import annotations

import contextlib
import csv
import io
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from memdist import config, locks, metrics, models, rundir, saliency
from memdist.data import cache as cache_
from memdist.data import fixations, loader, sources
from memdist.data import split as split_
from memdist.data.pairs import View
from memdist.distributed import strategy as strategy_
from memdist.errors import CheckpointError, ConfigError
from memdist.model import Pair, Sampling
from memdist.train import dataset, distribution, extremes, gaze, imported, restore, score, trivial, validate
from memdist.train.score import Predictor, Rows

_HEAD = ("split", "predictor", "stem")
"""What tells the lines of scores.csv apart."""


def evaluate(
    folder: Path, splits: Sequence[str], *, choice: str = "best", ema: bool = True, overrides: Sequence[str] = ()
) -> Any:
    """Score splits of a run and write scores.json, scores.csv and samples/<split>; gives a table of them.

    `overrides` are runtime settings for this time only: where the data lie now, the device, the sampler.
    """
    run = settings_for_reading(folder, overrides)
    strategy = strategy_.make(run)
    try:
        # Chosen once for all ranks: the run may be training meanwhile.
        step = (
            strategy_.from_main(strategy, lambda: restore.chosen_step(folder, choice)) if strategy.world > 1 else None
        )
        found = restore.restore(folder, choice, ema=ema, device=strategy.device, step=step)
        sampling = Sampling(sampler=run.eval.sampler, steps=run.eval.steps)
        found.model.check(sampling)
        extractor = distribution.load(run.eval.fid_weights, strategy.device)
        fixations.check(run.data.fixations)
        strategy.first(lambda: _ready(folder))
        data = dataset.load(run, strategy)
        foreign = imported.is_imported(folder)
        if not foreign and split_.fingerprint(split_.read(folder / rundir.SPLIT)) != split_.fingerprint(data.table):
            raise CheckpointError(
                f"the pictures, maps or split of {sources.said(run.data)} are not those that {folder} was trained on "
                f"(its {rundir.SPLIT}); restore them, or say where the same data lie now ({sources.example(run.data)})"
            )
        chosen = [name for name in splits if len(data.rows[name])]
        if not chosen:
            raise ConfigError(
                f"{folder} has no {splits[0]} split (data.{splits[0]} is 0); evaluate --split val instead"
            )
        looked = gaze.read(run.data, data.pairs, data.pixels, data.rows["train"])
        if foreign:
            strategy.first(lambda: imported.adopt(folder, data.table))
        trivials = trivial.fit(data.pixels, data.rows["train"], strategy.device)
        for name in chosen:
            _score_split(folder, run, name, found, sampling, data, trivials, looked, extractor, strategy, choice)
        return table(rundir.read_json(folder / rundir.SCORES), chosen, imported.said(folder) if foreign else None)
    finally:
        strategy.close()


def settings_for_reading(folder: Path, overrides: Sequence[str]) -> Any:
    """Settings of a run folder with runtime overrides; the device is chosen anew, as a run may be read elsewhere."""
    trained = restore.settings(folder)
    raw = config.override({**config.plain(trained), "device": "auto"}, overrides)
    run = models.resolve(raw)
    then, now = config.identity(trained), config.identity(run)
    free = imported.SPLIT_KEYS if imported.is_imported(folder) else ()
    changed = [key for key in now if now[key] != then[key] and key not in free]
    if changed:
        raise ConfigError(
            f"{changed[0]} says what {folder} is and cannot be changed when it is read; runtime settings can"
        )
    return run


def _score_split(
    folder: Path,
    run: Any,
    name: str,
    found: restore.Restored,
    sampling: Sampling,
    data: dataset.Dataset,
    trivials: Mapping[str, Predictor],
    looked: gaze.Gaze | None,
    extractor: distribution.Extractor | None,
    strategy: strategy_.Strategy,
    choice: str,
) -> None:
    pixels, rows = data.pixels, data.rows[name]
    place = {pair.stem: pair for pair in data.pairs}
    opened: list[cache_.Truth] = []

    def decode() -> None:
        files = [place[pixels.stems[row]] for row in rows]
        opened.append(cache_.truth(files, View.of(run.data, run.eval.size), run.data.cache, run.workers))

    strategy.first(decode)
    if not opened:
        decode()
    at = {int(row): i for i, row in enumerate(rows)}

    def truth(row: int) -> Tensor:
        return loader.floats(torch.from_numpy(opened[0][at[row]]).to(strategy.device))

    seconds = 0.0
    predict = score.of_model(found.model, found.nets, sampling)

    def timed(pair: Pair, these: Rows) -> Tensor:
        nonlocal seconds
        before = time.perf_counter()
        maps = predict(pair, these)
        if maps.device.type == "cuda":
            torch.cuda.synchronize(maps.device)
        seconds += time.perf_counter() - before
        return maps

    seen = extremes.Extremes(pixels)
    predictors = {"model": timed, **trivials}
    distance = distribution.Distance(extractor, list(predictors), len(rows), truth, strategy) if extractor else None

    def see(part: loader.Part, maps: Mapping[str, Tensor], errors: Mapping[str, Tensor]) -> None:
        seen.see(part, maps["model"], errors["model"])
        if distance is not None:
            distance.see(part, maps)

    values = score.measure(
        predictors,
        pixels,
        rows,
        strategy,
        seed=run.seed,
        batch=run.eval.batch,
        truth=truth,
        beside=looked.measure if looked else None,
        seen=see,
    )
    spent = float(strategy.gather(torch.tensor([seconds], device=strategy.device)).max())
    strips = seen.strips(rows, values["model"]["l1"], strategy)
    sizes = sorted(set(opened[0].sizes))
    means = {who: {m: _summary(v) for m, v in by.items()} for who, by in values.items()}
    reached = [v["l1"]["mean"] for who, v in means.items() if who != "model" and v["l1"]["mean"] is not None]
    own = means["model"]["l1"]["mean"]
    record = {
        "checkpoint": found.step,
        "choice": choice,
        "ema": found.averaged,
        "n": len(rows),
        "size": list(sizes[0]) if len(sizes) == 1 else None,
        "sampling": {"sampler": sampling.sampler, "steps": sampling.steps} if found.model.samples else None,
        "seconds": spent,
        "optimistic": name == "val" or len(data.rows["test"]) == 0,
        "metrics": means.pop("model"),
        "skill": None if own is None or not reached or min(reached) == 0 else 1 - own / min(reached),
        "trivial": means,
        "fixations": looked.record(rows) if looked else None,
        "distribution": distance.record() if distance else None,
    }
    with contextlib.ExitStack() as held:
        # Another process may score the same run: they take turns, so that neither loses what the other wrote.
        def wait_our_turn() -> None:
            held.enter_context(locks.hold(folder, rundir.SCORING_LOCK, queue=True))

        strategy.first(wait_our_turn)
        strategy.first(lambda: _write(folder, name, record, pixels, rows, values, strips))


def _summary(values: np.ndarray) -> dict[str, Any]:
    summary = metrics.summarise(values)
    return {"mean": summary.mean, "n": summary.n, "undefined": summary.undefined}


def _ready(folder: Path) -> None:
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


def _write(
    folder: Path,
    name: str,
    record: Mapping[str, Any],
    pixels: cache_.Pixels,
    rows: Rows,
    values: Mapping[str, score.Values],
    strips: Mapping[str, Tensor],
) -> None:
    """Put a split's scores in place of its former ones; scores.csv first, so that scores.json never speaks of absent lines."""
    lines = [line for line in _former_lines(folder) if line["split"] != name]
    _show(folder / rundir.SAMPLES / name, strips)
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
            how += f", {record['sampling']['sampler']} with {record['sampling']['steps']} steps"
        selected = "; selected on: optimistic" if record["optimistic"] else ""
        shown = Table(title=f"{name}: {record['n']} pictures, {how}{selected}", title_justify="left")
        shown.add_column("predictor")
        for metric in metrics.METRICS.values():
            shown.add_column(
                f"{metric.name} ({'lower' if metric.better == 'lower' else 'higher'} is better)", justify="right"
            )
        for who, means in (("model", record["metrics"]), *record["trivial"].items()):
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
