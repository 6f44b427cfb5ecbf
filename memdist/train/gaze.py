"""Scoring predictors against fixations, at the pictures' own size."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from memdist import config, draws, metrics, saliency
from memdist.data import cache
from memdist.data import fixations as fixations_
from memdist.data.pairs import PairFile
from memdist.train.score import Rows


class Gaze:
    """The fixations of a run's pictures, ready to score maps of any of them.

    Every value is a function of the prediction, the pictures and the fixations alone: the negatives of a picture follow
    from the content of its file.
    """

    def __init__(self, found: fixations_.Fixations, pixels: cache.Pixels, train: Rows) -> None:
        """Take what was read; the rows of the training split are those whose fixations are others' negatives."""
        self.found = found
        self._pixels = pixels
        self._train = np.array([row for row in train if len(found.places.get(pixels.stems[row], ()))], dtype=np.int64)
        # Positions in every picture's own stream of hashes: whom it gets depends on neither names nor order.
        self._places = np.array([draws.key(pixels.image_hashes[row]) for row in self._train], dtype=np.int64)

    def measure(self, maps: Mapping[str, Tensor], rows: Rows) -> dict[str, dict[str, Tensor]]:
        """Score predictions by predictor, NCHW in [-1, 1], of rows of the cache -> predictor -> metric -> float32[N].

        A picture at a time, on the CPU: what is held at once is one picture's map at its own size.
        """
        values = {name: np.full((len(saliency.METRICS), len(rows)), np.nan) for name in maps}
        host = {name: predicted.detach().cpu().double() for name, predicted in maps.items()}
        for at, row in enumerate(rows.tolist()):
            stem = self._pixels.stems[row]
            if not len(self.found.places.get(stem, ())):
                continue
            size, picture = self.found.sizes[stem], self.picture(row)
            for name, predicted in host.items():
                own = metrics.resize(predicted[at : at + 1], size)[0].numpy()
                scores = saliency.score(saliency.intensity(own), picture)
                values[name][:, at] = [scores[metric] for metric in saliency.METRICS]
        return {
            name: {
                metric: torch.from_numpy(found[i]).float().to(maps[name].device)
                for i, metric in enumerate(saliency.METRICS)
            }
            for name, found in values.items()
        }

    def picture(self, row: int) -> saliency.Picture:
        """Fixated pixels and negatives of a picture that has fixations."""
        stem = self._pixels.stems[row]
        size, places = self.found.sizes[stem], self.found.places[stem]
        seed = draws.key("gaze", self._pixels.image_hashes[row])
        stems = [self._pixels.stems[other] for other in self.others(row)]
        others = [saliency.pixels(self.found.places[s], self.found.sizes[s], size) for s in stems]
        union = np.concatenate(others) if others else np.empty(0, dtype=np.int64)
        return saliency.Picture.of(saliency.pixels(places, size), union, size[0] * size[1], seed)

    def others(self, row: int) -> list[int]:
        """Rows of OTHERS training pictures that have fixations, never a picture itself, by rank of a hash of both contents."""
        hashes = self._pixels.image_hashes
        ranks = draws.seeds(draws.key("others", hashes[row]), self._places)
        ranked = (int(other) for other in self._train[np.argsort(ranks, kind="stable")])
        return list(itertools.islice((o for o in ranked if hashes[o] != hashes[row]), saliency.OTHERS))

    def record(self, rows: Rows) -> dict[str, Any]:
        """What a reader of the figures must know, as JSON: the file, and how many of a split's pictures have fixations."""
        with_ = sum(len(self.found.places.get(self._pixels.stems[row], ())) > 0 for row in rows)
        return {
            "sha256": self.found.sha256,
            "pictures": with_,
            "ignored": self.found.ignored,
            "negatives": {"split": "train", "others": saliency.OTHERS, "splits": saliency.SPLITS},
        }


def read(data: config.Data, pictures: Sequence[PairFile], pixels: cache.Pixels, train: Rows) -> Gaze | None:
    """Read data.fixations, if it is set; raises DataError as `fixations.read` does."""
    if data.fixations is None:
        return None
    found = fixations_.read(data.fixations, {pair.stem: pair for pair in pictures}, crop=data.crop)
    return Gaze(found, pixels, train)


def table(name: str, record: Mapping[str, Any], cell: Callable[[Mapping[str, Any]], str]) -> Any:
    """Scores of a split against fixations as a table, the model above the trivial predictors; `cell` shows a mean."""
    from rich.table import Table

    shown = Table(title=f"{name}: against fixations, at the pictures' own size", title_justify="left")
    shown.add_column("predictor")
    for metric in saliency.METRICS.values():
        shown.add_column(f"{metric.name} ({metric.better} is better)", justify="right")
    for who, means in (("model", record["metrics"]), *record["trivial"].items()):
        shown.add_row(who, *(cell(means[metric]) for metric in saliency.METRICS))
    return shown


def sentence(record: Mapping[str, Any], total: int) -> str:
    """What stands below a table of scores about fixations."""
    told = f"fixations of {record['pictures']} of {total} pictures"
    if record["pictures"] < total:
        told += " (the others are undefined)"
    if record["ignored"]:
        told += f"; {record['ignored']} stems of the file belong to no picture of this run and are ignored"
    return f"{told}; sauc's negatives: fixations of {saliency.OTHERS} other pictures of train"
