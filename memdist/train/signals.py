"""Wishes that reach a training process from outside, taken note of between steps."""

from __future__ import annotations

import signal
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any

from memdist.launch.ends import RESUME_ME as RESUME_ME

STOP = 1
"""Wish: write a checkpoint and leave."""
SAVE = 2
"""Wish: write a checkpoint and go on."""


class Signals:
    """Turns SIGINT, SIGTERM, SIGUSR1 and SIGUSR2 into the wish to stop; a second SIGINT interrupts at once."""

    def __init__(self) -> None:
        """Nothing is caught before the context is entered."""
        self.caught: str | None = None
        self._before: dict[int, Any] = {}

    def _catch(self, number: int, _: FrameType | None) -> None:
        if number == signal.SIGINT and self.caught == "SIGINT":
            raise KeyboardInterrupt
        self.caught = signal.Signals(number).name

    @property
    def wishes(self) -> int:
        """STOP once a signal has come, else 0."""
        return STOP if self.caught else 0

    def __enter__(self) -> Signals:
        """Install the handlers."""
        handler: Callable[[int, FrameType | None], None] = self._catch
        for name in ("SIGINT", "SIGTERM", "SIGUSR1", "SIGUSR2"):
            number = getattr(signal, name)
            self._before[number] = signal.signal(number, handler)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Put the former handlers back."""
        for number, handler in self._before.items():
            signal.signal(number, handler)
