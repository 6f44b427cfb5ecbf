"""Whether a job that has ended is to be started again: pure decisions over its attempts."""

from __future__ import annotations

from collections.abc import Sequence

from memdist.cluster.book import Attempt

NO_FAILURE = ("finished", "stopped", "time-limit", "pre-empted", "cancelled")
"""Ends that say nothing against a job: its time was over, another job came first, or its user had it end."""

IDLE = 2
"""Attempts in a row without a newer checkpoint that end a job: one may have been stopped before it could write any."""

ANEW = 5
"""The same of what begins anew each time: it may have been pushed out before it could end."""

LINE = 10**12
"""What a line of a search's ledger counts, in steps: those of a trial that is done go with its checkpoints."""

FOR_GOOD = ("gpu-memory", "disk-full", "bad-data", "diverged", "wrong-input", "communication", "no-progress", "bug")
"""Ends that another start would come to again, as far as anybody can tell."""


def answerable(attempts: Sequence[Attempt], job: str, submitted: Sequence[float], requeues: bool) -> list[Attempt]:
    """Those of the attempts that count for a job which was submitted at these times.

    What a person has submitted again since is not to answer for what came before. Of a script that was given to sbatch by
    hand nothing is written down: a job that requeues itself keeps its number, and a chain answers for all.
    """
    if submitted:
        return [attempt for attempt in attempts if attempt.began >= submitted[0] - 1]
    return [attempt for attempt in attempts if attempt.job == job or not requeues]


def refusal(attempts: Sequence[Attempt], max_failures: int, *, measured: bool = True) -> str | None:
    """Why a job with these attempts, all of which have ended, is not to be started again; None: it may be.

    `measured`: it leaves what it has done where it is interrupted, as trainings do, and does not begin anew. The last
    attempt was one that another start may mend. Raises nothing.
    """
    idle = 0
    for attempt in reversed(attempts):
        if (attempt.reached or 0) > attempt.since or attempt.kind == "finished":
            break
        idle += 1
    if not measured and idle >= ANEW:
        return (
            f"{idle} attempts in a row were not done when they ended (the last: {_said(attempts[-1])}): give more time"
        )
    if measured and idle >= IDLE:
        than = f" than that of step {attempts[-1].since}" if attempts[-1].since < LINE else ""
        return (
            f"{idle} attempts in a row have ended without a newer checkpoint{than} (the "
            f"last: {_said(attempts[-1])}): starting again would lead there again; give more time, or write checkpoints "
            "more often (checkpoint.every_minutes)"
        )
    failed = [attempt for attempt in attempts if attempt.kind not in NO_FAILURE]
    if len(failed) > max_failures:
        return f"it has failed {len(failed)} times (the last time: {_said(failed[-1])}), and max_failures is {max_failures}"
    return None


def hopeless(attempts: Sequence[Attempt], job: str) -> str | None:
    """Why a later job of a chain is not to try what one before it has failed at for good; None: it is."""
    if not attempts or attempts[-1].job == job or attempts[-1].kind not in FOR_GOOD:
        return None
    return f"job {attempts[-1].job} before it has failed ({_said(attempts[-1])}), as this one would"


def _said(attempt: Attempt) -> str:
    return (attempt.kind or "killed") + (f", {attempt.why}" if attempt.why else "")
