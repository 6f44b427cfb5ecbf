"""How far all shards are together, on standard error, by what their manifests say; no shard asks another."""

from __future__ import annotations

import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import TYPE_CHECKING

from memdist.predict.folder import Manifests

if TYPE_CHECKING:
    from rich.console import Console

LATELY = 60.0
"""Seconds over which the rate is taken, and in which a shard must have written to count as at work."""
OFTEN, SELDOM = 1.0, 30.0
"""Seconds between two looks: on a terminal; in a file, where each one stays as a line."""


class Progress:
    """Counts distinct maps of the pictures that are asked for."""

    def __init__(self, manifests: Manifests, maps: set[str], said: set[str], shards: int) -> None:
        """Count towards all `maps`; those that are `said` to be there already have been read from `manifests`."""
        self._manifests, self._maps, self._shards = manifests, maps, shards
        self._done = maps & said
        self._lock = threading.Lock()
        self._came = 0
        self._start = time.monotonic()
        self._looks = deque([(self._start, 0)])
        self._wrote: dict[str, float] = {}

    def lost(self, name: str) -> None:
        """A map that was said to be there is not: it counts again when it is made."""
        with self._lock:
            self._done.discard(name)

    def look(self) -> None:
        """Read what came since the last look."""
        with self._lock:
            now = time.monotonic()
            for shard, line in self._manifests.news():
                if line.name in self._maps:
                    self._done.add(line.name)
                    self._came += 1
                    self._wrote[shard] = now
            while len(self._looks) > 1 and self._looks[1][0] <= now - LATELY:
                self._looks.popleft()
            self._looks.append((now, self._came))

    @property
    def done(self) -> int:
        """Maps that are there."""
        return len(self._done)

    @property
    def total(self) -> int:
        """Maps that are asked for."""
        return len(self._maps)

    def said(self) -> str:
        """The rate of late, the time left at that rate, and how many shards are at work."""
        (then, before), (now, came) = self._looks[0], self._looks[-1]
        rate = (came - before) / (now - then) if now > then else 0.0
        words = [f"{rate:.3g} a second"]
        if rate > 0 and self.done < self.total:
            words.append(f"{timedelta(seconds=round((self.total - self.done) / rate))} left")
        if self._shards > 1:
            working = sum(now - last <= LATELY for last in self._wrote.values())
            words.append(f"{working} of {self._shards} shards at work")
        return ", ".join(words)

    @contextlib.contextmanager
    def shown(self) -> Iterator[None]:
        """Show it while the context lasts, by a thread of its own: a batch may take minutes."""
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
        from rich.progress import Progress as Bars

        console = Console(stderr=True)
        columns = (TextColumn("predicting"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}"))
        with Bars(*columns, console=console, transient=True, disable=not console.is_terminal) as bars:
            bar = bars.add_task("", total=self.total, completed=self.done)

            def tell() -> None:
                self.look()
                if console.is_terminal:
                    bars.update(bar, completed=self.done, description=self.said())
                else:
                    self._print(console, self.said())

            with _every(OFTEN if console.is_terminal else SELDOM, tell):
                yield
        with contextlib.suppress(OSError):  # all is made, and what it says is for the eye
            self.look()
        self._print(console, f"{time.monotonic() - self._start:.1f} s")

    def _print(self, console: Console, said: str) -> None:
        with contextlib.suppress(OSError):  # what counts stands in the folder
            console.print(f"predicting: {self.done} of {self.total} maps, {said}", highlight=False)


@contextlib.contextmanager
def _every(seconds: float, work: Callable[[], None]) -> Iterator[None]:
    """Do something every so many seconds while the context lasts."""
    stop = threading.Event()

    def go() -> None:
        while not stop.wait(seconds):
            with contextlib.suppress(OSError):  # the next look may get through
                work()

    thread = threading.Thread(target=go, name="memdist progress", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
