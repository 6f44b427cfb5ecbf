"""`python -m memdist.search.stepping N`: takes steps of one cell beside other processes that do the same, and answers on file N.

A line of JSON on standard input says which run, with how many pictures and for how many seconds; the answer to it says that
the process is warm and what memory the device had left before; another line starts the clock, and the last answer says how
many steps were taken in how long.
"""

from __future__ import annotations

import json
import os
import sys
import time

WARM = 2
"""Steps before the process is warm."""
FEWEST = 3
"""Steps that are taken however long they take."""


def main() -> None:
    """Build, take a few steps, wait, and take steps for a while."""
    answers = os.fdopen(int(sys.argv[1]), "w", buffering=1)
    asked = json.loads(sys.stdin.readline())
    from memdist import models
    from memdist.data import loader
    from memdist.distributed import strategy
    from memdist.plan import timing
    from memdist.train import start

    run = models.resolve(asked["settings"])
    device = strategy.device_of(run.device)
    free = loader.free_memory(device)
    steps = timing.Steps(run, start.build(run), device, asked["micro"])
    for _ in range(WARM):
        steps.take()
    answers.write(json.dumps({"device": device.type, "free": free}) + "\n")
    if not sys.stdin.readline():
        return
    taken, begun = 0, time.perf_counter()
    while taken < FEWEST or time.perf_counter() - begun < asked["seconds"]:
        steps.take()
        taken += 1
    answers.write(json.dumps({"steps": taken, "seconds": time.perf_counter() - begun}) + "\n")


if __name__ == "__main__":
    main()
