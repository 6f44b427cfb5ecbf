"""Signals that reach whoever started ranks, on their way to them; and processes that do not outlive it."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)

_PATIENCE = 3
"""Interruptions after which ranks that do not end are killed: the first stops a run, the second interrupts it."""


class Forward:
    """Takes note of INT, TERM, USR1 and USR2, so that the one who waits for ranks can hand them on."""

    def __init__(self) -> None:
        """Nothing is caught before the context is entered."""
        self.got: list[int] = []
        self._pending: list[int] = []
        self._before: dict[int, Any] = {}

    def _catch(self, number: int, _: FrameType | None) -> None:
        self.got.append(number)
        self._pending.append(number)

    def again(self) -> None:
        """Catch them again where a library has put handlers of its own in place."""
        for number in SIGNALS:
            signal.signal(number, self._catch)

    def hand_on(self, send: Callable[[int], None]) -> None:
        """Send the ranks what has come since the last call."""
        while self._pending:
            send(self._pending.pop(0))

    @property
    def insists(self) -> bool:
        """Whether a person has interrupted so often that the ranks should be ended whatever they do."""
        return self.got.count(signal.SIGINT) >= _PATIENCE

    def __enter__(self) -> Forward:
        """Install the handlers."""
        for number in SIGNALS:
            self._before[number] = signal.signal(number, self._catch)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Put the former handlers back."""
        for number, handler in self._before.items():
            signal.signal(number, handler)


def bound() -> Callable[[], None]:
    """What a child does before it becomes another program, so that it ends when this process does, even by kill -9."""
    parent, bind = os.getpid(), binder()

    def act() -> None:
        bind()
        if os.getppid() != parent:  # it was too late for that
            os._exit(1)

    return act


def binder() -> Callable[[], None]:
    """What lets a process end with its parent; on Linux alone, elsewhere ranks notice by their peers."""
    if sys.platform != "linux":
        return lambda: None
    prctl = ctypes.CDLL(None).prctl
    return lambda: prctl(1, int(signal.SIGKILL))  # PR_SET_PDEATHSIG
