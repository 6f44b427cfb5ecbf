"""What attempts ended of, from logs in the words of the real programs."""

from typing import Any, get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memdist import triage
from memdist.errors import printable
from memdist.triage import Kind, Line
from tests.failures import CASES, CUDA, GLOO, LOST, NODE, OOM, STEP, TRACE


@pytest.mark.parametrize(("kind", "code", "slurm", "log"), CASES)
def test_each_class(kind: Kind, code: int | None, slurm: str | None, log: list[str]) -> None:
    found = triage.judge(code, {"rank 0": log}, slurm=slurm)
    assert found.kind == kind, found
    assert len(found.lines) <= triage.MOST
    assert {line.text for line in found.lines if line.where != triage.SLURM} <= {line.rstrip() for line in log} | set(
        log
    )
    assert found.advice and not found.advice.endswith(".") and "\n" not in found.advice
    # Each process has a log of its own, whose order is nobody's.
    logs = {str(number): [line] for number, line in reversed(list(enumerate(log)))}
    if not any("Traceback" in line or line[:1] == " " or line.startswith("srun: error") for line in log):
        assert triage.judge(code, logs, slurm=slurm).kind == kind


def test_all_classes_are_tested() -> None:
    assert {kind for kind, *_ in CASES} == set(get_args(Kind))


def test_what_is_started_again() -> None:
    again = {kind for kind, code, slurm, log in CASES if triage.judge(code, {"a": log}, slurm=slurm).retry}
    assert again == {"stopped", "time-limit", "pre-empted", "node-failure", "host-memory"}
    assert triage.judge(-9, {}).retry and not triage.judge(1, {"batch": [OOM]}).retry
    assert triage.judge(None, {}).retry and not triage.judge(None, {}).elsewhere
    lost = triage.judge(1, {"batch": ["srun: error: Node failure on n02", NODE]})
    assert (lost.retry, lost.elsewhere, lost.nodes) == (True, True, ("n02",))
    assert triage.judge(137, {"batch": ["srun: error: n07: task 3: Killed"]}).nodes == ("n07",)
    assert not any(triage.judge(code, {}).elsewhere for code in range(-70, 256))


def test_the_rank_at_fault_is_shown() -> None:
    logs = {
        "batch": [STEP, "srun: error: n01: tasks 0-6: Killed"],
        **{f"rank {rank}": [*TRACE, GLOO, LOST] for rank in range(7)},
    }
    assert triage.judge(1, logs | {"rank 7": [*TRACE, CUDA]}).lines == (Line("rank 7", CUDA),)
    own = triage.judge(1, logs | {"rank 7": [*TRACE, "KeyError: 'x'"]})
    assert own.kind == "bug" and own.lines == tuple(Line("rank 7", line) for line in [*TRACE[1:], "KeyError: 'x'"])
    many = triage.judge(1, {f"rank {rank}": [CUDA] for rank in range(9)})
    assert [line.where for line in many.lines] == [f"rank {rank}" for rank in range(triage.MOST)]


@pytest.mark.parametrize(
    ("kind", "code", "noted"),
    [
        ("finished", None, {"state": "finished"}),
        ("finished", 0, {"state": "finished"}),
        ("host-memory", -9, {"state": "finished"}),
        ("stopped", None, {"state": "stopped"}),
        ("diverged", 2, {"state": "diverged", "why": "train/loss is nan at step 9"}),
        ("gpu-memory", 1, {"state": "failed", "why": CUDA.removeprefix("torch.")}),
        ("bug", 1, {"state": "failed", "why": "ZeroDivisionError: division by zero"}),
        ("wrong-input", 2, {"state": "failed", "why": "CheckpointError: it cannot be"}),
        ("communication", 1, {"state": "failed", "why": GLOO}),
        ("bug", 1, {"state": 7, "why": None}),
        # Of an attempt before.
        ("host-memory", -9, {"state": "diverged", "why": "train/loss is nan at step 9"}),
    ],
)
def test_what_was_noted(kind: Kind, code: int | None, noted: dict[str, Any]) -> None:
    assert triage.judge(code, {}, noted=noted).kind == kind


def test_remarks_are_no_causes() -> None:
    remarks = [
        "warning: nothing more is written for TensorBoard until the next start: no space left on device",
        "memdist: warning: the checkpoint of step 9 is passed over: MemoryError",
        "this run diverged last time: train/loss is nan; this time it goes back when it does",
        "NVRM: Xid (PCI:0000:41:00): 13, pid=12, Graphics Exception",
        "n1:7:9 NCCL WARN Call to ibv_reg_mr failed with error Cannot allocate memory",
    ]
    assert triage.judge(1, {"rank 0": [*remarks, *TRACE, "KeyError: 1"]}).kind == "bug"
    ignored = ["Exception ignored in: <function A.__del__>", *TRACE, "KeyError: 1", LOST]
    assert triage.judge(1, {"rank 0": ignored}).kind == "communication"
    before = triage.judge(1, {"0": ["memdist: a score that was there is not used"], "1": [*TRACE, "KeyError: 1"]})
    assert before.kind == "bug"


states = (
    st.none() | st.text() | st.sampled_from(["FAILED", "TIMEOUT", "CANCELLED by 0", "OUT_OF_ME+", "+", "NODE_FAIL"])
)
known = sorted({line for *_, log in CASES for line in log})
words = st.text() | st.sampled_from(known) | st.sampled_from(known).flatmap(lambda line: st.text().map(line.__add__))


@given(
    st.none() | st.integers(-300, 300),
    st.dictionaries(st.text(max_size=9), st.lists(words, max_size=12), max_size=4),
    states,
    st.none() | st.dictionaries(st.sampled_from(["state", "why"]), st.none() | st.integers() | states),
)
@settings(deadline=None, derandomize=True, database=None)
def test_any_junk_gives_a_finding(
    code: int | None, logs: dict[str, list[str]], slurm: str | None, noted: dict[str, Any] | None
) -> None:
    found = triage.judge(code, logs, slurm=slurm, noted=noted)
    assert found.kind in get_args(Kind) and found.advice and len(found.lines) <= triage.MOST
    assert all(line.text == printable(line.text) for line in found.lines)
    assert found == triage.judge(code, logs, slurm=slurm, noted=noted)
