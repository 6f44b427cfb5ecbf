"""How a map was made, in words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def sampling(record: Mapping[str, Any]) -> str:
    """The record of a score or a map: `dpmpp_2m, 8 evaluations` or `ddim, mean of 4 samples, 4 x 10 evaluations`.

    Records of older versions have sampler and steps alone.
    """
    k = record.get("samples", 1)
    each = record["evaluations"] // k if "evaluations" in record else record["steps"]
    words = [str(record["sampler"])]
    if k > 1:
        words.append(f"{record['combine']} of {k} samples")
    words.append("1 evaluation" if each == k == 1 else f"{f'{k} x ' if k > 1 else ''}{each:,} evaluations")
    if record.get("spacing", "time") != "time":
        words.append(f"spacing {record['spacing']}")
    if record.get("eta") is not None:
        words.append(f"eta {record['eta']:g}")
    if record.get("bound", "clamp") != "clamp":
        words.append(f"bound {record['bound']}")
    return ", ".join(words)
