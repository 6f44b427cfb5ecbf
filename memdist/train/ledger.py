"""What a run writes into its folder while it trains: lines, checkpoints, and how it stands.

The main process alone writes, and asks before each time whether the folder is still its own (`Session.still_ours`).
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from memdist import rundir
from memdist.data import loader
from memdist.distributed.pieces import Pieces
from memdist.train import checkpoint, contents, start
from memdist.train.saving import Saver


class Ledger:
    """The files of one leg of a run; other ranks keep time with it and write nothing."""

    def __init__(self, session: start.Session) -> None:
        """Start the clock; nothing is touched yet."""
        self.session = session
        self._began = time.monotonic()
        self._before: list[int] = session.state.get("before", [])
        self._lines: dict[str, rundir.Lines] = {}

    def open(self) -> None:
        """Open the line files where the checkpoint left them."""
        session = self.session
        session.still_ours()
        rundir.samples(session.out)
        lengths = session.state.get("lengths", {})
        for name, key in ((rundir.METRICS, "metrics"), (rundir.TIMING, "timing")):
            self._lines[key] = rundir.Lines(session.out / name, lengths.get(key, 0))
        # Of rollbacks, what came after the checkpoint was cut off with the rest.
        for record in session.rollbacks[len(session.state.get("rollbacks", ())) :]:
            self._lines["metrics"].write(record)

    def close(self) -> None:
        """Close the line files."""
        for lines in self._lines.values():
            lines.close()

    def seconds(self) -> float:
        """Time spent training, in all legs."""
        return self.session.seconds + time.monotonic() - self._began

    def write(self, values: Mapping[str, float | None], clock: Mapping[str, float]) -> None:
        """Append a line of what was measured, and one of what the clock said."""
        session = self.session
        session.still_ours()
        place = {"step": session.step, "epoch": session.epochs}
        finite = {name: None if v is None or not math.isfinite(v) else v for name, v in values.items()}
        self._lines["metrics"].write(place | finite)
        self._lines["timing"].write(place | {"seconds": self.seconds()} | dict(clock))

    def save(self, sums: Mapping[str, Any], saver: Saver) -> None:
        """Have a checkpoint written, and let go of those that are then not to be kept; called by all ranks.

        `sums` are those of the losses of all ranks since the last log line.
        """
        session, strategy = self.session, self.session.strategy
        saver.wait()
        session.still_ours()
        state = {
            "epoch": session.epochs,
            "lengths": {key: lines.length() for key, lines in self._lines.items()},
            "selection": asdict(session.selection),
            "scalers": strategy.scalers(),
            "sums": sums,
            "watch": copy.deepcopy(session.watch.state()),
            "anchor": session.anchor,
            "rollbacks": session.rollbacks,
            "before": self._before,
            "seconds": self.seconds(),
        }
        keep = self._kept()
        self._before = self._needed()
        step, out = session.step, session.out

        def write(copies: Pieces) -> None:
            contents.write(out, step, copies, strategy, state, lambda: session.still_ours())
            if strategy.main:
                session.saved = True
                # Writing it may have taken so long that another process has followed: the others are its own now.
                session.still_ours()
                checkpoint.prune(out, keep | set(checkpoint.steps(out)[-2:]))

        saver.begin(contents.everything(session.stage, session.averages, strategy), write)

    def _needed(self) -> list[int]:
        """The best checkpoint, and the way back with the best one as of then."""
        session = self.session
        return [step for step in (session.selection.step, *session.anchor) if step is not None]

    def _kept(self) -> set[int]:
        """Checkpoints that stay, beside the last two."""
        session, every = self.session, self.session.run.checkpoint.keep_every
        # The one before as well, with its best and its way back: should this one turn out to be torn, the run goes on there.
        keep = {*self._needed(), *self._before}
        if every is not None:
            ends = range(every, session.epoch + 1, every)
            pairs = len(session.data.rows["train"])
            keep |= {loader.epoch_end(epoch, pairs, session.run.batch.size) for epoch in ends}
        return keep

    def prune(self) -> None:
        """Let go of the checkpoints that are not to be kept: a kill may have come before that was done."""
        self.session.still_ours()
        keep = self._kept()
        self._before = self._needed()
        checkpoint.prune(self.session.out, keep | set(checkpoint.steps(self.session.out)[-2:]))

    def note(self, state: str, why: str) -> None:
        """Say in state.json how the run stands."""
        session = self.session
        record = {
            "state": state,
            "why": why,
            "step": session.step,
            "steps": session.total,
            "epoch": session.epochs,
            "saved": session.saved,
            "best": asdict(session.selection),
            "parameters": session.parameters,
            "train_seconds": self.seconds(),
            "rollbacks": len(session.rollbacks),
        }
        session.still_ours()
        rundir.write_json(session.out / rundir.STATE, record)
