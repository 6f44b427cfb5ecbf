"""A sampling that a study has begun to measure: values of the first pictures, kept so that no hours are lost."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from memdist import metrics
from memdist.model import Sampling
from memdist.train import score
from memdist.train.recipe import Recipe
from memdist.train.studytable import Setting

Key = tuple[Sampling, str]
"""A sampling and the arithmetic in which it was measured."""


def recipes(sampling: Sampling, several: Sequence[int]) -> list[Recipe]:
    """What is made of the samples of one sampling; the median of two is their mean."""
    return [Recipe(sampling, k, how) for k in several for how in ("mean", "median") if how == "mean" or k > 2]


@dataclass
class Begun:
    """The pictures of a sampling that are measured so far, from the first on."""

    key: Key
    made: list[Recipe]
    l1: list[list[float]] = field(default_factory=list)
    """Of each recipe, one value a picture, NaN where undefined."""
    cc: list[list[float]] = field(default_factory=list)
    seconds: float = 0.0
    """Of sampling, for all samples."""

    def __post_init__(self) -> None:
        self.l1, self.cc = self.l1 or [[] for _ in self.made], self.cc or [[] for _ in self.made]

    @property
    def count(self) -> int:
        """Pictures so far."""
        return len(self.l1[0])

    def fits(self, key: Key, made: Sequence[Recipe]) -> bool:
        """Whether it is a part of this."""
        return self.key == key and self.made == made

    def add(self, values: Mapping[str, score.Values], seconds: float) -> None:
        """Take the values of more pictures, by the number of the recipe."""
        for at in range(len(self.made)):
            self.l1[at] += values[str(at)]["l1"].tolist()
            self.cc[at] += values[str(at)]["cc"].tolist()
        self.seconds += seconds

    def settings(self, evaluations: int) -> list[Setting]:
        """Means over all pictures; `evaluations` are those of one map."""
        most, found = max(one.samples for one in self.made), []
        for one, l1s, ccs in zip(self.made, self.l1, self.cc, strict=True):
            l1, cc = metrics.summarise(np.array(l1s)), metrics.summarise(np.array(ccs))
            seconds = one.samples * self.seconds / most
            found.append(Setting(one, evaluations, None if l1.undefined else l1.mean, cc.mean, seconds))
        return found

    def record(self) -> dict[str, Any]:
        """As JSON, which has no NaN."""
        values = {
            name: [[None if math.isnan(one) else one for one in row] for row in getattr(self, name)]
            for name in ("l1", "cc")
        }
        recipes = [[one.samples, one.combine] for one in self.made]
        return {
            "sampling": asdict(self.key[0]),
            "precision": self.key[1],
            "made": recipes,
            **values,
            "seconds": self.seconds,
        }

    @classmethod
    def read(cls, record: Any) -> Begun | None:
        """What `record` gave; None for anything else, which is measured anew."""
        try:
            sampling = Sampling(**record["sampling"])
            made = [Recipe(sampling, int(k), str(how)) for k, how in record["made"]]
            l1, cc = (
                [[math.nan if one is None else float(one) for one in row] for row in record[name]]
                for name in ("l1", "cc")
            )
            whole = len(l1) == len(cc) == len(made) > 0 and len({len(row) for row in (*l1, *cc)}) == 1
            return cls((sampling, str(record["precision"])), made, l1, cc, float(record["seconds"])) if whole else None
        except (KeyError, TypeError, ValueError):
            return None
