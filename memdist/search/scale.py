"""The objective as heights and colours: the best on top and dark, far outliers cut off."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

from memdist.axes import Axis, axis
from memdist.search.objective import Mode

STEPS = 24
"""Colours that are told apart."""
_FENCE = 3.0
"""Values that are worse than the worse quartile by so many distances between quartiles are drawn at its end (Tukey 1977)."""
# Viridis (Smith and van der Walt 2015) from dark to light: colour-blind readers, and printers without colour, keep its order.
# It ends before its yellow, which would be lost on white.
_STOPS = ((68, 1, 84), (65, 68, 135), (42, 120, 142), (34, 168, 132), (122, 209, 81), (200, 224, 32))


def colour(part: float) -> str:
    """Colour of what lies so far down the axis: 0 is the best, 1 the worst."""
    step = min(int(max(part, 0.0) * STEPS), STEPS - 1) / (STEPS - 1) * (len(_STOPS) - 1)
    at = min(int(step), len(_STOPS) - 2)
    mixed = (round(one + (step - at) * (two - one)) for one, two in zip(_STOPS[at], _STOPS[at + 1], strict=True))
    return "#" + "".join(f"{channel:02x}" for channel in mixed)


def ends(values: Sequence[float], mode: Mode) -> tuple[float, float]:
    """The best value, and the worst that is no far outlier; one outlier would squeeze all others into one colour."""
    worst_first = sorted(values, reverse=mode == "min")
    worst, best = worst_first[0], worst_first[-1]
    if len(values) < 4:
        return best, worst
    logarithmic = min(values) > 0 and max(values) > 3 * min(values)
    heights = sorted(math.log(value) if logarithmic else value for value in values)
    low, _, high = statistics.quantiles(heights, n=4, method="inclusive")
    room = _FENCE * (high - low)
    there = [value for value in values if _inside(math.log(value) if logarithmic else value, low, high, room, mode)]
    return best, (max(there) if mode == "min" else min(there))


def _inside(height: float, low: float, high: float, room: float, mode: Mode) -> bool:
    return height <= high + room if mode == "min" else height >= low - room


def within(value: float, better: float, worse: float) -> float:
    """A value, or the end of the axis that is nearest to it."""
    return min(max(value, min(better, worse)), max(better, worse))


def objective(better: float, worse: float, top: float, bottom: float) -> Axis:
    """The axis, the better end on top."""
    return axis([better, worse], top, bottom) if better <= worse else axis([better, worse], bottom, top)


def round_ticks(one: Axis) -> list[float]:
    """Round values of an axis, twenty at most; its ends where it holds none of them."""
    found = one.ticks() or [one.low, one.high]
    return found[:: -(-len(found) // 20)]
