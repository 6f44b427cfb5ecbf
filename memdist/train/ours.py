"""The run folder that this process trains in, and nobody else meanwhile."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

from memdist import locks, rundir
from memdist.errors import CheckpointError
from memdist.train import imported


class Ours:
    """A run folder to be held from when it is read or first written until the context ends.

    The main process alone asks and holds: what another rank sees of a folder may be a minute old.
    """

    def __init__(self, out: Path, give_up: Callable[[], object]) -> None:
        """Nothing is held yet; `give_up` ends a wait for a silent owner."""
        self._out, self._give_up = out, give_up
        self._stack = contextlib.ExitStack()
        self._lock: locks.Hold | None = None

    def claim(self) -> None:
        """Hold a run that is there before it is read; a CheckpointError says why it is not to be trained on.

        What is no run folder yet is held later (`hold`): nothing may be written there until all is checked.
        """
        with rundir.naming(self._out):
            begun = (self._out / rundir.CONFIG).is_file()
        if begun:
            imported.refuse_training(self._out)
            self._take()

    def hold(self) -> None:
        """Hold what was no run folder when it was claimed; of one that is held already nothing changes."""
        if self._lock is not None:
            return
        self._take()
        if (self._out / rundir.CONFIG).is_file():
            raise CheckpointError(
                f"{self._out} was begun by another process a moment ago; give the same command again to go on there"
            )

    def _take(self) -> None:
        """Own the folder, and remove what killed processes left half-written; a CheckpointError names a live owner."""
        out = self._out
        rundir.make_folder(out)
        self._lock = self._stack.enter_context(locks.hold(out, give_up=self._give_up))
        former = self._lock.former
        ended = {former.tag} if former else set()
        for part in (out, out / rundir.SAMPLES):
            rundir.sweep(part, ended=ended)
        rundir.sweep(out / rundir.CHECKPOINTS, alone=True)

    def check(self) -> None:
        """Raise a CheckpointError when another process has taken the folder; ranks that do not hold it know nothing."""
        if self._lock is not None:
            self._lock.check()

    def __enter__(self) -> Ours:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Let go."""
        self._stack.close()
