"""`search.pack=auto`: how many trials share a device, found by letting so many processes take steps side by side.

1, 2, 4, ... processes: as long as memory has room for the largest cell in each, and all together get on by a twentieth faster
than half as many. On CPUs a trial keeps its threads, and the answer is how many run at once on a machine.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any, NamedTuple

from memdist import config, output, rundir
from memdist.errors import SearchError
from memdist.launch import local
from memdist.launch.forward import bound
from memdist.search import cells, folder, measure, on_ray, spread
from memdist.search.cells import Space
from memdist.search.settings import Search

SECONDS = 4.0
"""For which steps are taken side by side."""
PAYS = 0.05
"""What twice as many have to gain, as a share."""
MOST = 64


class Speed(NamedTuple):
    """What so many processes did side by side."""

    steps: float
    """A second, of all together."""
    device: str
    free: int
    """Bytes that the device had left when the first of them came."""


def asked(search: Search) -> bool:
    """Whether trials share devices by measuring."""
    return search.pack == "auto" and search.gpus is None


def settled(place: Path, space: Space, search: Search, run: Any, need: Mapping[str, float], *, away: bool) -> int:
    """The answer that a search folder has, or that is now measured (`away`: as a task of Ray's) and written there."""
    noted = rundir.read_json(place / folder.PACK)
    if "trials" not in noted:
        say = output.console(needed=False).print
        say("measuring how many trials share a device (search.pack=auto)", soft_wrap=True)
        there = measure.pairs(run)
        largest = spread.spread(space, lambda cell: measure.look(cells.resolve(space, cell)), None).largest
        given = config.plain(run), config.plain(cells.resolve(space, largest)), tuple(there), search.cpus
        noted = on_ray.there({**need, "GPU": float(need["GPU"] > 0)}, find, *given) if away else find(*given)
        rundir.write_json(place / folder.PACK, noted)
        say(noted["why"], soft_wrap=True)
    return int(noted["trials"])


def find(first: dict[str, Any], largest: dict[str, Any], there: tuple[Any, ...], cpus: float) -> dict[str, Any]:
    """How many trials share this machine's device, and why no more; raises SearchError where not even one can be timed."""
    from memdist import models
    from memdist.train import start

    run = models.resolve(first)
    micro = start.micro_batch(run, 1, measure.Pairs(*there).train)
    threads = max(1, int(cpus))
    limit = min(MOST, max(1, int(local.cores() / cpus + 1e-6)))
    fits: list[int] = []

    def speed(count: int) -> Speed | None:
        found = beside(first, micro, count, threads)
        if found is not None and not fits:
            fits.append(fitting(largest, measure.Pairs(*there), found.device, found.free))
        return found

    def most() -> int:
        return min(limit, *fits)

    trials, speeds = choose(speed, most)
    if not trials:
        raise SearchError(
            "search.pack=auto cannot be measured, as the first cell takes no step here: train it alone, or set search.pack"
        )
    return {"trials": trials, "steps_per_second": speeds, "why": why(trials, speeds, limit, fits[0])}


def choose(speed: Callable[[int], Speed | None], most: Callable[[], int]) -> tuple[int, dict[int, float]]:
    """The largest of 1, 2, 4, ... that fits and pays, 0 where not even one does; and steps a second of those that were tried.

    `speed` gives None where so many find no room; `most` is known once one has been tried.
    """
    best, speeds, count = 0, dict[int, float](), 1
    while True:
        found = speed(count)
        if found is None:
            return best, speeds
        speeds[count] = found.steps
        if best and found.steps < speeds[best] * (1 + PAYS):
            return best, speeds
        best, count = count, min(2 * count, most())
        if count <= best:
            return best, speeds


def why(trials: int, speeds: Mapping[int, float], cpus: int, fits: int) -> str:
    """A sentence on what was measured."""
    told = ", ".join(f"{count}: {steps:.3g}" for count, steps in speeds.items())
    last = max(speeds)
    if last > trials:
        reason = f"{last} make it {100 * (speeds[last] / speeds[trials] - 1):+.0f} %, which does not pay"
    elif trials == min(cpus, fits, MOST):
        reason = "memory has room for no more" if fits <= cpus else "there are no CPUs for more"
    else:
        reason = "more found no room"
    return f"search.pack=auto: {trials} side by side (steps a second of all together by how many: {told}); {reason}"


def fitting(settings: dict[str, Any], there: measure.Pairs, device: str, free: int) -> int:
    """How many processes that train a cell have room in a device's free memory; at least one, as one was tried."""
    from memdist import models
    from memdist.plan import estimate
    from memdist.train import start

    if device not in estimate.RESERVE:
        return 1
    run = models.resolve(settings)
    planner = estimate.Planner(run, start.build(run, here=False), 1, device, free, there.train + there.val)
    micro = start.micro_batch(run, 1, there.train)
    passes = planner.footprint.exact(micro)
    each = planner.need(estimate.Choice(way="one"), micro, passes).total + estimate.RESERVE[device][0]
    return max(1, int(free * (1 - estimate.RESERVE[device][1]) / each))


def beside(settings: dict[str, Any], micro: int, count: int, threads: int, seconds: float = SECONDS) -> Speed | None:
    """Let so many processes take steps side by side, from one moment on; None where one of them failed."""
    with contextlib.ExitStack() as stack:
        processes = [_begin(stack, threads) for _ in range(count)]
        for process, _ in processes:
            _tell(process, json.dumps({"settings": settings, "micro": micro, "seconds": seconds}))
        warm = [_hear(answers) for _, answers in processes]
        if not all(warm):
            return None
        for process, _ in processes:  # all of them wait: from here on they run together
            _tell(process, "go")
        done = [_hear(answers) for _, answers in processes]
        if not all(done):
            return None
    return Speed(sum(d["steps"] / d["seconds"] for d in done), warm[0]["device"], max(w["free"] for w in warm))


def _begin(stack: contextlib.ExitStack, threads: int) -> tuple[subprocess.Popen[str], IO[str]]:
    read, write = os.pipe()
    with open(write, "wb") as theirs:
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "memdist.search.stepping", str(write)],
            env={**os.environ, "OMP_NUM_THREADS": str(threads)},
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            text=True,
            pass_fds=(theirs.fileno(),),
            start_new_session=True,
            preexec_fn=bound(),
        )
    answers = stack.enter_context(open(read))
    stack.callback(_end, process)
    return process, answers


def _end(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.wait()
    assert process.stdin is not None
    with contextlib.suppress(BrokenPipeError):
        process.stdin.close()


def _tell(process: subprocess.Popen[str], line: str) -> None:
    assert process.stdin is not None
    with contextlib.suppress(BrokenPipeError):  # that it has ended is seen by its answer
        process.stdin.write(line + "\n")
        process.stdin.flush()


def _hear(answers: IO[str]) -> dict[str, Any]:
    """The next answer; nothing of a process that has ended."""
    line = answers.readline()
    return json.loads(line) if line else {}
