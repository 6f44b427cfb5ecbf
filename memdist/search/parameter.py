"""A parameter of a space: which keys it sets, to which values, and where it exists."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, NamedTuple

from memdist.errors import ConfigError, printable

MOST = 1_000
"""Values of a parameter, at most."""

ABSENT = object()
"""What stands at a key that nothing sets."""

KEY = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*")
"""A dotted key."""

_FORMS = ("choices", "range", "uniform", "loguniform")


class Option(NamedTuple):
    """One value of a parameter."""

    value: Any
    """As it stands in the space."""
    sets: Mapping[str, Any]
    """What it sets, by dotted key."""
    label: str
    """Its name in names of folders: letters, digits, dots and dashes; other options have other labels."""


class Span(NamedTuple):
    """Numbers between two ends, which are drawn at random."""

    low: float
    high: float
    log: bool
    """Their logarithms are drawn evenly, rather than they themselves."""

    def at(self, share: float) -> float | int:
        """The number at a share (0 to 1) of the way; whole where both ends are, else of six digits."""
        if self.log:
            found = math.exp(math.log(self.low) + share * (math.log(self.high) - math.log(self.low)))
        else:
            found = self.low + share * (self.high - self.low)
        if isinstance(self.low, int) and isinstance(self.high, int):
            return min(max(round(found), self.low), self.high)
        return min(max(float(f"{found:.6g}"), self.low), self.high)


@dataclass(frozen=True)
class Parameter:
    """What is searched: keys that take values together."""

    name: str
    """The key, or the name of several keys."""
    keys: tuple[str, ...]
    """Dotted keys that take each value; a value that is a group is laid over the group of that key."""
    options: tuple[Option, ...]
    """The values; of a span its two ends."""
    span: Span | None
    """Where values are drawn rather than listed."""
    when: Mapping[str, tuple[Any, ...]]
    """Keys of parameters above and the values among which each has to have one, for this parameter to exist."""

    @property
    def owned(self) -> tuple[str, ...]:
        """All dotted keys that some value sets."""
        return tuple(dict.fromkeys(key for option in self.options for key in option.sets))

    @property
    def groups(self) -> tuple[str, ...]:
        """Its keys that are groups of settings."""
        return self.keys if any(isinstance(option.value, Mapping) for option in self.options) else ()

    def option(self, value: Any) -> Option:
        """A drawn value as an option."""
        return Option(value, _sets(self.keys, value), _label(value))

    def find(self, option: Option, key: str) -> Any:
        """What an option has at a key, which may be the parameter's name; ABSENT where nothing."""
        return option.value if key == self.name else option.sets.get(key, ABSENT)


def same(one: Any, other: Any) -> bool:
    """Whether two values are one setting: 1 and 1.0 are, 1 and true are not."""
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(same, one, other))
    return isinstance(one, bool) == isinstance(other, bool) and bool(one == other)


def flat(group: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Values of a group by dotted key, from groups within it too."""
    for key, value in group.items():
        if isinstance(value, Mapping) and value:
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def parse(name: str, entry: Any) -> Parameter:
    """Read a parameter as it stands in a space; raises ConfigError."""
    whole = {"choices": entry} if isinstance(entry, list) else entry
    forms = [form for form in _FORMS if isinstance(whole, Mapping) and form in whole]
    if not isinstance(whole, Mapping) or len(forms) != 1 or set(whole) - {*_FORMS, "keys", "when"}:
        raise _wrong(
            name, entry, "a list of values, or a group of choices, range, uniform or loguniform, and keys or when"
        )
    keys = whole.get("keys", [name])
    if (
        not isinstance(keys, list)
        or not keys
        or not all(isinstance(k, str) and KEY.fullmatch(k) for k in [name, *keys])
    ):
        raise ConfigError(
            f"{_short(name)!r} cannot be a parameter: it should be a dotted key, as optim.unet.lr, or a word for several keys "
            "that it has in a list `keys`"
        )
    if len(set(keys)) < len(keys):
        raise _wrong(name, keys, "a list in which each key stands once")
    form, span = forms[0], None
    if form == "choices":
        values = whole["choices"]
        if not isinstance(values, list) or not 0 < len(values) <= MOST:
            raise _wrong(name, values, f"a list of at least one value and at most {MOST}")
    elif form == "range":
        values = _counted(name, whole["range"])
    else:
        span = _span(name, form, whole[form])
        values = [span.low, span.high]
    found: list[Option] = []
    for value in values:
        if isinstance(value, Mapping) and not all(KEY.fullmatch(key) for key, _ in flat(value)):
            raise _wrong(name, value, "a group whose keys are words")
        label = _label(value)
        label = next(
            x for n in range(len(values)) if (x := f"{label}~{n}" if n else label) not in (o.label for o in found)
        )
        found.append(Option(value, _sets(tuple(keys), value), label))
    for at, option in enumerate(found):
        if any(same(option.value, before.value) for before in found[:at]):
            raise ConfigError(f"{printable(name)} has the value {_short(option.value)} twice: name each once")
    return Parameter(name, tuple(keys), tuple(found), span, _when(name, whole.get("when", {})))


def one_of(value: Any) -> tuple[Any, ...]:
    """A condition on a key as the values that it allows: a list is several."""
    return tuple(value) if isinstance(value, list) else (value,)


def _sets(keys: tuple[str, ...], value: Any) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        return dict.fromkeys(keys, value)
    return {f"{key}.{inner}": one for key in keys for inner, one in flat(value)}


def _label(value: Any) -> str:
    if isinstance(value, Mapping):
        return "-".join(map(_label, value.values())) or "none"
    if isinstance(value, list):
        return "-".join(map(_label, value)) or "none"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return re.sub(r"[^A-Za-z0-9_.+-]", "_", str(value))[:40] or "none"


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _counted(name: str, ends: Any) -> list[Any]:
    """Numbers from the first to below the second, as range() counts on the command line; fractions are exact."""
    if not isinstance(ends, list) or len(ends) not in (2, 3) or not all(map(_number, ends)):
        raise _wrong(name, ends, "[start, end] or [start, end, step], which counts from start to below end")
    start, end, step = (Decimal(str(number)) for number in (*ends, 1)[:3])
    many = math.ceil((end - start) / step) if step else 0
    if not 0 < many <= MOST:
        raise ConfigError(f"{printable(name)}: range {ends} stands for {max(many, 0)} values: from 1 to {MOST} can be")
    whole = all(isinstance(number, int) for number in ends)
    return [int(start + n * step) if whole else float(start + n * step) for n in range(many)]


def _span(name: str, form: str, ends: Any) -> Span:
    if not isinstance(ends, list) or len(ends) != 2 or not all(map(_number, ends)) or not ends[0] < ends[1]:
        raise _wrong(name, ends, f"{form}: [low, high] with low < high")
    if form == "loguniform" and ends[0] <= 0:
        raise _wrong(name, ends, "loguniform: [low, high] with 0 < low < high")
    return Span(ends[0], ends[1], form == "loguniform")


def _when(name: str, when: Any) -> dict[str, tuple[Any, ...]]:
    if not isinstance(when, Mapping) or any(value == [] for value in when.values()):
        raise _wrong(f"{name}: when", when, "keys of parameters above, each with a value or a list of values")
    return {key: one_of(value) for key, value in when.items()}


def _short(value: Any) -> str:
    said = printable(value)
    return said if len(said) <= 200 else f"{said[:197]}..."


def _wrong(name: str, value: Any, should: str) -> ConfigError:
    return ConfigError(f"{printable(name)} = {_short(value)} cannot be: it should be {should}")
