"""What a search makes of run folders: their worth, their keys, what is kept of them, and what is said of them."""

import json
import math
import os
import random
from collections.abc import Iterable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as some

from memdist import rundir
from memdist.errors import ConfigError, SearchError
from memdist.search import board, candidates, key, outcome, space, tidy
from memdist.search import settings as settings_
from memdist.search.driver import Driver
from memdist.search.ledger import Told
from memdist.search.methods.asha import Asha
from memdist.search.methods.grid import Grid
from memdist.search.methods.method import Ask, Result
from memdist.search.outcome import Outcome
from memdist.search.settings import Search
from memdist.train import loop
from tests import tiny

QUICK = space.read("quick")


def run(path: Path, values: Iterable[float | None], state: str = "stopped", epoch: float | None = None) -> Path:
    """A run folder with a metric and a state."""
    path.mkdir(parents=True)
    found = list(values)
    records = [{"step": n, "epoch": n + 0.1, "val/l1": value} for n, value in enumerate(found, 1)]
    text = "".join(json.dumps(record) + "\n" for record in [{"step": 1, "epoch": 0.4, "train/l1": 1.0}, *records])
    (path / rundir.METRICS).write_text(text)
    where = len(found) + 0.1 if epoch is None else epoch
    (path / rundir.STATE).write_text(json.dumps({"state": state, "epoch": where}))
    return path


# What a run is worth


def test_a_run_is_worth_what_its_metric_was(tmp_path: Path) -> None:
    mine = run(tmp_path / "run", [0.5, 0.4, 0.3, 0.6])
    for until, scope, value in [(4, "last", 0.6), (3, "last", 0.3), (4, "best", 0.3), (2, "last-5-mean", 0.45)]:
        found = outcome.of_run(mine, until, "val/l1", scope, "min")  # type: ignore[arg-type]
        assert found == Outcome("ok", value, False, until) and found.result == Result(value)


def test_a_run_that_stopped_early_is_worth_that_for_good(tmp_path: Path) -> None:
    mine = run(tmp_path / "run", [0.5, 0.4], state="finished")
    assert outcome.of_run(mine, 9, "val/l1", "last", "min") == Outcome("ok", 0.4, True, 2)
    assert outcome.of_run(mine, 2, "val/l1", "last", "min") == Outcome("ok", 0.4, False, 2)
    assert outcome.of_run(mine, 1, "val/l1", "last", "min") == Outcome("ok", 0.5, False, 1)


def test_what_is_no_number_has_diverged(tmp_path: Path) -> None:
    mine = run(tmp_path / "run", [0.5, None, 0.3])
    found = outcome.of_run(mine, 3, "val/l1", "last-5-mean", "min")
    assert (found.state, found.value, found.why) == ("diverged", None, "val/l1 is no finite number")
    assert found.result == Result(None, "diverged")
    assert outcome.of_run(mine, 3, "val/l1", "best", "max").value == 0.5
    assert outcome.of_run(mine, 3, "val/l1", "last", "max").value == 0.3


def test_a_metric_that_is_missing_is_named(tmp_path: Path) -> None:
    mine = run(tmp_path / "run", [0.5])
    with pytest.raises(
        SearchError, match=r"run has no val/fid up to epoch 1; it reports val/l1: choose another search.metric"
    ):
        outcome.of_run(mine, 1, "val/fid", "last", "min")
    (mine / rundir.METRICS).unlink()
    with pytest.raises(SearchError, match="it reports nothing of val"):
        outcome.of_run(mine, 1, "val/l1", "last", "min")


# Who may be promoted


@settings(max_examples=60, derandomize=True, deadline=None, database=None)
@given(some.integers(2, 4), some.integers(1, 4), some.integers(1, 48), some.integers(0, 10**6))
def test_who_is_not_hopeful_never_goes_on(eta: int, workers: int, samples: int, seed: int) -> None:
    chance = random.Random(seed)
    method = Asha(candidates.of(QUICK, "random", seed), 16, samples=samples, eta=eta)
    hopeless: set[int] = set()
    busy: list[Ask] = []
    while True:
        ask = method.ask() if len(busy) < workers else None
        if ask is not None and ask.what == "done":
            break
        if ask is not None and ask.what in ("start", "promote"):
            finished = any(method.score(trial, 16) < math.inf for trial in method.trials)
            alone = not busy and not finished and len(method.trials) == samples  # all others came to nothing
            assert ask.trial not in hopeless or alone
            busy.append(ask)
            continue
        told = busy.pop(chance.randrange(len(busy)))
        value = chance.choice([chance.random(), 0.5, math.nan])
        method.tell(told.trial, told.until, Result.of(value, ended=value < 0.1))
        ended = {trial.number for trial in method.trials if trial.last is not None and trial.last.ended}
        hopeless |= {t.number for t in method.trials if not t.running and not method.hopeful(t)} - ended
    assert not [trial for trial in method.trials if trial.running]


# What is kept


def saved(trials: Path, name: str, *steps: int, best: int | None = None, anchor: tuple[int, int] | None = None) -> Path:
    for step in steps:
        folder = trials / name / rundir.CHECKPOINTS / f"{step:010}"
        folder.mkdir(parents=True)
        (folder / rundir.STATE).write_text(json.dumps({"selection": {"step": best}, "anchor": anchor}))
    (trials / name / rundir.SAMPLES).mkdir(exist_ok=True, parents=True)
    (trials / name / rundir.METRICS).write_text("")
    return trials / name


def steps(folder: Path) -> list[int]:
    return sorted(int(path.name) for path in (folder / rundir.CHECKPOINTS).glob("*"))


def test_the_checkpoints_that_are_needed_stay(tmp_path: Path) -> None:
    mine = saved(tmp_path, "run", 1, 2, 3, 4, 5, 6, best=2, anchor=(4, 3))
    tidy.thin(mine)
    assert steps(mine) == [2, 3, 4, 6]
    tidy.thin(tmp_path / "nobody")
    tidy.shed(mine)
    assert [path.name for path in mine.iterdir()] == [rundir.METRICS]


def test_a_grid_keeps_the_weights_of_the_best(tmp_path: Path) -> None:
    method, names = Grid(QUICK, 16), [f"cell {n}" for n in range(48)]
    values = random.Random(0).sample(range(48), k=48)
    for n, name in enumerate(names):
        ask = method.ask()
        saved(tmp_path, name, 5, best=5)
        method.tell(ask.trial, ask.until, Result.of(None if n % 7 == 3 else values[n]))
        tidy.after(tmp_path, method, names, n, 3)
        good = sorted((values[m], name) for m, name in enumerate(names[: n + 1]) if m % 7 != 3)[:3]
        assert {path.name for path in tmp_path.iterdir() if (path / rundir.CHECKPOINTS).exists()} == {
            g[1] for g in good
        }
    tidy.end(tmp_path, method, names, 1)
    assert [path.name for path in tmp_path.iterdir() if (path / rundir.CHECKPOINTS).exists()] == [good[0][1]]


def test_halving_keeps_a_checkpoint_of_whoever_may_go_on(tmp_path: Path) -> None:
    method, names = Asha(candidates.of(QUICK, "grid"), 16), [f"cell {n}" for n in range(48)]
    values = random.Random(1).sample(range(48), k=48)
    while (ask := method.ask()).what != "done":
        if ask.what == "promote":
            assert steps(tmp_path / names[ask.trial]), "nothing to go on from"
        else:
            saved(tmp_path, names[ask.trial], 5, best=5)
        method.tell(ask.trial, ask.until, Result.of(values[ask.cell]))
        tidy.after(tmp_path, method, names, ask.trial, 2)
        kept = {names[trial.number] for trial in tidy.kept(method, 2)}
        there = {path.name for path in tmp_path.iterdir() if (path / rundir.CHECKPOINTS).exists()}
        assert kept <= there
        assert there == kept, "the outdone keep theirs"
    tidy.end(tmp_path, method, names, 2)
    assert sum((path / rundir.CHECKPOINTS).exists() for path in tmp_path.iterdir()) == 2


def test_who_has_nothing_left_to_go_on_from_begins_anew(tmp_path: Path) -> None:
    for name, state, epoch, stays in [
        ("a", "stopped", 1.1, False),
        ("b", "finished", 1.1, True),
        ("c", "stopped", 4.2, True),
    ]:
        run(tmp_path / name, [0.5], state, epoch)
        tidy.afresh(tmp_path / name, tmp_path, 4)
        assert (tmp_path / name).exists() == stays
    saved(tmp_path, "d", 5)
    (tmp_path / "d" / rundir.STATE).write_text('{"state": "stopped", "epoch": 1.1}')
    run(tmp_path / "elsewhere" / "e", [0.5])
    for mine in (tmp_path / "d", tmp_path / "elsewhere" / "e", tmp_path / "nobody"):
        there = mine.exists()
        tidy.afresh(mine, tmp_path, 4)
        assert mine.exists() == there


def test_where_all_others_come_to_nothing_an_outdone_trial_is_trained_anew(tmp_path: Path) -> None:
    (tmp_path / "trials").mkdir()
    method = Asha(candidates.of(QUICK, "grid"), 16, samples=2, eta=2, min_epochs=8)
    driver = Driver(tmp_path, QUICK, Search(method="asha"), method, lambda cell: cell.name, {})
    for value in (0.5, 0.4):
        ask = driver.next()
        saved(tmp_path / "trials", driver.folder(ask.trial).name, 5)
        (driver.folder(ask.trial) / rundir.STATE).write_text('{"state": "stopped", "epoch": 8.0}')
        driver.tell(ask, Outcome("ok", value, epoch=8))
    assert not steps(driver.folder(0)) and steps(driver.folder(1))
    ask = driver.next()
    assert (ask.what, ask.trial) == ("promote", 1) and driver.folder(1).exists()
    driver.tell(ask, Outcome("diverged"))
    ask = driver.next()
    assert (ask.what, ask.trial) == ("promote", 0) and not driver.folder(0).exists()
    driver.close()


def test_what_was_trained_elsewhere_is_left_alone(tmp_path: Path) -> None:
    method, trials = Grid(QUICK, 16), tmp_path / "trials"
    trials.mkdir()
    theirs = saved(tmp_path / "other", "run", 1, 2, 3, best=3)
    (theirs / rundir.SPLIT).write_text("x")
    names = [str(theirs), *(f"cell {n}" for n in range(47))]
    for n in range(3):
        ask = method.ask()
        if n:
            saved(trials, names[n], 5)
        method.tell(ask.trial, ask.until, Result.of(1.0 - n / 10))
        tidy.after(trials, method, names, n, 1)
    tidy.end(trials, method, names[:3], 1)
    assert steps(theirs) == [1, 2, 3] and (theirs / rundir.SAMPLES).exists()
    assert (theirs / rundir.SPLIT).stat().st_nlink == 1


def test_splits_that_are_alike_are_one_file(tmp_path: Path) -> None:
    for name, text in [("a", "one"), ("b", "one"), ("c", "two")]:
        (tmp_path / name).mkdir()
        (tmp_path / name / rundir.SPLIT).write_text(text)
        tidy.share(tmp_path / name, tmp_path)
        tidy.share(tmp_path / name, tmp_path)
    number = [os.stat(tmp_path / name / rundir.SPLIT).st_ino for name in "abc"]
    assert number[0] == number[1] != number[2]
    assert [(tmp_path / name / rundir.SPLIT).read_text() for name in "abc"] == ["one", "one", "two"]


# Keys


def test_a_training_is_known_wherever_it_was_trained(tmp_path: Path) -> None:
    data = tiny.data(tmp_path / "data")
    words = [f"data.images={data}/images", f"data.maps={data}/maps", "data.size=16", "batch.size=4", "device=cpu"]
    words += ["model.multipliers=[1, 2]", "data.val=0.2", "data.test=0.2", "epochs=2"]
    mine = space.read("quick", words)
    keys = key.Keys(mine)
    want = [keys(space.cell(mine, number)) for number in range(48)]
    assert len(set(want)) == 48 and all(len(one) == 16 for one in want)
    # As a person would have trained it, with other settings of what does not change curves.
    found = space.resolve(mine, space.cell(mine, 5), ("log.every=1", "checkpoint.every=1"))
    assert loop.train(found, tmp_path / "runs" / "deep" / "mine") == 0
    assert loop.train(found.model_copy(update={"until": 1}), tmp_path / "runs" / "paused") == 75
    assert key.trained([tmp_path / "runs"]) == {want[5]: tmp_path / "runs" / "deep" / "mine"}
    for more in (["epochs=3"], ["seed=1"], ["data.val=0.3"]):
        other = space.read("quick", [*words, *more])
        assert key.Keys(other)(space.cell(other, 5)) != want[5], more
    facts = tmp_path / "runs" / "deep" / "mine" / rundir.PROVENANCE
    facts.write_text(json.dumps(json.loads(facts.read_text()) | {"format": key.FORMAT + 1}))
    assert key.trained([tmp_path / "runs"]) == {}
    facts.write_text("{")
    assert key.trained([tmp_path / "runs"]) == {}
    with pytest.raises(ConfigError, match="search.reuse names"):
        key.trained([tmp_path / "nowhere"])


# Settings


@pytest.mark.parametrize(
    ("word", "says"),
    [
        ("search.metod=asha", "there is no setting 'search.metod'"),
        ("search.method=bayes", "search.method = 'bayes' cannot be"),
        ("search.eta=1", "search.eta = 1 cannot be"),
        ("search.samples=0", "search.samples = 0 cannot be"),
        ("search.cpus=0", "search.cpus = 0.0 cannot be|search.cpus = 0 cannot be"),
        ("search.gpus=-1", "search.gpus = -1"),
        ("search.pack=many", "search.pack"),
        ("search.failures=-1", "search.failures = -1 cannot be"),
        ("search.keep=0", "search.keep = 0 cannot be"),
        ("search.scope=mean", "search.scope = 'mean' cannot be"),
        ("search.mode=least", "search.mode = 'least' cannot be"),
    ],
)
def test_mistakes_in_settings_of_a_search_are_named(word: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        settings_.read({}, [word])


def test_settings_of_the_command_line_lie_over_the_files() -> None:
    found = settings_.read({"method": "asha", "eta": 3}, ["search.eta=2"])
    assert (found.method, found.eta) == ("asha", 2)
    assert settings_.parted(["search.eta=2", "epochs=3"]) == (["search.eta=2"], ["epochs=3"])
    assert found.better() == "min" and Search(metric="val/cc").better() == "max"
    assert Search(metric="val/cc", mode="min").better() == "min"
    with pytest.raises(ConfigError, match="search should be a group"):
        settings_.read([], [])  # type: ignore[arg-type]


# What is said


def test_how_a_search_stands_is_said(tmp_path: Path) -> None:
    (tmp_path / "trials").mkdir()
    method = Asha(candidates.of(QUICK, "grid"), 16, min_epochs=4)
    driver = Driver(tmp_path, QUICK, Search(method="asha", min_epochs=4), method, lambda cell: cell.name, {})
    told = [Outcome("ok", 0.25, epoch=4, seconds=75), Outcome("diverged", why="val/l1 is no finite number", seconds=3)]
    told += [Outcome("failed", kind="bug", why="KeyError: 'x'"), Outcome("ok", 0.5, epoch=4)]
    asks = [driver.next() for _ in range(5)]
    for ask, one in zip(asks, told, strict=False):
        driver.tell(ask, one)
    name = driver.ledger.folders
    lines = [board.line(driver, one) for one in driver.ledger.told]
    assert lines[0] == f"trial 0 (75s): {name[0]}: val/l1 0.25 at epoch 4, the best so far there"
    assert lines[1].endswith(f"{name[1]}: diverged: val/l1 is no finite number")
    assert lines[2].endswith(f"{name[2]}: failed: KeyError: 'x'")
    assert lines[3].endswith(f"{name[3]}: val/l1 0.5 at epoch 4")
    said = board.standing(driver, driver.ledger.told[0].at + 1e6)
    assert said == [
        "asha over 48 cells: 1 running, 0 trained, 2 paused, 1 diverged, 1 failed",
        f"best val/l1 0.25 at epoch 4: trial 0, {name[0]}",
        "rungs: epoch 4: 4, epoch 16: 0",
    ]
    driver.close()


def test_how_long_a_grid_still_takes_is_said(tmp_path: Path) -> None:
    (tmp_path / "trials").mkdir()
    driver = Driver(tmp_path, QUICK, Search(), Grid(QUICK, 16), lambda cell: cell.name, {})
    for _ in range(2):
        driver.tell(driver.next(), Outcome("ok", 0.5, epoch=16))
    driver.ledger.told[:] = [Told(n, 16, Outcome("ok", 0.5, epoch=16), 1000.0 + 10 * n) for n in (1, 2)]
    assert board.left(driver) == 46 * 16
    assert board.standing(driver, 1000.0)[-1].startswith("360 results/hour, 5760 epochs/hour, about ")
    driver.close()
