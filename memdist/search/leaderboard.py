"""All trials of a search, best first, as CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence

from memdist.errors import printable
from memdist.search import levels
from memdist.search.cells import Space
from memdist.search.objective import Mode
from memdist.search.rows import Row, ranked

BEFORE = ("rank", "trial", "epochs", "state", "value")
BEHIND = ("folder", "why")
"""Columns beside those of the parameters."""


def text(space: Space, rows: Sequence[Row], mode: Mode) -> str:
    """A line for each trial; `rank` and `value` are empty without a value, a parameter is where it does not exist in the cell."""
    names = [parameter.name for parameter in space.parameters]
    titles = [f"parameter {name}" if name in (*BEFORE, *BEHIND) else name for name in names]
    lines = io.StringIO()
    writer = csv.writer(lines, lineterminator="\n")
    writer.writerow([*BEFORE, *titles, *BEHIND])
    known: dict[str, str] = {}
    for rank, row in enumerate(ranked(rows, mode), 1):
        value = ("", "") if row.value is None else (rank, repr(float(row.value)))
        settings = []
        for name in names:
            given = row.cell.values.get(name)
            if (key := repr(given)) not in known:
                known[key] = levels.said(given)
            settings.append(known[key] if name in row.cell.values else "")
        writer.writerow(
            [value[0], row.trial, row.epochs, row.state, value[1], *settings, row.folder, printable(row.why)]
        )
    return lines.getvalue()
