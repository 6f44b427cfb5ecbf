"""Whom ranks wait for, and when it is right to go on waiting."""

import itertools
import json
import math
import os
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from memdist.distributed import hang
from memdist.distributed.hang import Missing, Stand
from memdist.launch import ends


def stand(done: int, waited: float = 700, patience: float = 600, beat: int = 9) -> Stand:
    return Stand(done, f"step {done}", waited, patience, beat)


def seen(*stands: Stand | None) -> dict[int, Stand]:
    return {rank: s for rank, s in enumerate(stands) if s is not None}


def before(*stands: Stand | None) -> dict[int, Stand]:
    """The same some beats ago."""
    return {rank: s._replace(beat=s.beat - 5) for rank, s in seen(*stands).items()}


@pytest.mark.parametrize(
    ("stands", "found"),
    [
        ([stand(120), stand(120), stand(119)], Missing((2,), False)),
        ([stand(119), stand(120), stand(119)], Missing((0, 2), False)),
        ([stand(120), stand(120)], Missing((), False)),
        # It still has time; it works alone, ahead or behind; it has not begun or is done.
        ([stand(120), stand(119, waited=30)], None),
        ([stand(120), stand(119, waited=700, patience=3600)], None),
        ([stand(120), stand(119, patience=math.inf)], None),
        ([stand(120, patience=math.inf), stand(119)], None),
        # One that has never told anything.
        ([stand(120), None, stand(119)], Missing((1,), True)),
    ],
)
def test_whom_all_wait_for(stands: list[Stand | None], found: Missing | None) -> None:
    assert hang.missing(seen(*stands), before(*stands), len(stands)) == found


def test_a_rank_that_tells_nothing_any_more_is_missing_however_far_it_is() -> None:
    # Even one that works alone: it is trusted as long as it lives.
    stands = [stand(119), stand(120, patience=math.inf), stand(119)]
    earlier = before(*stands) | {1: stand(120, patience=math.inf)}
    assert hang.missing(seen(*stands), earlier, 3) == Missing((1,), True)


@pytest.mark.parametrize(
    ("found", "says"),
    [
        (
            Missing((3,), False),
            "rank 3 stands after step 119 for 10 minutes (hang_minutes) while 7 others wait after step 120: ",
        ),
        (
            Missing((3,), True),
            "rank 3 has not answered for 10 minutes (hang_minutes; last heard of after step 119) while 7 others wait after ",
        ),
        (
            Missing((3, 4), True),
            "ranks 3 and 4 have not answered for 10 minutes (hang_minutes; last heard of after step 119 or",
        ),
        (
            Missing((), False),
            "no rank has gone on for 10 minutes (hang_minutes): all 8 stand after step 119 or step 120",
        ),
    ],
)
def test_the_sentence(found: Missing, says: str) -> None:
    stands = {rank: stand(119 if rank == 3 else 120) for rank in range(8)}
    words = hang.sentence(found, stands, 8, 10.0)
    assert words.startswith(says) and "\n" not in words


def test_of_many_ranks_some_are_named() -> None:
    stands = {rank: stand(1 if rank < 40 else 2) for rank in range(64)}
    assert "13, 14 and 25 more stand after step 1 " in hang.sentence(Missing(tuple(range(40)), False), stands, 64, 10.0)


class Store:
    """As torch's, within this process."""

    def __init__(self) -> None:
        self.held: dict[str, str] = {}
        self.lock = threading.Lock()

    def set(self, key: str, value: str) -> None:
        self.held[key] = value

    def get(self, key: str) -> bytes:
        return self.held[key].encode()

    def check(self, keys: list[str]) -> bool:
        return all(key in self.held for key in keys)

    def add(self, key: str, number: int) -> int:
        with self.lock:
            self.held[key] = str(int(self.held.get(key, "0")) + number)
            return int(self.held[key])


@pytest.fixture
def ended(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    event = threading.Event()

    def leave(code: int) -> None:
        assert code == 1
        event.set()
        threading.Event().wait()  # what calls it goes no further

    monkeypatch.setattr(os, "_exit", leave)
    monkeypatch.setattr(ends, "AGREED", 0.0)
    yield event


def other(store: Store, rank: int, done: int, **more: Any) -> threading.Event:
    """A rank that stands still but lives, until the event."""
    stop = threading.Event()

    def tell() -> None:
        for beat in itertools.count():
            if stop.is_set():
                return
            store.set(str(rank), json.dumps(stand(done, beat=beat, **more)))
            stop.wait(0.002)

    threading.Thread(target=tell, daemon=True).start()
    return stop


def test_a_rank_that_waits_names_the_one_behind(ended: threading.Event, capsys: pytest.CaptureFixture[str]) -> None:
    store = Store()
    stop = other(store, 1, done=1)
    watch = hang.Watch(0, 2, 0.005, store)
    watch.begin("step", 119)
    watch.touch("step", 120)
    assert ended.wait(30)
    watch._end.set()
    stop.set()
    err = capsys.readouterr().err
    assert err.startswith(
        "memdist: rank 1 stands after step 1 for 0.005 minutes (hang_minutes) while 1 other waits after step 120"
    )
    assert err.count("\n") == 1


def test_nobody_is_late_before_the_first_step_nor_alone_nor_at_rest(ended: threading.Event) -> None:
    store = Store()
    stop = other(store, 1, done=0)
    watch = hang.Watch(0, 2, 0.0005, store)
    told = 6 * watch.period
    for prepare in (lambda: watch.touch("step", 1), lambda: watch.rest()):
        prepare()
        assert not ended.wait(told)
    watch.begin("step", 0)
    with watch.alone("writes a checkpoint"):
        assert not ended.wait(told)
        assert json.loads(store.held["0"])[1] == "step 0 (writes a checkpoint)"
    watch.rest()
    assert not ended.wait(told)
    watch.stop()
    stop.set()


def test_the_first_piece_of_each_kind_may_compile() -> None:
    watch = hang.Watch(0, 2, 1.0, Store())
    patience = []
    for kind, number in (("step", 0), ("step", 1), ("validation batch", 0), ("validation batch", 1), ("step", 2)):
        (watch.begin if number == 0 else watch.touch)(kind, number)
        patience.append(watch._patience)
    watch.stop()
    assert patience == [360, 60, 360, 60, 60]


def test_a_store_that_does_not_answer_is_told(ended: threading.Event, capsys: pytest.CaptureFixture[str]) -> None:
    class Stuck(Store):
        def check(self, keys: list[str]) -> bool:
            threading.Event().wait()
            raise AssertionError

    watch = hang.Watch(1, 3, 0.002, Stuck())
    watch.begin("step", 6)
    watch.touch("step", 7)
    assert ended.wait(30)
    watch._end.set()
    assert "memdist (rank 1): rank 0, or the launcher that keeps" in capsys.readouterr().err


def test_without_a_watch_nothing_is_counted() -> None:
    hang.begin("step", 0)
    hang.touch("step", 1)
    with hang.alone("works"):
        pass
    hang.rest()
    hang.stop()


def test_process_groups_have_more_patience() -> None:
    for minutes in (0.1, 10.0, 60.0):
        assert hang.timeout(minutes).total_seconds() > 60 * minutes * hang.SLOWER
