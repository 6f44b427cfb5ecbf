"""What a trial is worth: one number from the values that its metric had over its epochs."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Literal

Scope = Literal["last", "best", "last-5-mean"]
"""last: the value of the last epoch; best: the best of all; last-5-mean: the mean of the last five values."""
Mode = Literal["min", "max"]
"""Whether smaller or larger values are better."""

_FEW = 5


def objective(
    values: Iterable[tuple[int, float]],
    scope: Scope = "last-5-mean",
    mode: Mode = "min",
    until: int | None = None,
) -> float | None:
    """What (epoch, value) pairs are worth; None where there is none.

    Of an epoch that stands twice, as after a resumption, the later pair counts; epochs after `until` do not. Where a value
    that the scope looks at is no finite number the whole is none (nan), but `best` takes the best of those that are.
    """
    latest = dict(values)
    found = [latest[epoch] for epoch in sorted(latest) if until is None or epoch <= until]
    if not found:
        return None
    if scope == "best":
        finite = [value for value in found if math.isfinite(value)]
        return (min if mode == "min" else max)(finite) if finite else math.nan
    looked = found[-1:] if scope == "last" else found[-_FEW:]
    return math.fsum(looked) / len(looked) if all(map(math.isfinite, looked)) else math.nan
