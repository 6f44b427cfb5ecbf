"""Metrics against fixations: golden numbers, brute force, scipy's rank sums, closed forms, and where they are undefined."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import mannwhitneyu

from memdist import saliency

GOLDEN = json.loads((Path(__file__).parent.parent / "golden" / "saliency_metrics.json").read_text())


def _case(name: str) -> tuple[Any, np.ndarray, np.ndarray]:
    case = GOLDEN[name]
    return case, np.array(case["map"]) / case["scale"], np.array(case["fixated"])


def _trapezoid(points: list[tuple[float, float]]) -> float:
    points = [(0.0, 0.0), *points, (1.0, 1.0)]
    return sum((x1 - x0) * (y0 + y1) / 2 for (x0, y0), (x1, y1) in zip(points, points[1:], strict=False))


def _judd_by_counting(values: np.ndarray, fixated: np.ndarray) -> float:
    rest = np.delete(values, fixated)
    points = []
    for threshold in sorted(set(values[fixated].tolist()), reverse=True):
        points.append((float((rest >= threshold).mean()), float((values[fixated] >= threshold).mean())))
    return _trapezoid(points)


def _draw_by_counting(values: np.ndarray, fixated: np.ndarray, negatives: np.ndarray) -> float:
    stretched = (values - values.min()) / (values.max() - values.min())
    points = []
    for k in range(10, -1, -1):
        threshold = k / 10 - 1e-9
        hits, alarms = (stretched[chosen] >= threshold for chosen in (fixated, negatives))
        points.append((float(alarms.mean()), float(hits.mean())))
    return _trapezoid(points)


@pytest.mark.parametrize("name", ["ties", "bytes"])
def test_the_benchmarks_definitions_to_the_last_digits(name: str) -> None:
    case, values, fixated = _case(name)
    expected = case["expected"]
    assert saliency.nss(values, fixated) == pytest.approx(expected["nss"], abs=1e-12)
    assert saliency.auc_judd(values, fixated) == pytest.approx(expected["auc-judd"], abs=1e-12)
    for metric, negatives in (("auc-borji", case["borji"]), ("sauc", case["shuffled"])):
        found = saliency.auc_of_draws(values, fixated, np.array(negatives))
        np.testing.assert_allclose(found, expected[metric], atol=1e-12, err_msg=metric)
    assert set(np.array(case["shuffled"]).flat) <= set(case["other"])


_MAPS = st.lists(st.integers(0, 6), min_size=12, max_size=12).filter(lambda v: len(set(v)) > 1)
_CHOSEN = st.sets(st.integers(0, 11), min_size=1, max_size=11)


@settings(max_examples=200, deadline=None)
@given(levels=_MAPS, chosen=_CHOSEN, negatives=st.lists(st.integers(0, 11), min_size=1, max_size=8))
def test_maps_full_of_ties_match_counting(levels: list[int], chosen: set[int], negatives: list[int]) -> None:
    values, fixated = np.array(levels) / 6, np.array(sorted(chosen))
    judd = saliency.auc_judd(values, fixated)
    assert judd == pytest.approx(_judd_by_counting(values, fixated), abs=1e-12)
    drawn = saliency.auc_of_draws(values, fixated, np.array(negatives)[:, None])
    assert drawn.tolist() == pytest.approx([_draw_by_counting(values, fixated, np.array(negatives))], abs=1e-12)
    assert 0 <= judd <= 1 and 0 <= drawn[0] <= 1
    # Neither stretching nor shifting a map changes any of them.
    for metric in (saliency.nss, saliency.auc_judd):
        assert metric(values * 4 + 2, fixated) == pytest.approx(metric(values, fixated), abs=1e-9)


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), n=st.integers(1, 40))
def test_without_ties_auc_judd_is_the_rank_sum_and_its_known_bias(seed: int, n: int) -> None:
    random = np.random.default_rng(seed)
    values = random.permutation(400) / 400
    fixated = np.sort(random.choice(400, n, replace=False))
    rest = np.delete(values, fixated)
    ranks = mannwhitneyu(values[fixated], rest).statistic / (n * len(rest))
    lowest = (rest >= values[fixated].min()).mean()
    assert saliency.auc_judd(values, fixated) == pytest.approx(ranks + lowest / (2 * n), abs=1e-12)


def test_closed_forms() -> None:
    values = np.arange(100.0)
    # The one fixated pixel is the brightest: every threshold keeps all others out.
    assert saliency.auc_judd(values, np.array([99])) == 1.0
    assert saliency.nss(values, np.array([99])) == pytest.approx(49.5 / math.sqrt(100 * 101 / 12))
    # The darkest: half of the last line, from (1, 1 / 1) back to (0, 0).
    assert saliency.auc_judd(values, np.array([0])) == pytest.approx(0.5)
    # A map of two levels, bright on half of its pixels, right about 3 of 4 fixations.
    two = np.repeat([0.0, 1.0], 50)
    fixated = np.array([0, 60, 70, 80])
    assert saliency.nss(two, fixated) == pytest.approx(0.25 / two.std(ddof=1))
    assert saliency.auc_judd(two, fixated) == pytest.approx((1 + 3 / 4 - 47 / 96) / 2)
    negatives = np.array([[0, 99, 1, 2], [0, 1, 2, 3]]).T
    np.testing.assert_allclose(
        saliency.auc_of_draws(two, fixated, negatives), [(1 + 3 / 4 - 1 / 4) / 2, (1 + 3 / 4) / 2]
    )


def test_a_value_on_a_threshold_is_above_it() -> None:
    # 153 of 255 is three fifths, which no sum of tenths in floating point is.
    values = np.array([0.0, 153.0, 152.0, 255.0])
    fixated, below = np.array([1]), np.array([[2]])
    assert saliency.auc_of_draws(values, fixated, below) == [1.0]
    assert saliency.auc_of_draws(values / 255, fixated, below) == [1.0]
    # Between two thresholds nothing is told apart.
    assert saliency.auc_of_draws(np.array([0.0, 159.0, 153.0, 255.0]), fixated, below) == [0.5]


def test_a_flat_map_is_at_chance_and_has_no_nss() -> None:
    picture = saliency.Picture.of(np.array([3, 5, 9]), np.array([1, 2]), 64, 7)
    flat: list[Any] = [np.zeros(64), np.full(64, 0.3), 0.3 + 1e-8 * np.arange(64)]
    for values in flat:
        scores = saliency.score(values, picture)
        assert math.isnan(scores.pop("nss"))
        assert scores == {"auc-judd": 0.5, "auc-borji": 0.5, "sauc": 0.5}


def test_what_is_undefined() -> None:
    values = np.linspace(0, 1, 64)
    none = saliency.score(values, saliency.Picture.of(np.array([], np.int64), np.array([1, 2]), 64, 0))
    assert list(none) == list(saliency.METRICS) and all(map(math.isnan, none.values()))
    # A single fixation: as in the benchmark, no AUC-Borji. Nobody else's fixations: no shuffled AUC.
    one = saliency.score(values, saliency.Picture.of(np.array([3]), np.array([], np.int64), 64, 0))
    assert {name for name, value in one.items() if math.isnan(value)} == {"auc-borji", "sauc"}
    assert math.isnan(saliency.auc_judd(values, np.arange(64)))


def test_fixations_on_one_pixel_count_once() -> None:
    values = np.linspace(0, 1, 64)
    others = np.array([1, 1, 2])
    once = saliency.Picture.of(np.array([3, 60]), others, 64, 5)
    often = saliency.Picture.of(np.array([60, 3, 3, 3]), np.unique(others), 64, 5)
    assert saliency.score(values, once) == saliency.score(values, often)
    assert saliency.pixels(np.array([[1, 0], [1, 0], [0, 1]]), (2, 3)).tolist() == [1, 3]


def test_negatives_are_drawn_as_they_should_be() -> None:
    drawn = saliency.anywhere(1, 50, 1000)
    assert drawn.shape == (50, saliency.SPLITS) and drawn.min() >= 0 and drawn.max() < 1000
    assert abs(drawn.mean() - 499.5) < 4 * 1000 / math.sqrt(12 * drawn.size)
    assert np.array_equal(drawn, saliency.anywhere(1, 50, 1000))
    assert not np.array_equal(drawn, saliency.anywhere(2, 50, 1000))
    others = np.arange(0, 300, 3)
    shuffled = saliency.elsewhere(1, 30, others)
    assert shuffled.shape == (30, saliency.SPLITS) and set(shuffled.flat) <= set(others)
    assert all(len(set(column)) == 30 for column in shuffled.T)
    counts = np.bincount(shuffled.reshape(-1) // 3, minlength=100)
    assert abs(counts - 30).max() < 5 * math.sqrt(30 * 0.7)
    # Where they are too few, all of them each time.
    few = saliency.elsewhere(1, 30, others[:4])
    assert few.shape == (4, saliency.SPLITS) and all(sorted(column) == others[:4].tolist() for column in few.T)


def test_the_average_of_draws_nears_the_rank_sum() -> None:
    # Eleven levels, each of them a threshold: nothing is lost between thresholds.
    random = np.random.default_rng(0)
    values = random.integers(0, 11, 3000) / 10
    values[:2] = 0, 1
    fixated = np.unique(random.choice(3000, 200, p=(0.2 + values) / (0.2 + values).sum()))
    ranks = mannwhitneyu(values[fixated], values).statistic / (len(fixated) * 3000)
    picture = saliency.Picture.of(fixated, np.arange(3000), 3000, 0)
    scores = saliency.score(values, picture)
    assert scores["auc-borji"] == pytest.approx(ranks, abs=0.01)
    assert scores["sauc"] == pytest.approx(ranks, abs=0.01)
    assert ranks > 0.6


def test_coordinates_are_scaled_by_the_middle_of_their_pixel() -> None:
    places = np.array([[0, 0], [3, 1], [1, 0]])
    assert [part.tolist() for part in saliency.scaled(places, (2, 4), (2, 4))] == [[0, 3, 1], [0, 1, 0]]
    assert [part.tolist() for part in saliency.scaled(places, (2, 4), (20, 8))] == [[1, 7, 3], [5, 15, 5]]
    assert [part.tolist() for part in saliency.scaled(places, (2, 4), (1, 1))] == [[0, 0, 0], [0, 0, 0]]


@given(width=st.integers(1, 5000), wide=st.integers(1, 5000), data=st.data())
def test_scaled_places_stay_inside(width: int, wide: int, data: st.DataObject) -> None:
    x = data.draw(st.integers(0, width - 1))
    moved, _ = saliency.scaled(np.array([[x, 0]]), (1, width), (1, wide))
    assert 0 <= moved[0] < wide and abs((moved[0] + 0.5) / wide - (x + 0.5) / width) <= 0.5 / wide + 1e-12


def test_intensity_ties_what_rounding_told_apart() -> None:
    maps = np.full((3, 2, 2), -0.4, np.float32)
    maps[:, 0, 0] = np.nextafter(np.float32(-0.4), np.float32(1))
    values = saliency.intensity(maps)
    assert values.shape == (4,) and len(set(values)) == 1 and values[0] == pytest.approx(0.3)
    assert saliency.intensity(np.array([[[1.0]], [[-1.0]], [[0.0]]])) == [0.5]


def test_the_table_says_what_each_metric_is() -> None:
    assert list(saliency.METRICS) == ["nss", "auc-judd", "auc-borji", "sauc"]
    for name, metric in saliency.METRICS.items():
        assert metric.name == name and metric.better == "higher" and metric.range[0] < metric.range[1]
        assert "undefined" in metric.formula and "size" in metric.channels


@pytest.mark.parametrize("odd", [np.nan, np.inf, -np.inf])
def test_a_map_with_a_value_that_is_no_number_has_no_score(odd: float) -> None:
    values = np.linspace(0, 1, 100)
    values[7] = odd
    picture = saliency.Picture.of(np.array([3, 50]), np.array([10, 20]), 100, 0)
    assert all(np.isnan(value) for value in saliency.score(values, picture).values())
