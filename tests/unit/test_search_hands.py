"""Trials in a process that stays: as `memdist train` trains them, killed, stopped, refused and diverged."""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from memdist import config, rundir
from memdist.search.hands import Hands, Task
from memdist.train import checkpoint, loop
from tests import tiny
from tests.faults.asking import outcome


def never() -> bool:
    return False


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.data(tmp_path_factory.mktemp("hands") / "data")


@pytest.fixture(scope="module")
def hands(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hands]:
    with closing(Hands(tmp_path_factory.mktemp("workers"), 1)) as found:
        yield found


def task(variant: str, data: Path, out: Path, until: int = 3, failures: int = 1, **settings: Any) -> Task:
    pause = {"until": until} if until < settings.get("epochs", 3) else {}
    run = tiny.run(variant, data, **settings, **pause)
    return Task(
        settings=config.plain(run),
        out=str(out),
        until=until,
        metric="val/l1",
        scope="last",
        mode="min",
        failures=failures,
    )


def process(hands: Hands) -> int:
    assert hands._process is not None
    return hands._process.pid


def test_trials_in_a_row_are_trained_as_each_alone(data: Path, tmp_path: Path, hands: Hands) -> None:
    made = set()
    for variant in ("pix2pix", "unet dropout", "unet batch prior"):
        loop.train(tiny.run(variant, data), tmp_path / f"{variant} alone")
        found = hands.train(task(variant, data, tmp_path / variant), never)
        assert (found.state, found.epoch, found.ended, found.kind, found.why) == ("ok", 3, False, "", "")
        assert outcome(tmp_path / variant) == outcome(tmp_path / f"{variant} alone")
        assert found.value == rundir.read_lines(tmp_path / variant / rundir.METRICS)[-1]["val/l1"]
        assert found.seconds > 0 and found.where
        made.add(process(hands))
    assert len(made) == 1, "each in a process of its own"


def test_a_trial_is_promoted_and_not_trained_twice(data: Path, tmp_path: Path, hands: Hands) -> None:
    first = hands.train(task("unet", data, tmp_path / "run", until=1), never)
    assert (first.state, first.epoch) == ("ok", 1) and rundir.read_json(tmp_path / "run" / rundir.STATE)["epoch"] < 2
    whole = hands.train(task("unet", data, tmp_path / "run"), never)
    assert (whole.state, whole.epoch) == ("ok", 3)
    size = hands.log.stat().st_size
    again = hands.train(task("unet", data, tmp_path / "run"), never)
    assert again.value == whole.value and hands.log.stat().st_size == size, "somebody was asked"
    early = hands.train(task("unet", data, tmp_path / "run", until=1), never)
    assert early.value == first.value and (early.epoch, early.ended) == (1, False)


def test_a_trial_that_is_stopped_goes_on_another_time(data: Path, tmp_path: Path, hands: Hands) -> None:
    mine = task("unet", data, tmp_path / "run", until=40, epochs=40)
    assert hands.train(mine, lambda: True).state == "stopped" and not (tmp_path / "run").exists()

    def stop() -> bool:
        return len(rundir.read_lines(tmp_path / "run" / rundir.METRICS)) > 3

    assert hands.train(mine, stop).state == "stopped"
    state = rundir.read_json(tmp_path / "run" / rundir.STATE)
    assert state["state"] == "stopped" and 0 < state["step"] < state["steps"]
    assert checkpoint.steps(tmp_path / "run")[-1] == state["step"]
    assert hands.train(mine, never).state == "ok"
    loop.train(tiny.run("unet", data, epochs=40), tmp_path / "alone")
    metrics = [(tmp_path / name / rundir.METRICS).read_bytes() for name in ("run", "alone")]
    assert metrics[0] == metrics[1]


def killing(hands: Hands, when: Callable[[], bool]) -> threading.Thread:
    def kill() -> None:
        end = time.monotonic() + 120
        while not when() and time.monotonic() < end:
            time.sleep(0.01)
        os.kill(process(hands), signal.SIGKILL)

    thread = threading.Thread(target=kill)
    thread.start()
    return thread


def test_a_process_that_is_killed_begins_again_from_the_checkpoint(data: Path, tmp_path: Path, hands: Hands) -> None:
    more: dict[str, Any] = {"epochs": 12, "checkpoint.every_minutes": 1e-9}
    out = tmp_path / "run"

    def saved(step: int) -> Callable[[], bool]:
        return lambda: bool((found := checkpoint.steps(out)) and found[-1] >= step)

    hands.train(task("unet", data, tmp_path / "warm", until=1), never)  # so that a process is there to be killed
    thread = killing(hands, saved(5))
    found = hands.train(task("unet", data, out, until=12, **more), never)
    thread.join()
    assert (found.state, found.epoch) == ("ok", 12)
    loop.train(tiny.run("unet", data, **more), tmp_path / "alone")
    assert outcome(out) == outcome(tmp_path / "alone")
    assert len(rundir.read_json(out / rundir.PROVENANCE)["legs"]) == 2


def test_a_process_that_is_killed_too_often_is_a_failure_with_its_reason(
    data: Path, tmp_path: Path, hands: Hands
) -> None:
    more: dict[str, Any] = {"epochs": 400, "checkpoint.every_minutes": 1e-9}
    out = tmp_path / "run"
    hands.train(task("unet", data, tmp_path / "warm", until=1), never)
    thread = killing(hands, lambda: bool(checkpoint.steps(out)))
    found = hands.train(task("unet", data, out, until=400, failures=0, **more), never)
    thread.join()
    assert (found.state, found.kind, found.value) == ("failed", "host-memory", None) and found.why
    assert "\n" not in found.why and found.epoch < 400


def test_a_mistake_fails_at_once_with_its_sentence(data: Path, tmp_path: Path, hands: Hands) -> None:
    wrong = replace(
        task("unet", data, tmp_path / "run", failures=5), settings=tiny.raw("unet", data, **{"batch.size": 400})
    )
    found = hands.train(wrong, never)
    assert (found.state, found.kind) == ("failed", "wrong-input")
    assert found.why.startswith("batch.size = 400 is larger than the training split")
    assert hands.log.read_text().count(str(tmp_path / "run")) == 1, "it was begun again"
    assert hands.train(task("unet", data, tmp_path / "next", until=1), never).state == "ok"


def test_a_metric_that_is_not_measured_by_then_fails_with_a_sentence(data: Path, tmp_path: Path, hands: Hands) -> None:
    found = hands.train(task("unet", data, tmp_path / "run", until=1, **{"validate.every": 2}), never)
    assert (found.state, found.kind) == ("failed", "wrong-input") and "run has no val/l1 up to epoch 1" in found.why


def test_a_run_that_diverges_has_diverged(data: Path, tmp_path: Path, hands: Hands) -> None:
    mine = task("unet", data, tmp_path / "run", failures=5, **{"optim.unet.lr": 1e30})  # type: ignore[arg-type]
    found = hands.train(mine, never)
    assert (found.state, found.kind, found.value) == ("diverged", "diverged", None) and "has diverged" in found.why
    size = hands.log.stat().st_size
    assert hands.train(mine, never).state == "diverged" and hands.log.stat().st_size == size, "it was trained again"


def test_a_process_that_ends_by_a_bug_is_a_failure_with_its_line(data: Path, tmp_path: Path, hands: Hands) -> None:
    """What is no configuration at all: no person can give it here, so that it stands for any bug."""
    wrong = replace(task("unet", data, tmp_path / "run"), settings={"model": 3.5, "epochs": object.__name__})
    before = process(hands)
    found = hands.train(wrong, never)
    assert found.state == "failed" and found.why and "\n" not in found.why
    assert hands.train(task("unet", data, tmp_path / "next", until=1), never).state == "ok"
    assert before
