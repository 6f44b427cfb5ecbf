"""Standard output, as a person's terminal, a file or a pipe: it may be full or gone while what counts goes into files."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, TextIO, cast

from memdist.errors import MemdistError

if TYPE_CHECKING:
    from rich.console import Console


class Output:
    """What is written goes to standard output until that refuses; then nothing does any more.

    A name of a file may hold what is no text, or what the terminal's encoding lacks: that is spelled out.
    """

    def __init__(self, *, needed: bool) -> None:
        """`needed`: a refusal is a MemdistError, as there is nothing else to see; otherwise it is passed over."""
        self._file: TextIO | None = sys.stdout  # None where a process was started without
        self._needed = needed

    @property
    def encoding(self) -> str:
        """Encoding of what is written, as rich asks for it."""
        return (self._file.encoding if self._file else None) or "utf-8"

    def isatty(self) -> bool:
        """Whether a person looks on."""
        return self._file is not None and self._file.isatty()

    def fileno(self) -> int:
        """File descriptor, or an OSError where there is none."""
        if self._file is None:
            raise OSError("there is no standard output")
        return self._file.fileno()

    def write(self, text: str) -> int:
        """Write text; gives its length."""
        if self._file is not None:
            shown = text.encode(self.encoding, "backslashreplace").decode(self.encoding)
            with self._refusing():
                self._file.write(shown)
        return len(text)

    def flush(self) -> None:
        """Hand on what was written."""
        if self._file is not None:
            with self._refusing():
                self._file.flush()

    @contextlib.contextmanager
    def _refusing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            self._file = None
            mute()
            if self._needed:
                why = (error.strerror or str(error)).lower()
                raise MemdistError(
                    f"standard output cannot be written: {why}; files that were named are whole: give the output another "
                    "place, or make room there"
                ) from error


def mute() -> None:
    """Let standard output lead nowhere: what could not be written would be tried, and told, again at the process's end."""
    with contextlib.suppress(OSError, ValueError):  # no file stands behind it
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)


def console(*, needed: bool) -> Console:
    """Standard output for rich; text is shown as it is, and what is no terminal has a width for whole sentences."""
    from rich.console import Console

    file = cast(TextIO, Output(needed=needed))
    terminal = Console(file=file, highlight=False, markup=False, emoji=False)
    if terminal.is_terminal:
        return terminal
    return Console(file=file, highlight=False, markup=False, emoji=False, width=200)
