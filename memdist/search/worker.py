"""`python -m memdist.search.worker N`: trains one run after the other, as lines on standard input say, and answers on file N.

Between trainings the process stays: torch is loaded once, the pictures' pages are there, and what is compiled lies in the
cache. Whatever is no person's mistake ends it, with a traceback on its standard error: who started it starts another.
"""

from __future__ import annotations

import gc
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

from memdist.errors import DivergedError, MemdistError


def work(settings: dict[str, Any], out: Path, score: str = "") -> dict[str, Any]:
    """Train a run, and `score` it on that split; gives the exit code that memdist would have, and what it would have said."""
    from memdist import models
    from memdist.train import evaluate, loop

    try:
        code = loop.train(models.resolve(settings), out)
        if code == 0 and score:
            evaluate.evaluate(out, [score])
        return {"code": code, "error": ""}
    except MemdistError as error:
        return {"code": 2, "error": str(error), "diverged": isinstance(error, DivergedError)}


def tidy() -> None:
    """Let go of what the last network has left, so that the next one finds the room that it would find alone."""
    import torch

    torch.compiler.reset()
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def main() -> None:
    """Train what is asked for until standard input ends."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2):
        # A wish to stop is repeated until it is answered; a training takes note of it, and between them it means nothing.
        signal.signal(number, lambda *_: None)
    answers = os.fdopen(int(sys.argv[1]), "w", buffering=1)
    for line in sys.stdin:
        asked = json.loads(line)
        print(f"memdist: {asked['out']}", flush=True)
        answer = work(asked["settings"], Path(asked["out"]), asked["score"])
        print(*([f"memdist: {answer['error']}"] if answer["error"] else []), sep="\n", end="", flush=True)
        tidy()
        answers.write(json.dumps(answer) + "\n")


if __name__ == "__main__":
    main()
