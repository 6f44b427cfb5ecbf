"""A rank that goes wrong, for tests: `python -m tests.launched STEP RANK WORDS...` runs `memdist WORDS...`.

Rank RANK raises after step STEP. With `--ranks` first, it starts two such ranks as `memdist train --gpus 2` would.
"""

import os
import sys
from collections.abc import Sequence

from memdist import cli
from memdist.launch import local
from memdist.model import Pair


def main(words: Sequence[str]) -> int:
    """Start two ranks, or be one."""
    if words[0] == "--ranks":
        return local.run([sys.executable, "-m", "tests.launched", *words[1:]], 2)
    step, rank, *command = words
    from memdist.train import start
    from memdist.train import step as step_

    taken = step_.take_step

    def take_step(session: start.Session, micros: Sequence[Pair], sums: step_.Sums) -> None:
        taken(session, micros, sums)
        if session.step == int(step) and os.environ["RANK"] == rank:
            raise ZeroDivisionError("raised by a test")

    step_.take_step = take_step
    cli.main(command)
    raise AssertionError("the command ends the process")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
