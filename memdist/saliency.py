"""Metrics of a map against the places at which people looked: one value a picture, each with its formula and range.

The definitions are those of the MIT saliency benchmark (Bylinskii, Judd, Oliva, Torralba and Durand 2019, "What do different
evaluation metrics tell us about saliency models?"; its *.m files), with these decisions where they leave some open:

- Fixations on one pixel count once, as in the benchmark's binary fixation maps.
- AUC-Judd has a threshold at each distinct value that was looked at. Where no two values are equal this is the benchmark's
  figure to the last digit. Where some are, its formula without jitter counts a tie as false alarms over and over, and with
  jitter gives a random number; thresholds at distinct values give each tie its straight line.
- The negatives of AUC-Borji and of the shuffled AUC are drawn from a hash of the picture's content: the same in any
  process, batch and order. A value on a threshold is above it, also where rounding left it 1e-9 below.
- A flat map ranks no place above another: its AUCs are 0.5 (the benchmark: undefined), its NSS is undefined.

What is undefined is NaN. numpy alone; the functions take a map as flat float64 [P] and pixels as flat indices into it, row
after row, and every figure depends on its picture alone.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from memdist import draws
from memdist.metrics import FLAT

SPLITS = 100
"""Draws of negatives over which AUC-Borji and the shuffled AUC are averaged."""
STEP = 0.1
"""Distance of the thresholds of AUC-Borji and of the shuffled AUC, on maps stretched to [0, 1]."""
OTHERS = 10
"""Training pictures whose fixations are the shuffled AUC's negatives."""
_HAIR = 1e-9

Places = NDArray[np.int64]


@dataclass(frozen=True)
class Metric:
    """What a reader must know of a metric; the fields are those of `metrics.Metric`."""

    name: str
    formula: str
    range: tuple[float, float]
    better: Literal["lower", "higher"]
    channels: str
    primary: bool


def intensity(maps: NDArray[np.floating]) -> NDArray[np.float64]:
    """One map [C, H, W] in [-1, 1] -> intensity [H * W] in [0, 1], the channel mean; what differs by less than FLAT ties."""
    digits = round(-math.log10(FLAT))
    return np.round((maps.mean(axis=0, dtype=np.float64).reshape(-1) + 1) / 2, digits)


def nss(values: NDArray[np.float64], fixated: Places) -> float:
    """Normalised scanpath saliency (Peters et al. 2005): mean of (v - mean) / std over the distinct `fixated` pixels.

    The mean and the standard deviation, with P - 1 as Matlab's, are those of the map's P `values`. NaN without fixations,
    for a flat map, and for one with values that are no finite numbers.
    """
    if not len(fixated) or not np.isfinite(values).all() or _flat(values):
        return math.nan
    return float((values[fixated].mean() - values.mean()) / values.std(ddof=1))


def auc_judd(values: NDArray[np.float64], fixated: Places) -> float:
    """Area under the curve of hits over false alarms, with a threshold at each distinct value of the `fixated` pixels.

    `fixated` are distinct. With n of P pixels fixated and t a threshold: hits #{fixated >= t} / n, false alarms
    #{others >= t} / (P - n); (0, 0) and (1, 1) end the curve, straight lines join it. NaN without fixations,
    where every pixel is fixated, and for a map with values that are no finite numbers.
    """
    n, others = len(fixated), len(values) - len(fixated)
    if not n or not others or not np.isfinite(values).all():
        return math.nan
    if _flat(values):
        return 0.5
    thresholds, counts = np.unique(values[fixated], return_counts=True)
    hits = np.cumsum(counts[::-1])
    alarms = len(values) - np.searchsorted(np.sort(values), thresholds[::-1]) - hits
    return float(_area(hits / n, alarms / others))


def auc_of_draws(values: NDArray[np.float64], fixated: Places, negatives: Places) -> NDArray[np.float64]:
    """AUC-Borji or shuffled AUC of each draw: distinct `fixated` [n] against `negatives` [k, draws] -> float64 [draws].

    The map is stretched to [0, 1]; the thresholds are 0, STEP, 2 STEP ... 1. At each: hits #{fixated >= t} / n, false alarms
    #{negatives >= t} / k; (0, 0) ends the curve, straight lines join it. All NaN without fixations or negatives,
    and for a map with values that are no finite numbers.
    """
    (k, draws_), n = negatives.shape, len(fixated)
    if not n or not k or not np.isfinite(values).all():
        return np.full(draws_, math.nan)
    if _flat(values):
        return np.full(draws_, 0.5)
    count = round(1 / STEP) + 1
    low, high = values.min(), values.max()
    thresholds = np.arange(count) * STEP - _HAIR

    def above(chosen: Places) -> NDArray[np.float64]:
        """Part of each column's pixels at or above each threshold, highest first: [count, columns]."""
        level = np.searchsorted(thresholds, (values[chosen] - low) / (high - low), side="right") - 1
        level += np.arange(chosen.shape[1]) * count
        numbers = np.bincount(level.reshape(-1), minlength=count * chosen.shape[1]).reshape(-1, count)
        return np.cumsum(numbers[:, ::-1], axis=1).T / len(chosen)

    return np.asarray(_area(above(fixated[:, None]), above(negatives)), dtype=np.float64)


def anywhere(seed: int, n: int, pixels: int) -> Places:
    """Negatives of AUC-Borji: [n, SPLITS] drawn uniformly, with replacement, from all `pixels`."""
    hashed = draws.seeds(draws.key("borji", seed), np.arange(n * SPLITS)).view(np.uint64)
    return (hashed % np.uint64(pixels)).astype(np.int64).reshape(n, SPLITS)


def elsewhere(seed: int, n: int, others: Places) -> Places:
    """Negatives of the shuffled AUC: [min(n, others), SPLITS], each column drawn without replacement from distinct `others`.

    They are those whose hashes are the least, in no order.
    """
    count = min(n, len(others))
    found = np.empty((count, SPLITS), dtype=np.int64)
    if 0 < count < len(others):
        for split in range(SPLITS):
            hashed = draws.seeds(draws.key("shuffled", seed, split), np.arange(len(others)))
            found[:, split] = others[np.argpartition(hashed, count)[:count]]
    else:
        found[:] = others[:count, None]
    return found


def scaled(
    places: NDArray[np.integer], size: tuple[int, int], target: tuple[int, int]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Pixels (x, y) [n, 2] of a picture of `size` (height, width) -> x and y of the same places in one of size `target`.

    A place is the middle of its pixel, so that pixels keep themselves where the sizes are the same.
    """
    (height, width), (high, wide) = size, target
    x, y = places[:, 0].astype(np.int64), places[:, 1].astype(np.int64)
    return (2 * x + 1) * wide // (2 * width), (2 * y + 1) * high // (2 * height)


def pixels(places: NDArray[np.integer], size: tuple[int, int], target: tuple[int, int] | None = None) -> Places:
    """Distinct flat indices, sorted, of pixels (x, y) [n, 2] of a picture of `size`; in one of size `target`, if it is given."""
    target = target or size
    x, y = scaled(places, size, target)
    return np.unique(y * target[1] + x)


@dataclass(frozen=True)
class Picture:
    """Where a picture was looked at, and the negatives that all predictions of it share."""

    fixated: Places
    """Distinct flat indices."""
    anywhere: Places
    elsewhere: Places

    @classmethod
    def of(cls, fixated: Places, others: Places, total: int, seed: int) -> Picture:
        """Draw the negatives of a picture of `total` pixels; `others`: other pictures' fixations, scaled to this one's size."""
        fixated, others = np.unique(fixated), np.unique(others)
        return cls(fixated, anywhere(seed, len(fixated), total), elsewhere(seed, len(fixated), others))


def score(values: NDArray[np.float64], picture: Picture) -> dict[str, float]:
    """All METRICS of a map's intensity [P] at the picture's own size: name -> value, NaN where undefined."""
    borji = auc_of_draws(values, picture.fixated, picture.anywhere).mean()
    return {
        "nss": nss(values, picture.fixated),
        "auc-judd": auc_judd(values, picture.fixated),
        # As in the benchmark, a single fixation has no AUC-Borji.
        "auc-borji": float(borji) if len(picture.fixated) > 1 else math.nan,
        "sauc": float(auc_of_draws(values, picture.fixated, picture.elsewhere).mean()),
    }


def _flat(values: NDArray[np.float64]) -> bool:
    return bool(values.max() - values.min() < FLAT)


def _area(hits: NDArray[np.float64], alarms: NDArray[np.float64]) -> NDArray[np.float64]:
    """Area below the curve through (0, 0), (alarms, hits) in ascending order along the first axis, and (1, 1)."""
    hits, alarms = np.broadcast_arrays(hits, alarms)
    ends = np.zeros((1, *hits.shape[1:]))
    y, x = (np.concatenate([ends, part, ends + 1]) for part in (hits, alarms))
    return np.asarray((np.diff(x, axis=0) * (y[1:] + y[:-1])).sum(axis=0) / 2)


_INTENSITY = "intensity: the channel mean, mapped to [0, 1], at the picture's own size"
_FLAT_IS_CHANCE = "0.5 for a flat prediction"
_ALL = (
    Metric(
        name="nss",
        formula="mean over the distinct fixated pixels of (v - mean) / std, both over the whole map, std with N - 1;"
        " undefined for a flat prediction (spans less than 1e-6) and without fixations",
        range=(-math.inf, math.inf),
        better="higher",
        channels=_INTENSITY,
        primary=True,
    ),
    Metric(
        name="auc-judd",
        formula="area under hits over false alarms, a threshold at each distinct value of a fixated pixel, false alarms"
        f" among all other pixels, no jitter; {_FLAT_IS_CHANCE}; undefined without fixations",
        range=(0.0, 1.0),
        better="higher",
        channels=_INTENSITY,
        primary=True,
    ),
    Metric(
        name="auc-borji",
        formula="area under hits over false alarms, thresholds 0, 0.1 ... 1 of the map stretched to [0, 1], false alarms"
        f" among as many pixels drawn from the whole picture, mean of {SPLITS} draws; {_FLAT_IS_CHANCE}; undefined with"
        " fewer than 2 fixated pixels",
        range=(0.0, 1.0),
        better="higher",
        channels=_INTENSITY,
        primary=True,
    ),
    Metric(
        name="sauc",
        formula=f"shuffled AUC: as AUC-Borji, but false alarms among the fixations of {OTHERS} other pictures of the"
        f" training split, scaled to this one's size; {_FLAT_IS_CHANCE}; undefined without fixations",
        range=(0.0, 1.0),
        better="higher",
        channels=_INTENSITY,
        primary=True,
    ),
)
METRICS: Mapping[str, Metric] = {metric.name: metric for metric in _ALL}
"""Every metric by name, in the order in which scores are shown."""
