"""Trainings that end badly, for tests: run as `python -m tests.drivers`, alone or under torchrun."""

import json
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from memdist import models
from memdist.model import Pair
from memdist.train import loop, start
from memdist.train import step as step_


def die_at(step: int, number: int, rank: int | None = None) -> None:
    """Send this process a signal once it has finished a step, before anything that follows that step."""
    taken = step_.take_step

    def take_step(session: start.Session, micros: Sequence[Pair], sums: step_.Sums) -> None:
        taken(session, micros, sums)
        if session.step == step and rank in (None, session.strategy.rank):
            os.kill(os.getpid(), number)

    step_.take_step = take_step


def main(request: dict[str, Any]) -> int:
    """Train `raw` into `out`; with `at`, the signal `signal` comes after that step."""
    if request.get("at") is not None:
        die_at(request["at"], getattr(signal, request["signal"]))
    return loop.train(models.resolve(request["raw"]), Path(request["out"]))


if __name__ == "__main__":
    sys.exit(main(json.loads(sys.argv[1])))
