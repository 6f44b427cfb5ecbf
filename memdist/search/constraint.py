"""What the cells of a space have to keep to: a few forms, none of which is code."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from memdist.errors import ConfigError, printable
from memdist.search.parameter import ABSENT, one_of, same


@dataclass(frozen=True)
class Constraint:
    """One line of `constraints`; a key that a cell does not set is not asked for its value."""

    kind: Literal["equal", "less", "forbid"]
    """equal: the keys have one value. less: their values rise. forbid: no cell has all of these values."""
    keys: tuple[str, ...]
    values: tuple[tuple[Any, ...], ...] = ()
    """forbid only: values of each key."""

    def holds(self, look: Callable[[str], Any]) -> bool:
        """Whether a cell, given by what it has at a key (or ABSENT), may be."""
        found = [look(key) for key in self.keys]
        if self.kind == "forbid":
            return not all(any(same(one, bad) for bad in bads) for one, bads in zip(found, self.values, strict=True))
        there = [one for one in found if one is not ABSENT]
        if self.kind == "equal":
            return all(same(one, there[0]) for one in there[1:])
        return all(one < other for one, other in zip(there, there[1:], strict=False))


def parse(entry: Any) -> Constraint:
    """Read a constraint as it stands in a space; raises ConfigError."""
    kind, inner = next(iter(entry.items())) if isinstance(entry, Mapping) and len(entry) == 1 else (None, None)
    if kind in ("equal", "less") and isinstance(inner, list) and len(inner) > 1 and _words(inner):
        return Constraint(kind, tuple(inner))
    if kind == "forbid" and isinstance(inner, Mapping) and inner and all(value != [] for value in inner.values()):
        return Constraint("forbid", tuple(inner), tuple(map(one_of, inner.values())))
    raise ConfigError(
        f"the constraint {printable(entry)} cannot be: it should be {{equal: [key, key]}}, {{less: [key, key]}} or "
        "{forbid: {key: value or list of values, ...}}"
    )


def _words(keys: list[Any]) -> bool:
    return all(isinstance(key, str) for key in keys) and len(set(keys)) == len(keys)
