"""Axes of figures: where a value lies, and which round values are written beside it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

_LEAST = 1e-100
"""What is not above it is no figure of anything, and would leave no room for a margin."""


class Axis(NamedTuple):
    """Values from `low` to `high`, at the lengths from `start` to `end`."""

    low: float
    high: float
    logarithmic: bool
    start: float
    end: float

    def at(self, value: float) -> float:
        """Where a value lies."""
        if self.logarithmic:
            low = math.log(self.low)
            part = (math.log(value) - low) / (math.log(self.high) - low)
        else:
            part = (value - self.low) / (self.high - self.low)
        return self.start + part * (self.end - self.start)

    def ticks(self) -> list[float]:
        """Round values: 1, 2, 5 of each decade, or about five equal steps."""
        if self.logarithmic:
            decades = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
            found = [tick for d in decades for m in (1, 2, 5) if self.low <= (tick := m * 10.0**d) <= self.high]
            return found if len(found) <= 16 else [tick for tick in found if f"{tick:e}"[0] == "1"]
        step = 10.0 ** math.floor(math.log10((self.high - self.low) / 4))
        step *= next(m for m in (1, 2, 5, 10) if (self.high - self.low) / (m * step) <= 6)
        first, last = math.ceil(self.low / step - 1e-9), math.floor(self.high / step + 1e-9)
        return [k * step for k in range(first, last + 1)]


def axis(values: Sequence[float], start: float, end: float) -> Axis:
    """An axis for values; logarithmic where they span more than a factor of three."""
    low, high = min(values), max(values)
    if low > _LEAST and high > 3 * low:
        return Axis(low / 1.15, high * 1.15, True, start, end)
    pad = max(0.06 * (high - low), 1e-3 * max(abs(low), abs(high)), 1e-9)
    return Axis(low - pad, high + pad, False, start, end)
