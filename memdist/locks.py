"""Who may write into a folder: one process at a time, on whichever machine, on file systems that have no locks.

A lock is a file `<name>.<g>`, g = 1, 2, ...; who made the highest g owns the folder. The file tells who that is, counts up
while its owner lives, and says in the end that it was let go. To take over from an owner that is gone, g + 1 is made; the
file of the highest g is never removed, so that the highest g never falls. That is what the following rests upon.

Two make g + 1 at once: making a file that must not exist yet is one step for the file system, and succeeds once.

One is slow: it found g without an owner, and meanwhile others made g + 1, then g + 2, and removed g + 1. It makes g + 1
again, and then looks at the folder once more: it sees the g + 2, which no longer goes, removes its own and starts over.
Had it removed anybody else's file of that number, it would be that of another slow one, who starts over as well. So an
owner has seen, after it made its file, that none was higher; from then on only one that judges it gone can follow.

One is judged gone and is not (it was stopped, its laptop slept, its file system hung): it finds a higher g, or its own
file gone or in another's hand, when it next asks with `check`, and must write no more. It counts in the file that it holds
open, so that what it writes when it wakes reaches a file that has no name any more. Between asking and writing a moment
remains that no file system without locks can close; whole files are renamed, so that nothing torn comes of it.

A file is there with its content or not at all: it is written under another name and linked. Where there are no links it
is made and then written; one that says nothing (its owner was killed in between) is judged as a silent one is.

A silent owner is judged by its process where that is known (`process.Process.life`), else by the count alone: the observer
looks again and again, and measures by a clock of its own that only ever runs forward; looks that come late, because the
observer slept as well, count as short ones. Clocks and process ids of other machines, and times of files, are not looked
at. The count is written in place, at its full width, so that it needs no room on a disk that is full.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from memdist import process, rundir
from memdist.errors import CheckpointError
from memdist.process import Process

PATIENCE = 60.0
"""Seconds for which an owner that cannot be judged otherwise must be still before it is taken for gone."""
BEAT = 5.0
"""Seconds between two counts of an owner."""

_NO_LINKS = {errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EACCES}


@dataclass(frozen=True)
class _Record:
    """What a lock file says."""

    owner: Process
    nonce: str
    released: bool


class Hold:
    """A folder that this process owns."""

    def __init__(
        self, folder: Path, name: str, generation: int, handle: int, nonce: str, former: Process | None
    ) -> None:
        """Own what stands in the lock file of this generation, open as `handle`."""
        self.folder = folder
        self.former = former
        """The owner before, which is gone."""
        self._name, self._generation, self._handle, self._nonce = name, generation, handle, nonce
        self._count = 0
        self._stop = threading.Event()
        self._pid = os.getpid()
        self._thread: threading.Thread | None = None

    def check(self) -> None:
        """Raise a CheckpointError when another process has taken over: this one may write no more."""
        with rundir.naming(self.folder):
            top = max(_generations(self.folder, self._name), default=0)
            there = _read(self.folder, self._name, max(top, self._generation))
        record = _parse(there)
        if top == self._generation and record is not None and record.nonce == self._nonce:
            return
        who = f"{record.owner} has taken {self.folder} over" if record else f"the lock of {self.folder} is gone"
        raise CheckpointError(
            f"{who}, as this process showed no life for too long: it writes no more; what it wrote until its last checkpoint "
            "is safe, and whoever has it now goes on from there"
        )

    def start(self, every: float) -> None:
        """Count from now on, every so many seconds."""
        self._thread = threading.Thread(target=self._beat, args=(every,), name="memdist lock", daemon=True)
        self._thread.start()

    def release(self) -> None:
        """Let go; a child that was forked off the owner lets nothing go."""
        if os.getpid() != self._pid:
            return
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
        # A lock that cannot be written any more is judged by its process, or by its silence.
        with contextlib.suppress(OSError):
            self._write(released=True)
        os.close(self._handle)

    def _beat(self, every: float) -> None:
        while not self._stop.wait(every):
            self._count += 1
            with contextlib.suppress(OSError):  # the next one may get through
                self._write(released=False)

    def _write(self, *, released: bool) -> None:
        os.pwrite(self._handle, _text(process.this(), self._nonce, self._count, released), 0)
        os.fsync(self._handle)


@contextlib.contextmanager
def hold(
    folder: Path,
    name: str = rundir.LOCK,
    *,
    queue: bool = False,
    patience: float | None = None,
    beat: float | None = None,
    give_up: Callable[[], object] = lambda: False,
) -> Iterator[Hold]:
    """Own a folder that exists, from now until the context ends.

    Raises a CheckpointError that names the owner when a live one has it; with `queue` it is waited for instead. An owner
    that cannot be judged is waited for as long as `patience` (default PATIENCE) seconds, and a line on standard error says
    so; `give_up`, asked meanwhile, ends the wait with a KeyboardInterrupt. `beat` (default BEAT) is in seconds, too.
    """
    with rundir.naming(folder):
        held = _take(folder, name, queue, PATIENCE if patience is None else patience, give_up)
    held.start(BEAT if beat is None else beat)
    try:
        yield held
    finally:
        held.release()


def owner(folder: Path, name: str = rundir.LOCK) -> Process | None:
    """Who owns a folder, by what its lock says; None where nobody does. Whether it lives is not asked (`Process.life`)."""
    while top := max(_generations(folder, name), default=0):
        there = _read(folder, name, top)
        if there is None and max(_generations(folder, name), default=0) != top:
            continue  # a higher one came meanwhile
        record = _parse(there)
        return None if record is None or record.released else record.owner
    return None


def _take(folder: Path, name: str, queue: bool, patience: float, give_up: Callable[[], object]) -> Hold:
    me = process.this()
    pause = min(1.0, patience / 20)
    seen: tuple[int, bytes] | None = None
    still = 0.0
    looked = time.monotonic()
    told = False
    while True:
        top = max(_generations(folder, name), default=0)
        there = _read(folder, name, top) if top else b""
        if there is None:
            if max(_generations(folder, name), default=0) != top:
                continue  # a higher one came meanwhile
            there = b""  # a link to nothing: it says nothing, and is judged as silent
        record = _parse(there)
        if top == 0 or (record is not None and (record.released or record.owner.life(me) == "dead")):
            made = _make(folder, name, top + 1, me, record.owner if record else None)
            if made is not None:
                return made
            continue
        now = time.monotonic()
        if seen is not None and seen[0] == top and seen[1] == there:
            still += min(now - looked, 2 * pause)
        else:
            moved = seen is not None and seen[0] == top and record is not None
            if not queue and record is not None and (moved or record.owner.life(me) == "alive"):
                raise CheckpointError(
                    f"{folder} is being trained by {record.owner}; wait for its end, or choose another folder with --out"
                )
            seen, still = (top, there), 0.0
        looked = now
        if still >= patience and not (queue and record is not None and record.owner.life(me) == "alive"):
            made = _make(folder, name, top + 1, me, record.owner if record else None)
            if made is not None:
                return made
            continue
        if give_up():
            raise KeyboardInterrupt
        if not queue and not told:
            who = str(record.owner) if record else "whoever made an empty lock"
            print(f"memdist: waiting up to {patience:g} s for {who} to show life: it holds {folder}", file=sys.stderr)
            told = True
        time.sleep(pause)


def _make(folder: Path, name: str, generation: int, me: Process, former: Process | None) -> Hold | None:
    """Make the lock file of a generation, and own the folder if that is the highest; None when somebody else was first."""
    nonce = uuid.uuid4().hex
    handle = _create(folder, name, generation, _text(me, nonce, 0, False))
    if handle is None:
        return None
    generations = _generations(folder, name)
    if max(generations) > generation:
        os.close(handle)
        (folder / f"{name}.{generation}").unlink(missing_ok=True)
        return None
    for lower in generations:
        if lower < generation:
            (folder / f"{name}.{lower}").unlink(missing_ok=True)
    return Hold(folder, name, generation, handle, nonce, former)


def _create(folder: Path, name: str, generation: int, text: bytes) -> int | None:
    """Make a file that must not be there yet, with its content; gives it open, or None where it was there."""
    path = folder / f"{name}.{generation}"
    temporary = rundir.temporary(path)
    handle = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o644)
    try:
        os.write(handle, text)
        os.fsync(handle)
        try:
            os.link(temporary, path)
        except FileExistsError:
            # An answer of a network file system that was lost, and asked for again: the link is ours all the same.
            if os.fstat(handle).st_nlink == 2:
                return os.dup(handle)
            return None
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
            return _create_without_links(path, text)
        return os.dup(handle)
    finally:
        os.close(handle)
        temporary.unlink(missing_ok=True)


def _create_without_links(path: Path, text: bytes) -> int | None:
    try:
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o644)
    except FileExistsError:
        return None
    try:
        os.write(handle, text)
        os.fsync(handle)
    except OSError:
        os.close(handle)
        path.unlink(missing_ok=True)
        raise
    return handle


def _generations(folder: Path, name: str) -> list[int]:
    start = f"{name}."
    ends = [entry[len(start) :] for entry in os.listdir(folder) if entry.startswith(start)]
    return [int(end) for end in ends if end.isascii() and end.isdecimal()]


def _read(folder: Path, name: str, generation: int) -> bytes | None:
    try:
        return (folder / f"{name}.{generation}").read_bytes()
    except FileNotFoundError:
        return None


def _text(owner: Process, nonce: str, count: int, released: bool) -> bytes:
    """As long whatever the count and the end, so that one write in place never tears it."""
    return json.dumps({**asdict(owner), "nonce": nonce, "released": int(released), "count": f"{count:012d}"}).encode()


def _parse(text: bytes | None) -> _Record | None:
    """What a lock file says; None for one that says nothing."""
    try:
        value: dict[str, Any] = json.loads(text or b"")
        owner = Process(**{field: value[field] for field in Process.__dataclass_fields__})
        whole = isinstance(owner.pid, int) and isinstance(owner.start, int)
        return _Record(owner, str(value["nonce"]), value["released"] == 1) if whole else None
    except (ValueError, TypeError, KeyError, RecursionError):
        return None
