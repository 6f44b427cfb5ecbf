"""Whether a job is started again."""

from dataclasses import replace
from typing import Any

import pytest

from memdist.cluster import decide
from memdist.cluster.book import Attempt


def attempt(kind: str | None, since: int = 0, reached: int | None = None, **more: Any) -> Attempt:
    fields = {"job": "7", "restart": 0, "nodes": "", "began": 0.0, **more}
    return Attempt(since=since, reached=reached, kind=kind, **fields)


def test_a_first_end_may_be_mended() -> None:
    assert decide.refusal([], 0) is None
    assert decide.refusal([attempt("time-limit", 0, 0)], 0) is None


@pytest.mark.parametrize("kind", decide.NO_FAILURE)
def test_time_limits_and_preemption_are_no_failures(kind: str) -> None:
    assert decide.refusal([attempt(kind, step, step + 1) for step in range(50)], 0) is None


@pytest.mark.parametrize("allowed", [0, 1, 3])
def test_real_failures_are_counted_over_all_attempts(allowed: int) -> None:
    failures = [attempt("node", step, step + 1, why="node a3 is down") for step in range(allowed)]
    stops = [attempt("stopped", allowed, allowed + 9)]
    assert decide.refusal([*failures, *stops], allowed) is None
    why = decide.refusal([*failures, *stops, attempt("node", 99, 100, why="node a3 is down")], allowed)
    assert why == (
        f"it has failed {allowed + 1} times (the last time: node, node a3 is down), and max_failures is {allowed}"
    )


def test_no_progress_between_two_starts_ends_a_job() -> None:
    idle = [attempt("time-limit", 30, 30), attempt("time-limit", 30, 30)]
    why = decide.refusal([attempt("time-limit", 0, 30), *idle], 9)
    assert why is not None and "2 attempts in a row" in why and "step 30" in why and "every_minutes" in why
    assert decide.refusal([attempt("time-limit", 0, 30), idle[0]], 9) is None


def test_progress_in_between_starts_the_count_anew() -> None:
    assert decide.refusal([attempt("stopped", 3, 3), attempt("stopped", 3, 5), attempt("stopped", 5, 5)], 0) is None


def test_what_was_killed_without_a_word_is_a_failure_without_progress() -> None:
    killed = attempt(None, 4)
    assert decide.refusal([killed], 1) is None
    why = decide.refusal([killed, killed], 9)
    assert why is not None and "killed" in why


def test_a_job_answers_for_what_came_since_it_was_submitted() -> None:
    old, new, other = attempt("node", began=5.0), attempt("node", began=50.0), attempt("node", began=9.0)
    assert decide.answerable([old, new], "7", [50.5], True) == [new]
    assert decide.answerable([old, new], "7", [5.5], True) == [old, new]
    # By hand, nothing is written down: a job that is requeued keeps its number.
    theirs = [replace(other, job="6"), old]
    assert decide.answerable(theirs, "7", [], True) == [old]
    assert decide.answerable(theirs, "7", [], False) == theirs


def test_what_begins_anew_may_be_interrupted_more_often() -> None:
    stops = [attempt("stopped", 0, 0)] * 4
    assert decide.refusal(stops, 0, measured=False) is None
    why = decide.refusal([*stops, stops[0]], 0, measured=False)
    assert why is not None and "5 attempts in a row were not done" in why
    assert "it has failed 2 times" in (decide.refusal([attempt("bug", 0, 0)] * 2, 1, measured=False) or "")
