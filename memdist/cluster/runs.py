"""How one run stands, read from its folder."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from memdist import locks, process, rundir
from memdist.cluster import book, standing, tails
from memdist.cluster.book import Attempt, Submitted
from memdist.cluster.farm import Farm
from memdist.cluster.standing import FRESH, Life, Row, Slurm
from memdist.errors import CheckpointError, printable

T = TypeVar("T", int, float)

_SAID = {"running", "stopped", "finished", "failed", "diverged", "imported"}
_LATER = 5.0
"""Seconds after the end of an attempt from which on what the folder says is somebody else's word."""


def read(path: str, names: Collection[str], slurm: Slurm, *, name: str, group: str, farm: Farm | None = None) -> Row:
    """The row of the run in a folder whose entries are `names`. Raises what files raise that are none of a run's."""
    stands = _state(path) if rundir.STATE in names else {}
    said = stands.get("state")
    done = said in ("finished", "imported")
    attempts: list[Attempt] = []
    count, nodes = 0, ""
    if rundir.JOBS in names:
        file = f"{path}/{rundir.JOBS}/{book.ATTEMPTS}.jsonl"
        if done:
            count, nodes = _glance(tails.whole_file(file))
        else:
            attempts = book.attempts(Path(file))
            count, nodes = len(attempts), attempts[-1].nodes if attempts else ""
    elements = farm.begin(path, [one.job for one in attempts]) if farm is not None else []
    newest, loss = tails.last(f"{path}/{rundir.METRICS}", _loss) if rundir.METRICS in names else ({}, None)
    row = Row(
        name=name,
        group=group,
        place=path,
        state="imported" if said == "imported" else "finished",
        step=_most(tails.whole(newest.get("step")), tails.whole(stands.get("step"))),
        epoch=_most(tails.number(newest.get("epoch")), tails.number(stands.get("epoch"))),
        steps=tails.whole(stands.get("steps")),
        loss=loss,
        node=printable(nodes),
        attempt=count,
    )
    if done:
        return row
    if stands and said not in _SAID:
        raise CheckpointError(f"{rundir.STATE} names no state that a run can have: {said!r}"[:200])
    row = _judged(row, names, stands, attempts, elements, farm.names if farm is not None else {}, slurm)
    if row.state in ("running", "running?") and rundir.TIMING in names:
        row = replace(row, speed=tails.last(f"{path}/{rundir.TIMING}", _speed)[1])
    return row


def _judged(
    row: Row,
    names: Collection[str],
    stands: dict[str, Any],
    attempts: Sequence[Attempt],
    elements: Sequence[str],
    arrays: Mapping[str, str],
    slurm: Slurm,
) -> Row:
    """The row of a run that has not finished, with its state, its node and its reason."""
    submitted = _submitted(row.place)
    said = str(stands["state"]) if stands else standing.end_of(attempts)
    beats = [f"{row.place}/{name}" for name in names if name.startswith(f"{rundir.LOCK}.")]
    owner = locks.owner(Path(row.place)) if beats else None
    life, silence = _life(owner, beats)
    if owner is None and not stands and (attempts or submitted or elements):
        life = "unknown"  # the lock is taken when there is something to train
    if (
        said in ("running", "stopped")
        and life != "alive"
        and _outlived(attempts, [f"{row.place}/{rundir.STATE}", *beats])
    ):
        # Whoever started the process has written down an end of which it could say nothing itself, or not all.
        said = standing.end_of(attempts)
    ids = {attempts[-1].job} if attempts else set()
    ids |= {one.id for one in submitted} | set(elements)
    # What is said of a process's job ends in how often that was started before.
    own = owner.job.partition(".")[0] if owner is not None else ""
    ids |= {own} if own else set()
    chain = next((one.name for one in submitted if one.legs > 1), "")
    # What runs without a job, Slurm knows nothing of.
    theirs = owner is not None and not own and life == "unknown"
    begun = bool(attempts) and attempts[-1].ended is None
    known = {**arrays, **{one.id: one.name for one in submitted}}
    job, gone = slurm.find(ids, chain, names=known, begun=begun) if life != "alive" else (None, "")
    gone = "" if theirs else own if gone and own else gone
    state = standing.judge(said, life, job, gone=bool(gone), begun=bool(attempts or said))
    state = standing.cancelled(state, gone, row.place, os.path.dirname(row.place))
    node = row.node
    if owner is not None and state in ("running", "running?", "starting"):
        node = node or owner.host
    if job is not None and job.runs:
        node = job.nodes or node
    why = standing.last_failure(attempts)
    if said in ("failed", "diverged", "stopped", "cancelled") and not why:
        why = str(stands.get("why") or "")
    if job is not None and job.waits:
        why = "; ".join(filter(None, (standing.pending(job), why)))
    elif state == "running?" and owner is not None and silence is not None and not why:
        why = f"no sign of life from {owner.host} for {standing.for_long(silence)}"
    elif state == "queued?":
        why = why or standing.unseen(ids)
    elif state == "lost" and not why:
        touched = bool(attempts or stands or owner)
        why = (
            standing.missing(gone, begun=touched)
            if gone
            else f"{owner} is gone"
            if owner
            else "it ended without a word"
        )
    return replace(row, state=state, node=printable(node), why=printable(why), gone=gone if state == "lost" else "")


def _outlived(attempts: Sequence[Attempt], files: Iterable[str]) -> bool:
    """Whether the end of the last attempt was noted after all that the run itself has written into files."""
    if not attempts or attempts[-1].ended is None:
        return False
    silence = _silence(files)
    return silence is None or silence > time.time() - attempts[-1].ended - _LATER


def _silence(files: Iterable[str]) -> float | None:
    """Seconds since any of these files was written."""
    return min((beat for file in files if (beat := standing.silence(file)) is not None), default=None)


def _life(owner: process.Process | None, beats: Iterable[str]) -> tuple[Life, float | None]:
    """Whether a folder has an owner that lives, and for how long it was silent where that had to be looked at."""
    if owner is None:
        return "dead", None
    life = owner.life(process.this())
    if life != "unknown":
        return life, None
    silence = _silence(beats)
    return "alive" if silence is not None and silence < FRESH else "unknown", silence


def _glance(data: bytes) -> tuple[int, str]:
    """How many attempts a file tells of, and where the last one ran, for a run of which no more is to be known."""
    count = sum(b'"ended":' not in line for line in data.splitlines())
    nodes = next(tails.records(data), {}).get("nodes", "")
    return count, nodes if isinstance(nodes, str) else ""


def _state(path: str) -> dict[str, Any]:
    try:
        stands = json.loads(tails.whole_file(f"{path}/{rundir.STATE}").decode())
    except (ValueError, RecursionError):
        stands = None
    if not isinstance(stands, dict) or not stands:
        raise CheckpointError(f"{rundir.STATE} holds no JSON object")
    return stands


def _submitted(path: str) -> list[Submitted]:
    """Jobs that were to train a run; what scores it is another matter."""
    file = f"{path}/{rundir.JOBS}/{book.SUBMITTED}"
    return [one for one in book.submitted(Path(path)) if one.kind == "train"] if os.path.exists(file) else []


def _most(one: T | None, other: T | None) -> T | None:
    """The larger one: lines come every few steps, the state with each stop."""
    return other if one is None else one if other is None else max(one, other)


def _speed(record: dict[str, Any]) -> float | None:
    return tails.number(record.get("steps_per_second"))


def _loss(record: dict[str, Any]) -> float | None:
    """The loss of training; of several networks, that of the one that makes maps."""
    for key in ("train/loss", "train/generator/loss"):
        if key in record:
            return tails.number(record[key])
    losses = (value for key, value in record.items() if key.startswith("train/") and key.endswith("/loss"))
    return tails.number(next(losses, None))
