"""What `memdist predict` says in the end."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from memdist.errors import printable

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderResult

SHOWN = 20
"""Lines of a kind of problem, at most."""


@dataclass(frozen=True)
class Report:
    """A sentence, and what is wrong; rich shows it."""

    sentence: str
    problems: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """What they are -> one line each."""

    @property
    def clean(self) -> bool:
        """Whether nothing is wrong."""
        return not any(self.problems.values())

    def lines(self) -> list[str]:
        """The sentence, and a selection of what is wrong."""
        found = [self.sentence]
        for kind, lines in self.problems.items():
            if lines:
                found.append(f"{len(lines)} {kind}:")
                found += [f"  {line}" for line in lines[:SHOWN]]
            if len(lines) > SHOWN:
                found.append(f"  and {len(lines) - SHOWN} more")
        return [printable(line) for line in found]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Line by line."""
        from rich.text import Text

        for line in self.lines():
            yield Text(line, overflow="fold")


def several(count: int, noun: str) -> str:
    """A number of things: `1 map`, `2 maps`."""
    return f"{count} {noun}{'' if count == 1 else 's'}"
