"""What ranks have printed: which file that is, and how it is followed."""

import os
import pty
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from memdist.cli import main
from memdist.cluster import book, logs, watching
from memdist.cluster.book import Attempt, Submitted
from memdist.cluster.logs import Wanted
from memdist.errors import ConfigError
from tests.unit.test_survey import DEAD, farm, make

ROOT = Path(__file__).parents[2]


def attempt(place: Path, job: str, restart: int = 0, share: str = "", ranks: int = 2) -> None:
    """An attempt, with what each of its ranks has printed."""
    book.began(
        book.attempts_file(place, share), Attempt(job=job, restart=restart, nodes="n", began=time.time(), since=0)
    )
    book.logs(place).mkdir(parents=True, exist_ok=True)
    for rank in range(ranks):
        book.rank_log(place, job, restart, rank).write_text(f"job {job} start {restart} rank {rank}\n")


def batch(place: Path, job: str, text: str) -> None:
    book.logs(place).mkdir(parents=True, exist_ok=True)
    book.batch_log(place, job).write_text(text)


def printed(capsys: pytest.CaptureFixture[str], wanted: Wanted) -> str:
    logs.show(wanted)
    return capsys.readouterr().out


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Two starts of job 9, then one of job 10."""
    place = make(tmp_path / "run", "running", DEAD)
    for job, restart in (("9", 0), ("9", 1), ("10", 0)):
        attempt(place, job, restart)
    batch(place, "10", "batch script of 10\n")
    return place


def test_the_newest_attempt_of_a_rank(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert printed(capsys, Wanted(run)) == "job 10 start 0 rank 0\n"
    assert printed(capsys, Wanted(run, rank=1)) == "job 10 start 0 rank 1\n"
    assert printed(capsys, Wanted(run, rank=1, job="9")) == "job 9 start 1 rank 1\n"


def test_a_job_whose_ranks_have_not_begun_has_its_batch_script(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    book.note(run, Submitted(id="11", kind="train", cluster="c", name="n"))
    batch(run, "11", "module: command not found\n")
    assert printed(capsys, Wanted(run)) == "module: command not found\n"
    assert printed(capsys, Wanted(run, rank=0)) == "job 10 start 0 rank 0\n"


@pytest.mark.parametrize(
    ("wanted", "said"),
    [
        ({"rank": 7}, "no log for --rank 7; there are those of job 9 (ranks 0, 1, 2 starts), job 10 (ranks 0, 1)"),
        ({"job": "12"}, "no log for --job 12; there are those of job 9 (ranks 0, 1, 2 starts), job 10 (ranks 0, 1)"),
        ({"rank": 2, "job": "9"}, "no log for --rank 2 --job 9; there are those of job 9"),
    ],
)
def test_what_is_not_there_is_told_in_a_sentence(wanted: dict[str, int], said: str, run: Path) -> None:
    with pytest.raises(ConfigError) as error:
        logs.show(Wanted(run, **wanted))  # type: ignore[arg-type]
    assert said in str(error.value) and "\n" not in str(error.value)


def test_a_run_without_logs_and_no_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make(tmp_path / "r", "stopped")
    for path, said in ((tmp_path / "r", "has no log"), (tmp_path / "x", "does not exist")):
        with pytest.raises(SystemExit) as end:
            main(["logs", str(path)])
        assert end.value.code == 2 and said in capsys.readouterr().err


def test_a_run_of_a_farm(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    farm(tmp_path, ["a", "b"])
    make(tmp_path / "a", "stopped")
    attempt(tmp_path / "a", "70_1")
    batch(tmp_path, "70_1", "of a\n")
    batch(tmp_path, "70_2", "of b\n")
    assert printed(capsys, Wanted(tmp_path / "a")) == "job 70_1 start 0 rank 0\n"
    book.rank_log(tmp_path / "a", "70_1", 0, 0).unlink()
    book.rank_log(tmp_path / "a", "70_1", 0, 1).unlink()
    assert printed(capsys, Wanted(tmp_path / "a")) == "of a\n"
    assert printed(capsys, Wanted(tmp_path, job="70_2")) == "of b\n"


def test_shares_of_maps(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    book.note(tmp_path, Submitted(id="60", kind="predict", cluster="c", name="n", numbers=(1, 2, 3), total=3))
    for number in (1, 2):
        attempt(tmp_path, f"60_{number}", 0, f"{number}-of-3", ranks=1)
    assert printed(capsys, Wanted(tmp_path, share=2)) == "job 60_2 start 0 rank 0\n"
    with pytest.raises(ConfigError, match=r"no log for --shard 3; there are those of job 60_1 \(rank 0\), job 60_2"):
        logs.show(Wanted(tmp_path, share=3))


def test_what_a_terminal_is_shown() -> None:
    text = "\x1b[31mred\x1b[0m\tloss\r\n10%\r20%\x1b]0;title\x07 \x9b2J é \u202e\x00"
    assert logs.shown(text) == "red\tloss\n10%\n20%\\x1b]0;title\\x07 \\x9b2J é \\u202e\\x00"


def test_what_is_piped_is_as_it_was(run: Path, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    data = b"\x1b[31mred\xff\x00 no end"
    book.rank_log(run, "10", 0, 0).write_bytes(data)
    done = subprocess.run(
        [sys.executable, "-m", "memdist", "logs", str(run)], cwd=ROOT, capture_output=True, timeout=60
    )
    assert (done.returncode, done.stdout) == (0, data)
    assert done.stderr == f"memdist: rank 0 of job 10, start 1: {book.rank_log(run, '10', 0, 0)}\n".encode()


def test_a_terminal_gets_no_escapes(run: Path) -> None:
    book.rank_log(run, "10", 0, 0).write_bytes(b"\x1b[2Jcle\x1bar\xff\nend")
    ours, theirs = pty.openpty()
    done = subprocess.run(
        [sys.executable, "-m", "memdist", "logs", str(run)], cwd=ROOT, stdout=theirs, stderr=subprocess.PIPE, timeout=60
    )
    os.close(theirs)
    shown = os.read(ours, 10_000)
    os.close(ours)
    assert (done.returncode, shown) == (0, b"cle\\x1bar\\xff\r\nend\r\n")


def begin(place: Path, job: str, restart: int) -> object:
    """As `attempt`, among other things that happen."""
    attempt(place, job, restart)
    return None


def following(steps: list[Callable[[], object]]) -> Callable[[float], None]:
    """A pause in each of which something happens; Ctrl-C when nothing is left."""
    left = iter(steps)

    def pause(seconds: float) -> None:
        step = next(left, None)
        if step is None:
            raise KeyboardInterrupt
        step()

    return pause


def _add(path: Path, text: str) -> Callable[[], object]:
    def add() -> None:
        with open(path, "a") as file:
            file.write(text)

    return add


def test_a_log_is_followed_into_the_next_attempt(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    now = book.rank_log(run, "10", 0, 0)
    then = book.rank_log(run, "10", 1, 0)
    steps = [
        _add(now, "more, "),
        _add(now, "and more\n"),
        lambda: [_add(now, "last\n")(), begin(run, "10", 1)],
        _add(then, "on\n"),
        lambda: None,
    ]
    logs.follow(Wanted(run), lambda: True, following(steps))
    out, told = capsys.readouterr()
    assert out == "job 10 start 0 rank 0\nmore, and more\nlast\njob 10 start 1 rank 0\non\n"
    assert [line.split(":")[1] for line in told.splitlines()] == [
        " rank 0 of job 10, start 1",
        " rank 0 of job 10, start 2",
    ]


def test_following_ends_with_the_run_and_after_its_last_words(
    run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logs, "AGAIN", 0.0)
    words = iter([True, True, False])

    def live() -> bool:
        alive = next(words)
        if not alive:
            _add(book.rank_log(run, "10", 0, 0), "last words\n")()
        return alive

    logs.follow(Wanted(run), live, following([lambda: None] * 5))
    assert capsys.readouterr().out.endswith("last words\n")


def test_a_log_that_is_not_there_yet_is_waited_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    book.note(tmp_path, Submitted(id="9", kind="train", cluster="c", name="n"))
    logs.follow(Wanted(tmp_path), lambda: True, following([lambda: None, lambda: attempt(tmp_path, "9"), lambda: None]))
    assert capsys.readouterr().out == "job 9 start 0 rank 0\n"
    with pytest.raises(ConfigError, match="has no log"):
        logs.follow(Wanted(tmp_path / "jobs"), lambda: False)


def test_a_log_that_was_begun_anew_is_printed_from_its_beginning(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = book.rank_log(run, "10", 0, 0)
    logs.follow(Wanted(run), lambda: True, following([lambda: path.write_text("new\n"), lambda: None]))
    assert capsys.readouterr().out == "job 10 start 0 rank 0\nnew\n"


def test_following_a_run_that_has_been_killed_ends_by_itself(run: Path) -> None:
    assert not watching.liveness(run, None)()
    done = subprocess.run(
        [sys.executable, "-m", "memdist", "logs", str(run), "-f"],
        cwd=ROOT, capture_output=True, text=True, timeout=60, env={**os.environ, "PATH": ""},
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (0, "job 10 start 0 rank 0\n")


def test_who_reads_may_have_seen_enough(run: Path) -> None:
    book.rank_log(run, "10", 0, 0).write_bytes(b"line\n" * 10**6)
    child = subprocess.Popen(
        [sys.executable, "-m", "memdist", "logs", str(run)], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    killer = threading.Timer(40, child.kill)
    killer.start()
    assert child.stdout is not None and child.stderr is not None
    child.stdout.readline()
    child.stdout.close()
    errors = child.stderr.read().decode()
    assert (child.wait(), len(errors.splitlines())) == (0, 1)
    child.stderr.close()
    killer.cancel()
