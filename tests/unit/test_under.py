"""Ranks of a launcher that is not ours; here it is a small program that starts two small programs."""

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from memdist import process
from memdist.launch import under

# As launchers do: 1 of any code but 0, and then no haste to end the others.
LAUNCHER = """
    import os, subprocess, sys
    for attempt in range(int(os.environ.get("ATTEMPTS", "1"))):
        environment = {**os.environ, "WORLD_SIZE": "2", "PORT": sys.argv[1], "ATTEMPT": str(attempt)}
        ranks = [subprocess.Popen(sys.argv[2:], env={**environment, "RANK": str(rank)}) for rank in range(2)]
        codes = [rank.wait() for rank in ranks]
        if not any(codes):
            sys.exit(0)
    sys.exit(1)
"""
RANK = """
    import os, pathlib, signal, sys, time
    rank, here = int(os.environ["RANK"]), pathlib.Path(sys.argv[1])
    def wait(name):
        while not (here / name).exists():
            time.sleep(0.01)
    def begin():
        (here / f".{rank}").write_text(f"{os.getpid()}")
        (here / f".{rank}").rename(here / f"begun-{rank}")
    from memdist.launch import ends
    from memdist.train.signals import Signals
    with ends.told():
"""


@pytest.fixture
def job(tmp_path: Path):
    """Runs a launcher of ranks that run a piece of Python; gives the process that watches over it."""
    started: list[subprocess.Popen[str]] = []

    def start(body: str) -> subprocess.Popen[str]:
        rank = textwrap.dedent(RANK) + textwrap.indent(textwrap.dedent(body), "    ")
        command = [sys.executable, "-P", "-m", "memdist.launch.under", sys.executable, "-c", textwrap.dedent(LAUNCHER)]
        command += ["{port}", sys.executable, "-c", rank, str(tmp_path)]
        environment = {**os.environ, "TMPDIR": str(tmp_path)}
        started.append(
            subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        )
        return started[-1]

    yield start
    for process_ in started:
        process_.kill()
        process_.communicate()


def ended(process_: subprocess.Popen[str]) -> tuple[int, str]:
    _, err = process_.communicate(timeout=60)
    return process_.returncode, err


def begun(folder: Path) -> dict[int, int]:
    """Wait for both ranks to have begun; gives process ids and start times."""
    limit = time.monotonic() + 60
    while not all((folder / f"begun-{rank}").exists() for rank in (0, 1)):
        assert time.monotonic() < limit
        time.sleep(0.01)
    pids = [int((folder / f"begun-{rank}").read_text()) for rank in (0, 1)]
    return {pid: process._stat(pid)[1] for pid in pids}


def gone(ranks: dict[int, int]) -> None:
    limit = time.monotonic() + 60
    while any(process.life(pid, start) == "alive" for pid, start in ranks.items()):
        assert time.monotonic() < limit
        time.sleep(0.01)


@pytest.mark.parametrize("code", [0, 2, 75, 130])
def test_the_exit_code_is_the_ranks(code: int, job) -> None:
    assert ended(job(f"assert int(os.environ['PORT']) > 0\nsys.exit({code})")) == (code, "")


def test_signals_reach_the_ranks(job, tmp_path: Path) -> None:
    launcher = job(
        "with Signals() as signals:\n    begin()\n    while not signals.wishes: time.sleep(0.01)\nsys.exit(75)"
    )
    begun(tmp_path)
    launcher.send_signal(signal.SIGUSR1)
    assert ended(launcher) == (75, "")


def test_what_a_killed_rank_leaves_waiting_is_ended(job, tmp_path: Path) -> None:
    launcher = job("begin()\nwait('never')")
    ranks = begun(tmp_path)
    os.kill(next(reversed(ranks)), signal.SIGKILL)
    says = "memdist: rank 1 ended without a word, so it was killed (out of memory?); the others were stopped\n"
    assert ended(launcher) == (1, says)
    gone(ranks)


def test_the_one_at_fault_is_shown_and_no_other(job) -> None:
    code, err = ended(
        job("begin()\nwait('begun-0')\nraise RuntimeError('gloo/transport' if rank == 0 else 'mine')"),
    )
    assert code == 1 and err.count("Traceback") == 1 and "RuntimeError: mine" in err and "gloo" not in err


def test_a_launcher_may_start_its_ranks_again(job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ATTEMPTS", "2")
    # The second time they outlive the time after which the first failure's peers are ended.
    body = f"""
        if os.environ["ATTEMPT"] == "0":
            if rank == 1:
                print("once", file=sys.stderr)
                sys.exit(1)
            wait("never")
        begin()
        time.sleep({under.GRACE} + 1)
        (here / f"done-{{rank}}").touch()
    """
    assert ended(job(body)) == (0, "once\n")
    assert all((tmp_path / f"done-{rank}").exists() for rank in (0, 1))


@pytest.mark.skipif(sys.platform != "linux", reason="needs Linux")
def test_ranks_do_not_outlive_a_job_that_is_killed(job, tmp_path: Path) -> None:
    launcher = job("begin()\nwait('never')")
    ranks = begun(tmp_path)
    launcher.kill()
    launcher.wait()
    gone(ranks)


def test_a_launcher_that_cannot_start_is_a_failure() -> None:
    command = [sys.executable, "-P", "-m", "memdist.launch.under", sys.executable, "-c", "raise SystemExit(3)"]
    assert subprocess.run(command, timeout=60).returncode == 1
