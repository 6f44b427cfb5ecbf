"""Who this process is among the ranks of a job, from what a launcher has put into its environment."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator, Mapping, MutableMapping
from typing import NamedTuple

from memdist import errors
from memdist.errors import ConfigError, MemdistError
from memdist.launch import slurm

_LAUNCHERS = "a launcher such as torchrun"
_LOCAL_SIZES = ("LOCAL_WORLD_SIZE", "LOCAL_SIZE")
"""Names for the number of ranks of a machine; the second is that of DeepSpeed's launcher."""


class Place(NamedTuple):
    """One of several ranks; rank 0 of 1 where nothing has been started."""

    rank: int = 0
    world: int = 1
    local: int = 0
    """Number among the ranks of this machine."""
    locals: int = 1
    """Ranks of this machine, as far as the launcher says."""


def take(environment: MutableMapping[str, str] | None = None, *, joins: bool = True) -> Place:
    """The place of this process; what Slurm's srun says is turned into RANK, WORLD_SIZE, ... for all that follows.

    `joins`: the ranks will form a process group, so the address of rank 0 must be known as well. Raises ConfigError for
    variables that cannot be.
    """
    environment = os.environ if environment is None else environment
    if "RANK" not in environment and "WORLD_SIZE" not in environment:
        environment.update(slurm.variables(environment))
    place = read(environment, joins=joins)
    if any(key in environment for key in _LOCAL_SIZES):
        # Under its usual name, which Accelerate would else fill with a guess.
        environment["LOCAL_WORLD_SIZE"] = str(place.locals)
    return place


def read(environment: Mapping[str, str], *, joins: bool = False) -> Place:
    """The place that RANK, WORLD_SIZE, LOCAL_RANK and LOCAL_WORLD_SIZE tell; raises ConfigError where they cannot be."""
    world = _number(environment, "WORLD_SIZE", 1, least=1)
    if world > 1 and "RANK" not in environment:
        raise ConfigError(
            f"WORLD_SIZE={world} is set and RANK is not: {_LAUNCHERS} sets both; start with one, or unset WORLD_SIZE"
        )
    rank = _number(environment, "RANK", 0)
    if rank >= world:
        total = f"WORLD_SIZE={world}" if "WORLD_SIZE" in environment else "no WORLD_SIZE"
        raise ConfigError(
            f"RANK={rank} and {total} cannot be: ranks are 0 to WORLD_SIZE - 1, set by {_LAUNCHERS}; start with one, "
            "or unset both"
        )
    local = _number(environment, "LOCAL_RANK", 0)
    name = next((key for key in _LOCAL_SIZES if key in environment), _LOCAL_SIZES[0])
    locals_ = _number(environment, name, local + 1, least=1)
    if local >= world or locals_ > world or local >= locals_:
        raise ConfigError(
            f"LOCAL_RANK={local}, {name}={locals_} and WORLD_SIZE={world} cannot be: local ranks are 0 to {name} - 1, and no "
            f"more than WORLD_SIZE; start with {_LAUNCHERS}, or unset them"
        )
    if joins and world > 1:
        for key, what in (("MASTER_ADDR", "address"), ("MASTER_PORT", "port")):
            if not environment.get(key):
                raise ConfigError(
                    f"WORLD_SIZE={world} is set and {key}, the {what} at which rank 0 is met, is not: start with {_LAUNCHERS}, "
                    "which sets both"
                )
        if not 1 <= _number(environment, "MASTER_PORT", 0) <= 65535:
            raise ConfigError(
                f"MASTER_PORT={environment['MASTER_PORT']} cannot be: a port is a number from 1 to 65535; give a free one, or "
                f"leave it to {_LAUNCHERS}"
            )
    return Place(rank, world, local, locals_)


def enough(gpus: int, environment: Mapping[str, str] | None = None) -> None:
    """Raise a ConfigError where more ranks were started on this machine than it has GPUs: at all of its ranks."""
    environment = os.environ if environment is None else environment
    place = read(environment)
    if place.locals <= gpus:
        return
    raise ConfigError(
        f"{place.locals} processes were started on this machine, which has {gpus} GPU{'s' if gpus != 1 else ''}: start at most "
        "as many as it has GPUs, or train on the CPU with device=cpu"
    )


@contextlib.contextmanager
def alike() -> Iterator[None]:
    """Surround what all ranks of a machine find alike, before they can talk to each other: one of them tells a mistake.

    On each machine where there is one, that is its first rank; where there is but one machine, rank 0.
    """
    try:
        yield
    except MemdistError as error:
        place = read(os.environ)
        # A launcher that does not say how many it started here leaves it open who else has met this.
        told = any(key in os.environ for key in _LOCAL_SIZES)
        if place.world > 1 and told and (place.local > 0 or place.locals == place.world):
            errors.shared(error)
        raise


def _number(environment: Mapping[str, str], key: str, default: int, least: int = 0) -> int:
    text = environment.get(key, str(default))
    if not re.fullmatch("[0-9]{1,9}", text) or int(text) < least:
        raise ConfigError(
            f"{key}={errors.printable(text)!r} in the environment cannot be: it is a number from {least} on, set by "
            f"{_LAUNCHERS}; start with one, or unset it"
        )
    return int(text)
