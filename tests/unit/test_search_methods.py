"""Ways through a space: against hand-worked examples, against a reference, and killed at any time."""

import json
import math
import random
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as some

from memdist import config, models
from memdist.errors import ConfigError, SearchError
from memdist.search import candidates, space
from memdist.search.candidates import Candidates, shuffled
from memdist.search.cells import Space
from memdist.search.methods.asha import Asha, rungs
from memdist.search.methods.descent import Descent, descend
from memdist.search.methods.grid import Grid
from memdist.search.methods.method import Ask, Method, Result
from memdist.search.methods.random import Random
from memdist.search.objective import objective

Value = Callable[[int, int], Result]
many = settings(max_examples=150, derandomize=True, deadline=None, database=None)


class Few(Candidates):
    """So many cells, of no space."""

    def __init__(self, count: int, name: str = "few") -> None:
        super().__init__(cast(Space, SimpleNamespace(drawn=False, source="few.yaml", fingerprint=name)))
        self.count = count

    def at(self, place: int) -> int | None:
        return place if place < self.count else None


def drive(
    make: Callable[[], Method],
    value: Value,
    workers: int = 1,
    seed: int = 0,
    kill: float = 0.0,
    most: int = 100_000,
) -> tuple[Method, list[Ask]]:
    """Ask and tell until it is done: workers finish by chance; with `kill`, it is now and then loaded from its state."""
    chance, death = random.Random(seed), random.Random(seed + 1)
    method, log, busy = make(), [], cast(list[Ask], [])
    while True:
        if death.random() < kill:
            state = json.loads(json.dumps(method.state(), allow_nan=False))
            method = make()
            method.load(state)
            assert method.state() == state
            assert sorted(method.running) == sorted(busy), "what was running is not what has to go on"
        ask = method.ask() if len(busy) < workers else Ask("wait")
        if ask.what in ("start", "promote"):
            log.append(ask)
            busy.append(ask)
            assert len(log) <= most, "there is no end"
            continue
        assert not method.done or not busy
        if ask.what == "done":
            assert not busy and method.done and method.ask().what == "done"
            return method, log
        assert busy, "it waits for nothing"
        told = busy.pop(chance.randrange(len(busy)))
        for _ in range(chance.choice([1, 1, 2])):  # what is told twice counts once
            method.tell(told.trial, told.until, value(told.cell, told.until))


def of(values: list[float]) -> Value:
    return lambda cell, until: Result.of(values[cell])


# Objective


@pytest.mark.parametrize(
    ("scope", "mode", "until", "worth"),
    [
        ("last", "min", None, 7.0),
        ("best", "min", None, 1.0),
        ("best", "max", None, 9.0),
        ("last-5-mean", "min", None, (1 + 4 + 9 + 2 + 7) / 5),
        ("last", "min", 3, 4.0),
        ("last-5-mean", "max", 3, (3 + 1 + 4) / 3),
        ("last", "min", 0, None),
    ],
)
def test_what_a_trial_is_worth(scope: Any, mode: Any, until: int | None, worth: float | None) -> None:
    values = [(3, 4.0), (1, 3.0), (2, 8.0), (2, 1.0), (4, 9.0), (6, 2.0), (8, 7.0)]  # epoch 2 was trained twice
    assert objective(values, scope, mode, until) == worth


def test_a_value_that_is_none_is_not_worth_anything_but_as_the_best() -> None:
    values = [(1, 2.0), (2, math.nan), (3, 1.0)]
    assert math.isnan(objective(values, "last-5-mean") or 0.0)
    assert objective(values, "last") == objective(values, "best") == 1.0
    assert math.isnan(objective([(1, math.inf)], "last") or 0.0) and math.isnan(
        objective([(1, math.inf)], "best") or 0.0
    )
    assert objective([(n, math.nan if n < 5 else 3.0) for n in range(10)]) == 3.0


def test_results_say_what_became_of_a_trial() -> None:
    states = [Result.of(value).state for value in (0.5, math.nan, math.inf, None)]
    assert states == ["ok", "diverged", "diverged", "failed"]


# Orders


@many
@given(some.integers(1, 120), some.integers(0, 5))
def test_a_shuffle_is_a_permutation(count: int, seed: int) -> None:
    assert sorted(shuffled(place, count, seed) for place in range(count)) == list(range(count))


def test_a_shuffle_of_a_huge_space_is_found_at_once() -> None:
    found = {shuffled(place, 10**30, 0) for place in range(100)}
    assert len(found) == 100 and max(found) > 10**29


def test_shuffles_of_other_seeds_are_others() -> None:
    orders = {tuple(shuffled(place, 20, seed) for place in range(20)) for seed in range(50)}
    assert len(orders) == 50
    firsts = [shuffled(0, 4, seed) for seed in range(400)]
    assert all(60 < firsts.count(cell) < 140 for cell in range(4))


# Grid and random


def test_the_grid_trains_every_cell_once() -> None:
    quick = space.read("quick")
    method, log = drive(lambda: Grid(quick, 3), lambda cell, _: Result.of(abs(cell - 17)), workers=5, kill=0.1)
    assert log == [Ask("start", number, number, 3) for number in range(48)]
    best = method.best()
    assert best is not None and best.cell == 17


def test_random_trains_no_cell_twice() -> None:
    quick = space.read("quick")
    _, whole = drive(lambda: Random(quick, 3, seed=4), of([1.0] * 48), workers=3, kill=0.2)
    assert sorted(ask.cell for ask in whole) == list(range(48)) != [ask.cell for ask in whole]
    _, some_ = drive(lambda: Random(quick, 3, seed=4, samples=10), of([1.0] * 48))
    assert some_ == whole[:10]
    _, other = drive(lambda: Random(quick, 3, seed=5, samples=10), of([1.0] * 48))
    assert other != some_


def test_drawn_cells_are_none_twice(tmp_path: Any) -> None:
    path = tmp_path / "space.yaml"
    momentum = {"uniform": [0.0, 0.9], "when": {"optim.unet.name": "sgd"}}
    parameters = {"optim.unet.name": ["adam", "sgd"], "model.norm": ["none", "batch"], "optim.unet.momentum": momentum}
    path.write_text(config.written({"base": "quick/unet", "parameters": parameters}))
    found = space.read(str(path))
    with pytest.raises(SearchError, match="set search.samples"):
        Random(found, 3)
    with pytest.raises(ConfigError, match="no number of cells"):
        Grid(found, 3)

    def make() -> Random:
        return Random(found, 3, samples=20)

    method, log = drive(make, lambda cell, _: Result.of(1.0), workers=2, kill=0.2)
    cells = [method.candidates.cell(ask.cell) for ask in log]
    assert len(cells) == len({cell.name for cell in cells}) == 20
    assert sum(cell.values["optim.unet.name"] == "adam" for cell in cells) == 2  # there are no more
    path.write_text(config.written({"base": "quick/unet", "parameters": {"seed": {"uniform": [1, 3]}}}))
    assert len(drive(lambda: Random(space.read(str(path)), 3, samples=20), lambda *_: Result.of(1.0))[1]) == 3


def test_larger_is_better_where_it_is() -> None:
    method, _ = drive(lambda: Asha(Few(8), 4, mode="max", eta=2), of([0, 5, 2, 7, 1, 6, 3, 4]))
    best = method.best()
    assert best is not None and best.cell == 3 and best.until == 4


# Successive halving


@pytest.mark.parametrize(
    ("epochs", "least", "eta", "found"),
    [
        (16, 1, 4, [1, 4, 16]),
        (15, 1, 4, [1, 4, 15]),
        (100, 3, 3, [3, 9, 27, 81, 100]),
        (5, 5, 4, [5]),
        (81, 1, 3, [1, 3, 9, 27, 81]),
        (3**40, 3**39, 3, [3**39, 3**40]),
    ],
)
def test_rungs_are_whole_epochs(epochs: int, least: int, eta: int, found: list[int]) -> None:
    assert rungs(epochs, least, eta) == found


@pytest.mark.parametrize(("epochs", "least", "eta"), [(2, 3, 4), (4, 0, 4), (4, 1, 1)])
def test_rungs_that_cannot_be(epochs: int, least: int, eta: int) -> None:
    with pytest.raises(SearchError, match="search.min_epochs"):
        rungs(epochs, least, eta)


def test_halving_by_hand() -> None:
    """Four cells worth 3, 1, 2, 0; the better half goes on, at 1 and at 2 epochs; one worker."""
    _, log = drive(lambda: Asha(Few(4), 4, eta=2), of([3, 1, 2, 0]))
    assert log == [
        Ask("start", 0, 0, 1),
        Ask("start", 1, 1, 1),
        Ask("promote", 1, 1, 2),  # the better of two
        Ask("start", 2, 2, 1),  # of three one goes on, and has
        Ask("start", 3, 3, 1),
        Ask("promote", 3, 3, 2),  # of four two
        Ask("promote", 3, 3, 4),  # the better of two at 2 epochs
    ]


def test_a_trial_that_paused_goes_on_when_others_turn_out_worse() -> None:
    method = Asha(Few(4), 2, eta=2)
    asks = [method.ask() for _ in range(4)]
    assert method.ask() == Ask("wait")
    for ask, worth in zip(asks, [2.0, 1.0, 4.0, 3.0], strict=True):
        method.tell(ask.trial, 1, Result.of(worth))
    assert [method.ask(), method.ask()] == [Ask("promote", 1, 1, 2), Ask("promote", 0, 0, 2)]
    assert method.ask() == Ask("wait")


def test_a_diverged_trial_is_the_worst_and_stops() -> None:
    """Half of all diverge: no number of them is promoted, in place of whom nobody worse goes on."""
    values = [math.nan, math.nan, 2.0, None, 1.0, math.inf]
    method, log = drive(lambda: Asha(Few(6), 4, eta=2), lambda cell, _: Result.of(values[cell]))
    assert [ask.cell for ask in log if ask.what == "promote" and ask.until == 2] == [2, 4]
    assert [ask.cell for ask in log if ask.until == 4] == [4]
    assert [trial.last and trial.last.state for trial in method.trials][:4] == ["diverged", "diverged", "ok", "failed"]


def test_the_next_best_goes_on_where_the_best_diverges_at_the_end() -> None:
    def value(cell: int, until: int) -> Result:
        return Result.of(math.nan if until == 4 and cell < 3 else float(cell))

    method, log = drive(lambda: Asha(Few(5), 4, eta=4), value)
    assert [ask.cell for ask in log if ask.until == 4] == [0, 1, 2, 3]
    best = method.best()
    assert best is not None and best.cell == 3
    method, log = drive(lambda: Asha(Few(5), 4, eta=4), lambda *_: Result.of(None))
    assert method.best() is None and len(log) == 5


def test_a_trial_that_has_stopped_early_keeps_its_value() -> None:
    def value(cell: int, until: int) -> Result:
        return Result.of(cell, ended=cell == 0)

    method, log = drive(lambda: Asha(Few(4), 4, eta=2), value)
    assert [ask for ask in log if ask.cell == 0] == [Ask("start", 0, 0, 1)]
    best = method.best()
    assert best is not None and best.cell == 0 and set(best.results) == {1, 2, 4}


def _values(draw: random.Random, count: int, bad: float) -> list[float | None]:
    odd = [math.nan, None, math.inf]
    return [draw.choice(odd) if draw.random() < bad else draw.choice([draw.random(), 0.5]) for _ in range(count)]


@many
@given(
    some.integers(1, 60),
    some.integers(1, 40),
    some.integers(2, 5),
    some.integers(1, 6),
    some.sampled_from([0.0, 0.2, 0.8]),
    some.integers(0, 10**6),
)
def test_halving_keeps_its_promises(count: int, epochs: int, eta: int, workers: int, bad: float, seed: int) -> None:
    noise = [_values(random.Random(f"{seed} {rung}"), count, bad) for rung in range(8)]
    levels = rungs(epochs, 1, eta)

    def value(cell: int, until: int) -> Result:
        return Result.of(noise[levels.index(until)][cell], ended=(cell * 7 + until + seed) % 11 == 0)

    def make() -> Asha:
        return Asha(Few(count), epochs, eta=eta)

    method, log = drive(make, value, workers, seed)
    starts = [ask for ask in log if ask.what == "start"]
    assert [ask.cell for ask in starts] == list(range(count)) and {ask.until for ask in starts} == {levels[0]}
    assert len({(ask.trial, ask.until) for ask in log}) == len(log), "a promotion twice"
    for ask in log:
        reached = [until for until in method.trials[ask.trial].results if until < ask.until]
        before = [method.trials[ask.trial].results[until] for until in reached]
        assert all(result.state == "ok" and not result.ended for result in before), "went on although it had stopped"
        assert reached == levels[: levels.index(ask.until)]
    for at, until in enumerate(levels[:-1]):
        there = [trial for trial in method.trials if until in trial.results]
        good = sorted(
            (t for t in there if t.results[until].state == "ok"), key=lambda t: (method.score(t, until), t.number)
        )
        assert all(levels[at + 1] in trial.results for trial in good[: len(there) // eta]), "somebody was left behind"
    finished = [trial for trial in method.trials if method.score(trial, epochs) < math.inf]
    hopeful = [t for t in method.trials if t.last is not None and t.last.state == "ok" and t.until < epochs]
    assert finished or not hopeful, "nobody reached the end, though somebody might"


@many
@given(some.integers(2, 60), some.integers(2, 5), some.integers(1, 6), some.integers(0, 10**6))
def test_halving_finds_what_synchronous_halving_finds(count: int, eta: int, workers: int, seed: int) -> None:
    """Where every rung ranks alike, whoever survives when all wait for one another survives here as well."""
    worth = random.Random(seed).sample(range(count), k=count)
    method, log = drive(lambda: Asha(Few(count), 30, eta=eta), of([float(v) for v in worth]), workers, seed)
    alive = sorted(range(count), key=worth.__getitem__)
    for until in rungs(30, 1, eta):
        reached = {ask.cell for ask in log if ask.until == until}
        assert set(alive) <= reached
        alive = alive[: len(alive) // eta]
    best = method.best()
    assert best is not None and worth[best.cell] == 0 and best.until == 30


def test_halving_the_quick_space_costs_a_fifth_of_its_grid() -> None:
    quick, costs = space.read("quick"), []
    for seed in range(20):
        worth = [float(v) for v in random.Random(seed).sample(range(48), k=48)]

        def make(seed: int = seed) -> Asha:
            return Asha(candidates.of(quick, "random", seed), 16)

        method, log = drive(make, of(worth), workers=2, seed=seed)
        spent = {ask.trial: 0 for ask in log}
        cost = 0
        for ask in log:
            cost += ask.until - spent[ask.trial]
            spent[ask.trial] = ask.until
        costs.append(cost / (48 * 16))
        best = method.best()
        assert best is not None and worth[best.cell] == 0
    assert sorted(costs)[len(costs) // 2] <= 0.2 and max(costs) < 0.3


def test_a_large_search_decides_at_once() -> None:
    worth = random.Random(0).sample(range(10_000), k=10_000)
    method, log = drive(lambda: Asha(Few(10_000), 64), of([float(v) for v in worth]), workers=8)
    best = method.best()
    assert best is not None and worth[best.cell] == 0 and len(log) < 20_000


# Coordinate descent

GAN = space.read("pix2pix")
CHOSEN = {
    "model.generator.norm": "batch",
    "model.generator.channels": 32,
    "optim.generator": {"name": "sgd", "lr": 0.01},
    "model.discriminator.norm": "batch",
    "model.discriminator.channels": 100,
    "optim.discriminator": {"name": "adam", "lr": 0.001, "betas": [0.9, 0.999]},
}


def _away(cell: int) -> float:
    """In how many parameters a cell is not what the dissertation found."""
    return float(sum(space.cell(GAN, cell).values[name] != value for name, value in CHOSEN.items()))


def test_the_dissertations_descent_ends_at_the_shipped_configuration() -> None:
    method, log = drive(lambda: Descent(GAN, 100), lambda cell, _: Result.of(_away(cell)), workers=4, kill=0.1)
    assert len(log) == len({ask.cell for ask in log}) == 1 + 2 * (1 + 3 + 14)
    assert isinstance(method, Descent)
    path = method.path()
    assert [step.parameter for step in path.steps] == [p.name for p in GAN.parameters]
    assert sum(len(step.cells) for step in path.steps) == 2 * (2 + 4 + 15)
    best = method.best()
    assert best is not None and best.cell == path.at and _away(path.at) == 0
    run = models.resolve(config.read(config.find("pix2pix")))
    assert space.identity_key(GAN, space.cell(GAN, path.at)) == config.fingerprint(config.identity(run), 16)


def test_what_was_kept_is_carried_forward() -> None:
    """By hand: norm keeps its default as nothing is better, channels go to 100, and the optimiser is varied beside them."""
    unet = space.read("unet")
    method = Descent(unet, 80)
    first = [method.ask() for _ in range(2)]
    assert method.ask() == Ask("wait")
    values = [dict(space.cell(unet, ask.cell).values) for ask in first]
    assert [v["model.norm"] for v in values] == ["batch", "instance"]
    assert {(v["model.channels"], v["optim.unet"]["name"]) for v in values} == {(64, "adam")}
    method.tell(0, 80, Result.of(0.5))
    method.tell(1, 80, Result.of(0.5))
    widths = []
    while (ask := method.ask()).what == "start":
        width = space.cell(unet, ask.cell).values["model.channels"]
        widths.append(width)
        method.tell(ask.trial, 80, Result.of({32: math.nan, 50: None, 100: 0.1}[width]))
        if len(widths) == 3:
            break
    assert widths == [32, 50, 100]
    rest = [method.ask() for _ in range(14)]
    assert {space.cell(unet, a.cell).values["model.channels"] for a in rest} == {100} and method.ask().what == "wait"
    assert {space.cell(unet, a.cell).values["model.norm"] for a in rest} == {"batch"}


def test_rounds_go_on_until_nothing_changes() -> None:
    """A valley across two parameters: each round goes on along it, by hand to (9, 11), (12, 13), (13, 13) and no further."""

    def place(cell: int) -> tuple[int, int]:
        return GAN.tree.at(cell)[2], GAN.tree.at(cell)[5]

    def value(cell: int) -> float:
        a, b = place(cell)
        return (a - b) ** 2 + ((a - 14) ** 2 + (b - 14) ** 2) / 2

    for rounds, end, steps in [(1, (9, 11), 6), (2, (12, 13), 12), (3, (13, 13), 18), (9, (13, 13), 24)]:
        path = descend(GAN, value, rounds)
        assert (place(path.at), len(path.steps), path.needed) == (end, steps, ())
    method, log = drive(lambda: Descent(GAN, 1, rounds=9), lambda cell, _: Result.of(value(cell)), workers=3, kill=0.1)
    assert isinstance(method, Descent) and method.path() == path
    assert {ask.cell for ask in log} == {cell for step in path.steps for cell in step.cells}
    assert len({ask.cell for ask in log}) == len(log) < 37 + 3 * 36
    assert descend(GAN, value, 1, ["model.generator.norm"]).steps == path.steps[:1]
    assert descend(GAN, lambda cell: math.inf).at == GAN.tree.index(GAN.defaults)


def test_a_descent_goes_round_what_does_not_exist() -> None:
    palette = space.read("palette")
    names = [p.name for p in palette.parameters]

    def value(cell: int) -> float:
        values = space.cell(palette, cell).values
        return (
            -5.0 * (values["model.schedule.name"] == "sigmoid") - values.get("sigmoid.start", 0) - values["model.scale"]
        )

    path = descend(palette, value)
    assert [step.parameter for step in path.steps] == [names[0], *names[4:]]
    assert [len(step.cells) for step in path.steps] == [4, 2, 3, 5, 3, 2]
    assert space.cell(palette, path.at).values["sigmoid.start"] == 0.0


def test_a_descent_that_cannot_be(tmp_path: Any) -> None:
    path = tmp_path / "space.yaml"
    body = {"base": "quick/unet", "parameters": {"augment.flip": [0.0, 0.5], "augment.cutout": [0.5, 0.0]}}
    path.write_text(config.written(body | {"constraints": [{"equal": ["augment.flip", "augment.cutout"]}]}))
    with pytest.raises(SearchError, match="break its constraints"):
        Descent(space.read(str(path), ["augment.colour=0.5"]), 3)
    with pytest.raises(SearchError, match="no parameter 'x'"):
        Descent(space.read("quick"), 3, order=["x"])
    with pytest.raises(SearchError, match="search.rounds"):
        Descent(space.read("quick"), 3, rounds=0)


# Killed at any time

QUICK = space.read("quick")
MAKERS: dict[str, Callable[[], Method]] = {
    "grid": lambda: Grid(QUICK, 16),
    "random": lambda: Random(QUICK, 16, seed=3, samples=20),
    "asha": lambda: Asha(candidates.of(QUICK, "random", 1), 16, mode="max", min_epochs=2, eta=2),
    "descent": lambda: Descent(QUICK, 16, rounds=3),
}


@settings(max_examples=25, derandomize=True, deadline=None, database=None)
@given(some.sampled_from(sorted(MAKERS)), some.integers(1, 5), some.integers(0, 10**6))
def test_a_search_that_was_killed_is_the_search_that_was_not(name: str, workers: int, seed: int) -> None:
    worth = [_values(random.Random(f"{seed} {until}"), 48, 0.1) for until in range(17)]

    def value(cell: int, until: int) -> Result:
        return Result.of(worth[until][cell], ended=(cell + seed) % 9 == 0)

    whole, log = drive(MAKERS[name], value, workers, seed)
    again, killed = drive(MAKERS[name], value, workers, seed, kill=0.3)
    assert killed == log and again.state() == whole.state()


def test_the_state_of_another_search_is_refused() -> None:
    state = Asha(Few(9), 16).state()
    for other, says in [
        (Asha(Few(9), 16, eta=3), "begun with eta = 4, and now has 3"),
        (Asha(Few(9), 15), "begun with epochs = 16, and now has 15"),
        (Asha(Few(9, "other"), 16), "begun with space = 'few', and now has 'other'"),
        (Grid(QUICK, 16), "begun with method = 'asha', and now has 'grid'"),
    ]:
        with pytest.raises(SearchError, match=says):
            other.load(state)


@pytest.mark.parametrize("state", [None, 3, {}, {"settings": 1}, []])
def test_what_is_no_state_is_refused(state: Any) -> None:
    with pytest.raises(SearchError, match="no state of a search"):
        Asha(Few(9), 16).load(state)


@pytest.mark.parametrize(
    "trials",
    [
        None,
        3,
        [1],
        [[0]],
        [[0, 1, [[1]]]],
        [[0, 1, [[1, "x", "ok", False]]]],
        [[0, 1, [[1, 2.0, "fine", False]]]],
        [["a", 1, []]],
    ],
)
def test_a_damaged_state_is_refused(trials: Any) -> None:
    method = Asha(Few(9), 16)
    with pytest.raises(SearchError, match="the state of this search is damaged"):
        method.load({"settings": method.settings(), "trials": trials})


def test_a_search_of_nothing_is_refused() -> None:
    with pytest.raises(SearchError, match="give at least 1"):
        Random(QUICK, 3, samples=0)
    with pytest.raises(SearchError, match="give at least 1"):
        Grid(QUICK, 0)
    with pytest.raises(SearchError, match="it is grid or random"):
        candidates.of(QUICK, "best")
