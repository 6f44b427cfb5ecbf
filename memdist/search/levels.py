"""Where cells stand on a parameter: at one of its listed values, at a number that was drawn, or nowhere."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from memdist import config
from memdist.search.parameter import Parameter, same
from memdist.search.rows import Row

NOWHERE = -1
"""Level of a cell in which a parameter does not exist."""
NONE = "(none)"
"""How that is written where it stands among values."""


def listed(parameter: Parameter, rows: Sequence[Row]) -> list[int]:
    """For each row the number of its value among those that the space lists."""
    known: dict[str, int] = {}
    found = []
    for row in rows:
        if parameter.name not in row.cell.values:
            found.append(NOWHERE)
            continue
        value = row.cell.values[parameter.name]
        if (said := repr(value)) not in known:
            known[said] = next(at for at, option in enumerate(parameter.options) if same(option.value, value))
        found.append(known[said])
    return found


def drawn(parameter: Parameter, rows: Sequence[Row]) -> list[float | None]:
    """For each row its number."""
    return [row.cell.values.get(parameter.name) for row in rows]


def numeric(parameter: Parameter) -> bool:
    """Whether all its values are numbers."""
    return all(type(option.value) in (int, float) for option in parameter.options)


def said(value: Any) -> str:
    """A value on one line, as it may stand right of `key=`."""
    return repr(value) if type(value) in (int, float) else config.line(value)


def label(parameter: Parameter, row: Row) -> str:
    """The value of a cell in which the parameter exists, short: that of a group without the names of its keys."""
    if parameter.span:
        return said(row.cell.values[parameter.name])
    return parameter.options[listed(parameter, [row])[0]].label
