"""What follows when a training has gone wrong: the sentence that ends it, or the way back at lower rates.

The way back leads to the *anchor*: the newest checkpoint that an epoch's end made due, or the initial weights. Checkpoints
that the clock or a signal asked for fall on other steps each time a run is repeated or interrupted, so that a run would
not be the same again if it went on from them.
"""

from __future__ import annotations

from typing import Any

from memdist import rundir
from memdist.distributed import pieces
from memdist.distributed import strategy as strategy_
from memdist.errors import DivergedError
from memdist.train import checkpoint, contents, restore, start
from memdist.train.select import Selection
from memdist.train.watch import Verdict, Watch


def remembered(session: start.Session) -> list[str]:
    """A sentence on how the run folder's last process ended, if its training went wrong; for the main process."""
    last = rundir.read_json(session.out / rundir.STATE)
    if last.get("state") != "diverged":
        return []
    how = f"this run diverged last time: {last.get('why') or 'it is not known why'}"
    if session.run.on_divergence == "rollback":
        return [f"{how}; this time it goes back when it does"]
    return [
        f"{how}; from the same checkpoint with the same settings it will again, unless it runs with on_divergence=rollback"
    ]


def due(session: start.Session) -> bool:
    """Whether a training that goes wrong now goes back, rather than end."""
    run = session.run
    return bool(run.on_divergence == "rollback" and len(session.rollbacks) < run.divergence.rollbacks)


def refusal(session: start.Session, verdict: Verdict) -> DivergedError:
    """The error that ends a run, with what can be done about it."""
    run, net = session.run, verdict.net
    before = [step for step in checkpoint.steps(session.out) if step < verdict.since]
    place = (
        f"the checkpoint of step {before[-1]} is from before" if before else "there is no checkpoint from before yet"
    )
    advice = (
        f"train anew into another folder (--out) with a lower optim.{net}.lr than {getattr(run.optim, net).lr:g}"
        + ("" if getattr(run.optim, net).clip is not None else f" or with optim.{net}.clip")
    )
    if run.on_divergence == "rollback":
        times = len(session.rollbacks)
        advice = (
            f"it went back {times} times (divergence.rollbacks), to {session.rate:g} of its learning rates: {advice}"
        )
    else:
        advice = f"go on from there at lower rates with on_divergence=rollback, or {advice}"
    if verdict.setting is not None:
        advice += f", or let it go on with {verdict.setting}=null"
    return DivergedError(f"{session.out} has diverged: {verdict.what}; {place}; {advice}")


def go_back(session: start.Session, verdict: Verdict) -> list[str]:
    """Make a session what it was at its anchor, but for its learning rates; gives sentences on it.

    Called by all ranks. A process that is killed meanwhile, or before the next checkpoint, finds a checkpoint from which
    the same steps lead here again.
    """
    run, seconds = session.run, session.seconds
    told: list[str] = []
    step = strategy_.from_main(session.strategy, lambda: _way_back(session, verdict, told))
    number, rate = len(session.rollbacks) + 1, session.rate * run.divergence.rate
    record = {"step": step, "rollback": number, "reason": verdict.what, "rate": rate}
    rollbacks: list[dict[str, Any]] = [*session.rollbacks, record]
    for optimiser in session.strategy.optimisers.values():
        optimiser.state.clear()
    if step:
        start.take_up(session, step)
    else:
        _begin_again(session)
    session.rollbacks, session.seconds = rollbacks, seconds

    def drop() -> None:
        session.still_ours()
        # Before they go: a process that is killed in between must not leave a run that seems to have lost them.
        stands = rundir.read_json(session.out / rundir.STATE)
        rundir.write_json(session.out / rundir.STATE, stands | {"saved": step > 0})
        # What was saved after it belongs to the steps that are given up.
        checkpoint.prune(session.out, {s for s in checkpoint.steps(session.out) if s <= step})

    # Last: until all of it is read, nothing goes.
    session.strategy.first(drop)
    return told + [
        f"{verdict.what}; back to step {step}, and on at {rate:g} of the learning rates (rollback {number} of at most "
        f"{run.divergence.rollbacks})"
    ]


def _way_back(session: start.Session, verdict: Verdict, told: list[str]) -> int:
    """Step of the anchor or, if that is torn, of the newest whole checkpoint from before the trouble; 0: the start."""
    session.still_ours()
    anchor = session.anchor[0]
    wrong = (
        (start.fault(session, anchor) if anchor in checkpoint.there(session.out) else "it is not there")
        if anchor
        else None
    )
    if wrong is None:
        return anchor
    others = [step for step in checkpoint.steps(session.out) if step < verdict.since and step != anchor]
    step = next((step for step in reversed(others) if start.fault(session, step) is None), 0)
    told.append(
        f"warning: the checkpoint of step {anchor}, to which the run would go back, cannot be used, as {wrong}; it goes back to "
        + (f"that of step {step}" if step else "the start")
    )
    return step


def _begin_again(session: start.Session) -> None:
    """What a new run starts with, in the networks that are there: a strategy has wrapped them."""
    run = session.run
    stage, averages = start.place(run, session.model, session.strategy.device, home=session.strategy.home)
    if run.init.from_ is not None:
        restore.start_from(run.init.from_, stage.nets, averages.nets)
    contents.take_weights(session.stage, session.strategy, pieces.of_nets(stage.nets))
    pieces.fill(session.averages.pieces(), pieces.of_nets(averages.nets))
    session.strategy.load_scalers(session.scalers)
    session.watch = Watch(run.divergence, session.model.floors())
    session.selection, session.step, session.anchor, session.state = Selection(), 0, (0, None), {}
    session.saved = False
