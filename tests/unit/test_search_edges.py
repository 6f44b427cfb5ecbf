"""What happens to a search at its edges: signals, disks that are full, nodes that are lost, folders of others."""

import os
import signal
import socket
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from memdist import locks, rundir
from memdist.cluster import decide
from memdist.cluster.book import Attempt
from memdist.cluster.task import Task
from memdist.errors import CheckpointError, ConfigError, SearchError
from memdist.launch.ends import RESUME_ME
from memdist.search import candidates, confirm, folder, found, frozen, hands, key, on_ray, outcome, run, space
from memdist.search.driver import Driver
from memdist.search.methods.asha import Asha
from memdist.search.methods.grid import Grid
from memdist.search.methods.method import Ask, Method
from memdist.search.outcome import Outcome
from memdist.search.settings import Search
from tests import tiny

QUICK = space.read("quick")


def driver(place: Path, method: Method, keep: int = 1, twins: bool = False) -> Driver:
    folder.begin(place, {"format": folder.FORMAT, "metric": "val/l1", "scope": "last", **method.settings()})
    return Driver(place, QUICK, Search(keep=keep), method, lambda cell: f"{cell.number // (2 if twins else 1)}", {})


def checkpoints(mine: Driver, trial: int) -> Path:
    return mine.folder(trial) / rundir.CHECKPOINTS


# Signals


def test_what_ray_starts_ignores_what_slurm_sends_to_all() -> None:
    mine = [signal.signal(number, lambda *_: None) for number in (signal.SIGTERM, signal.SIGUSR2)]
    try:
        here = signal.getsignal(signal.SIGTERM)
        with on_ray.unmoved():
            assert signal.getsignal(signal.SIGUSR1) == signal.getsignal(signal.SIGUSR2) == signal.SIG_IGN
            signal.signal(signal.SIGTERM, signal.SIG_DFL)  # as ray.init does
        assert signal.getsignal(signal.SIGTERM) is here and callable(signal.getsignal(signal.SIGUSR2))
    finally:
        for number, handler in zip((signal.SIGTERM, signal.SIGUSR2), mine, strict=True):
            signal.signal(number, handler)


def test_a_signal_before_and_after_training_is_a_stop() -> None:
    before = signal.getsignal(signal.SIGUSR2)
    with pytest.raises(SystemExit) as left, run._leaving():
        os.kill(os.getpid(), signal.SIGUSR2)
        time.sleep(5)
    assert left.value.code == RESUME_ME and signal.getsignal(signal.SIGUSR2) == before


# Ray


def test_a_cluster_that_is_not_there_is_told_at_once() -> None:
    with socket.socket() as one:  # bound, and not listening
        one.bind(("0.0.0.0", 0))
        address = f"0.0.0.0:{one.getsockname()[1]}"
        began = time.monotonic()
        with pytest.raises(SearchError, match=f"--ray {address} cannot be reached: connection refused; give"):
            on_ray._reach(address)
    assert time.monotonic() - began < 5
    with pytest.raises(SearchError, match="is for Ray's client, by which no search runs"):
        on_ray._reach("ray://head:10001")


def test_a_head_that_is_gone_is_told_from_one_that_is_not() -> None:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{one.getsockname()[1]}"
        assert on_ray._refuses(address)
        one.listen()
        assert not on_ray._refuses(address)
    assert not on_ray._refuses("what is none")


def test_a_budget_is_reckoned_with_all_machines_of_an_allocation(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []

    def nodes() -> list[dict[str, bool]]:
        seen.append(len(seen))
        return [{"Alive": True}] * len(seen) + [{"Alive": False}]

    monkeypatch.setattr("ray.nodes", nodes)
    monkeypatch.setattr(on_ray, "_POLL", 0.01)
    on_ray.gather(3)
    assert len(seen) == 3


def test_what_cannot_be_written_ends_the_search() -> None:
    """Tune would pass over it, and wait for ever for a trial that nobody trains."""

    def tell(*_: Any) -> None:
        raise CheckpointError("no room")

    ask = Ask("start", 0, 0, 4)
    asking = on_ray._asking(SimpleNamespace(tell=tell), lambda: 1, 1, {})  # type: ignore[arg-type]
    forward = SimpleNamespace(got=[], insists=False)
    watching = on_ray._watching(SimpleNamespace(), asking, forward, lambda: None, lambda: None)  # type: ignore[arg-type]
    watching.on_step_end(0, [])
    asking._asked["a"] = ask
    asking.on_trial_complete("a", {"outcome": ["ok", 0.5]})
    with pytest.raises(CheckpointError, match="no room"):
        watching.on_step_end(1, [])


# Jobs


def test_trials_that_are_done_are_progress_although_their_checkpoints_go(tmp_path: Path) -> None:
    mine, task = driver(tmp_path, Grid(QUICK, 16)), Task(("search", "run", "quick"), tmp_path)
    asks = [mine.next() for _ in range(3)]
    for ask in asks:
        (checkpoints(mine, ask.trial) / "0000005000").mkdir(parents=True)
    before = task.progress()
    for ask in asks:
        mine.tell(ask, Outcome("ok", float(ask.trial)))
    mine.close()
    assert not checkpoints(mine, 1).exists() and task.progress() > before
    idle = Attempt(job="7", restart=0, nodes="", began=0.0, since=before, reached=before, kind="time-limit")
    assert "without a newer checkpoint (the last: time-limit)" in str(decide.refusal([idle, idle], 3))


# Hands


def test_a_run_that_a_lost_machine_still_holds_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answers = [{"code": 2, "error": "is being trained by process 7 on n2"}] * 4 + [{"code": 0, "error": ""}]
    monkeypatch.setattr(hands, "_LOOK", 0.01)
    monkeypatch.setattr(hands.Hands, "_ask", lambda *_: answers.pop(0))
    monkeypatch.setattr(locks, "owner", lambda out: SimpleNamespace(life=lambda me: "unknown"))
    monkeypatch.setattr(outcome, "of_run", lambda *_: Outcome("ok", 0.5))
    (tmp_path / "run").mkdir()
    task = hands.Task(settings={}, out=str(tmp_path / "run"), until=1, metric="val/l1", scope="last", mode="min")
    assert hands.Hands(tmp_path, 1).train(task, lambda: False).value == 0.5 and not answers


# Disk


def test_who_is_driven_out_of_a_rung_leaves_no_checkpoint(tmp_path: Path) -> None:
    mine = driver(tmp_path, Asha(candidates.of(QUICK, "grid"), 16, samples=8, eta=4))
    assert mine.method.samples == 8  # two of them may go on from the first rung
    for trial, value in enumerate([3.0, 2.0, 1.0]):
        ask = mine.next()
        assert ask.trial == trial and ask.until == 1
        (checkpoints(mine, trial) / "0000000001").mkdir(parents=True)
        rundir.write_json(checkpoints(mine, trial) / "0000000001" / rundir.STATE, {})
        mine.tell(ask, Outcome("ok", value))
    mine.close()
    assert [checkpoints(mine, trial).exists() for trial in range(3)] == [False, True, True]


# What was found


def test_a_trial_that_has_stopped_early_is_among_the_best(tmp_path: Path) -> None:
    mine = driver(tmp_path, Asha(candidates.of(QUICK, "grid"), 16, samples=4, eta=4, min_epochs=4))
    for value in (0.5, 0.1, 0.4, 0.3):
        ask = mine.next()
        mine.tell(ask, Outcome("ok", value, ended=value == 0.1, epoch=3))
    assert mine.next() == Ask("done") and mine.done
    best = mine.method.best()
    mine.close()
    assert best is not None and best.number == 1
    first = found.ranked(tmp_path)[0]
    assert (first.number, first.furthest) == (1, 16)


def test_finalists_are_other_trainings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(found, "plain", lambda folder: {"seed": 3})
    mine = driver(tmp_path, Grid(QUICK, 16), twins=True)
    for value in (0.1, 0.1, 0.3, 0.3, 0.2, 0.2):
        ask = next(ask for ask in iter(mine.next, None) if ask.what != "wait")
        mine.tell(ask, Outcome("ok", value))
    mine.close()
    finalists, chosen = confirm.finalists(tmp_path, 3, 1)
    assert len({one.folder for one in chosen}) == len(chosen) == 3
    confirm.check(tmp_path, finalists)
    rundir.make_folder(tmp_path / confirm.FOLDER)
    rundir.write_json(tmp_path / confirm.FOLDER / folder.SEARCH, finalists.settings())
    confirm.check(tmp_path, finalists)
    with pytest.raises(SearchError, match="give --top and --seeds as then, or move that folder away"):
        confirm.check(tmp_path, confirm.finalists(tmp_path, 2, 1)[0])


def test_finalists_are_not_trained_where_nothing_can_be_reported(tmp_path: Path) -> None:
    data = tiny.data(tmp_path)
    confirm.reported(tiny.run("unet", data, **{"data.test": 0.2}))
    with pytest.raises(SearchError, match="these data have no test split"):
        confirm.reported(tiny.run("unet", data, **{"data.test": 0}))


# Folders


def test_a_folder_whose_beginning_was_cut_short_is_begun_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(rundir, "write_json", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        folder.begin(tmp_path, {})
    assert folder.check(tmp_path, {}) is False


def test_what_may_stop_earlier_is_another_training(tmp_path: Path) -> None:
    assert key.of("a", 80, "b") == key.of("a", 80, "b", None) != key.of("a", 80, "b", 5)
    with pytest.raises(ConfigError, match="which is no folder"):
        key.trained([tmp_path / "nowhere"])


def test_a_space_is_copied_by_either_of_its_names(tmp_path: Path) -> None:
    assert frozen.copies("search/unet", tmp_path) == frozen.copies("unet", tmp_path)
