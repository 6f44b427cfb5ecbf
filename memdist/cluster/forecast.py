"""How many jobs a training will take, one after the other."""

from __future__ import annotations

import math
from pathlib import Path

from memdist import rundir, times
from memdist.errors import MemdistError


def legs(place: Path, seconds: int) -> str:
    """How many legs a time limit makes of what is left of a run, by what its steps have taken so far."""
    unknown = "legs: not known before the first steps are timed; a job that is not done goes on in the next one"
    try:
        stands = rundir.read_json(place / rundir.STATE)
        step, steps, taken = (float(stands[key]) for key in ("step", "steps", "train_seconds"))
    except (MemdistError, KeyError, TypeError, ValueError):
        return unknown
    if step <= 0:
        return unknown
    left = (steps - step) * taken / step
    return (
        f"legs: about {max(1, math.ceil(left / seconds))} of {times.shown(seconds)}, as {steps - step:.0f} steps are left and "
        f"each has taken {taken / step:.3g} s so far"
    )
