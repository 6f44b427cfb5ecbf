"""What Slurm says of jobs: texts as squeue and sacct print them, and commands that are missing, refuse or hang."""

import os
import time
from pathlib import Path

import pytest

from memdist.cluster import queue
from memdist.cluster.queue import Job, Queue

SQUEUE = """\
7|7|RUNNING|1:02|58:58|2026-01-01T13:00:00|2026-01-01T12:00:00|n[1-2]|unet|None
8|8|COMPLETING|1:00:02|INVALID|2026-01-01T12:00:00|2026-01-01T11:00:00|n3|old|None
9_4|12|RUNNING|0:10|5:00|2026-01-01T12:00:00|2026-01-01T12:00:00|n4|farm|None
9_[5-7,9%2]|9|PENDING|0:00|5:00|N/A|N/A||farm|JobArrayTaskLimit
20|20|PENDING|0:00|5:00|N/A|2026-01-01T12:00:00||next|(ReqNodeNotAvail, UnavailableNodes:n[1-4])
21|21|SPECIAL_EXIT|0:00|5:00|N/A|N/A||odd|JobHeldUser
22|22|REQUEUE_HOLD|0:00|5:00|N/A|N/A||a|b|JobHeldAdmin
"""


def test_a_queue() -> None:
    jobs = queue.parse(SQUEUE)
    assert set(jobs) == {"7", "8", "9_4", "9_5", "9_6", "9_7", "9_9", "20", "21", "22"}
    assert jobs["7"] == Job(
        id="7", number="7", state="RUNNING", nodes="n[1-2]", name="unet", used="1:02", left="58:58",
        start="2026-01-01T12:00:00", end="2026-01-01T13:00:00",
    )  # fmt: skip
    assert jobs["9_6"].reason == "JobArrayTaskLimit" and jobs["9_6"].start == ""
    assert jobs["20"].reason == "(ReqNodeNotAvail, UnavailableNodes:n[1-4])"
    assert {key for key, job in jobs.items() if job.runs} == {"7", "9_4"}
    assert {key for key, job in jobs.items() if job.waits} == set(jobs) - {"7", "8", "9_4"}


@pytest.mark.parametrize(
    ("text", "ids"),
    [
        ("5", ["5"]),
        ("5_3", ["5_3"]),
        ("5_[3]", ["5_3"]),
        ("5_[1-3,7%2]", ["5_1", "5_2", "5_3", "5_7"]),
        ("5_[0-6:3]", ["5_0", "5_3", "5_6"]),
        ("5_[1,2,...", ["5_1", "5_2"]),  # as Slurm cuts it off
        ("5_[]", []),
        ("5+1", ["5+1"]),
    ],
)
def test_elements_of_an_array(text: str, ids: list[str]) -> None:
    assert list(queue.elements(text)) == ids


@pytest.mark.parametrize("line", ["", "slurm_load_jobs error", "1|2|3", "x|1|RUNNING|||||||", "|||||||||", "\x00"])
def test_lines_that_are_none_are_passed_over(line: str) -> None:
    assert set(queue.parse(f"{line}\n{SQUEUE.splitlines()[0]}\n")) == {"7"}


def test_what_slurm_says_can_be_printed() -> None:
    (job,) = queue.parse("7|7|RUNNING|||||n\x1b[31m|na\tme|None\n").values()
    assert (job.nodes, job.name) == ("n\\x1b[31m", "na\\tme")


def test_jobs_are_found_by_id_by_number_and_by_name() -> None:
    found = Queue(queue.parse(SQUEUE))
    assert found.find(["7"]) == found.jobs["7"]
    assert found.find(["12"]) == found.jobs["9_4"]  # what SLURM_JOB_ID is within it
    assert found.find(["9"]) is None  # of an array that waits it says nothing of any element
    assert found.find(["3"], "next") == found.jobs["20"]
    assert found.find(["20", "8", "9_4"]) == found.jobs["9_4"]  # one that runs, sooner than others
    assert found.find([]) is None


def test_ends() -> None:
    text = "7|COMPLETED|0:0|n1\n8|CANCELLED by 1000|0:15|None assigned\n9_[3-4]|NODE_FAIL|1:0|n2\nbad\n|||\n5||0:0|\n"
    found = queue.parse_ended(text)
    assert set(found) == {"7", "8", "9_3", "9_4"}
    assert (found["8"].state, found["8"].nodes, found["9_4"].code) == ("CANCELLED", "", "1:0")


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that is searched for programs before all others."""
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    return tmp_path


def _program(path: Path, script: str) -> None:
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


def test_squeue_is_asked_once_for_all_of_ones_own(slurm: Path) -> None:
    (slurm / "text").write_text(SQUEUE)
    _program(slurm / "squeue", f'echo "$@" >> {slurm}/asked; cat {slurm}/text')
    found = queue.ask()
    assert not found.unknown and len(found.jobs) == 10
    assert (slurm / "asked").read_text() == f"--user={os.getuid()} --array --noheader -o {queue.FORMAT}\n"


def test_squeue_that_refuses(slurm: Path) -> None:
    said = "squeue: error: Invalid user"
    _program(slurm / "squeue", f"echo '{said}' >&2; exit 1")
    assert queue.ask() == Queue(unknown="squeue failed: Invalid user")


def test_squeue_that_hangs_in_a_child(slurm: Path) -> None:
    _program(slurm / "squeue", f"sleep 77 & echo $! > {slurm}/pid; wait")
    start = time.monotonic()
    assert queue.ask(0.5) == Queue(unknown="squeue did not answer within 0.5 s")
    assert time.monotonic() - start < 5
    state = Path(f"/proc/{int((slurm / 'pid').read_text())}/stat")
    time.sleep(0.2)
    assert not state.exists() or state.read_text().split()[2] == "Z"


def test_squeue_that_is_not_there(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert queue.ask() == Queue(unknown="squeue is not installed here")
    assert queue.ended(["7"]) == {}


def test_sacct_is_asked_for_whole_arrays(slurm: Path) -> None:
    _program(slurm / "sacct", f'echo "$@" >> {slurm}/asked; echo "7_1|TIMEOUT|0:0|n1"')
    assert queue.ended(["7_1", "7_2", "9", "local-1"])["7_1"].state == "TIMEOUT"
    assert (slurm / "asked").read_text().startswith("-j 7,9 -P -n -X ")


def test_accounting_that_is_off_is_no_error(slurm: Path) -> None:
    _program(slurm / "sacct", "echo 'Slurm accounting storage is disabled' >&2; exit 1")
    assert queue.ended(["7"]) == {}
