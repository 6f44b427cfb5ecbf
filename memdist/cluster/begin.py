"""`memdist cluster init`: a profile from what Slurm tells."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Sequence
from pathlib import Path

from memdist import config, times
from memdist.cluster import facts, profile
from memdist.errors import printable


def init(name: str, partition: str | None, shared: Sequence[Path] = ()) -> str:
    """Write the profile of a cluster whose login node this is; gives a sentence. Raises MemdistError, with nothing written.

    `shared`: folders that compute nodes see.
    """
    profile.path(name)  # whether it can be one
    found = facts.ask()
    chosen = found.partition(partition) if partition else _likely(found)
    folders = [os.path.abspath(folder) for folder in shared] or _homes()
    file = profile.write(name, text(found, chosen, folders, partition is None and not chosen.default))
    return f"{file}: jobs go to partition {chosen.name}; look through it before the first job, as Slurm does not tell everything"


def _likely(found: facts.Facts) -> facts.Partition:
    """The partition that is meant where none is named: the default one if it has GPUs, else the first that has."""
    default = [one for one in found.partitions if one.default]
    with_gpus = [one for one in [*default, *found.partitions] if one.gpus]
    return (with_gpus or default or list(found.partitions))[0]


def text(found: facts.Facts, chosen: facts.Partition, shared: Sequence[str], guessed: bool) -> str:
    """A profile with a line for each partition that there is, and the settings that a person may have to fill in."""
    lines = ["# A cluster, as sinfo told of it. Each key: `memdist cluster keys`.", "#"]
    for one in found.partitions:
        limit = times.shown(one.seconds) if one.seconds else "no limit"
        gpus = f"{one.gpus} {one.gpu_type or ''} GPUs".replace("  ", " ") if one.gpus else "no GPUs"
        star = " (default)" if one.default else ""
        lines.append(
            f"#   {printable(one.name)}{star}: {one.nodes} nodes of {one.cpus} cores, {one.megabytes // 1024} GiB, "
            f"{gpus}; {limit}"
        )
    why = "  # the first one with GPUs" if guessed else ""
    cpus = max(1, chosen.cpus // max(1, chosen.gpus))
    lines += ["", f"partition: {_value(chosen.name)}{why}", "account: null  # where hours are charged"]
    lines += [f"gpus_per_node: {chosen.gpus}", f"cpus_per_gpu: {cpus}"]
    if chosen.seconds:
        lines.append(f"max_time: {times.slurm(chosen.seconds)}")
    lines += ["modules: []  # such as [python/3.12, cuda/12.6]"]
    lines += ["scratch: null  # fast folder on each node, such as $TMPDIR"]
    lines.append(f"shared: [{', '.join(map(_value, shared))}]  # folders that compute nodes see")
    return "\n".join([*lines, ""])


def _value(text: str) -> str:
    """Text as YAML reads it back: a partition may be called 2080, no, or null, and a folder may have a comma."""
    plain = re.fullmatch(r"[A-Za-z0-9_./-]+", text) and config.parse(f"a: {text}", "a profile") == {"a": text}
    return text if plain else json.dumps(text)


def _homes() -> list[str]:
    """The folder of all homes, which compute nodes nearly always see, and nothing where there is none."""
    home = Path(os.path.expanduser("~")).parent
    return [str(home)] if home != Path("/") and home.is_dir() else []
