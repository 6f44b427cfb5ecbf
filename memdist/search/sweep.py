"""Settings that stand for many runs: `lr=1e-3,1e-4 'seed=range(0,5)'` is ten of them (Hydra's form of a sweep).

They are expanded as the cells of a space are: a parameter for each setting.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from memdist import rundir
from memdist.errors import ConfigError, printable
from memdist.search.parameter import Option, Parameter
from memdist.search.tree import Tree

MOST = 100_000
"""Runs of a sweep, at most."""

_PAIRS = {"[": "]", "{": "}", "(": ")"}


class Cell(NamedTuple):
    """One of the runs."""

    overrides: tuple[str, ...]
    name: str
    """Name of its folder: the settings in which runs differ."""


def expand(overrides: Sequence[str]) -> list[Cell]:
    """Every combination of the values of overrides, the last one changing fastest.

    Values are parted by commas outside of brackets and quotes; `range(a,b)` and `range(a,b,step)` count from a to below b;
    `choice(x,y)` is `x,y`. A list is one value and stands in brackets. Raises ConfigError.
    """
    parameters, swept = [], []
    for text in overrides:
        name, equals, value = text.partition("=")
        if not equals:
            raise ConfigError(f"{printable(text)!r} is no setting: write key=value, or key=value,value for a sweep")
        found = values(name, value)
        options = tuple(Option(one, {name: one}, f"{name}={one}") for one in found)
        parameters.append(Parameter(name, (name,), options, None, {}))
        swept.append(len(found) > 1)
        if len(set(found)) < len(found):
            raise ConfigError(f"{printable(text)!r} has a value twice: two runs would be the same; name each once")
    keys = [text.partition("=")[0].strip() for text in overrides]
    for key, sweeps in zip(keys, swept, strict=True):
        # The later one would overrule: runs of different names would be the same.
        if sweeps and keys.count(key) > 1:
            again = " ".join(printable(text) for text, other in zip(overrides, keys, strict=True) if other == key)
            raise ConfigError(
                f"{again} cannot be: {printable(key)} is swept, and given again; name all its values in one"
            )
    tree = Tree(parameters, ())
    if (total := tree.below()) > MOST:
        raise ConfigError(f"these settings stand for {total} runs, and {MOST} is the most: sweep fewer of them at once")
    cells = []
    for number in range(total):
        chosen = [one.options[at].label for one, at in zip(parameters, tree.at(number), strict=True)]
        differs = [text for text, sweeps in zip(chosen, swept, strict=True) if sweeps]
        cells.append(Cell(tuple(chosen), rundir.file_name(",".join(differs) or "run")))
    return cells


def values(name: str, text: str) -> list[str]:
    """The values that the right side of a setting stands for."""
    call = re.fullmatch(r"\s*(range|choice)\((.*)\)\s*", text, re.S)
    if call is None:
        found = list(_parted(name, text))
        return found if len(found) > 1 else [text]
    inner = [part.strip() for part in _parted(name, call[2])]
    if call[1] == "choice":
        if not all(inner):
            raise ConfigError(f"{name}={printable(text)} cannot be: name at least one value between the brackets")
        return inner
    if not 1 <= len(inner) <= 3 or not all(re.fullmatch(r"[+-]?[0-9]{1,18}", part) for part in inner):
        raise ConfigError(
            f"{name}={printable(text)} cannot be: it is range(end), range(start,end) or range(start,end,step)"
        )
    numbers = [int(part) for part in inner]
    if len(numbers) == 3 and numbers[2] == 0:
        raise ConfigError(f"{name}={printable(text)} cannot be: a step of 0 never ends; give another")
    counted = range(*numbers)
    if not 0 < len(counted) <= MOST:
        raise ConfigError(f"{name}={printable(text)} stands for {len(counted)} values: from 1 to {MOST} can be")
    return [str(number) for number in counted]


def _parted(name: str, text: str) -> Iterator[str]:
    """Parts between commas that stand in no brackets and no quotes."""
    part, open_, quote = "", [], ""
    for at, one in enumerate(text):
        if quote:
            quote = "" if one == quote and text[at - 1] != "\\" else quote
        elif one in "'\"":
            quote = one
        elif one in _PAIRS:
            open_.append(_PAIRS[one])
        elif open_ and one == open_[-1]:
            open_.pop()
        elif one == "," and not open_:
            yield _value(name, text, part)
            part = ""
            continue
        part += one
    if quote or open_:
        raise ConfigError(f"{name}={printable(text)} cannot be: {quote or open_[-1]} is missing")
    yield _value(name, text, part) if "," in text else part


def _value(name: str, text: str, part: str) -> str:
    if not part.strip():
        raise ConfigError(f"{name}={printable(text)} cannot be: a value between commas is empty; write null for none")
    return part.strip()
