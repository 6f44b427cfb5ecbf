"""Final scores of a run, beside those of the trivial predictors, into its run folder."""

from __future__ import annotations

import csv
import heapq
import io
import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from memdist import config, metrics, models, rundir
from memdist.data import cache as cache_
from memdist.data import loader
from memdist.data import split as split_
from memdist.distributed import strategy as strategy_
from memdist.errors import CheckpointError, ConfigError
from memdist.model import Pair, Sampling
from memdist.train import restore, score, start, trivial, validate
from memdist.train.score import Predictor, Rows

EXTREMES = 8
"""How many of the best and of the worst pictures, by L1, are kept to look at."""


def evaluate(
    folder: Path, splits: Sequence[str], *, choice: str = "best", ema: bool = True, overrides: Sequence[str] = ()
) -> Any:
    """Score splits of a run and write scores.json, scores.csv and samples/<split>; gives a table of them.

    `overrides` are runtime settings for this time only: where the data lie now, the device, the sampler.
    """
    run = settings_for_reading(folder, overrides)
    strategy = strategy_.make(run)
    try:
        found = restore.restore(folder, choice, ema=ema, device=strategy.device)
        sampling = Sampling(sampler=run.eval.sampler, steps=run.eval.steps)
        found.model.check(sampling)
        data = start.open_data(run, strategy)
        if split_.fingerprint(split_.read(folder / rundir.SPLIT)) != split_.fingerprint(data.table):
            raise CheckpointError(
                f"the pictures, maps or split of data.images = {run.data.images} are not those that {folder} was trained on "
                f"(its {rundir.SPLIT}); restore them, or name the same data with data.images=DIR data.maps=DIR"
            )
        chosen = [name for name in splits if len(data.rows[name])]
        if not chosen:
            raise ConfigError(
                f"{folder} has no {splits[0]} split (data.{splits[0]} is 0); evaluate --split val instead"
            )
        trivials = trivial.fit(data.pixels, data.rows["train"], strategy.device)
        for name in chosen:
            _score_split(folder, run, name, found, sampling, data, trivials, strategy, choice)
        return table(rundir.read_json(folder / rundir.SCORES), chosen)
    finally:
        strategy.close()


def settings_for_reading(folder: Path, overrides: Sequence[str]) -> Any:
    """Settings of a run folder with runtime overrides; the device is chosen anew, as a run may be read elsewhere."""
    trained = restore.settings(folder)
    raw = config.override({**config.plain(trained), "device": "auto"}, overrides)
    run = models.resolve(raw)
    then, now = config.identity(trained), config.identity(run)
    changed = [key for key in now if now[key] != then[key]]
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
    data: start.Data,
    trivials: Mapping[str, Predictor],
    strategy: strategy_.Strategy,
    choice: str,
) -> None:
    pixels, rows = data.pixels, data.rows[name]
    place = {pair.stem: pair for pair in data.pairs}
    opened: list[cache_.Truth] = []

    def decode() -> None:
        files = [place[pixels.stems[row]] for row in rows]
        opened.append(cache_.truth(files, run.eval.size, run.data.map_channels, run.data.cache, run.workers))

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

    extremes = Extremes(pixels)
    values = score.measure(
        {"model": timed, **trivials},
        pixels,
        rows,
        strategy,
        seed=run.seed,
        batch=run.eval.batch,
        truth=truth,
        seen=lambda part, maps, errors: extremes.see(part, maps["model"], errors["model"]),
    )
    spent = float(strategy.gather(torch.tensor([seconds], device=strategy.device)).max())
    samples = folder / rundir.SAMPLES / name
    strategy.first(lambda: shutil.rmtree(samples, ignore_errors=True))
    extremes.write(samples, rows, values["model"]["l1"])
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
    }
    strategy.first(lambda: _write(folder, name, record, pixels, rows, values))


def _summary(values: np.ndarray) -> dict[str, Any]:
    summary = metrics.summarise(values)
    return {"mean": summary.mean, "n": summary.n, "undefined": summary.undefined}


def _write(
    folder: Path,
    name: str,
    record: Mapping[str, Any],
    pixels: cache_.Pixels,
    rows: Rows,
    values: Mapping[str, score.Values],
) -> None:
    """Put a split's scores in place of its former ones; scores.csv first, so that scores.json never speaks of absent lines."""
    columns = ["split", "predictor", "stem", *metrics.METRICS]
    path = folder / rundir.SCORES_CSV
    lines: list[list[str]] = []
    if path.is_file():
        former = list(csv.reader(io.StringIO(path.read_text(encoding="utf-8"))))
        lines = [line for line in former[1:] if line[0] != name] if former and former[0] == columns else []
    for who, by_metric in values.items():
        for at, row in enumerate(rows):
            shown = ["" if np.isnan(by_metric[m][at]) else f"{by_metric[m][at]:.6g}" for m in metrics.METRICS]
            lines.append([name, who, pixels.stems[row], *shown])
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([columns, *lines])
    rundir.write_text(path, text.getvalue())
    scores = rundir.read_json(folder / rundir.SCORES)
    rundir.write_json(folder / rundir.SCORES, {**scores, name: dict(record)})


class Extremes:
    """The best and the worst predictions by L1, kept while a split goes by in constant memory."""

    def __init__(self, pixels: cache_.Pixels) -> None:
        """Nothing seen yet."""
        self._pixels = pixels
        self._best: list[tuple[float, int, Tensor]] = []
        self._worst: list[tuple[float, int, Tensor]] = []

    def see(self, part: loader.Part, maps: Tensor, errors: Tensor) -> None:
        """Take note of a batch; padding is passed over."""
        for at, error in enumerate(errors[: part.valid].tolist()):
            if error != error:
                continue
            for heap, sign in ((self._best, -1.0), (self._worst, 1.0)):
                # Among equals the lower row stays, as in `write`; rows differ, so that maps are never compared.
                entry = (sign * error, -int(part.rows[at]))
                if len(heap) < EXTREMES or entry > heap[0][:2]:
                    put = heapq.heappush if len(heap) < EXTREMES else heapq.heapreplace
                    put(heap, (*entry, maps[at].cpu()))

    def write(self, folder: Path, rows: Rows, errors: np.ndarray) -> None:
        """Write strips picture | map | prediction: best-01-<stem>.png is the best of all.

        `errors` are those of all ranks' `rows`; each rank writes what it has seen itself.
        """
        rundir.make_folder(folder)
        defined = [(float(error), int(row)) for error, row in zip(errors, rows, strict=True) if error == error]
        orders = {"best": sorted(defined), "worst": sorted(defined, key=lambda e: (-e[0], e[1]))}
        for kind, heap in (("best", self._best), ("worst", self._worst)):
            seen = {-row: predicted for _, row, predicted in heap}
            for place, (_, row) in enumerate(orders[kind][:EXTREMES], 1):
                if row in seen:
                    strip = validate.strip(self._pixels.images[row], self._pixels.maps[row], seen[row])
                    # Stems come from file names, which hold no separator.
                    validate.write_png(folder / f"{kind}-{place:02d}-{self._pixels.stems[row]}.png", strip)


def table(scores: Mapping[str, Any], splits: Sequence[str]) -> Any:
    """Scores of splits as a table: the model above the trivial predictors."""
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
    return Group(*parts)


def _cell(summary: Mapping[str, Any]) -> str:
    if summary["mean"] is None:
        return f"undefined for all {summary['undefined']}"
    undefined = f" ({summary['undefined']} undefined)" if summary["undefined"] else ""
    return f"{summary['mean']:.4f}{undefined}"
