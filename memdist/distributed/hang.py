"""A rank that is missing is named: each rank tells how far it is, and one that waits too long looks where the others are.

Where a rank stands is counted by `touch`, which costs a few assignments; a thread of its own publishes it every few seconds
in the store of the process group, and never touches the device, the groups or the step. The watch begins with
`begin`, before the first step. From then on a rank has `run.hang_minutes` for each piece of work, and

- SLOWER times as long for the first piece of each kind: it may compile, or look for the fastest kernels;
- as long as it takes for what it does alone while the others wait for it (`alone`): decoding pictures, writing a checkpoint.
  It is trusted as long as it lives.

A rank that has waited longer looks at all others. Missing are those that do not publish any more (stopped, swapped out, or
their machine is gone); else those that are furthest behind, unless they still have time. One of those that wait names
them, and all that wait end with exit code 1; whoever started the ranks ends the rest.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from datetime import timedelta
from typing import Any, NamedTuple

from memdist.launch import ends

SLOWER = 6

_SILENT = 4
"""Periods without a beat after which a rank is taken to have stopped."""


class Stand(NamedTuple):
    """Where a rank stands, as it publishes it; durations only, as clocks of machines differ."""

    done: int
    """Pieces of work that it has finished since the watch began."""
    place: str
    """What it did last, in words."""
    waited: float
    """Seconds since then."""
    patience: float
    """Seconds that it may take for what it is at."""
    beat: int
    """Grows with every publication."""


class Missing(NamedTuple):
    """Ranks for which the others wait."""

    ranks: tuple[int, ...]
    silent: bool
    """They publish nothing any more; otherwise they are behind."""


def missing(stands: Mapping[int, Stand], before: Mapping[int, Stand], world: int) -> Missing | None:
    """Whom all wait for, from what was published now and some periods ago; None if it is right to go on waiting.

    Without any rank that is silent or behind, `ranks` is empty: all have come to the same place and none goes on.
    """
    silent = [
        rank
        for rank in range(world)
        if rank not in stands or (rank in before and stands[rank].beat == before[rank].beat)
    ]
    if silent:
        return Missing(tuple(silent), True)
    least = min(stand.done for stand in stands.values())
    behind = [rank for rank, stand in stands.items() if stand.done == least]
    # Whoever works alone keeps everybody, also those that are as far as it is.
    if any(
        stand.waited < stand.patience for rank, stand in stands.items() if rank in behind or math.isinf(stand.patience)
    ):
        return None
    return Missing(tuple(behind) if len(behind) < world else (), False)


def sentence(found: Missing, stands: Mapping[int, Stand], world: int, minutes: float) -> str:
    """What a person reads."""
    limit = f"{minutes:g} minute{'s' if minutes != 1 else ''}"
    if not found.ranks:
        places = sorted({stand.place for stand in stands.values()})
        return (
            f"no rank has gone on for {limit} (hang_minutes): all {world} stand after {' or '.join(places)}, waiting for "
            "each other or for the same file or device; the same command goes on from the last checkpoint"
        )
    who = _ranks(found.ranks)
    one = len(found.ranks) == 1
    where = " or ".join(sorted({stands[rank].place for rank in found.ranks if rank in stands}))
    rest = [stand.place for rank, stand in stands.items() if rank not in found.ranks]
    others = f"{len(rest)} other{'s wait' if len(rest) != 1 else ' waits'} after {' or '.join(sorted(set(rest)))}"
    if found.silent:
        last = f"; last heard of after {where}" if where else ""
        what = f"{who} {'has' if one else 'have'} not answered for {limit} (hang_minutes{last})"
    else:
        what = f"{who} {'stands' if one else 'stand'} after {where} for {limit} (hang_minutes)"
    return (
        f"{what} while {others}: see what {'that process' if one else 'those processes'} and "
        f"{'its machine' if one else 'their machines'} are at; the same command goes on from the last checkpoint"
    )


def _ranks(numbers: Sequence[int]) -> str:
    if len(numbers) == 1:
        return f"rank {numbers[0]}"
    shown = ", ".join(map(str, numbers[:-1])) if len(numbers) <= 16 else ", ".join(map(str, numbers[:15]))
    return f"ranks {shown} and {numbers[-1] if len(numbers) <= 16 else f'{len(numbers) - 15} more'}"


class Watch:
    """How far this rank is, and the thread that publishes it and looks at the others'."""

    def __init__(self, rank: int, world: int, minutes: float, store: Any) -> None:
        """`store`: of torch, with all ranks on it."""
        self.rank, self.world, self.minutes = rank, world, minutes
        self.period = min(5.0, 60 * minutes / 20)
        self._store = store
        self._count, self._place, self._since, self._patience = 0, "", time.monotonic(), math.inf
        self._on = False
        self._kinds: dict[str, int] = {}
        self._beat = 0
        self._answered = time.monotonic()
        self._end = threading.Event()
        self._threads = [threading.Thread(target=work, daemon=True) for work in (self._run, self._guard)]
        for thread in self._threads:
            thread.start()

    def begin(self, kind: str, number: int) -> None:
        """From now on something is expected of this rank: work of a kind, which stands at a number."""
        self._on = True
        self.touch(kind, number)

    def touch(self, kind: str, number: int) -> None:
        """A piece of work is finished, or the first of its kind begins; nothing before `begin`."""
        if not self._on:
            return
        seen = self._kinds[kind] = self._kinds.get(kind, 0) + 1
        # Set to endless meanwhile, so that the thread never sees an old time with a new patience.
        self._patience = math.inf
        self._count, self._place, self._since = self._count + 1, f"{kind} {number}", time.monotonic()
        self._patience = 60 * self.minutes * (SLOWER if seen == 1 else 1)

    def rest(self) -> None:
        """Nothing is expected until `begin`."""
        self._on, self._patience = False, math.inf

    @contextlib.contextmanager
    def alone(self, what: str) -> Iterator[None]:
        """Others wait for this rank, however long it takes."""
        place, patience = self._place, self._patience
        self._place, self._patience = f"{place} ({what})", math.inf
        try:
            yield
        finally:
            self._place, self._since, self._patience = place, time.monotonic(), patience

    def stop(self) -> None:
        """Publish and look no more."""
        self._end.set()
        for thread in self._threads:
            thread.join(timeout=1)

    def _stand(self) -> Stand:
        self._beat += 1
        return Stand(self._count, self._place, time.monotonic() - self._since, self._patience, self._beat)

    def _late(self) -> bool:
        return time.monotonic() - self._since >= self._patience

    def _run(self) -> None:
        """Publish, and once it is late look twice at all others, some periods apart."""
        before: dict[int, Stand] | None = None
        looked = 0
        while not self._end.wait(self.period):
            try:
                self._store.set(str(self.rank), json.dumps(self._stand()))
                # Asked for every time: it is answered, while what is set is only sent.
                stands = self._read() if self._late() else self._read([self.rank])
            except Exception:
                continue  # `_guard` sees that nothing is answered
            self._answered = time.monotonic()
            if not self._late():
                before = None
            elif before is None:
                before, looked = stands, 0
            elif (looked := looked + 1) >= _SILENT:
                found, before = missing(stands, before, self.world), None
                if found is not None and self.rank not in found.ranks and not self._end.is_set():
                    self._leave(sentence(found, stands, self.world, self.minutes))

    def _guard(self) -> None:
        """See that the store answers: a connection to a process that is stopped waits for ever."""
        while not self._end.wait(self.period):
            if self._late() and time.monotonic() - self._answered > min(60.0, 60 * self.minutes):
                at = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
                words = (
                    f"rank 0, or the launcher that keeps what ranks tell each other at {at}, has not answered while this rank "
                    f"waits after {self._place} for {self.minutes:g} minutes (hang_minutes): see what that process and its "
                    "machine are at; the same command goes on from the last checkpoint"
                )
                self._leave(words, first=self.rank == 1)

    def _read(self, ranks: Sequence[int] | None = None) -> dict[int, Stand]:
        keys = [str(rank) for rank in (range(self.world) if ranks is None else ranks)]
        there = [key for key in keys if self._store.check([key])]
        return {int(key): Stand(*json.loads(self._store.get(key))) for key in there}

    def _leave(self, words: str, first: bool | None = None) -> None:
        """End this process, after the one rank that speaks has spoken."""
        if first is None:
            # Rank 0 before the others, as what it says is seen wherever the ranks were started.
            if self._end.wait(min(self.rank, 4) * self.period / 4):
                return
            try:
                first = self._store.add("told", 1) == 1
            except Exception:
                first = False
        if first:
            who = "memdist" if self.rank == 0 else f"memdist (rank {self.rank})"
            print(f"{who}: {words}", file=sys.stderr, flush=True)
        else:
            time.sleep(ends.AGREED)
        ends.leave(1, "told" if first else "lost")
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(Exception):
                stream.flush()
        # The main thread is inside a collective that will not return.
        os._exit(1)


_watch: Watch | None = None


def start(rank: int, world: int, minutes: float) -> None:
    """Watch this process, one of several ranks that have joined a process group."""
    global _watch
    from torch.distributed import distributed_c10d

    # A connection of its own: the group's waits for whatever the main thread asks.
    shared: Any = distributed_c10d._get_default_store()
    store = shared.clone()
    store.set_timeout(timedelta(seconds=max(5.0, min(60.0, 60 * minutes / 4))))
    stop()
    _watch = Watch(rank, world, minutes, distributed_c10d.PrefixStore("memdist-hang", store))


def stop() -> None:
    """Watch no more."""
    global _watch
    if _watch is not None:
        _watch.stop()
        _watch = None


def begin(kind: str, number: int) -> None:
    """From now on something is expected of this rank: work of a kind (step), which stands at a number."""
    if _watch is not None:
        _watch.begin(kind, number)


def touch(kind: str, number: int) -> None:
    """This rank, like every other, has finished a piece of work, or begins the first of its kind; nothing before `begin`."""
    if _watch is not None:
        _watch.touch(kind, number)


def rest() -> None:
    """Nothing is expected of this rank until `begin`."""
    if _watch is not None:
        _watch.rest()


@contextlib.contextmanager
def alone(what: str) -> Iterator[None]:
    """Surround what this rank does while others wait for it."""
    if _watch is None:
        yield
        return
    with _watch.alone(what):
        yield


def timeout(minutes: float) -> timedelta:
    """Time-out for collectives of process groups: later than any hang is told, so that the sentence comes first."""
    return timedelta(minutes=max(30.0, 2 * SLOWER * minutes))
