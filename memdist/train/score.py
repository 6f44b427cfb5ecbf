"""Scoring predictors over pictures: the model and the trivial ones alike, shared by all ranks, with one code."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from memdist import metrics
from memdist.data import cache, loader
from memdist.distributed import hang
from memdist.distributed.strategy import Strategy
from memdist.model import Model, Nets, Pair, Sampling

Rows = npt.NDArray[np.int64]
Values = dict[str, npt.NDArray[np.float64]]
"""Metric -> float64 [n], one value for each of the rows asked for, NaN where undefined."""


Predictor = Callable[[Pair, Rows], Tensor]
"""(batch, its rows in the cache [N]) -> maps [N, C, H, W] float32 in [-1, 1]."""


def of_model(model: Model, nets: Nets, sampling: Sampling) -> Predictor:
    """Predict as the model does, clamped."""

    def predict(batch: Pair, _: Rows) -> Tensor:
        return model.predict(nets, batch.image, batch.seed, sampling).clamp(-1, 1)

    return predict


@torch.no_grad()
def measure(
    predictors: Mapping[str, Predictor],
    pixels: cache.Pixels,
    rows: Rows,
    strategy: Strategy,
    *,
    seed: int,
    batch: int,
    truth: Callable[[int], Tensor] | None = None,
    extra: Callable[[Pair], Mapping[str, Tensor]] | None = None,
    beside: Callable[[Mapping[str, Tensor], Rows], Mapping[str, Mapping[str, Tensor]]] | None = None,
    seen: Callable[[loader.Part, Mapping[str, Tensor], Mapping[str, Tensor]], None] | None = None,
) -> dict[str, Values]:
    """Score predictors on rows of the cache; every rank takes its share and all get the whole.

    Without `truth` maps are compared at training size; with it, at the size of `truth(row)`, [C, h, w] in [-1, 1] on the
    device. `extra` gives further values a picture, which stand under the name "". `beside` gives further metrics of all
    predictions of a batch, by predictor and metric: float32[N] on their device. `seen` is shown each of this rank's batches,
    with predictions and L1 by predictor.
    """
    mine: list[Rows] = []
    parts: dict[str, dict[str, list[Tensor]]] = {name: {} for name in predictors}
    if extra is not None:
        parts[""] = {}
    hang.touch("validation batch", 0)
    for number, part in enumerate(
        loader.batches(
            pixels, rows, seed=seed, batch=batch, rank=strategy.rank, world=strategy.world, device=strategy.device
        ),
        1,
    ):
        pair, these = part.pair, part.rows
        mine.append(these)
        maps: dict[str, Tensor] = {}
        errors: dict[str, Tensor] = {}
        for name, predictor in predictors.items():
            with strategy.autocast():
                prediction = predictor(pair, these).float()
            values = metrics.score(prediction, pair.map) if truth is None else _at_size(prediction, these, truth)
            maps[name], errors[name] = prediction, values["l1"]
            for metric, value in values.items():
                parts[name].setdefault(metric, []).append(value)
        if beside is not None:
            for name, more in beside(maps, these).items():
                for metric, value in more.items():
                    parts[name].setdefault(metric, []).append(value)
        if extra is not None:
            with strategy.autocast():
                for metric, value in extra(pair).items():
                    parts[""].setdefault(metric, []).append(value)
        if seen is not None:
            seen(part, maps, errors)
        hang.touch("validation batch", number)
    order = strategy.gather(torch.from_numpy(np.concatenate(mine)).to(strategy.device)).cpu().numpy()
    place = {int(row): at for at, row in enumerate(order)}
    chosen = np.array([place[int(row)] for row in rows])
    gathered: dict[str, Values] = {}
    for name, by_metric in parts.items():
        gathered[name] = {}
        for metric, pieces in by_metric.items():
            gathered[name][metric] = strategy.gather(torch.cat(pieces).float()).cpu().double().numpy()[chosen]
    return gathered


def _at_size(prediction: Tensor, rows: Rows, truth: Callable[[int], Tensor]) -> dict[str, Tensor]:
    """Score each map at the size of its truth."""
    found: dict[str, Tensor] = {}
    for index, resized, truths in by_size(prediction, rows, truth):
        for metric, value in metrics.score(resized, truths).items():
            found.setdefault(metric, value.new_empty(len(rows)))[index] = value
    return found


def by_size(prediction: Tensor, rows: Rows, truth: Callable[[int], Tensor]) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Bring maps to the size of their truths, all of one size at once: int64 places in the batch, maps, truths."""
    truths = [truth(int(row)) for row in rows]
    shapes = [(t.shape[1], t.shape[2]) for t in truths]
    for shape in dict.fromkeys(shapes):
        chosen = [i for i, s in enumerate(shapes) if s == shape]
        index = torch.tensor(chosen, device=prediction.device)
        yield index, metrics.resize(prediction[index], shape), torch.stack([truths[i] for i in chosen])
