"""Ranks of one machine, started, signalled and ended; here they are small programs, so that each start takes no second."""

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import pytest

from memdist import process
from memdist.errors import ConfigError, is_shared
from memdist.launch import gpus, local, on_ray, ports

HELD = """
    import os, pathlib, signal, sys, time
    rank, here = int(os.environ["RANK"]), pathlib.Path(sys.argv[1])
    attempt = len(list(here.glob(f"begun-{rank}-*")))
    (here / f"begun-{rank}-{attempt}").write_text(str(os.getpid()))
    def wait(name):
        while not (here / name).exists():
            time.sleep(0.01)
    from memdist.launch import ends
"""
LOST = 'raise RuntimeError("gloo/transport/tcp/pair.cc: Connection closed by peer")'


@pytest.fixture
def job(tmp_path: Path):
    """Starts a launcher of ranks that run a piece of Python; gives its process."""
    started: list[subprocess.Popen[str]] = []

    def start(body: str, ranks: int = 2, restarts: int = 0, **environment: str) -> subprocess.Popen[str]:
        program = textwrap.dedent(HELD) + "with ends.told():\n" + textwrap.indent(textwrap.dedent(body), "    ")
        command = [sys.executable, "-c", program, str(tmp_path)]
        code = f"import sys; from memdist.launch import local; sys.exit(local.run({command!r}, {ranks}, restarts={restarts}))"
        process_ = subprocess.Popen(
            [sys.executable, "-c", code],
            env={**os.environ, "TMPDIR": str(tmp_path), **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        started.append(process_)
        return process_

    yield start
    for process_ in started:
        process_.kill()
        process_.communicate()


def ended(process_: subprocess.Popen[str]) -> tuple[int, str, str]:
    out, err = process_.communicate(timeout=60)
    return process_.returncode, out, err


def begun(folder: Path, *names: str) -> list[int]:
    """Wait for ranks to have begun; gives their process ids."""
    limit = time.monotonic() + 60
    while not all((folder / name).exists() and (folder / name).read_text() for name in names):
        assert time.monotonic() < limit
        time.sleep(0.01)
    return [int((folder / name).read_text()) for name in names]


def test_every_rank_knows_its_place(job, tmp_path: Path) -> None:
    body = """
        from memdist.launch import place
        (here / f"place-{rank}").write_text(f"{place.take()} {os.environ['OMP_NUM_THREADS']} {os.getsid(0) == os.getpid()}")
        print("said by", rank)
    """
    code, out, err = ended(job(body, ranks=3, OMP_NUM_THREADS="5"))
    assert (code, out, err) == (0, "said by 0\n", "")
    for rank in range(3):
        told = (tmp_path / f"place-{rank}").read_text()
        assert told == f"Place(rank={rank}, world=3, local={rank}, locals=3) 5 True"


def test_threads_are_shared_out(job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS")
    assert ended(job('(here / f"t-{rank}").write_text(os.environ["OMP_NUM_THREADS"])'))[0] == 0
    assert (tmp_path / "t-0").read_text() == str(max(1, local.cores() // 2))


def test_the_one_at_fault_is_shown_and_no_other(job) -> None:
    # Rank 0 has lost rank 1, and would say so long after it was stopped.
    code, out, err = ended(job(f"if rank == 0: {LOST}\nwait('begun-0-0')\nraise ZeroDivisionError('mine')"))
    assert code == 1
    assert err.count("Traceback") == 1 and "ZeroDivisionError: mine" in err and "Connection closed" not in err
    assert err.endswith("memdist: rank 1 ended with exit code 1; the other ranks were stopped\n")


def test_a_rank_that_is_killed_is_named(job, tmp_path: Path) -> None:
    launcher = job("wait('never')", ranks=3)
    pids = begun(tmp_path, "begun-0-0", "begun-1-0", "begun-2-0")
    os.kill(pids[2], signal.SIGKILL)
    assert ended(launcher) == (
        1,
        "",
        "memdist: rank 2 was killed by SIGKILL (out of memory?); the other ranks were stopped\n",
    )
    assert all(not Path(f"/proc/{pid}").exists() for pid in pids)


def test_a_mistake_that_all_have_made_is_told_once_however_late_rank_0_is(job, tmp_path: Path) -> None:
    body = """
        from memdist import errors, output
        from memdist.errors import ConfigError
        if rank == 0:
            wait("go")
        error = ConfigError("no such thing")
        errors.shared(error)
        try:
            raise error
        except ConfigError:
            output.answer(error)
            sys.exit(2)
    """
    launcher = job(body)
    begun(tmp_path, "begun-0-0", "begun-1-0")
    with pytest.raises(subprocess.TimeoutExpired):
        launcher.wait(timeout=local.GRACE + 1)
    (tmp_path / "go").touch()
    assert ended(launcher) == (2, "", "memdist: no such thing\n")


def test_a_mistake_of_one_rank_is_told(job) -> None:
    code, _, err = ended(
        job("if rank == 0: wait('never')\nprint('memdist (rank 1): mine', file=sys.stderr)\nsys.exit(2)")
    )
    assert (code, err) == (2, "memdist (rank 1): mine\n")


CATCHES = """
    from memdist.train.signals import Signals
    with Signals() as signals:
        (here / f"ready-{rank}").write_text("1")
        while not signals.wishes:
            time.sleep(0.01)
        (here / f"caught-{rank}").write_text(signals.caught)
        wait("go")
    sys.exit(75)
"""


@pytest.mark.parametrize("name", ["SIGTERM", "SIGUSR1", "SIGUSR2", "SIGINT"])
def test_signals_reach_all_ranks_once(name: str, job, tmp_path: Path) -> None:
    launcher = job(CATCHES)
    begun(tmp_path, "ready-0", "ready-1")
    launcher.send_signal(getattr(signal, name))
    limit = time.monotonic() + 60
    while not all((tmp_path / f"caught-{rank}").exists() for rank in (0, 1)):
        assert time.monotonic() < limit
        time.sleep(0.01)
    (tmp_path / "go").touch()
    assert ended(launcher) == (75, "", "")
    assert [(tmp_path / f"caught-{rank}").read_text() for rank in (0, 1)] == [name, name]


def test_what_does_not_listen_is_killed_at_the_third_interruption(job, tmp_path: Path) -> None:
    launcher = job(
        "signal.signal(signal.SIGINT, signal.SIG_IGN)\n(here / f'ready-{rank}').write_text('1')\nwait('never')"
    )
    begun(tmp_path, "ready-0", "ready-1")
    pids = begun(tmp_path, "begun-0-0", "begun-1-0")
    while launcher.poll() is None:
        launcher.send_signal(signal.SIGINT)
        time.sleep(0.05)
    # One more may reach the launcher itself, once it has done its work.
    assert ended(launcher)[0] in (130, -signal.SIGINT)
    assert all(not Path(f"/proc/{pid}").exists() for pid in pids)


@pytest.mark.parametrize(("name", "code"), [("SIGTERM", 75), ("SIGUSR2", 75), ("SIGINT", 130)])
def test_a_signal_that_comes_before_it_can_be_caught(name: str, code: int, job, tmp_path: Path) -> None:
    launcher = job(
        "signal.signal(signal.SIGINT, signal.SIG_DFL)\n(here / f'ready-{rank}').write_text('1')\nwait('never')"
    )
    begun(tmp_path, "ready-0", "ready-1")
    launcher.send_signal(getattr(signal, name))
    assert ended(launcher) == (code, "", "")


@pytest.mark.skipif(sys.platform != "linux", reason="needs Linux")
def test_ranks_do_not_outlive_a_launcher_that_is_killed(job, tmp_path: Path) -> None:
    launcher = job("wait('never')")
    pids = begun(tmp_path, "begun-0-0", "begun-1-0")
    starts = [process._stat(pid)[1] for pid in pids]
    launcher.kill()
    launcher.wait()
    limit = time.monotonic() + 30
    while any(process.life(pid, start) == "alive" for pid, start in zip(pids, starts, strict=True)):
        assert time.monotonic() < limit
        time.sleep(0.01)


def failing(checkpoints: str) -> str:
    """Ranks that begin with so many checkpoints at each attempt, and of which rank 1 then dies."""
    return f"""
        ends.trains(here / "run")
        if rank == 0:
            for step in {checkpoints}[attempt]:
                (here / "run" / "checkpoints" / str(step).zfill(10)).mkdir(parents=True)
            (here / f"saved-{{attempt}}").touch()
            wait("never" if attempt < 3 else f"begun-1-{{attempt}}")
            sys.exit(0)
        wait(f"saved-{{attempt}}")
        if attempt < 3:
            os.kill(os.getpid(), signal.SIGKILL)
    """


def test_ranks_start_again_as_long_as_that_leads_further(job) -> None:
    code, out, err = ended(job(failing("[[], [3], [5, 8], []]"), restarts=3))
    assert (code, out) == (0, "")
    said = [line for line in err.splitlines() if "start again" in line]
    assert said == [
        f"memdist: rank 1 was killed by SIGKILL (out of memory?): all ranks start again {where} (restart {number} of 3)"
        for number, where in enumerate(
            ("from the beginning, as there is no checkpoint yet", "from step 3", "from step 8"), 1
        )
    ]


def test_ranks_that_get_no_further_stop(job, tmp_path: Path) -> None:
    code, _, err = ended(job(failing("[[3], [], [], []]"), restarts=9))
    assert code == 1
    assert err.splitlines()[-1].startswith(
        "memdist: rank 1 was killed by SIGKILL (out of memory?), and there is no newer checkpoint than at the failure before "
    )
    assert len(list(tmp_path.glob("begun-1-*"))) == 2


@pytest.mark.parametrize("code", [2, 75, 130])
def test_only_a_fault_starts_ranks_again(code: int, job, tmp_path: Path) -> None:
    assert ended(job(f"sys.exit({code})", restarts=2))[0] == code
    assert len(list(tmp_path.glob("begun-0-*"))) == 1


def test_restarts_have_an_end(job, tmp_path: Path) -> None:
    code, _, err = ended(job("sys.exit(1)", ranks=1, restarts=1))
    assert code == 1 and err.count("start again") == 1
    assert len(list(tmp_path.glob("begun-0-*"))) == 2


def test_a_port_is_kept_until_rank_0_listens() -> None:
    from torch.distributed import TCPStore  # type: ignore[attr-defined]

    with ports.Port() as one, ports.Port() as two:
        assert one.number != two.number
        store = TCPStore("127.0.0.1", one.number, is_master=True, wait_for_workers=False)
        store.set("a", "b")
        assert store.get("a") == b"b"


# What a machine can hold


def recorder(calls: list[Any], gives: int):
    def call(*given: Any, **named: Any) -> int:
        calls.append((given, named))
        return gives

    return call


def test_more_ranks_than_gpus_is_refused_before_anything_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "run", lambda *_, **__: pytest.fail("started"))
    for there, device, says in (
        (1, "auto", "--gpus 2 cannot be: this machine has 1 GPU "),
        (0, "cuda", "--gpus 2 cannot be: this machine has no GPU that torch can use "),
        (4, "cuda:1", "--gpus 2 cannot be with device = 'cuda:1', which is one device"),
    ):
        monkeypatch.setattr(gpus, "count", lambda there=there: there)
        with pytest.raises(ConfigError) as caught:
            gpus.start(["train", "unet"], 2, 0, device)
        assert str(caught.value).startswith(says)


@pytest.mark.parametrize(
    ("there", "device", "says"),
    [
        (2, "auto", ""),
        (3, "cuda", ""),
        (0, "auto", "there is no GPU here: 2 ranks share the CPU, 1 thread each\n"),
        (2, "cpu", "2 ranks share the CPU, 1 thread each\n"),
    ],
)
def test_what_is_started(
    there: int, device: str, says: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    calls: list[Any] = []
    monkeypatch.setattr(gpus, "count", lambda: there)
    monkeypatch.setattr(local, "run", recorder(calls, 75))
    assert gpus.start(["train", "unet"], 2, 1, device) == 75
    assert calls == [((local.memdist(["train", "unet"]), 2), {"restarts": 1})]
    assert capsys.readouterr().out == says


def test_one_rank_starts_none_unless_somebody_must_start_it_again(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Any] = []
    monkeypatch.setattr(gpus, "count", lambda: pytest.fail("asked for nothing"))
    monkeypatch.setattr(local, "run", recorder(calls, 0))
    assert gpus.start(["train", "unet"], 1, 0, "auto") is None and not calls
    assert gpus.start(["train", "unet"], 1, 2, "auto") == 0 and len(calls) == 1


@pytest.mark.parametrize("key", ["RANK", "WORLD_SIZE"])
def test_a_rank_starts_no_ranks(key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(key, "1")
    with pytest.raises(ConfigError, match="this process is one already") as caught:
        gpus.start(["train", "unet"], 1, 0, "cpu")
    assert is_shared(caught.value)


def test_gpus_are_counted_only_where_there_is_a_driver(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(gpus, "Path", lambda _: tmp_path / "none")
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: pytest.fail("asked torch"))
    assert gpus.count() == 0


def test_machines_of_a_ray_cluster_that_are_wide_enough() -> None:
    there = [
        {"Alive": True, "Resources": {"GPU": 8.0, "CPU": 64.0}},
        {"Alive": True, "Resources": {"CPU": 64.0}},
        {"Alive": False, "Resources": {"GPU": 8.0}},
    ]
    assert [on_ray.wide_enough(there, "GPU", least) for least in (4, 9)] == [1, 0]
    assert on_ray.wide_enough(there, "CPU", 2) == 2
