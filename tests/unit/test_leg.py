"""What becomes of a job when its command has ended, and of the jobs that follow it."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from memdist import rundir, triage
from memdist.cluster import book, decide, leg, ranks
from memdist.cluster.book import Attempt, Submitted
from memdist.cluster.leg import Leg
from memdist.cluster.slurm import Here
from memdist.cluster.task import Task, task
from memdist.errors import ClusterError
from memdist.launch.ends import RESUME_ME
from memdist.launch.forward import Forward

JOB = (
    "JobId=7 JobName=x SubmitTime=2026-01-02T03:04:05 JobState={state} Reason=None RunTime=00:30:00 TimeLimit={limit} "
    "ExcNodeList={nodes} NumNodes=1"
)


@pytest.fixture
def scontrol(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Make a scontrol that says how a job stands; gives the file of what it was asked to do."""

    def make(state: str = "RUNNING", limit: str = "01:00:00", nodes: str = "(null)") -> Path:
        (tmp_path / "bin").mkdir(exist_ok=True)
        program = tmp_path / "bin" / "scontrol"
        said = JOB.format(state=state, limit=limit, nodes=nodes)
        note = f"echo \"$*\" >>'{tmp_path}/done'"
        program.write_text(f'#!/bin/sh\nif [ "$1" = show ]; then echo "{said}"; else {note}; fi\n')
        program.chmod(0o755)
        (tmp_path / "done").write_text("")
        return tmp_path / "done"

    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    return make


def squeue(tmp: Path, *lines: tuple[str, str]) -> None:
    """Put one that shows jobs beside scontrol: how each stands, and its name."""
    rows = "\n".join(f"{job}|0:00|1:00|N/A|N/A||{name}|None" for job, name in lines)
    program = tmp / "bin" / "squeue"
    program.write_text(f"#!/bin/sh\ncat <<E\n{rows}\nE\n")
    program.chmod(0o755)


def begun(place: Path, *more: str, job: str = "7", words: tuple[str, ...] = ()) -> Leg:
    words = words or ("train", "my.yaml", "--out", str(place))
    options = leg.options([f"--place={place}", *more, "--", *words])
    return Leg(options, Here.of({"SLURM_JOB_ID": job, "SLURMD_NODENAME": "n1"}), Task(tuple(options.words), place))


@pytest.mark.parametrize(
    ("state", "limit", "again"),
    [("RUNNING", "01:00:00", True), ("COMPLETING", "01:00:00", False), ("COMPLETING", "00:30:00", True)],
    ids=["pre-emption", "scancel", "time limit"],
)
def test_what_somebody_has_ended_is_not_put_into_the_queue(
    state: str, limit: str, again: bool, scontrol: Callable[..., Path], tmp_path: Path
) -> None:
    done = scontrol(state, limit)
    here = begun(tmp_path)
    here.told = "SIGTERM"
    assert here.end(here.attempt(), [], RESUME_ME) == RESUME_ME
    assert done.read_text() == ("requeue 7\n" if again else "")


def test_a_training_that_pauses_where_it_was_to_has_finished(scontrol: Callable[..., Path], tmp_path: Path) -> None:
    done = scontrol()
    rundir.write_json(tmp_path / rundir.STATE, {"state": "stopped", "why": "until=4"})
    here = begun(tmp_path)
    assert here.end(here.attempt(), [], RESUME_ME) == 0
    assert done.read_text() == "" and book.attempts(here.file)[-1].kind == "finished"


def test_a_search_goes_on_as_a_training_does(scontrol: Callable[..., Path], tmp_path: Path) -> None:
    done = scontrol()
    here = begun(tmp_path, words=("search", "run", "quick", "--out", str(tmp_path)))
    assert here.task.trains and here.task.progress() == 0
    (tmp_path / "ledger.jsonl").write_text("{}\n{}\n")
    rundir.make_folder(tmp_path / "trials" / "a" / rundir.CHECKPOINTS / f"{30:010d}")
    assert here.task.progress() == 2 * decide.LINE + 30  # two lines, and the step of what is trained
    here.told = "SIGUSR2"
    assert here.end(here.attempt(), [], RESUME_ME) == RESUME_ME
    assert done.read_text() == "requeue 7\n"


def test_nodes_to_keep_away_from_add_up(scontrol: Callable[..., Path]) -> None:
    done = scontrol(nodes="n[3-4]")
    assert Here.of({"SLURM_JOB_ID": "7"}).requeue("n1") is None
    assert done.read_text() == "requeue 7\nupdate JobId=7 ExcNodeList=n[3-4],n1\n"


def test_later_jobs_of_a_chain_keep_away_from_a_bad_node(
    scontrol: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = scontrol(nodes="n3")
    lines = ("7|7|RUNNING", "chain"), ("8|8|PENDING", "chain"), ("9|9|PENDING", "other"), ("10|10|PENDING", "chain")
    squeue(tmp_path, *lines)
    monkeypatch.setenv("SLURM_JOB_NAME", "chain")
    here = begun(tmp_path, "--again=chain")
    failed = triage.Finding(kind="node-failure", advice="", retry=True, elsewhere=True, lines=(), nodes=("n1",))
    assert here.again(failed) == RESUME_ME
    assert done.read_text() == "update JobId=8 ExcNodeList=n3,n1\nupdate JobId=10 ExcNodeList=n3,n1\n"


def test_what_another_job_is_at_work_on_is_left_to_it(scontrol: Callable[..., Path], tmp_path: Path) -> None:
    scontrol()
    book.note(tmp_path, Submitted(id="5", kind="train", cluster="c", name="n"))
    book.began(book.attempts_file(tmp_path), Attempt(job="5", restart=0, nodes="", began=time.time(), since=0))
    squeue(tmp_path, ("5|5|RUNNING", "n"))
    with Forward() as forward, pytest.raises(ClusterError, match=f"job 5 is still at work on {tmp_path}: cancel one"):
        begun(tmp_path).run(forward)
    assert [attempt.kind for attempt in book.attempts(book.attempts_file(tmp_path))] == [None]
    # It waits to be started again, or its number is of something else.
    for state, name in (("PENDING", "n"), ("RUNNING", "other")):
        squeue(tmp_path, (f"5|5|{state}", name))
        assert begun(tmp_path).here.beside(["5", "7"], {"5": "n"}) is None
    begun(tmp_path).earlier()
    assert book.attempts(book.attempts_file(tmp_path))[0].ended is not None


def test_a_job_that_is_not_to_go_on_does_not_ask_for_it(scontrol: Callable[..., Path], tmp_path: Path) -> None:
    done = scontrol()
    here = begun(tmp_path)
    here.told = "SIGUSR2"
    idle = Attempt(job="7", restart=0, nodes="", began=1.0, since=0, reached=0, kind="stopped")
    assert here.end(here.attempt(), [idle], RESUME_ME) == 1
    assert done.read_text() == ""


def test_scorings_of_one_run_do_not_answer_for_each_other(tmp_path: Path) -> None:
    words = ("evaluate", str(tmp_path), "--split=val")
    given = leg.options([f"--place={tmp_path}", "--", *words])
    found = task(given, Here.of({"SLURM_JOB_ID": "7"}))
    assert found.share == f"evaluate-{book.digest(json.dumps(words))}"  # as what is submitted calls it


def test_every_rank_prints_into_a_file_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    srun = tmp_path / "bin" / "srun"
    srun.parent.mkdir()
    srun.write_text(
        "#!/bin/bash\nfile=/dev/stdout\n"
        'while [[ $1 == --* ]]; do [[ $1 == --output=* ]] && file="${1#*=}"; shift; done\n'
        'for rank in 0 1; do SLURM_PROCID=$rank "$@" >>"${file//%t/$rank}"; done\n'
    )
    srun.chmod(0o755)
    monkeypatch.setenv("PATH", f"{srun.parent}:{os.environ['PATH']}")
    monkeypatch.setattr(ranks, "memdist", lambda words: ["sh", "-c", "echo rank $SLURM_PROCID"])
    for name in ("plain", "a\\b"):  # Slurm reads no % in a name with a backslash
        here = begun(tmp_path / name, "--ranks=2")
        assert ranks.start(here.options, here.here, here.task, dict(os.environ)).wait() == 0
        logs = book.logs(tmp_path / name)
        assert {file.name: file.read_text() for file in logs.iterdir()} == {
            "7.0.rank0": "rank 0\n",
            "7.0.rank1": "rank 1\n",
        }


def test_a_command_that_ends_of_the_signal_itself_was_told(tmp_path: Path) -> None:
    here = begun(tmp_path)
    child = subprocess.Popen([sys.executable, "-c", "pass"])
    child.wait()
    with Forward() as forward:
        os.kill(os.getpid(), signal.SIGTERM)
        assert here.wait(child, forward) == 0
    assert here.told == "SIGTERM"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR2])
def test_a_command_that_does_not_leave_is_killed_before_its_job_is(
    number: int, scontrol: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = scontrol()
    monkeypatch.setattr(leg, "GRACE", 0.2)
    monkeypatch.setattr(Here, "ends", lambda *_: None)
    here = begun(tmp_path, "--lead=1", words=("evaluate", str(tmp_path)))
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    child = subprocess.Popen(["sleep", "60"], start_new_session=True)
    signal.signal(signal.SIGTERM, before)
    with Forward() as forward:
        os.kill(os.getpid(), number)
        code = here.wait(child, forward)
    assert (code, here.killed) == (-signal.SIGKILL, True)
    assert here.end(here.attempt(), [], code) == RESUME_ME
    assert done.read_text() == "requeue 7\n"
    (last,) = book.attempts(here.file)
    name = signal.Signals(number).name
    assert (last.kind, last.why) == ("stopped", f"by {name}, and killed as it did not leave")


def test_a_deadline_leaves_time_for_the_queue(tmp_path: Path) -> None:
    here, now = begun(tmp_path), time.time()
    here.told = "SIGTERM"  # the grace of a training is not known
    assert here.deadline(None) is None
    assert here.deadline(now + 120) == pytest.approx(now + 110, abs=5)
    assert (here.deadline(now - 60) or 0) > now + 30  # some sites allow more than they say


def test_bringing_pictures_to_nodes_ends_when_the_job_is_told_to_leave(
    scontrol: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = scontrol()
    srun = tmp_path / "bin" / "srun"
    srun.write_text(f"#!/bin/sh\necho \"$*\" >>'{tmp_path}/srun'\nkill -USR2 {os.getpid()}\nexec sleep 60\n")
    srun.chmod(0o755)
    monkeypatch.setenv("MEMDIST_CACHE", str(tmp_path / "caches"))
    options = begun(tmp_path, f"--scratch={tmp_path}/fast").options
    here = Here.of({"SLURM_JOB_ID": "7", "SLURM_JOB_NUM_NODES": "2"})
    with Forward() as forward:
        assert Leg(options, here, Task(tuple(options.words), tmp_path)).run(forward) == RESUME_ME
    (called,) = (tmp_path / "srun").read_text().splitlines()
    assert "data cache my.yaml" in called
    (last,) = book.attempts(book.attempts_file(tmp_path))
    assert (last.kind, last.why, done.read_text()) == ("stopped", "by SIGUSR2", "requeue 7\n")


def test_a_scoring_whose_ranks_were_lost_has_not_finished(tmp_path: Path) -> None:
    def scored(*words: str, **scores: object) -> bool:
        here = begun(tmp_path, words=("evaluate", str(tmp_path), *words))
        here.scores = here.task.scores()
        rundir.write_json(tmp_path / rundir.SCORES, scores)
        return here.finished()

    assert not scored()
    assert scored(test={"seconds": 1.5})
    assert not scored(test={"seconds": 1.5})  # of an earlier one
    assert not scored("--split=val", test={"seconds": 2.5})
    assert scored("--split", "val", test={"seconds": 2.5}, val={"seconds": 1.5})
    assert not scored("--split=all", test={"seconds": 2.5}, val={"seconds": 1.5})
    assert not scored("--split=all", test={"seconds": 2.5}, val={"seconds": 4.5})
    assert scored("--split=all", train={"seconds": 3.5}, val={"seconds": 2.5})  # there is no test
    assert scored("--study")


def test_what_a_chain_has_failed_at_for_good_its_later_jobs_do_not_try(tmp_path: Path) -> None:
    now = time.time()
    for job in ("6", "7"):
        book.note(tmp_path, Submitted(id=job, kind="train", cluster="c", name="n", legs=2, at=now - 60))
    failed = Attempt(job="6", restart=0, nodes="", began=now, since=0, ended=now, reached=9, kind="diverged", why="NaN")
    book.ended(book.attempts_file(tmp_path), failed)
    with Forward() as forward:
        assert begun(tmp_path, "--again=chain").run(forward) == 1
    last = book.attempts(book.attempts_file(tmp_path))[-1]
    assert last.job == "7" and last.why == "job 6 before it has failed (diverged, NaN), as this one would"


def test_a_job_that_begins_before_its_line_is_written_does_not_answer_for_others(tmp_path: Path) -> None:
    assert book.times(tmp_path, "7") == []
    book.folder(tmp_path).mkdir()
    (book.folder(tmp_path) / "7.sbatch").write_text("")
    now = time.time()
    old = Attempt(job="6", restart=0, nodes="", began=now - 99, since=0, ended=now - 9, reached=0, kind="stopped")
    book.ended(book.attempts_file(tmp_path), old)
    assert begun(tmp_path, "--again=chain").earlier() == []
    assert book.times(tmp_path, "7")[0] == pytest.approx(now, abs=30)


def test_a_chain_by_hand_answers_for_what_came_since_it_was_submitted(
    scontrol: Callable[..., Path], tmp_path: Path
) -> None:
    scontrol()
    then = time.mktime(time.strptime("2026-01-02", "%Y-%m-%d"))
    for job, began in (("5", then), ("6", then + 86400)):
        attempt = Attempt(job=job, restart=0, nodes="", began=began, since=0, ended=began, reached=0, kind="bug")
        book.ended(book.attempts_file(tmp_path), attempt)
    assert [attempt.job for attempt in begun(tmp_path, "--again=chain").earlier()] == ["6"]
