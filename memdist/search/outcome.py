"""What came of a trial's training, as its run folder has it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

from memdist import rundir
from memdist.errors import SearchError
from memdist.search.methods.method import Result
from memdist.search.objective import Mode, Scope, objective


class Outcome(NamedTuple):
    """How far a trial came, and what it is worth there."""

    state: Literal["ok", "diverged", "failed", "stopped"]
    """stopped: it was told to leave, and goes on another time."""
    value: float | None = None
    """The objective, a finite number; None of one that failed or diverged."""
    ended: bool = False
    """It trains no further, as it has stopped early."""
    epoch: int = 0
    """Epochs that it has trained."""
    seconds: float = 0.0
    """That this took, from its start in a worker to its end."""
    where: str = ""
    """Machine."""
    kind: str = ""
    """Of one that failed: the class of failure (`memdist.triage`)."""
    why: str = ""
    """The sentence or the line that says so."""

    @property
    def result(self) -> Result:
        """As a method is told of it."""
        if self.state == "ok":
            return Result(self.value, "ok", self.ended)
        return Result(None, "diverged" if self.state == "diverged" else "failed")


def of_run(run: Path, until: int, metric: str, scope: Scope, mode: Mode) -> Outcome:
    """What a run that has come to the end of an epoch is worth there; raises SearchError where it does not report `metric`."""
    records = rundir.read_lines(run / rundir.METRICS)
    found = values(records, metric)
    stands = rundir.read_json(run / rundir.STATE)
    epoch = int(float(stands.get("epoch") or 0.0))
    value = objective(found, scope, mode, until)
    if value is None:
        known = sorted({key for record in records for key in record if key.startswith("val/")})
        raise SearchError(
            f"{run.name} has no {metric} up to epoch {until}; it reports {', '.join(known) or 'nothing of val'}: choose another "
            "search.metric, or validate more often (validate.every)"
        )
    if not math.isfinite(value):
        return Outcome("diverged", epoch=min(epoch, until), why=f"{metric} is no finite number")
    return Outcome("ok", value, stands.get("state") == "finished" and epoch < until, min(epoch, until))


def values(records: list[dict[str, Any]], metric: str) -> list[tuple[int, float]]:
    """(epoch, value) pairs of a metric; what metrics.jsonl has as null was no finite number."""
    return [(int(record["epoch"]), _number(record, metric)) for record in records if metric in record]


def _number(record: Mapping[str, Any], metric: str) -> float:
    return math.nan if record[metric] is None else float(record[metric])
