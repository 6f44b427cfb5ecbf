"""Who owns a folder: real processes that live, die, stop and race, and owners on machines that are not here."""

import dataclasses
import errno
import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from memdist import locks, process, rundir
from memdist.errors import CheckpointError
from memdist.process import Process

HERE = process.this()
ELSEWHERE = dataclasses.replace(HERE, host="node7", machine="f" * 32, boot="b", namespace="pid:[1]", pid=1, job="42")
linux = pytest.mark.skipif(sys.platform != "linux", reason="needs Linux")


def owned_by(folder: Path, owner: Process, *, generation: int = 1, count: int = 0, released: bool = False) -> Path:
    path = folder / f"{rundir.LOCK}.{generation}"
    path.write_bytes(locks._text(owner, "0" * 32, count, released))
    return path


def lock_files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def owner(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that owns the folder."""
    code = f"""
        import sys, time
        from pathlib import Path
        from memdist import locks
        with locks.hold(Path({str(tmp_path)!r}), beat=0.05) as held:
            print("held", flush=True)
            for line in sys.stdin:
                try:
                    held.check()
                    print("ours", flush=True)
                except Exception as error:
                    print(f"{{type(error).__name__}}: {{error}}", flush=True)
    """
    child = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert child.stdout is not None and child.stdout.readline() == "held\n"
    yield child
    child.kill()
    child.communicate()


def ask(child: subprocess.Popen[str]) -> str:
    assert child.stdin is not None and child.stdout is not None
    child.stdin.write("\n")
    child.stdin.flush()
    return child.stdout.readline()


# One after the other


def test_a_lock_is_taken_let_go_and_taken_again(tmp_path: Path) -> None:
    for generation in (1, 2, 3):
        with locks.hold(tmp_path) as held:
            held.check()
            assert lock_files(tmp_path) == [f".lock.{generation}"]
            assert json.loads((tmp_path / f".lock.{generation}").read_bytes())["released"] == 0
        assert lock_files(tmp_path) == [f".lock.{generation}"]
        assert json.loads((tmp_path / f".lock.{generation}").read_bytes())["released"] == 1


def test_an_error_lets_go_as_well(tmp_path: Path) -> None:
    with pytest.raises(KeyError), locks.hold(tmp_path):
        raise KeyError
    with locks.hold(tmp_path):
        pass


def test_the_same_process_is_refused_as_any_other(tmp_path: Path) -> None:
    with (
        locks.hold(tmp_path),
        pytest.raises(CheckpointError, match=rf"is being trained by process {os.getpid()} on"),
        locks.hold(tmp_path),
    ):
        pass


def test_locks_of_two_names_know_nothing_of_each_other(tmp_path: Path) -> None:
    with locks.hold(tmp_path), locks.hold(tmp_path, rundir.SCORING_LOCK, queue=True):
        assert lock_files(tmp_path) == [".lock.1", ".scoring.1"]


def test_a_folder_that_is_not_there_gets_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="cannot write .*absent: no such file"), locks.hold(tmp_path / "absent"):
        pass


# Owners of this machine


@linux
def test_a_live_owner_is_named_at_once(tmp_path: Path, owner: subprocess.Popen[str]) -> None:
    with pytest.raises(
        CheckpointError,
        match=rf"{tmp_path} is being trained by process {owner.pid} on .*; wait for its end, or .* --out",
    ):
        with locks.hold(tmp_path, patience=1e9):
            pass
    assert ask(owner) == "ours\n"
    assert lock_files(tmp_path) == [".lock.1"]


@linux
@pytest.mark.parametrize("reaped", [False, True])
def test_a_killed_owner_is_followed_at_once(tmp_path: Path, owner: subprocess.Popen[str], reaped: bool) -> None:
    owner.kill()
    if reaped:
        owner.wait()
    else:  # it has ended, and its parent does not know yet
        while process.life(owner.pid, process._stat(owner.pid)[1]) == "alive":
            time.sleep(0.001)
    with locks.hold(tmp_path, patience=1e9) as held:
        assert held.former is not None and held.former.pid == owner.pid
        assert lock_files(tmp_path) == [".lock.2"]


@linux
def test_a_number_that_another_process_has_now_is_no_owner(tmp_path: Path) -> None:
    owned_by(tmp_path, dataclasses.replace(HERE, start=HERE.start - 1))
    with locks.hold(tmp_path, patience=1e9):
        pass


def test_another_boot_of_one_name_is_no_proof() -> None:
    me = dataclasses.replace(HERE, machine="a" * 32, boot="now")
    assert dataclasses.replace(me, boot="before").life(me) == "unknown"  # or a container on another machine


@pytest.mark.parametrize("stranger", ["2024", "7", ".lock.٣", ".lock.x", ".lockers.5"])
def test_other_names_in_the_folder_are_no_locks(tmp_path: Path, stranger: str) -> None:
    (tmp_path / stranger).mkdir()
    with locks.hold(tmp_path, patience=1e9) as held:
        held.check()


def test_a_link_to_nothing_is_a_silent_owner(tmp_path: Path) -> None:
    (tmp_path / ".lock.3").symlink_to(tmp_path / "nothing")
    with locks.hold(tmp_path, patience=0.2) as held:
        held.check()


@pytest.mark.parametrize(
    "change",
    [{"host": "node7"}, {"machine": "f" * 32}, {"namespace": "pid:[1]"}, {"machine": "", "boot": "b"}],
)
def test_process_ids_are_compared_within_a_place_only(change: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "life", lambda *_: pytest.fail("a foreign process id was looked at"))
    assert dataclasses.replace(HERE, **change).life(HERE) == "unknown"


def test_where_boots_have_no_names_no_number_is_proof(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    me = dataclasses.replace(HERE, boot="")
    monkeypatch.setattr(process, "this", lambda: me)
    monkeypatch.setattr(process, "life", lambda *_: "dead")
    # Another machine of the same name and installation looks like this place.
    assert dataclasses.replace(me, pid=me.pid + 1).life(me) == "unknown"
    theirs = tmp_path / f".a.{dataclasses.replace(me, pid=me.pid + 1).tag}-01234567.tmp"
    theirs.write_text("")
    rundir.sweep(tmp_path)
    assert theirs.exists()
    # Who followed the owner knows that it is gone.
    rundir.sweep(tmp_path, ended={dataclasses.replace(me, pid=me.pid + 1).tag})
    assert not theirs.exists()


# Owners that can only be watched


@pytest.mark.parametrize("content", [None, b"", b"{", b"[]", b'{"pid": 1}', b"\xff\xfe"])
def test_a_silent_owner_is_followed_after_a_while(
    tmp_path: Path, content: bytes | None, capsys: pytest.CaptureFixture[str]
) -> None:
    path = owned_by(tmp_path, ELSEWHERE)
    if content is not None:
        path.write_bytes(content)
    began = time.monotonic()
    with locks.hold(tmp_path, patience=0.4):
        assert time.monotonic() - began >= 0.4
        assert lock_files(tmp_path) == [".lock.2"]
    who = "process 1 on node7 (job 42)" if content is None else "whoever made an empty lock"
    assert capsys.readouterr().err == f"memdist: waiting up to 0.4 s for {who} to show life: it holds {tmp_path}\n"


def test_an_owner_elsewhere_that_counts_is_refused_as_soon_as_it_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks: list[float] = []

    def sleep(seconds: float) -> None:
        looks.append(seconds)
        if len(looks) == 5:
            owned_by(tmp_path, ELSEWHERE, count=1)

    monkeypatch.setattr(time, "sleep", sleep)
    with pytest.raises(CheckpointError, match=r"is being trained by process 1 on node7 \(job 42\); wait"):
        with locks.hold(tmp_path) if owned_by(tmp_path, ELSEWHERE) else pytest.fail():
            pass
    assert looks == [1.0] * 5
    assert lock_files(tmp_path) == [".lock.1"]


def test_an_owner_elsewhere_that_lets_go_is_followed_at_once(tmp_path: Path) -> None:
    owned_by(tmp_path, ELSEWHERE, generation=7, released=True)
    with locks.hold(tmp_path, patience=1e9):
        assert lock_files(tmp_path) == [".lock.8"]


def test_who_waits_can_be_called_off(tmp_path: Path) -> None:
    owned_by(tmp_path, ELSEWHERE)
    with pytest.raises(KeyboardInterrupt), locks.hold(tmp_path, patience=1e9, give_up=lambda: True):
        pass


def test_looks_that_come_late_count_as_short_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The observer slept, and the owner may have as well: it gets its time to show life."""
    owned_by(tmp_path, ELSEWHERE)
    clock, looks = [0.0], []

    def sleep(_: float) -> None:
        clock[0] += 1e6
        looks.append(1)

    monkeypatch.setattr(time, "sleep", sleep)
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    with locks.hold(tmp_path, patience=60):
        assert len(looks) == 30


@pytest.mark.parametrize("years", [-1, 1])
def test_clocks_that_jump_have_no_influence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, years: int) -> None:
    real = time.time
    path = owned_by(tmp_path, ELSEWHERE)
    os.utime(path, (real() + years * 3e7,) * 2)
    monkeypatch.setattr(time, "time", lambda: real() + years * 3e7)
    sleep, count = time.sleep, [0]

    def counting(seconds: float) -> None:
        count[0] += 1
        sleep(seconds)

    monkeypatch.setattr(time, "sleep", counting)
    with locks.hold(tmp_path, patience=0.4):
        assert 5 <= count[0] <= 21
    monkeypatch.undo()
    owned_by(tmp_path, ELSEWHERE, generation=9)
    os.utime(path.with_name(".lock.9"), (real() + years * 3e7,) * 2)
    with pytest.raises(KeyboardInterrupt), locks.hold(tmp_path, patience=1e9, give_up=lambda: True):
        pass


# Owners that come back


@linux
def test_an_owner_that_was_stopped_too_long_writes_no_more(
    tmp_path: Path, owner: subprocess.Popen[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert ask(owner) == "ours\n"
    os.kill(owner.pid, signal.SIGSTOP)
    # As another machine sees it: by its count alone.
    monkeypatch.setattr(process, "this", lambda: dataclasses.replace(ELSEWHERE, pid=os.getpid()))
    with locks.hold(tmp_path, patience=0.3) as held:
        os.kill(owner.pid, signal.SIGCONT)
        said = ask(owner)
        assert said.startswith(f"CheckpointError: process {os.getpid()} on node7 (job 42) has taken {tmp_path} over")
        time.sleep(0.2)  # it counts a few times
        assert lock_files(tmp_path) == [".lock.2"]
        held.check()
    owner.communicate("")
    assert json.loads((tmp_path / ".lock.2").read_bytes())["released"] == 1


def test_a_lock_that_was_deleted_or_replaced_is_lost(tmp_path: Path) -> None:
    with locks.hold(tmp_path) as held:
        (tmp_path / ".lock.1").unlink()
        with pytest.raises(CheckpointError, match="the lock of .* is gone"):
            held.check()
        owned_by(tmp_path, ELSEWHERE)
        with pytest.raises(CheckpointError, match=r"process 1 on node7 \(job 42\) has taken"):
            held.check()
    assert json.loads((tmp_path / ".lock.1").read_bytes())["released"] == 0


def test_a_folder_that_vanished_is_noticed(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    with locks.hold(tmp_path / "run") as held:
        shutil.rmtree(tmp_path / "run")
        with pytest.raises(CheckpointError, match="cannot write .*run: no such file or directory"):
            held.check()


@linux
@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_children_let_nothing_go(tmp_path: Path, method: str) -> None:
    with locks.hold(tmp_path) as held:
        if method == "fork":
            code = "import os, sys\nfrom pathlib import Path\nfrom memdist import locks\n"
            code += f"with locks.hold(Path({str(tmp_path / 'own')!r})) as held:\n"
            code += "    child = os.fork()\n    if child == 0:\n        held.release()\n        os._exit(0)\n"
            code += "    os.waitpid(child, 0)\n    held.check()\n"
            code += f"    assert '\"released\": 0' in Path({str(tmp_path / 'own' / '.lock.1')!r}).read_text()\n"
            (tmp_path / "own").mkdir()
            assert subprocess.run([sys.executable, "-c", code]).returncode == 0
        else:
            child = multiprocessing.get_context("spawn").Process(target=os.getpid)
            child.start()
            child.join()
        held.check()


# Races


@linux
@pytest.mark.parametrize("way", ["links", "no links"])
def test_one_of_many_threads_gets_a_stale_lock(tmp_path: Path, way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if way == "no links":

        def link(*_: object) -> None:
            raise OSError(errno.EOPNOTSUPP, "no links here")

        monkeypatch.setattr(os, "link", link)
    gone = dataclasses.replace(HERE, start=HERE.start - 1)
    for round_ in range(20):
        folder = tmp_path / str(round_)
        folder.mkdir()
        owned_by(folder, gone, generation=3)
        won: list[locks.Hold] = []
        refused: list[CheckpointError] = []
        start, end = threading.Barrier(25), threading.Barrier(25)

        def take(folder: Path = folder, won: Any = won, refused: Any = refused, s: Any = start, e: Any = end) -> None:
            s.wait()
            try:
                with locks.hold(folder, patience=1e9 if way == "links" else 0.5) as held:
                    won.append(held)
                    e.wait()
                    held.check()
            except CheckpointError as error:
                refused.append(error)
                e.wait()

        threads = [threading.Thread(target=take) for _ in range(25)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(won) == 1 and len(refused) == 24
        assert lock_files(folder) == [".lock.4"]


RACE = """
import json, os, sys, time
from pathlib import Path
from memdist import locks, process
from memdist.errors import CheckpointError
folder, count, rounds = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
for round_ in range(rounds):
    here = folder / str(round_)
    here.mkdir()
    go, done = here / "go", os.pipe()
    children = []
    for number in range(count):
        child = os.fork()
        if child == 0:
            while not go.exists():
                time.sleep(0.0005)
            # Each takes the lock as often as it can: to own the folder is to be alone with the counter.
            for _ in range(3):
                try:
                    with locks.hold(here / "run") as held:
                        before = int((here / "counter").read_text())
                        os.sched_yield()
                        (here / "counter").write_text(str(before + 1))
                        os.write(done[1], b".")
                        held.check()
                        if number % 3 == 0:
                            os._exit(0)  # dies as an owner
                except CheckpointError:
                    pass
            os._exit(0)
        children.append(child)
    (here / "run").mkdir()
    (here / "counter").write_text("0")
    go.touch()
    bad = [c for c in children if os.waitpid(c, 0)[1] != 0]
    os.close(done[1])
    taken = len(os.read(done[0], 100000))
    assert not bad, bad
    assert int((here / "counter").read_text()) == taken > 0, (taken, (here / "counter").read_text())
    left = sorted(p.name for p in (here / "run").iterdir())
    assert left == [f".lock.{taken}"], (left, taken)
"""


@linux
@pytest.mark.parametrize(("processes", "rounds"), [(20, 5), pytest.param(100, 8, marks=pytest.mark.slow)])
def test_processes_that_race_own_the_folder_one_at_a_time(tmp_path: Path, processes: int, rounds: int) -> None:
    """They take it, let it go or die in it: nobody is ever in it with another, and no number is given twice."""
    done = subprocess.run(
        [sys.executable, "-c", RACE, str(tmp_path), str(processes), str(rounds)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_a_slow_one_finds_that_others_were_there_meanwhile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It saw 1 without an owner; before it makes 2, others have made 2 and 3 and removed 2."""
    owned_by(tmp_path, ELSEWHERE, released=True)
    make = locks._create
    slow: list[int] = []

    def create(folder: Path, name: str, generation: int, text: bytes) -> int | None:
        if not slow:
            slow.append(generation)
            (folder / ".lock.1").unlink()
            owned_by(folder, HERE, generation=3)
        return make(folder, name, generation, text)

    monkeypatch.setattr(locks, "_create", create)
    with pytest.raises(CheckpointError, match=f"trained by process {os.getpid()}"), locks.hold(tmp_path):
        pass
    assert slow == [2] and lock_files(tmp_path) == [".lock.3"]


def test_a_link_whose_answer_was_lost_is_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    link = os.link

    def twice(source: Path, target: Path) -> None:
        link(source, target)
        raise FileExistsError

    monkeypatch.setattr(os, "link", twice)
    with locks.hold(tmp_path) as held:
        held.check()
        assert lock_files(tmp_path) == [".lock.1"]


def test_a_full_disk_does_not_stop_the_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with locks.hold(tmp_path, beat=1e9) as held:
        before = (tmp_path / ".lock.1").stat()

        def refuse(*_: object, **__: object) -> None:
            raise OSError(errno.ENOSPC, "full")

        with monkeypatch.context() as patch:
            patch.setattr(os, "open", refuse)
            held._count += 1
            held._write(released=False)
        after = (tmp_path / ".lock.1").stat()
        assert (before.st_ino, before.st_size) == (after.st_ino, after.st_size)
        assert json.loads((tmp_path / ".lock.1").read_bytes())["count"] == "000000000001"


# Temporary files of others


@linux
def test_sweeping_removes_what_the_dead_left_and_nothing_of_the_living(tmp_path: Path) -> None:
    def left_by(who: Process, name: str) -> Path:
        path = tmp_path / f".{name}.{who.tag}-01234567.tmp"
        path.write_text("")
        return path

    mine = left_by(HERE, "a")
    far = left_by(ELSEWHERE, "b")
    ended = left_by(dataclasses.replace(ELSEWHERE, pid=5), "c")
    dead = left_by(dataclasses.replace(HERE, start=HERE.start - 1), "d")
    old = tmp_path / ".state.json.0123abcd.tmp"
    old.write_text("")
    rundir.sweep(tmp_path, ended={dataclasses.replace(ELSEWHERE, pid=5).tag})
    assert sorted(tmp_path.iterdir()) == sorted([mine, far])
    assert not ended.exists() and not dead.exists() and not old.exists()
    rundir.sweep(tmp_path, alone=True)
    assert not list(tmp_path.iterdir())


def test_a_temporary_name_tells_its_writer_and_has_an_end(tmp_path: Path) -> None:
    name = rundir.temporary(tmp_path / ("ü" * 120 + ".png")).name
    assert HERE.tag in name and len(name.encode()) < 150
    rundir.write_text(tmp_path / ("x" * 250), "long")
    assert (tmp_path / ("x" * 250)).read_text() == "long"


@pytest.mark.parametrize(
    ("its", "mine", "life"),
    [
        ("42", "42.1", "dead"),
        ("42.1", "42.3", "dead"),
        ("42", "42", "unknown"),
        ("42.2", "42.1", "unknown"),
        ("41", "42.1", "unknown"),
        ("", "42.1", "unknown"),
        ("42", "", "unknown"),
    ],
)
def test_a_job_that_was_started_again_has_left_its_former_processes_behind(its, mine, life):
    me = dataclasses.replace(HERE, job=mine)
    assert dataclasses.replace(ELSEWHERE, job=its).life(me) == life


def test_a_process_of_a_job_that_was_started_again_says_so():
    assert process._job({"SLURM_JOB_ID": "42"}) == "42"
    assert process._job({"SLURM_JOB_ID": "42", "SLURM_RESTART_COUNT": "3"}) == "42.3"
    assert process._job({}) == ""


def test_the_owner_of_a_folder_is_told_without_waiting(tmp_path: Path) -> None:
    assert locks.owner(tmp_path) is None
    with locks.hold(tmp_path):
        assert locks.owner(tmp_path) == process.this()
        assert locks.owner(tmp_path, rundir.SCORING_LOCK) is None
    assert locks.owner(tmp_path) is None  # it was let go
    (tmp_path / ".lock.9").write_text("torn")
    assert locks.owner(tmp_path) is None
