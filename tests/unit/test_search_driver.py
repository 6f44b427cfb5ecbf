"""Decisions and results on the disk: cut anywhere, they are made again; and trials are handed out and told of once."""

import contextlib
import json
import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as some

from memdist.errors import CheckpointError, SearchError
from memdist.search import candidates, space
from memdist.search.cells import Cell
from memdist.search.driver import Driver
from memdist.search.ledger import Ledger
from memdist.search.methods.asha import Asha
from memdist.search.methods.descent import Descent
from memdist.search.methods.grid import Grid
from memdist.search.methods.method import Ask, Method
from memdist.search.methods.random import Random
from memdist.search.outcome import Outcome
from memdist.search.settings import Search

QUICK = space.read("quick")
NAMES = [space.cell(QUICK, number).name for number in range(48)]
MAKERS: dict[str, Callable[[], Method]] = {
    "grid": lambda: Grid(QUICK, 16),
    "random": lambda: Random(QUICK, 16, seed=3, samples=20),
    "asha": lambda: Asha(candidates.of(QUICK, "random", 1), 16, mode="max", min_epochs=2, eta=2),
    "descent": lambda: Descent(QUICK, 16, rounds=3),
}
many = settings(max_examples=25, derandomize=True, deadline=None, database=None)


def own(cell: Cell) -> str:
    return cell.name


def paired(cell: Cell) -> str:
    """Every cell has a twin that trains the same."""
    return f"key {cell.number // 2}"


def outcome(cell: int, until: int, seed: int) -> Outcome:
    """What comes of a cell: mostly a number; some diverge, fail or stop early, and at random."""
    chance = random.Random(f"{seed} {cell} {until}")
    kind = chance.random()
    if kind < 0.1:
        return Outcome("diverged", epoch=until, why="val/l1 is no finite number")
    if kind < 0.15:
        return Outcome("failed", kind="bug", why="ZeroDivisionError: x")
    return Outcome("ok", chance.choice([chance.random(), 0.5]), ended=kind > 0.8, epoch=until)


def finish(ledger: Ledger, seed: int, workers: int = 1, chance: random.Random | None = None) -> list[Any]:
    """Ask and tell to the end; gives the method's state after every line."""
    states: list[Any] = []
    busy = list(ledger.method.running)
    while True:
        ask = ledger.ask() if len(busy) < workers else Ask("wait")
        if ask.what in ("start", "promote"):
            busy.append(ask)
        elif ask.what == "done":
            return states
        else:
            told = busy.pop(chance.randrange(len(busy)) if chance else 0)
            ledger.tell(told.trial, told.until, outcome(told.cell, told.until, seed))
        states.append(ledger.method.state())


def meant(path: Path) -> list[Any]:
    """A ledger's lines without times."""
    return [{k: v for k, v in json.loads(line).items() if k != "at"} for line in path.read_bytes().splitlines()]


@many
@given(some.sampled_from(sorted(MAKERS)), some.integers(1, 5), some.integers(0, 10**6), some.floats(0, 1))
def test_any_prefix_of_a_ledger_is_where_the_search_was(
    tmp_path_factory: pytest.TempPathFactory, name: str, workers: int, seed: int, part: float
) -> None:
    path = tmp_path_factory.mktemp("ledger") / "ledger.jsonl"
    ledger = Ledger(path, MAKERS[name](), own)
    states = finish(ledger, seed, workers, random.Random(seed))
    ledger.close()
    lines = path.read_bytes().splitlines(keepends=True)
    assert len(lines) == len(states)
    cut = int(part * len(lines))
    for length in {0, 1, cut, len(lines) - 1, len(lines)}:
        path.write_bytes(b"".join(lines[:length]))
        again = Ledger(path, MAKERS[name](), own)
        again.close()
        assert again.method.state() == (states[length - 1] if length else MAKERS[name]().state())


@many
@given(some.sampled_from(sorted(MAKERS)), some.integers(0, 10**6), some.floats(0, 1))
def test_a_ledger_that_is_cut_at_any_byte_ends_as_one_that_was_not(
    tmp_path_factory: pytest.TempPathFactory, name: str, seed: int, part: float
) -> None:
    path = tmp_path_factory.mktemp("ledger") / "ledger.jsonl"
    ledger = Ledger(path, MAKERS[name](), paired)
    finish(ledger, seed)
    ledger.close()
    whole, end = meant(path), ledger.method.state()
    path.write_bytes(path.read_bytes()[: int(part * path.stat().st_size)])
    again = Ledger(path, MAKERS[name](), paired)
    finish(again, seed)
    again.close()
    assert meant(path) == whole and again.method.state() == end
    assert again.folders == ledger.folders and [one[:3] for one in again.told] == [one[:3] for one in ledger.told]


@many
@given(some.sampled_from(sorted(MAKERS)), some.integers(2, 5), some.integers(0, 10**6))
def test_a_ledger_that_is_cut_again_and_again_loses_and_repeats_nothing(
    tmp_path_factory: pytest.TempPathFactory, name: str, workers: int, seed: int
) -> None:
    """With many workers the order of results is another after each cut; what was told of is never asked for again."""
    place, chance = tmp_path_factory.mktemp("search"), random.Random(seed)
    (place / "trials").mkdir()
    trained: dict[str, int] = {}  # as run folders would have it: epochs by name
    stretches: Counter[tuple[str, int]] = Counter()
    done = False
    while not done:
        driver = Driver(place, QUICK, Search(), MAKERS[name](), paired, {})
        busy: list[Ask] = []
        for _ in range(chance.choice([5, 40, 1000])):
            ask = driver.next() if len(busy) < workers else Ask("wait")
            if ask.what in ("start", "promote"):
                folder = driver.folder(ask.trial).name
                assert folder not in [driver.folder(other.trial).name for other in busy], "two at once in one folder"
                busy.append(ask)
            elif ask.what == "done":
                done = True
                assert driver.done and not busy
                break
            else:
                told = busy.pop(chance.randrange(len(busy)))
                folder = driver.folder(told.trial).name
                if chance.random() < 0.1:
                    driver.tell(told, Outcome("stopped"))
                    continue
                if trained.get(folder, 0) < told.until:  # else it is there already
                    trained[folder] = told.until
                    stretches[folder, told.until] += 1
                driver.tell(told, outcome(told.cell // 2, told.until, seed))
        driver.close()
    assert set(stretches.values()) <= {1}
    asks = [tuple(line["ask"]) for line in meant(place / "ledger.jsonl") if "ask" in line]
    tells = [tuple(line["tell"]) for line in meant(place / "ledger.jsonl") if "tell" in line]
    assert len(set(asks)) == len(asks) and sorted(tells) == sorted((ask[1], ask[3]) for ask in asks)
    cells = [ask[2] for ask in asks if ask[0] == "start"]
    assert len(set(cells)) == len(cells)
    if name in ("grid", "asha"):
        assert sorted(cells) == list(range(48)) and len(driver.ledger.folders) == 48
        assert set(trained) == set(driver.ledger.folders) and len(trained) == 24


def test_results_are_on_the_disk_before_they_count(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger.jsonl", Grid(QUICK, 16), own)
    ask = ledger.ask()
    assert meant(tmp_path / "ledger.jsonl")[-1]["ask"] == list(ask)
    ledger.tell(0, 16, Outcome("ok", 0.25, epoch=16, seconds=3.0, where="n01"))
    assert meant(tmp_path / "ledger.jsonl")[-1] == {
        "tell": [0, 16],
        "state": "ok",
        "value": 0.25,
        "ended": False,
        "epoch": 16,
        "seconds": 3.0,
        "where": "n01",
        "kind": "",
        "why": "",
    }
    ledger.close()


def test_what_was_trained_elsewhere_keeps_its_folder(tmp_path: Path) -> None:
    def key(cell: Cell) -> str:
        return f"key {cell.number}"

    ledger = Ledger(tmp_path / "ledger.jsonl", Grid(QUICK, 16), key, {"key 1": "/elsewhere/run"})
    for _ in range(3):
        ledger.ask()
    ledger.close()
    again = Ledger(tmp_path / "ledger.jsonl", Grid(QUICK, 16), key, {})
    again.close()
    assert again.folders == ledger.folders
    assert [Path(folder).is_absolute() for folder in again.folders] == [False, True, False]


OTHERS: dict[str, Callable[[], Method]] = {
    "another method": lambda: Random(QUICK, 16, seed=3),
    "other epochs": lambda: Grid(QUICK, 17),
    "other rungs": lambda: Asha(candidates.of(QUICK, "grid"), 16),
    "another seed": lambda: Random(QUICK, 16, seed=4),
}


@pytest.mark.parametrize("name", sorted(OTHERS))
def test_decisions_of_another_search_are_refused(name: str, tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    ledger = Ledger(path, Grid(QUICK, 16), own)
    finish(ledger, 0)
    ledger.close()
    before = path.read_bytes()
    with pytest.raises(SearchError, match=r"line \d+ of .*ledger.jsonl does not follow from those before it") as told:
        Ledger(path, OTHERS[name](), own)
    assert "\n" not in str(told.value) and path.read_bytes() == before


DAMAGE: dict[str, tuple[bytes, str]] = {
    "a line that is no JSON": (b"{", "line 2 of"),
    "a list": (b"[1]", "line 2 of"),
    "neither": (b"{}", "line 2 of"),
    "a result of nobody": (b'{"tell": [7, 16], "state": "ok", "value": 1.0, "at": 0}', "line 2 of"),
    "a result at no rung": (b'{"tell": [0, 3], "state": "ok", "value": 1.0, "at": 0}', "line 2 of"),
    "a result without a value": (b'{"tell": [0, 16], "state": "ok", "at": 0}', "line 2 of"),
    "a state that there is not": (b'{"tell": [0, 16], "state": "fine", "value": 1.0, "at": 0}', "line 2 of"),
    "a word for a number": (b'{"tell": ["a", "b"], "state": "ok", "value": 1.0, "at": 0}', "line 2 of"),
    "nothing found": (b'{"tell": [0, 16], "state": "ok", "value": null, "at": 0}', "line 2 of"),
    "a word for a value": (b'{"tell": [0, 16], "state": "ok", "value": "x", "at": 0}', "line 2 of"),
    "no time": (b'{"tell": [0, 16], "state": "ok", "value": 1.0}', "line 2 of"),
    "the same decision again": (b'{"ask": ["start", 0, 0, 16], "key": "x", "folder": "x", "at": 0}', "line 2 of"),
    "a decision without a folder": (b'{"ask": ["start", 1, 1, 16], "at": 0}', "line 2 of"),
    "a promotion of a grid": (b'{"ask": ["promote", 0, 0, 16], "at": 0}', "line 2 of"),
}


@pytest.mark.parametrize("name", sorted(DAMAGE))
def test_a_damaged_ledger_is_refused(name: str, tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    ledger = Ledger(path, Grid(QUICK, 16), own)
    ledger.ask()
    ledger.close()
    line, says = DAMAGE[name]
    path.write_bytes(path.read_bytes() + line + b"\n")
    before = path.read_bytes()
    with pytest.raises((SearchError, CheckpointError), match=says) as told:
        Ledger(path, Grid(QUICK, 16), own)
    assert "\n" not in str(told.value) and path.read_bytes() == before


# The driver


def driver(place: Path, method: Method | None = None, key: Callable[[Cell], str] = own, **elsewhere: Path) -> Driver:
    (place / "trials").mkdir(exist_ok=True, parents=True)
    return Driver(place, QUICK, Search(), method or Grid(QUICK, 16), key, elsewhere)


def test_twins_are_trained_one_after_the_other_in_one_folder(tmp_path: Path) -> None:
    mine = driver(tmp_path, key=paired)
    first = mine.next()
    assert first == Ask("start", 0, 0, 16) and mine.next() == Ask("wait")  # its twin is asked for, and waits
    second = mine.next()
    assert second == Ask("start", 2, 2, 16), "others need not wait"
    assert mine.folder(0) == tmp_path / "trials" / NAMES[0]
    mine.tell(first, Outcome("ok", 0.5))
    twin = mine.next()
    assert twin == Ask("start", 1, 1, 16) and mine.folder(1) == mine.folder(0)
    mine.close()


def test_a_trial_that_was_stopped_comes_again(tmp_path: Path) -> None:
    mine = driver(tmp_path)
    first, second = mine.next(), mine.next()
    mine.tell(first, Outcome("stopped"))
    assert mine.next() == first and mine.next().trial == 2
    mine.stopping = True
    assert mine.next() == Ask("done") and not mine.done
    for ask in (first, second, Ask("start", 2, 2, 16)):
        mine.tell(ask, Outcome("stopped"))
    assert mine.handed == {} and not mine.done
    mine.close()
    again = driver(tmp_path)
    assert [again.next().trial for _ in range(4)] == [0, 1, 2, 3]
    again.close()


def test_a_driver_says_when_all_is_found(tmp_path: Path) -> None:
    mine = driver(tmp_path, Random(QUICK, 16, samples=2))
    one, two = mine.next(), mine.next()
    assert mine.next() == Ask("wait") and not mine.done
    mine.tell(one, Outcome("ok", 0.5))
    assert not mine.done
    mine.tell(two, Outcome("failed", kind="bug", why="x"))
    assert mine.done and mine.next() == Ask("done")
    mine.close()


def test_a_task_pauses_where_the_method_says(tmp_path: Path) -> None:
    words = ["data.images=/i", "data.maps=/m"]
    mine = space.read("quick", [*words, "checkpoint.every=3"])
    asha = Asha(candidates.of(mine, "grid"), 16)
    with contextlib.closing(Driver(tmp_path, mine, Search(failures=7), asha, own, {})) as it:
        it.next()
        task, whole = it.task(Ask("start", 0, 5, 4)), it.task(Ask("promote", 0, 5, 16))
    assert (task.settings["until"], task.until, task.failures) == (4, 4, 7)
    assert task.out == str(tmp_path / "trials" / NAMES[0]) and json.dumps(task.settings)
    assert task.settings["checkpoint"]["every"] == 3, "what was given is kept"
    assert task.settings["log"] | {"tensorboard": False, "images": 0} == task.settings["log"]
    assert task.settings["epochs"] == 16 and task.settings["data"]["images"] == "/i"
    assert whole.settings["until"] is None and whole.settings == {**task.settings, "until": None}
    quiet = space.read("quick", words)
    (tmp_path / "2").mkdir()
    with contextlib.closing(Driver(tmp_path / "2", quiet, Search(), Grid(quiet, 16), own, {})) as it:
        assert it.task(it.next()).settings["checkpoint"]["every"] == 1_000_000
