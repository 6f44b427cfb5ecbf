"""`memdist status` as a person sees it: a line a run, runs of one folder together, and how many stand how.

Lines are laid out here and not by rich's tables, as ten thousand of them are to be shown at once with --all, and a reason
is to stand below its line in full.
"""

from __future__ import annotations

import itertools
import re
import textwrap
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, get_args

from rich.cells import cell_len
from rich.text import Text

from memdist.cluster.standing import BAD, MEANINGS, Row, State
from memdist.cluster.survey import Survey

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderResult

MANY = 40
"""Rows of a group above which it is summed up, and rows of such a group that are shown at most."""
FEW = 5
"""Of these, rows that have come to grief for one reason."""
_GAP = "  "
_LEAST = 16
"""Cells that a name has at least."""
_INDENT = "  "

_ORDER: tuple[State, ...] = ("finished", *(state for state in get_args(State) if state != "finished"))
_AT_WORK: tuple[State, ...] = ("running", "running?", "starting")
_EXPLAINED: tuple[State, ...] = ("running?", "queued?", "lost", "ended")
_STYLES: dict[State, str] = {
    **dict.fromkeys(_AT_WORK, "cyan"),
    **dict.fromkeys(BAD, "red"),
    "queued": "yellow",
    "queued?": "yellow",
    "waiting": "yellow",
    "stopped": "yellow",
    "finished": "green",
}


@dataclass(frozen=True)
class Shown:
    """A survey for rich."""

    survey: Survey
    where: str
    """Folder that was looked at."""
    every: bool = False
    """Whether each row is shown, of large groups too."""
    at: str = ""
    """The time of day, where it is looked at again and again."""
    height: int | None = None
    """Lines that there is room for."""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Groups, then what is to be said of all."""
        end = list(self._end(options.max_width))
        body: list[Text] = []
        # In a terminal that is too low, groups are summed up sooner: what is at work stays in sight.
        for most in (MANY,) if self.height is None else (MANY, 12, 6, 3, 1):
            body = list(self._groups(options.max_width, most))
            if self.height is None or len(body) + len(end) <= self.height:
                break
        else:
            keep = max(0, (self.height or 0) - len(end) - 1)
            left = len(body) - keep
            body = [
                *body[:keep],
                Text(f"... {left} more lines; memdist status without --watch shows them", style="dim"),
            ]
        for line in body + end:
            line.no_wrap, line.overflow = True, "crop"
            yield line

    def _groups(self, width: int, most: int) -> Iterator[Text]:
        groups = [(name, list(rows)) for name, rows in itertools.groupby(self.survey.rows, key=lambda row: row.group)]
        # A heading above a single row would say less than the row with its whole path.
        alone = [_whole(rows[0]) for _, rows in groups if len(rows) == 1]
        groups = [("", alone)] * bool(alone) + [group for group in groups if len(group[1]) > 1]
        chosen = [(name, rows, self._choose(rows, most)) for name, rows in groups]
        columns = Columns([row for _, _, some in chosen for row in some], width)
        for at, (name, rows, some) in enumerate(chosen):
            if at == 0 and some:
                yield columns.heading()
            elif at:
                yield Text()
            if name or len(some) < len(rows):
                yield Text.assemble((name or "all", "bold"), (f"  {len(rows)}: {counts(rows)}", "dim"))
            for row, after in zip(some, [*some[1:], None], strict=False):  # there may be none
                # One reason of several rows stands below the last of them.
                same = len(some) < len(rows) and after is not None and _kind(after) == _kind(row)
                yield from columns.lines(row, indent=_INDENT if name else "", reason=not same)
            if len(some) < len(rows):
                yield Text(f"{_INDENT}{self._left_out(rows, some)}", style="dim")

    def _choose(self, rows: Sequence[Row], most: int) -> Sequence[Row]:
        """The rows of a group that are shown: of more than `most`, those that ask for somebody or are at work."""
        if len(rows) <= most or (self.every and self.height is None):
            return rows
        kinds: dict[tuple[State, str], list[Row]] = {}
        for row in rows:
            if row.state in BAD:
                kinds.setdefault(_kind(row), []).append(row)
        work = [row for row in rows if row.state in _AT_WORK]
        bad = [row for some in kinds.values() for row in some[:FEW]][: max(most // 2, most - len(work))]
        return bad + work[: most - len(bad)]

    def _left_out(self, rows: Sequence[Row], some: Sequence[Row]) -> str:
        shown = {id(row) for row in some}
        hint = "; --all shows each" if self.height is None else ""
        return f"not shown: {counts(row for row in rows if id(row) not in shown)}{hint}"

    def _end(self, width: int) -> Iterator[Text]:
        rows = self.survey.rows
        if not rows:
            yield Text(f"there are no runs in {self.where}")
        else:
            yield Text()
            said = counts(rows) + (f"  {self.at}" if self.at else "")
            yield from (Text(line, style="bold") for line in textwrap.wrap(said, max(width, 20)))
        explained = () if self.at else _EXPLAINED  # who looks again and again has room for little
        notes = [f"{state}: {MEANINGS[state]}" for state in explained if any(row.state == state for row in rows)]
        if self.survey.unknown:
            notes.append(f"Slurm has not answered ({self.survey.unknown}): what is in its queue is not known")
        for note in notes:
            yield from (
                Text(line, style="dim") for line in textwrap.wrap(note, max(width, 20), subsequent_indent=_INDENT)
            )


class Columns:
    """Lines of rows, one below the other: only columns in which some row has something."""

    def __init__(self, rows: Sequence[Row], width: int) -> None:
        """For a terminal so many cells wide."""
        titles = ("state", "epoch", "step", "loss", "speed", "left", "node", "try")
        figures = [_cells(row) for row in rows]
        self._wide = [max((cell_len(cells[at]) for cells in figures), default=0) for at in range(len(titles))]
        self._wide = [max(wide, len(title)) if wide else 0 for wide, title in zip(self._wide, titles, strict=True)]
        # Nodes' names in Slurm's form may be long; the other figures are not.
        self._wide[6] = min(self._wide[6], 20)
        self._titles, self._width = titles, width
        used = sum(wide + len(_GAP) for wide in self._wide if wide)
        longest = max((cell_len(row.name) for row in rows), default=0) + len(_INDENT)
        self._name = max(_LEAST, min(longest, width - used))

    def heading(self) -> Text:
        """Names of the columns."""
        return Text(self._join("", self._titles), style="dim")

    def lines(self, row: Row, indent: str, *, reason: bool = True) -> Iterator[Text]:
        """The line of a row, and its reason below or behind it."""
        cells = _cells(row)
        name = indent + _cut(row.name, self._name - len(indent))
        bare = not any(cells[1:])
        line = Text(self._join(name, cells[:1] if bare else cells).rstrip())
        begin = self._name + len(_GAP)
        line.stylize(_STYLES.get(row.state, ""), begin, begin + len(cells[0]))
        why = "" if row.state in ("finished", "imported") else row.why
        room = self._width - line.cell_len - len(_GAP)
        if bare and cell_len(why) <= room:
            line.append(_GAP + why if why else "", style="dim")
            why = ""
        yield line
        if not reason:
            return
        beneath = indent + _INDENT * 2
        for part in textwrap.wrap(why, max(self._width, 40), initial_indent=beneath, subsequent_indent=beneath):
            yield Text(part, style="red" if row.state in BAD else "dim")

    def _join(self, name: str, cells: Sequence[str]) -> str:
        text = name + " " * (self._name - cell_len(name))
        for at, (cell, wide) in enumerate(zip(cells, self._wide, strict=False)):
            if wide:
                cut = _cut(cell, wide)
                space = " " * (wide - cell_len(cut))
                text += _GAP + (cut + space if at in (0, 6) else space + cut)
        return text


def counts(rows: Iterable[Row]) -> str:
    """How many stand how: 12 finished, 3 running."""
    found = Counter(row.state for row in rows)
    return ", ".join(f"{found[state]:,} {state}" for state in _ORDER if found[state])


def _kind(row: Row) -> tuple[State, str]:
    """What is alike of rows that have come to grief for one reason: their numbers differ."""
    return row.state, re.sub("[0-9]+", "#", row.why)


def _whole(row: Row) -> Row:
    """A row that stands alone, named by its whole path."""
    return row if row.group in ("", ".") else replace(row, name=f"{row.group}/{row.name}")


def _cells(row: Row) -> tuple[str, ...]:
    """State, epoch, step, loss, speed, time left, node, attempts."""
    step = "" if row.step is None else f"{row.step}"
    if row.steps is not None and (step or not row.maps):
        step = f"{step or '?'}/{row.steps}"
    if row.maps:
        step += " maps" if step else ""
    return (
        row.state,
        "" if row.epoch is None else f"{row.epoch:.4g}" if row.epoch >= 1000 else f"{row.epoch:.1f}",
        step,
        "" if row.loss is None else f"{row.loss:.4g}",
        "" if row.speed is None or row.state not in _AT_WORK else f"{row.speed:.3g}/s",
        "" if row.left is None else clock(row.left),
        row.node,
        "" if row.attempt == 0 else str(row.attempt),
    )


def clock(seconds: float) -> str:
    """A length of time: 0:07, 1:02:03, 2d 03h."""
    minutes, rest = divmod(round(min(seconds, 1e9)), 60)
    hours, minutes = divmod(minutes, 60)
    if hours >= 24:
        return f"{hours // 24}d {hours % 24:02}h"
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def _cut(text: str, width: int) -> str:
    """Text in so many cells: what is too long loses its middle, as names differ at their ends."""
    if cell_len(text) <= width:
        return text
    end = (width - 1) // 2
    start = width - 1 - end
    while cell_len(text[:start]) + cell_len(text[-end:] if end else "") + 1 > width and (start or end):
        start, end = (start - 1, end) if start >= end else (start, end - 1)
    return f"{text[:start]}…{text[-end:] if end else ''}"
