"""A space as it is now, for a search that starts later: what changes in its files until then changes nothing."""

from __future__ import annotations

import os
from pathlib import Path

from memdist import config, rundir


def copies(name: str, search: Path) -> tuple[Path, dict[Path, str]]:
    """The copy of a space in the `jobs` of a search's folder, and all files that it is made of with what is in them."""
    path = config.find(config.space(name) or name, config.spaces(), "space")
    raw = config.read(path)
    beside = path.parent / str(raw["base"])
    base = config.read(beside if os.path.isfile(beside) else config.find(str(raw["base"])))
    folder = Path(os.path.abspath(search)) / rundir.JOBS
    below = config.written(base)
    first = folder / f"base-{_digest(below)}.yaml"
    above = config.written(raw | {"base": first.name})
    file = folder / f"space-{_digest(above)}.yaml"
    return file, {first: below, file: above}


def _digest(text: str) -> str:
    return config.fingerprint({"text": text})  # the order of parameters counts
