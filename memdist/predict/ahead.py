"""Work done ahead by a few threads, in order and never far ahead."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from memdist.data import workers

Item = TypeVar("Item")
Result = TypeVar("Result")

MOST = 8
"""Threads at most: those of all shards of a machine share its cores."""


def threads(wanted: int | None) -> int:
    """How many threads read, and how many write; decoding and encoding leave the others to run."""
    return min(wanted or workers.cores(), MOST)


def ahead(work: Callable[[Item], Result], items: Iterable[Item], count: int, far: int) -> Generator[Result, None, None]:
    """Yield `work` of every item, in order, from `count` threads that are at most `far` items ahead.

    An error of `work` is raised here; close the generator, and the threads end.
    """
    pool = ThreadPoolExecutor(count, thread_name_prefix="memdist read")
    rest = iter(items)
    try:
        waiting: deque[Future[Result]] = deque(pool.submit(work, item) for item in itertools.islice(rest, far))
        while waiting:
            result = waiting.popleft().result()
            waiting.extend(pool.submit(work, item) for item in itertools.islice(rest, 1))
            yield result
    finally:
        pool.shutdown(cancel_futures=True)
