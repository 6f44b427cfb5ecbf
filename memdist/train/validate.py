"""What a run measures of itself while it trains."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from memdist import draws, metrics, rundir
from memdist.config import Run
from memdist.data import cache, loader
from memdist.distributed.strategy import Strategy
from memdist.model import Model, Nets, Sampling
from memdist.train import score
from memdist.train.score import Rows

Seen = Callable[[loader.Part, Mapping[str, Tensor], Mapping[str, Tensor]], None]


class Validation(NamedTuple):
    """What was measured."""

    values: dict[str, float | None]
    """`val/...` the model's own scores over all of val and, where maps are predicted, the house's metrics. Undefined values are
    left out of a mean; a mean of nothing is None."""
    grid: Tensor | None = None
    """Sample grid, uint8 [3, H, W]."""
    ranges: tuple[float, float] | None = None
    """Where maps are predicted: how far those of val lie apart, predicted and true, in [0, 2]."""


@dataclass(frozen=True)
class Subsets:
    """Rows that validations look at, the same ones each time."""

    val: Rows
    """All of val: cheap scores."""
    val_maps: Rows
    """Of val: maps are predicted."""
    train_maps: Rows
    """Of train: maps are predicted."""
    grid: Rows
    """Of `val_maps`: shown."""


def subsets(run: Run, pixels: cache.Pixels, train: Rows, val: Rows) -> Subsets:
    """Choose by rank of a hash of the pictures' contents, which neither order nor names change."""
    settings = run.validate_
    val_maps = first(pixels, val, settings.images)
    return Subsets(np.sort(val), val_maps, first(pixels, train, settings.train_images), val_maps[: run.log.images])


def first(pixels: cache.Pixels, rows: Rows, count: int | None, stream: str = "subset") -> Rows:
    """So many rows by rank of a hash of the pictures' contents, which neither order nor names of files change; None: all."""
    ranked = sorted(rows, key=lambda row: draws.key(stream, pixels.image_hashes[row], pixels.stems[row]))
    return np.array(ranked[:count], dtype=np.int64)


def validate(
    run: Run, model: Model, nets: Nets, pixels: cache.Pixels, chosen: Subsets, strategy: Strategy, *, maps: bool
) -> Validation:
    """Measure; with `maps` also the house's metrics at training size over the subsets."""
    means: dict[str, float | None] = {}
    settings = run.validate_
    if model.scores:
        own = score.measure(
            {},
            pixels,
            chosen.val,
            strategy,
            seed=run.seed,
            batch=settings.batch,
            extra=lambda pair: model.score(nets, pair),
        )
        means |= {f"val/{name}": metrics.summarise(values).mean for name, values in own[""].items()}
    if not maps:
        return Validation(means)
    predictor = score.of_model(model, nets, Sampling(sampler=settings.sampler, steps=settings.steps))
    shown: dict[int, Tensor] = {}
    wanted = set(chosen.grid.tolist())

    predicted_range, true_range = _Range(), _Range()

    def look(part: loader.Part, predicted: Mapping[str, Tensor], _: Mapping[str, Tensor]) -> None:
        predicted_range.add(predicted["model"])
        true_range.add(part.pair.map)
        for at, row in enumerate(part.rows.tolist()):
            if row in wanted:
                shown[row] = predicted["model"][at]

    def measured(rows: Rows, seen: Seen | None = None) -> score.Values:
        return score.measure(
            {"model": predictor}, pixels, rows, strategy, seed=run.seed, batch=settings.batch, seen=seen
        )["model"]

    val = measured(chosen.val_maps, look)
    train = measured(chosen.train_maps)
    means["train/l1"] = metrics.summarise(train["l1"]).mean
    means |= {f"val/{name}": metrics.summarise(values).mean for name, values in val.items()}
    grid = _grid(pixels, chosen.grid, shown, strategy) if len(chosen.grid) else None
    return Validation(means, grid, (predicted_range.mean(strategy), true_range.mean(strategy)))


class _Range:
    """How far maps lie apart: exact, whatever the order, the batches and the ranks."""

    def __init__(self) -> None:
        self._low: Tensor | None = None
        self._high: Tensor | None = None

    def add(self, maps: Tensor) -> None:
        """Take maps [N, C, H, W]."""
        low, high = maps.amin(0), maps.amax(0)
        self._low = low if self._low is None else torch.minimum(self._low, low)
        self._high = high if self._high is None else torch.maximum(self._high, high)

    def mean(self, strategy: Strategy) -> float:
        """Mean over pixels of highest less lowest, over all ranks; each has taken some maps."""
        assert self._low is not None and self._high is not None
        low, high = strategy.gather(self._low[None]).amin(0), strategy.gather(self._high[None]).amax(0)
        return float((high - low).mean())


def _grid(pixels: cache.Pixels, rows: Rows, shown: Mapping[int, Tensor], strategy: Strategy) -> Tensor:
    """One line a picture: picture, map, prediction; predictions come from whichever rank made them."""
    shape = pixels.maps.shape[1:]
    mine = torch.zeros(len(rows), *shape, device=strategy.device)
    have = torch.zeros(len(rows), device=strategy.device)
    for at, row in enumerate(rows.tolist()):
        if row in shown:
            mine[at], have[at] = shown[row], 1
    parts = strategy.gather(mine[None]), strategy.gather(have[None])
    # Two ranks may both have a picture that fills up a batch: their predictions are the same, and averaged stay so.
    predicted = ((parts[0] * parts[1][:, :, None, None, None]).sum(0) / parts[1].sum(0)[:, None, None, None]).cpu()
    lines = [strip(pixels.images[row], pixels.maps[row], predicted[at]) for at, row in enumerate(rows)]
    return torch.cat(lines, dim=1)


def strip(image: np.ndarray, truth: np.ndarray, predicted: Tensor) -> Tensor:
    """Picture | map | prediction side by side: uint8 [3, H, 3 W]; the first two uint8 [C, H, W], the last in [-1, 1]."""
    tiles = [torch.from_numpy(np.array(image)), torch.from_numpy(np.array(truth)), to_bytes(predicted)]
    return torch.cat([tile.expand(3, *tile.shape[1:]) for tile in tiles], dim=2)


def to_bytes(maps: Tensor) -> Tensor:
    """Maps in [-1, 1] as uint8, rounded."""
    return ((maps.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).cpu()


def png(picture: Tensor) -> bytes:
    """Encode uint8 [3 or 1, H, W] as PNG."""
    import io

    from PIL import Image

    array = picture.permute(1, 2, 0).contiguous().numpy()
    buffer = io.BytesIO()
    Image.fromarray(array[..., 0] if array.shape[2] == 1 else array).save(buffer, "PNG")
    return buffer.getvalue()


def write_png(path: Path, picture: Tensor) -> None:
    """Write uint8 [3 or 1, H, W] as PNG, whole or not at all."""
    rundir.write_bytes(path, png(picture))
