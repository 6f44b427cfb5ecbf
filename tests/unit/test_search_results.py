"""What a search shows at its end: against hand-worked figures, against scikit-learn's own, and over the shipped spaces."""

import csv
import itertools
import math
import re
import statistics
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from hypothesis import given, settings
from hypothesis import strategies as some

from memdist.search import candidates, cells, counterfactual, effects, importance, leaderboard, parallel, scale, summary
from memdist.search import space as spaces
from memdist.search.cells import Space
from memdist.search.parameter import parse
from memdist.search.rows import Row, by_epochs, ranked

SVG = "{http://www.w3.org/2000/svg}"
Value = Callable[[Mapping[str, Any]], float | None]


def space(parameters: Mapping[str, Any]) -> Space:
    found = tuple(parse(name, entry) for name, entry in parameters.items())
    return Space("few.yaml", "few", {}, {}, found, (), tuple(0 for _ in found))


def grid(over: Space, value: Value, epochs: int = 4) -> list[Row]:
    """Every cell; None is one that failed, nan one that diverged."""
    rows = []
    for cell in cells.cells(over):
        got = value(cell.values)
        state: Any = "failed" if got is None else "diverged" if math.isnan(got) else "ok"
        rows.append(
            Row(
                cell.number,
                cell,
                epochs,
                state,
                got if state == "ok" else None,
                f"trials/{cell.name}",
                "" if state == "ok" else "it broke",
            )
        )
    return rows


def lines(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(text.splitlines()))


TWO = space({"a": [1, 2, 3], "b": ["x", "y"]})


def sums(values: Mapping[str, Any]) -> float:
    return float(values["a"] + (10 if values["b"] == "y" else 0))


# Rows and leaderboard


def test_the_furthest_come_first_then_the_best_then_the_earlier() -> None:
    one = cells.cell(TWO, 0)
    rows = [
        Row(0, one, 4, "running", None, ""),
        Row(1, one, 4, "ok", 0.5, ""),
        Row(2, one, 16, "ok", 0.9, ""),
        Row(3, one, 16, "ok", 0.7, ""),
        Row(4, one, 16, "ok", 0.7, ""),
        Row(5, one, 16, "diverged", None, ""),
    ]
    assert [row.trial for row in ranked(rows[::-1], "min")] == [3, 4, 2, 1, 0, 5]
    assert [row.trial for row in ranked(rows[::-1], "max")] == [2, 3, 4, 1, 0, 5]
    assert {epochs: [row.trial for row in ones] for epochs, ones in by_epochs(rows).items()} == {16: [2, 3, 4], 4: [1]}


def test_the_leaderboard_has_a_column_for_each_parameter() -> None:
    over = space({"how": ["p", "q"], "rate": {"choices": [0.1, None], "when": {"how": "q"}}, "trial": [[1, 2]]})
    rows = grid(over, lambda values: None if values["how"] == "p" else values["rate"])
    rows[2] = rows[2]._replace(state="diverged", why='at "3",\nit was nan')
    assert leaderboard.text(over, rows, "min") == (
        "rank,trial,epochs,state,value,how,rate,parameter trial,folder,why\n"
        '1,1,4,ok,0.1,q,0.1,"[1, 2]","trials/how=q,rate=0.1,trial=1-2",\n'
        ',0,4,failed,,p,,"[1, 2]","trials/how=p,trial=1-2",it broke\n'
        ',2,4,diverged,,q,null,"[1, 2]","trials/how=q,rate=null,trial=1-2","at ""3"",\\nit was nan"\n'
    )


# Effects


def test_effects_of_listed_values() -> None:
    rows = grid(TWO, lambda values: None if values == {"a": 3, "b": "y"} else sums(values))
    assert effects.text(effects.effects(TWO, rows, "min")) == (
        "parameter,value,trials,diverged,failed,epochs,used,mean,median,best\n"
        "a,1,2,0,0,4,2,6,6,1\n"
        "a,2,2,0,0,4,2,7,7,2\n"
        "a,3,2,0,1,4,1,3,3,3\n"
        "b,x,3,0,0,4,3,2,2,1\n"
        "b,y,3,0,1,4,2,11.5,11.5,11\n"
    )
    assert {line.best for line in effects.effects(TWO, rows, "max") if line.parameter == "a"} == {11.0, 12.0, 3.0}


def test_only_trials_of_equal_epochs_are_compared() -> None:
    rows = [row._replace(epochs=16 if row.trial % 2 else 4) for row in grid(TWO, sums)]
    found = [line for line in effects.effects(TWO, rows, "min") if line.parameter == "b"]
    assert [(line.value, line.epochs, line.used, line.trials) for line in found] == [
        ("x", 16, 0, 3),
        ("y", 16, 3, 3),
        ("x", 4, 3, 3),
        ("y", 4, 0, 3),
    ]


@settings(max_examples=100, derandomize=True, deadline=None, database=None)
@given(some.lists(some.integers(0, 30), min_size=1, max_size=60))
def test_quarters_of_drawn_numbers(numbers: list[int]) -> None:
    over = space({"how": ["p", "q"], "n": {"uniform": [0, 30], "when": {"how": "q"}}})
    one = cells.draw(over, 0, 0)
    rows = [Row(at, one._replace(values={"how": "q", "n": n}), 1, "ok", float(n), "") for at, n in enumerate(numbers)]
    rows.append(Row(len(rows), one._replace(values={"how": "p"}), 1, "ok", -1.0, ""))
    found = [line for line in effects.effects(over, rows, "min") if line.parameter == "n"]
    assert found[-1].value == "(none)" and found[-1].used == 1
    bins = [[int(end) for end in line.value.split(" to ")] for line in found[:-1]]
    assert len(bins) <= 4 and [line.used for line in found[:-1]] == [
        sum(one[0] <= n <= one[-1] for n in numbers) for one in bins
    ]
    assert sum(line.used for line in found) == len(rows)
    assert all(ends[-1] < begins[0] for ends, begins in zip(bins, bins[1:], strict=False))
    if len(set(numbers)) == len(numbers) > 4:
        assert max(line.used for line in found[:-1]) - min(line.used for line in found[:-1]) <= 1
    for line, ends in zip(found, bins, strict=False):
        there = [n for n in numbers if ends[0] <= n <= ends[-1]]
        assert (line.mean, line.median, line.best) == (statistics.fmean(there), statistics.median(there), min(there))


# Importance


def test_r2_is_the_out_of_bag_score_of_scikit_learn() -> None:
    import numpy as np
    from sklearn.ensemble import RandomForestRegressor

    over = space({"a": list(range(8)), "b": list(range(8))})
    rows = grid(over, lambda values: math.sin(values["a"]) + 0.3 * values["b"])
    found = importance.importances(over, rows, seed=3)
    columns = np.array([[row.cell.values["a"], row.cell.values["b"]] for row in rows], np.float32)
    forest = RandomForestRegressor(100, random_state=3, oob_score=True).fit(columns, [row.value for row in rows])
    assert found.r2 == pytest.approx(forest.oob_score_, abs=1e-9)
    assert found == importance.importances(over, rows, seed=3)


def test_what_matters_matters_and_what_does_not_does_not() -> None:
    over = space({"a": [{"n": 1}, {"n": 2}, {"n": 3}, {"n": 4}], "b": ["x", "y", "z"], "c": [1, 2, 3, 4]})
    known = {1: 0.3, 2: 0.0, 3: 1.0, 4: 0.6}
    found = importance.importances(over, grid(over, lambda values: known[values["a"]["n"]]))
    assert found.r2 is not None and found.r2 > 0.99 and found.used == 48
    # All that is left of R^2 when the only column that counts is dealt out anew: 1 - 2 var / var.
    assert found.lines[0].parameter == "a" and found.lines[0].drop == pytest.approx(2, abs=0.35)
    assert all(abs(line.drop) < 0.02 for line in found.lines[1:])
    for line in lines(importance.text(found)):
        assert float(line["out_of_bag_r2"]) == pytest.approx(found.r2, abs=1e-6) and line["trials"] == "48"


def test_where_a_parameter_is_absent_is_a_level_of_its_own() -> None:
    parameters = {"how": ["p", "q"], "c": {"choices": [1, 2, 3, 4, 5, 6], "when": {"how": "q"}}, "d": list(range(4))}
    over = space(parameters)
    found = importance.importances(over, grid(over, lambda values: 0.0 if "c" in values else 1.0))
    drops = {line.parameter: line.drop for line in found.lines}
    assert found.r2 is not None and found.r2 > 0.9 and drops["how"] + drops["c"] > 0.5 and abs(drops["d"]) < 0.05


def test_importances_of_noise_are_said_to_mean_nothing() -> None:
    over = space({"a": list(range(6)), "b": list(range(6))})
    noise = iter((37 * n * n + 11 * n) % 101 / 101 for n in range(36))
    rows = grid(over, lambda values: next(noise))
    found = importance.importances(over, rows)
    assert found.r2 is not None and found.r2 < 0.2
    assert "mean next to nothing" in summary._mattered(over, found, "val/l1", rows)


def test_where_importances_cannot_be_told_it_is_said() -> None:
    assert "it takes 12 trials" in importance.importances(TWO, grid(TWO, sums)).why
    assert "there are 0" in importance.importances(TWO, []).why
    over = space({"a": list(range(12))})
    assert "nothing mattered" in importance.importances(over, grid(over, lambda values: 1.0)).why
    text = importance.text(importance.importances(TWO, []))
    assert text == "parameter,importance,spread,out_of_bag_r2,epochs,trials\n"


# Descent


def test_descent_finds_the_best_of_a_sum() -> None:
    found = counterfactual.descent(TWO, grid(TWO, sums), "min", 4)
    assert found == counterfactual.Descended(0, 1.0, 1, 4, 6, 1.0)
    found = counterfactual.descent(TWO, grid(TWO, sums), "max", 4)
    assert (found.value, found.rank, found.best) == (13.0, 1, 13.0)


def test_descent_is_caught_where_parameters_work_together() -> None:
    valley = {(1, "x"): 5.0, (2, "x"): 6.0, (3, "x"): 7.0, (1, "y"): 6.0, (2, "y"): 4.0, (3, "y"): 1.0}
    rows = grid(TWO, lambda values: valley[values["a"], values["b"]])
    found = counterfactual.descent(TWO, rows, "min", 4)
    assert found == counterfactual.Descended(0, 5.0, 3, 4, 6, 1.0)


def test_descent_passes_over_what_failed_and_stops_at_what_is_unknown() -> None:
    rows = grid(TWO, lambda values: None if values["a"] == 1 else sums(values))
    assert counterfactual.descent(TWO, rows, "min", 4)[:3] == (2, 2.0, 1)
    lost = [row._replace(state="running", value=None) if row.trial == 2 else row for row in rows]
    assert "cell 2 that no trial has brought to epoch 4" in counterfactual.descent(TWO, lost, "min", 4).why
    early = [row._replace(epochs=2) for row in grid(TWO, sums)]
    found = counterfactual.descent(TWO, early, "min", 4)
    assert found.value is None and "3 cells that no trial" in found.why
    assert "failed or diverged" in counterfactual.descent(TWO, grid(TWO, lambda values: None), "min", 4).why


def test_over_the_dissertations_gan_descent_takes_37_cells() -> None:
    over = spaces.read("pix2pix")
    rows = []
    # No condition and no constraint: cells are in the order of a product.
    for number, chosen in enumerate(itertools.product(*(range(len(one.options)) for one in over.parameters))):
        value = sum((7 * option) % 5 for option in chosen) + 0.5
        rows.append(Row(number, cells.Cell(number, {}, (), ""), 4, "ok", value, ""))
    found = counterfactual.descent(over, rows, "min", 4)
    assert (found.needed, found.cells, found.value, found.rank) == (37, 14400, 0.5, 1)


# Figure


def test_colours_get_lighter_and_hold_their_ends() -> None:
    found = [scale.colour(part / 100) for part in range(-20, 140)]
    bright = [sum(int(one[at : at + 2], 16) * w for at, w in ((1, 0.2126), (3, 0.7152), (5, 0.0722))) for one in found]
    assert bright == sorted(bright) and len(set(found)) == scale.STEPS
    assert all(re.fullmatch("#[0-9a-f]{6}", one) for one in found)


def test_far_outliers_are_cut_off_and_nothing_else_is() -> None:
    values = [0.074, 0.08, 0.081, 0.09, 0.095, 0.1]
    assert scale.ends(values, "min") == (0.074, 0.1) and scale.ends(values, "max") == (0.1, 0.074)
    assert scale.ends([*values, 1e9], "min") == (0.074, 0.1)
    assert scale.ends([*values, 1e-9], "max") == (0.1, 0.074)
    # What is far better than all others stays.
    assert scale.ends([*values, 1e-9], "min")[0] == 1e-9
    assert scale.ends([-3.0], "max") == (-3.0, -3.0)


def drawn(text: str) -> tuple[ElementTree.Element, list[list[tuple[float, float]]]]:
    """The figure and its lines' points, without the rims of the best."""
    root = ElementTree.fromstring(text)
    _, _, width, height = map(float, (root.get("viewBox") or "").split())
    found = []
    for path in root.iter(f"{SVG}path"):
        if path.get("class") == "line" and path.get("stroke") != "#fff":
            for shape in (path.get("d") or "").split("M")[1:]:
                points = [tuple(map(float, pair.split(","))) for pair in shape.split()]
                assert all(0 <= x <= width and 0 <= y <= height for x, y in points)
                found.append([(x, y) for x, y in points])
    return root, found


def test_the_figure_has_a_line_for_each_trial_the_best_thick_and_last() -> None:
    over = space({"a": list(range(6)), "c": ["x", '"<script>\x1b']})
    rows = grid(over, lambda values: None if values["a"] == 5 else values["a"] + (0.5 if values["c"] == "x" else 0.0))
    text = parallel.draw(over, rows, "min", "val/<l1>")
    root, found = drawn(text)
    assert len(found) == 10 + 10 and all(len(points) == 3 for points in found)
    best = [group for group in root.iter(f"{SVG}g") if group.get("class") == "best"]
    assert len(best) == 10
    told = best[-1].find(f"{SVG}title")
    assert told is not None and (told.text or "").startswith("trial 1: 0;")
    # The best of all ends on top of the objective's axis, in a dark colour.
    assert found[-1][-1][1] == min(points[-1][1] for points in found)
    assert best[-1].findall(f"{SVG}path")[1].get("stroke") == scale.colour(0.05)
    assert "<script" not in text and "\x1b" not in text and "val/&lt;l1&gt;" in text and "not shown: 2 failed" in text


def test_lines_at_one_value_are_spread_and_stay_apart_from_others() -> None:
    _, found = drawn(parallel.draw(TWO, grid(TWO, sums), "min", "l1"))
    firsts = sorted({points[0][1] for points in found}, reverse=True)
    assert len(firsts) == 6  # two at each of three values, from the bottom up, the better one above
    assert firsts[0] - firsts[1] < firsts[1] - firsts[2]


def test_a_log_axis_has_the_geometric_mean_in_the_middle() -> None:
    over = space({"lr": {"loguniform": [1e-4, 1e-2]}})
    one = cells.draw(over, 0, 0)
    rows = [
        Row(at, one._replace(values={"lr": lr}), 1, "ok", float(at), "") for at, lr in enumerate((1e-4, 1e-3, 1e-2))
    ]
    _, found = drawn(parallel.draw(over, rows, "max", "skill"))
    low, middle, high = (points[0][1] for points in found[:3])
    assert low > middle > high and middle == pytest.approx((low + high) / 2, abs=0.1)
    assert found[2][-1][1] < found[0][-1][1]  # the highest is the best, on top


def test_trials_that_stopped_earlier_are_grey_and_end_before_the_objective() -> None:
    over = space({"how": ["p", "q"], "n": {"uniform": [0.0, 1.0], "when": {"how": "q"}}})
    rows = [Row(n, cells.draw(over, 0, n), 16 if n % 3 == 0 else 4, "ok", n / 30, "") for n in range(30)]
    root, found = drawn(parallel.draw(over, rows, "min", "l1"))
    grey = [path for path in root.iter(f"{SVG}path") if path.get("stroke") == "#c3c8cd"]
    assert len(grey) == 1 and (grey[0].get("d") or "").count("M") == 20
    assert sorted(map(len, found)) == [2] * 20 + [3] * 20
    assert "grey: 20 trials of fewer epochs" in "".join(root.itertext())


# All of it


@pytest.mark.parametrize("name", ["quick", "unet", "palette"])
@pytest.mark.parametrize("mode", ["min", "max"])
def test_a_full_grid_of_a_shipped_space(name: str, mode: Any, tmp_path: Path) -> None:
    over = spaces.read(name)
    rows = grid(over, lambda values: sum(map(hash_, map(repr, values.values()))) + 0.01 * len(values))
    rows = [row._replace(state="diverged", value=None) if row.trial % 17 == 3 else row for row in rows]
    told = summary.write(tmp_path, over, rows, mode=mode, metric="val/l1", epochs=4)
    best = ranked(rows, mode)[0]
    assert told.startswith(f"Best: trial {best.trial} with val/l1 {best.value:.6g} after 4 epochs, chosen on val.")
    assert "memdist evaluate" in told and "on test" in told and "out-of-bag R^2" in told
    assert told.count("Coordinate descent") == 1 and "diverged" in told
    table = lines((tmp_path / "leaderboard.csv").read_text())
    assert len(table) == len(rows) and table[0]["trial"] == str(best.trial)
    assert {line["parameter"] for line in lines((tmp_path / "importance.csv").read_text())} == {
        one.name for one in over.parameters
    }
    drawn((tmp_path / "parallel.svg").read_text())
    files = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert sorted(files) == ["effects.csv", "importance.csv", "leaderboard.csv", "parallel.svg"]
    # The same again, whatever the order in which rows come.
    assert summary.write(tmp_path, over, rows[::-1], mode=mode, metric="val/l1", epochs=4) == told
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == files


def hash_(text: str) -> float:
    return sum(ord(letter) * (at + 1) for at, letter in enumerate(text)) % 97 / 97


@pytest.mark.parametrize(
    ("rows", "told"),
    [
        ([], "No trial of 0 has a val/l1."),
        (grid(space({"a": [1]}), lambda values: 0.5), "Best: trial 0 with val/l1 0.5"),
        (grid(space({"a": [1]}), lambda values: None), "No trial of 1 has a val/l1, the first because it broke."),
        (grid(TWO, lambda values: math.nan), "6 trials: 0 with 4 epochs, 6 diverged."),
        ([row._replace(state="running", value=None) for row in grid(TWO, sums)], "6 running"),
        ([row._replace(epochs=2) for row in grid(TWO, sums)], "after 2 epochs (of 4: no trial has come further)"),
        ([*grid(TWO, sums)[:5], grid(TWO, sums)[5]._replace(state="running", value=None)], "Best so far: trial 0"),
    ],
)
def test_odd_searches_are_told_as_well(rows: list[Row], told: str, tmp_path: Path) -> None:
    over = TWO if not rows or "b" in rows[0].cell.values else space({"a": [1]})
    found = summary.write(tmp_path, over, rows, mode="min", metric="val/l1", epochs=4)
    assert told in found and len(list(tmp_path.iterdir())) == 4
    drawn((tmp_path / "parallel.svg").read_text())
    assert len(lines((tmp_path / "leaderboard.csv").read_text())) == len(rows)


def test_a_drawn_search_is_told(tmp_path: Path) -> None:
    over = space(
        {"how": ["p", "q"], "lr": {"loguniform": [1e-4, 1e-2]}, "n": {"uniform": [1, 9], "when": {"how": "q"}}}
    )
    order = candidates.of(over, "random", 1)
    rows = []
    for n in range(40):
        number = order.at(n)
        assert number is not None
        cell = order.cell(number)
        epochs = 64 if n < 3 else 16 if n < 10 else 4
        rows.append(Row(n, cell, epochs, "ok", abs(math.log(cell.values["lr"] / 1e-3)) + 1 / epochs, f"trials/{n}"))
    told = summary.write(tmp_path, over, rows, mode="min", metric="val/l1", epochs=64)
    assert "3 with 64 epochs, 37 stopped earlier" in told and "Coordinate descent" not in told
    # Three are too few to learn from: the largest group is taken, and it is said of whom it is made.
    assert "30 of 40 trials, those that have come to epoch 4 and were stopped there, while better ones went on" in told
    assert lines((tmp_path / "importance.csv").read_text())[0]["parameter"] == "lr"


@pytest.mark.parametrize(
    ("values", "mode"),
    [
        ([0.0], "min"),
        ([1e308, -1e308, 0.1], "max"),
        ([5e-324, 1e99], "max"),
        ([1.0, 1 + 1e-15], "min"),
        ([-1e99, 0.5, 0.6], "min"),
    ],
)
@pytest.mark.parametrize(
    "parameters",
    [
        {"a": list(range(1000)), "b": ["\u00e9" * 50, None, True, [1], {"k": {"l": 1}}]},
        {f"p{number}": [1, 2] for number in range(64)},
        {"a": {"loguniform": [1e-300, 1e300]}, "b": {"uniform": [-5, 5]}},
    ],
    ids=["many values", "many parameters", "wide spans"],
)
def test_no_figures_are_too_odd(values: list[float], mode: Any, parameters: dict[str, Any], tmp_path: Path) -> None:
    over = space(parameters)
    rows = [Row(n, cells.draw(over, 0, n), 1, "ok", values[n % len(values)], f"trials/{n}") for n in range(13)]
    told = summary.write(tmp_path, over, rows, mode=mode, metric="val/l1", epochs=1)
    root, found = drawn((tmp_path / "parallel.svg").read_text())
    beyond = sum(abs(values[n % len(values)]) > 1e100 for n in range(13))
    assert (f"{beyond} diverged" in told) == (beyond > 0)
    # The best stand once more, thick, above the others.
    assert len(found) == 13 - beyond + min(10, 13 - beyond)
    titles = [text for text in root.iter(f"{SVG}text") if text.get("class") == "tick"]
    assert len(titles) < 400
