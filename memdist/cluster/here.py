"""What processes of one user on this machine share: who queues what, which GPUs are taken, who submits where."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from memdist.errors import ClusterError


def folder() -> Path:
    """A folder of this user alone; raises ClusterError where somebody else has made one of its name."""
    given = Path(os.environ.get("XDG_RUNTIME_DIR") or tempfile.gettempdir())
    # What the system makes for a login goes when that ends, and jobs outlive it.
    above = given if not given.is_relative_to("/run") else Path(tempfile.gettempdir())
    found = above / f"memdist-queue-{os.getuid()}"
    found.mkdir(mode=0o700, exist_ok=True)
    if found.lstat().st_uid != os.getuid():  # where all may write, someone may have been there first
        raise ClusterError(f"{found} belongs to another user: set XDG_RUNTIME_DIR to a folder of your own")
    return found


@contextlib.contextmanager
def alone(place: Path) -> Iterator[None]:
    """Keep others of this user from submitting jobs of a place, or wait until they have."""
    name = hashlib.sha256(os.fsencode(place)).hexdigest()[:16]
    with open(folder() / f"submit-{name}.slot", "ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


class Turn:
    """A place in a queue of this machine: who came first is first, as long as it lives."""

    def __init__(self, queue: str, number: str, came: int | None = None) -> None:
        """Nobody waits yet; `number` tells those apart that came at one time."""
        self._queue = f"turn-{queue}-"
        self._path = folder() / f"{self._queue}{came or time.time_ns():020}-{number}"
        self._handle: BinaryIO | None = None

    def here(self) -> bool:
        """Whether it has come; it is waited for until `leave`."""
        if self._handle is None:
            self._handle = open(self._path, "ab")
            fcntl.flock(self._handle, fcntl.LOCK_EX)
        for other in sorted(folder().glob(f"{self._queue}*")):
            if other >= self._path:
                break
            with contextlib.suppress(FileNotFoundError), open(other, "rb") as file:
                try:
                    fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
                except OSError:
                    return False
                other.unlink(missing_ok=True)  # it was killed
        return True

    def leave(self) -> None:
        """Wait no longer."""
        if self._handle is not None:
            self._path.unlink(missing_ok=True)
            self._handle.close()
            self._handle = None
