"""Work spread over processes, in order, with a progress bar on standard error."""

from __future__ import annotations

import contextlib
import itertools
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import TypeVar

from memdist.errors import DataError

Item = TypeVar("Item")
Result = TypeVar("Result")
Progress = Callable[[int, int], None]
"""Told, in the calling process, how many items are done, of how many."""

FEW = 64
"""Below so many items, processes take longer to start than they save."""


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


def spread(
    work: Callable[[Sequence[Item]], Result],
    items: Sequence[Item],
    *,
    title: str,
    chunk: int = 16,
    workers: int | None = None,
    progress: Progress | None = None,
) -> Iterator[Result]:
    """Yield `work` of every `chunk` items, in order, from `workers` processes (None: one a core; 1 or few items: here).

    `work` and its items are pickled: it is a function of a module, or a partial of one. Progress goes to `progress`;
    None shows a bar titled `title`. An error of `work` is raised here, and ends what else runs.
    """
    if not items:
        return
    parts = [items[i : i + chunk] for i in range(0, len(items), chunk)]
    count = min(workers or cores(), len(parts))
    with _shown(title, len(items)) if progress is None else contextlib.nullcontext(progress) as tell:
        here = count <= 1 or len(items) < FEW
        done = 0
        with contextlib.closing(_here(work, parts) if here else _processes(work, parts, count)) as results:
            for part, result in zip(parts, results, strict=True):
                yield result
                done += len(part)
                tell(done, len(items))


def _here(work: Callable[[Sequence[Item]], Result], parts: Sequence[Sequence[Item]]) -> Generator[Result, None, None]:
    yield from map(work, parts)


def _processes(
    work: Callable[[Sequence[Item]], Result], parts: Sequence[Sequence[Item]], count: int
) -> Generator[Result, None, None]:
    # Spawned, not forked: the caller may have threads, and a CUDA context that no child can use.
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(count, mp_context=context, initializer=_start)
    rest = iter(parts)
    try:
        # Only so many at a time, or the results of fast workers would pile up before a slow caller.
        waiting: deque[Future[Result]] = deque(pool.submit(work, p) for p in itertools.islice(rest, 4 * count))
        while waiting:
            result = waiting.popleft().result()
            waiting.extend(pool.submit(work, part) for part in itertools.islice(rest, 1))
            yield result
    except BrokenProcessPool as error:
        raise DataError(
            f"one of {count} worker processes ended before its work was done, for want of memory or because a script "
            'started it outside `if __name__ == "__main__":`; give fewer workers (1: no other process)'
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


def _start() -> None:
    """Let the parent alone answer Ctrl-C, and end with it however it ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def follow() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()


@contextlib.contextmanager
def _shown(title: str, total: int) -> Iterator[Progress]:
    """A bar on a terminal, else one line at the end."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bars

    console = Console(stderr=True)
    start = time.monotonic()
    columns = (TextColumn(title), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Bars(*columns, console=console, transient=True, disable=not console.is_terminal) as bars:
        bar = bars.add_task(title, total=total)
        yield lambda done, _: bars.update(bar, completed=done)
    console.print(f"{title}: {total} in {time.monotonic() - start:.1f} s", highlight=False)
