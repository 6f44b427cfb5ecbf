"""What a search costs before it begins: times reckoned from a few cells, ASHA's epochs, budgets, room on the disk."""

import os
from pathlib import Path
from typing import Any

import pytest

from memdist import cli, config
from memdist.bench import search as overhead
from memdist.bench.search import Turn
from memdist.errors import ConfigError, SearchError
from memdist.search import budget, cells, cost, disk, folder, measure, run, spread
from memdist.search.cells import Cell, Space
from memdist.search.cost import Cost, Work
from memdist.search.measure import Look, Pairs
from memdist.search.methods.asha import Asha, rungs
from memdist.search.settings import Search
from memdist.search.settings import read as settings
from memdist.search.space import read

QUICK = ["data.size=16"]
HOUR = 3600.0


@pytest.fixture(scope="module")
def quick() -> Space:
    return read("quick")


def _look(cell: Cell) -> Look:
    """Of the quick space: a width's square in weights; Adam keeps two numbers of each."""
    width = cell.values["model.channels"]
    adam = cell.values["optim.unet"]["name"] == "adam"
    return Look(f"{width} {cell.values['model.norm']}", width**2, 4 * width**2 * (3 if adam else 1))


def _time(cell: Cell) -> float:
    return float(cell.values["model.channels"]) ** 2 * (2.0 if cell.values["model.norm"] == "batch" else 1.0)


# Times


def test_all_cells_are_reckoned_from_those_that_are_timed(quick: Space) -> None:
    found = spread.spread(quick, _look, _time)
    assert len(found.timed) == 4  # the base, two other widths, the other normalisation: optimisers change no speed
    for number in range(cells.count(quick)):
        assert found.of(quick.tree.at(number)) == pytest.approx(_time(cells.cell(quick, number)))
    assert found.mean == pytest.approx(1.5 * (16 + 64 + 256) / 3) and found.longest == pytest.approx(512)
    assert found.stored == 4 * 256 * 3 and found.largest.values["model.channels"] == 16


def test_few_timings_reckon_the_rest_by_the_number_of_weights(quick: Space) -> None:
    asked: list[str] = []

    def time(cell: Cell) -> float:
        asked.append(cell.name)
        return _time(cell)

    found = spread.spread(quick, _look, time, most=3)
    # The base (instance, 16), then of each parameter that with most weights beside it: norm=batch, and the narrowest width.
    assert len(asked) == 3 == len(set(asked)) and [name for name, _ in found.timed] == asked
    assert found.of(quick.tree.at(0)) == pytest.approx(_time(cells.cell(quick, 0)))
    middle = next(n for n in range(cells.count(quick)) if cells.cell(quick, n).values["model.channels"] == 8)
    assert found.of(quick.tree.at(middle)) == pytest.approx(
        64
    )  # times go with weights, which a line in logarithms has exactly


def test_conditions_and_drawn_values(tmp_path: Path) -> None:
    path = tmp_path / "s.yaml"
    path.write_text(
        "base: quick/unet\nparameters:\n  optim.unet.name: [adam, sgd]\n"
        "  optim.unet.momentum: {choices: [0.0, 0.9], when: {optim.unet.name: sgd}}\n"
        "  model.channels: {uniform: [4, 16]}\n"
    )
    space = read(str(path))
    slow = {"adam": 1.0, "sgd": 3.0}

    def time(cell: Cell) -> float:
        return slow[cell.values["optim.unet.name"]] * cell.values["model.channels"]

    def look(cell: Cell) -> Look:
        return Look(f"{time(cell)}", cell.values["model.channels"], cell.values["model.channels"])

    found = spread.spread(space, look, time)
    assert {name for name, _ in found.timed} and found.stored == 16
    # Three cells, adam and twice sgd, with widths half-way between 4 and 16.
    assert found.mean == pytest.approx((1 + 3 + 3) / 3 * 10)


def test_between() -> None:
    points = [(10, 1.0), (1000, 4.0)]
    assert spread.between(points, 100) == pytest.approx(2.0)
    assert spread.between(points, 1) == 1.0 and spread.between(points, 10**6) == 4.0
    assert spread.between(points, 10) == 1.0 and spread.between([], 5) == 1.0


def test_an_epoch_is_timed_by_real_steps(quick: Space) -> None:
    one = cells.resolve(quick, cells.cell(quick, 0), QUICK)
    found = measure.epoch(one, Pairs(20, 5, False), 1)
    longer = measure.epoch(one, Pairs(20_000, 5, False), 1)
    assert 0 < found < longer
    assert measure.epoch(one, Pairs(20, 5, False), 1, "h100-80g") < found


def test_what_is_looked_at(quick: Space) -> None:
    def look(*words: str) -> Look:
        return measure.look(cells.resolve(quick, cells.cell(quick, 0), words))

    assert look("optim.unet.lr=0.1").kind == look().kind != look("batch.size=4").kind
    wide = look("model.channels=8")
    assert wide.weights > look().weights and wide.kind != look().kind
    # Adam keeps two numbers of each weight; an average is another copy, of buffers too.
    assert look().stored == 12 * look().weights
    assert look("optim.unet={name: sgd}").stored == 4 * look().weights
    assert look("optim.unet={name: sgd}", "ema.decay=0.9").stored == 8 * look().weights


# Methods


def test_ashas_epochs_are_those_of_its_rungs() -> None:
    # 48 to epoch 1, 12 on to 4, 3 on to 16.
    assert cost.asha_work(48, [1, 4, 16], 4) == Work(48, 48 + 12 * 3 + 3 * 12, 63)
    # However few there are, one comes to the end.
    assert cost.asha_work(2, [1, 4, 16], 4) == Work(2, 2 + 3 + 12, 4)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["search.method=grid"], Work(48, 768, 48)),
        (["search.method=random", "search.samples=5"], Work(5, 80, 5)),
        (["search.method=asha"], Work(48, 120, 63)),
        (["search.method=asha", "search.samples=16", "search.min_epochs=4"], Work(16, 16 * 4 + 4 * 12, 20)),
        (["search.method=descent"], Work(11, 176, 11, at_most=True)),
    ],
)
def test_what_a_method_trains(quick: Space, words: list[str], expected: Work) -> None:
    assert cost.work(settings({}, words).way(quick, 16), 16, 48) == expected


@pytest.mark.parametrize(
    ("words", "cpus", "gpus", "expected"),
    [
        ([], 8, 0, 8),
        (["search.cpus=2"], 8, 0, 4),
        (["search.cpus=0.5"], 2, 0, 4),
        (["search.cpus=16"], 8, 0, 1),
        ([], 8, 2, 2),
        (["search.pack=3"], 8, 2, 6),
        (["search.pack=8"], 8, 2, 8),
        (["search.gpus=2"], 64, 9, 4),
        (["search.gpus=0.5"], 64, 3, 6),
        (["search.pack=auto"], 64, 3, 3),
    ],
)
def test_trials_at_once(words: list[str], cpus: int, gpus: int, expected: int) -> None:
    assert cost.at_once(settings({}, words), "cuda" if gpus else "cpu", cpus, gpus) == expected


def test_trials_that_share_a_core_take_turns() -> None:
    assert cost.as_fast(4, 0.5, 0) == 2 and cost.as_fast(4, 2, 0) == 4 and cost.as_fast(1, 0.1, 0) == 1
    assert cost.as_fast(4, 0.5, 0.25) == 4


# Budgets


def _cost(mean: float, many: int | None = 48, epochs: int = 16) -> Cost:
    return Cost(many, epochs, mean, 2 * mean)


def test_a_budget_takes_the_whole_grid_where_it_fits() -> None:
    # 48 x (16 x 10 s + a trial's own seconds), at two at once: a little more than an hour.
    whole = _cost(10).seconds(Work(48, 768, 48), 2)
    assert budget.pick(_cost(10), Search(), 1, whole / (1 - budget.SPARE) + 1, 2).settings == {"method": "grid"}
    picked = budget.pick(_cost(10), Search(), 1, whole, 2)
    assert picked.settings["method"] == "asha" and picked.settings["samples"] == 48
    assert "search.method=asha search.samples=48" in picked.why


@pytest.mark.parametrize("seconds", [400, 800, 1200, 1600, 3000])
@pytest.mark.parametrize("slots", [1, 2, 100])
def test_what_is_picked_fits_and_a_little_more_does_not(seconds: float, slots: int) -> None:
    found, search = _cost(10), Search()
    picked = budget.pick(found, search, 1, seconds, slots)
    room = seconds * (1 - budget.SPARE)
    assert found.seconds(picked.work, slots) <= room or picked.settings.get("samples") == 1
    if picked.settings["method"] == "asha":
        samples, first = picked.settings["samples"], picked.settings["min_epochs"]
        if samples < 48:
            assert first == 1
            assert found.seconds(cost.asha_work(samples + 1, rungs(16, 1, 4), 4), slots) > room
        elif first == 1:
            assert found.seconds(cost.asha_work(48, rungs(16, 4, 4), 4), slots) > room


def test_a_budget_keeps_to_what_is_set() -> None:
    search = settings({}, ["search.method=random"])
    picked = budget.pick(_cost(10), search, 1, HOUR / 2, 1)
    assert picked.settings["method"] == "random" and 1 < picked.settings["samples"] < 48
    search = settings({"method": "asha"}, ["search.min_epochs=2", "search.samples=7"])
    picked = budget.pick(_cost(0.001), search, 1, HOUR, 1)
    assert picked.settings == {"method": "asha", "samples": 7, "min_epochs": 2}
    # Rungs do not come before a value does.
    assert budget.pick(_cost(10), Search(), 4, HOUR / 2, 2).settings["min_epochs"] == 4
    # Cells without end: as many as fit.
    endless = budget.pick(_cost(1, None), Search(), 1, HOUR, 1)
    assert endless.settings["method"] == "asha" and endless.settings["samples"] > 100


@pytest.mark.parametrize(
    ("words", "seconds", "says"),
    [
        ([], 60, "is too short: one training of 16 epochs takes about"),
        (["search.method=descent"], HOUR, "leaves it nothing to pick"),
        (["search.method=grid"], HOUR / 4, "the grid of 48 cells does not fit"),
        (["search.min_epochs=17"], HOUR / 4, "are fewer than the first rung"),
    ],
)
def test_a_budget_that_cannot_be(words: list[str], seconds: float, says: str) -> None:
    with pytest.raises(SearchError, match=says):
        budget.pick(_cost(10), settings({}, words), 1, seconds, 1)


def test_a_budgets_pick_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    speeds = iter([_cost(10), _cost(1000)])
    monkeypatch.setattr(cost, "of", lambda *_, **__: next(speeds))
    asked = run.ask("quick", [], None, "20m")
    first = run.within(asked, None)
    assert first.place == asked.place == run.ask("quick", [], None, "20m").place
    assert run.ask("quick", [], None, "21m").place != first.place
    assert run.ask("quick", ["search.eta=3"], None, "20m").place != first.place
    about = first.about("split")
    assert about["budget"] == 1200 and about["picked"]["method"] == about["method"] == "asha"
    folder.begin(first.place, about)
    again = run.within(run.ask("quick", [], None, "20m"), None)  # times nothing
    assert again.about("split") == about and folder.check(again.place, about)
    monkeypatch.setattr(cost, "of", lambda *_, **__: _cost(1000))
    with pytest.raises(SearchError, match="is too short"):
        run.within(run.ask("quick", [], Path("elsewhere"), "20m"), None)


def test_a_budget_that_is_no_time() -> None:
    with pytest.raises(ConfigError, match="--budget 'soon' cannot be"):
        run.ask("quick", [], None, "soon")


# Room


def test_checkpoints_that_stay(quick: Space) -> None:
    def held(*words: str) -> int:
        search = settings({}, words)
        method = search.way(quick, 16)
        return disk.checkpoints(method, 48, 2, search.keep)

    assert held() == 5 + 2 and held("search.keep=100") == 48
    assert held("search.method=asha") == 5 + 2 + 12 + 3
    assert isinstance(settings({}, ["search.method=asha"]).way(quick, 16), Asha)


def test_a_dry_run_touches_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as end:
        cli.main(["search", "run", "quick", "search.method=asha", "device=cpu", "--dry-run"])
    assert not end.value.code and not list(tmp_path.iterdir())
    out = capsys.readouterr().out
    assert out.startswith("48 cells of ") and "asha: 48 trials of at most 16 epochs, 120 epochs in all" in out
    assert "model.norm=" in out and "inodes left" in out and "WARNING" not in out


@pytest.mark.parametrize(
    ("left", "counts", "says"),
    [
        (disk.Needs(10**6, 10**6), 1, None),
        (disk.Needs(999, 10**6), 1, "for want of bytes:"),
        (disk.Needs(10**6, 9), 1, "for want of inodes:"),
        (disk.Needs(0, 0), 1, "for want of bytes and inodes:"),
        (disk.Needs(10**6, 0), 0, None),  # btrfs and others give out inodes as they are needed
    ],
)
def test_a_warning_where_it_does_not_fit(
    left: disk.Needs, counts: int, says: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Left:
        f_bavail, f_frsize, f_favail, f_files = left.bytes, 1, left.inodes, counts

    monkeypatch.setattr(os, "statvfs", lambda path: Left() if path == tmp_path else None)
    lines = disk.judged(disk.Needs(1000, 10), tmp_path / "not" / "there")
    assert (len(lines) == 1) if says is None else says in lines[1]


def test_sizes() -> None:
    assert [disk.size(n) for n in (0, 1023, 1024, 1.5 * 2**30, 3 * 2**50)] == [
        "0 bytes",
        "1023 bytes",
        "1.0 KiB",
        "1.5 GiB",
        "3072.0 TiB",
    ]


# The command


def test_a_name_of_both_is_the_configurations(tmp_path: Path) -> None:
    assert config.space("unet") is None and config.space("search/unet") == "unet" and config.space("quick") == "quick"
    assert config.space("nothing") is None and config.space("quick/unet") is None
    file = tmp_path / "s.yaml"
    file.write_text("base: unet\nparameters: {seed: [1, 2]}\n")
    assert config.space(str(file)) == str(file)
    file.write_text("model: unet\n")
    assert config.space(str(file)) is None
    assert read("search/unet").source == read("unet").source


def test_a_space_is_planned(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    times: list[Any] = []

    def time(run: Any, there: Pairs, threads: int, gpu: str) -> float:
        times.append((run.model.channels, there, gpu))
        return 60.0

    monkeypatch.setattr(measure, "epoch", time)
    with pytest.raises(SystemExit) as end:
        cli.main(["plan", "quick", "device=cpu", "--gpus", "8", "--gpu", "h100-80g"])
    assert not end.value.code
    out = " ".join(capsys.readouterr().out.split())
    assert len(times) == 4 and times[0][1:] == (Pairs(1120, 160, True), "h100-80g")
    assert "48 cells of" in out and "8 x h100-80g" in out and "84 %" in out
    assert "120 epochs rather than 768" in out and "Assumed: 1120 train pairs" in out


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["plan", "quick", "--emit", "deepspeed"], "--emit is for one configuration"),
        (["plan", "quick", "--gpus-per-node", "4"], "--gpus-per-node is for one configuration"),
        (["plan", "quick", "--gpus", "0"], "--gpus 0 cannot be"),
        (["plan", "quick", "--gpu", "z9"], "z9"),
    ],
)
def test_a_plan_that_cannot_be(words: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        cli.main(words)
    assert end.value.code == 2
    (sentence,) = capsys.readouterr().err.splitlines()
    assert says in sentence


def test_a_searchs_overhead_in_words() -> None:
    turns = [Turn(10.0, 10.5), Turn(10.0, 10.6), Turn(20.0, 20.1)]
    lines = overhead.said(turns, 9.0, 16, 2)
    assert "a search adds +0.50 s to a trial (median; +0.10 to +0.60)" in lines
    assert any(line.startswith("that is 0.8 % of a trial of 60 s") for line in lines)
    assert overhead.said([], 0.0, 1, 1) == ["no trial came to its end: look at one with `memdist search run`"]
