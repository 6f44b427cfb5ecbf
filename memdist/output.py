"""What a person sees: results on standard output, which may be full or gone while what counts goes into files; mistakes."""

from __future__ import annotations

import contextlib
import errno
import os
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, TextIO, cast

from memdist.errors import MemdistError, is_shared, printable

if TYPE_CHECKING:
    from rich.console import Console

_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EPIPE)


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


def speaks() -> bool:
    """Whether this process speaks for all ranks of a job."""
    return os.environ.get("RANK", "0") == "0"


def show(renderable: Any) -> None:
    """Print what a command gives; raises MemdistError where standard output refuses it."""
    if speaks():
        console(needed=True).print(renderable, soft_wrap=isinstance(renderable, str))


def answer(error: MemdistError | OSError) -> bool:
    """Say on standard error what a person can do about an error; False, with nothing said, for a fault of memdist."""
    if isinstance(error, MemdistError):
        _tell(error, str(error))
        return True
    why = (error.strerror or str(error)).lower()
    if error.filename is not None:
        # A name that is too long, a folder that may not be looked into: found wherever a path is first used.
        _tell(
            error,
            f"{printable(os.fsdecode(error.filename))} cannot be used: {why}; give another path, or make it accessible",
        )
    elif error.errno in _NO_ROOM:
        mute()
        _tell(error, f"a file or the output cannot be written: {why}; make room, or choose another place")
    else:
        return False
    return True


def _tell(error: Exception, sentences: str) -> None:
    # What all ranks are known to have met, the first one says for them.
    if is_shared(error) and not speaks():
        return
    # Any other mistake may be this rank's alone, and would be silent if only the first one spoke.
    who = "memdist" if speaks() else f"memdist (rank {os.environ['RANK']})"
    with contextlib.suppress(OSError):  # the exit code says it as well
        for sentence in sentences.split("\n"):
            print(f"{who}: {printable(sentence)}", file=sys.stderr)
