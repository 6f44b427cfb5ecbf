"""What a run writes into its folder while it trains: lines, checkpoints, and how it stands.

The main process alone writes, and asks before each time whether the folder is still its own (`Session.still_ours`).
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from memdist import rundir
from memdist.data import loader
from memdist.train import checkpoint, start


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

    def save(self, sums: Mapping[str, Any]) -> None:
        """Write a checkpoint; `sums` are those of the losses of all ranks since the last log line."""
        session = self.session
        session.still_ours()
        state = {
            "epoch": session.epochs,
            "lengths": {key: lines.length() for key, lines in self._lines.items()},
            "selection": asdict(session.selection),
            "scalers": session.strategy.scalers(),
            "sums": sums,
            "watch": session.watch.state(),
            "anchor": session.anchor,
            "rollbacks": session.rollbacks,
            "before": self._before,
            "seconds": self.seconds(),
        }
        checkpoint.save(session.out, session.step, session.stage.nets, session.averages.nets, session.optimisers, state)
        session.saved = True

    def prune(self) -> None:
        """Let go of the checkpoints that are not to be kept."""
        session, every = self.session, self.session.run.checkpoint.keep_every
        # Writing the one before this may have taken so long that another process has followed: those are its own now.
        session.still_ours()
        # The one before as well, with its best and its way back: should this one turn out to be torn, the run goes on there.
        needed = [step for step in (session.selection.step, *session.anchor) if step is not None]
        keep = {*checkpoint.steps(session.out)[-2:], *needed, *self._before}
        self._before = needed
        if every is not None:
            ends = range(every, session.epoch + 1, every)
            pairs = len(session.data.rows["train"])
            keep |= {loader.epoch_end(epoch, pairs, session.run.batch.size) for epoch in ends}
        checkpoint.prune(session.out, keep)

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
            "parameters": {n: sum(p.numel() for p in net.parameters()) for n, net in session.stage.nets.items()},
            "train_seconds": self.seconds(),
            "rollbacks": len(session.rollbacks),
        }
        session.still_ours()
        rundir.write_json(session.out / rundir.STATE, record)
