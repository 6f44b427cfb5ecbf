"""What a study makes of its figures: which setting is chosen, the file, the table, the figure."""

import csv
import math
from collections.abc import Sequence
from typing import Any
from xml.etree import ElementTree

import pytest
from rich.console import Console

from memdist import axes, config, models
from memdist.errors import CheckpointError, ConfigError
from memdist.model import Sampling
from memdist.train import recipe, restore, study, studybegun, studybench, studyfigure, studytable
from memdist.train.recipe import Recipe
from memdist.train.studytable import Setting, Study

REFERENCE = Sampling(sampler="ancestral", steps=50)
SVG = "{http://www.w3.org/2000/svg}"


def setting(
    sampler: str, steps: int, l1: float | None, *, k: int = 1, how: str = "mean", cc: float | None = 0.5
) -> Setting:
    return Setting(Recipe(Sampling(sampler=sampler, steps=steps), k, how), steps, l1, cc, 0.1 * k * steps)


def made(settings: Sequence[Setting], l1: float | None = 0.1, tolerance: float = 0.01) -> Study:
    return studytable.make([*settings, Setting(Recipe(REFERENCE), 50, l1, 0.6, 5.0)], REFERENCE, tolerance)


def shown(found: Study) -> str:
    console = Console(width=250)
    with console.capture() as text:
        console.print(studytable.table(found, "study on val: 4 pictures"))
        console.print("\n".join(studytable.sentences(found, "memdist evaluate runs/a")), soft_wrap=True)
    return text.get()


def test_the_cheapest_that_is_good_enough_is_chosen() -> None:
    found = made([setting("ddim", 2, 0.2), setting("ddim", 4, 0.101), setting("ddim", 8, 0.05)])
    assert found.chosen.recipe.sampling.steps == 4
    assert [one.cost for one in found.settings] == [2, 4, 8, 50]
    assert made([setting("ddim", 4, 0.101)], tolerance=0).chosen.recipe == Recipe(REFERENCE)


def test_samples_count_as_evaluations_do() -> None:
    alone, both = setting("ddim", 8, 0.1), setting("ddim", 3, 0.1, k=2)
    assert both.cost == 6 and made([alone, both]).chosen == both
    assert made([alone, setting("ddim", 3, 0.1, k=4)]).chosen == alone


def test_of_several_as_cheap_the_better_is_chosen() -> None:
    worse, better = setting("ddim", 4, 0.09), setting("unipc", 4, 0.08)
    assert made([worse, better]).chosen == better
    mean, median = setting("ddim", 4, 0.09, k=4), setting("ddim", 4, 0.08, k=4, how="median")
    assert made([mean, median]).chosen == median
    # Rounding does not choose.
    alike = [setting("ancestral", 1, 0.09), setting("heun", 1, 0.09 - 1e-9), setting("ddim", 1, 0.09)]
    assert made(alike).chosen.recipe.sampling.sampler == "ddim"


def test_what_is_undefined_is_never_chosen() -> None:
    found = made([setting("ddim", 2, None), setting("ddim", 4, None, k=4, cc=None)])
    assert found.chosen == found.reference
    assert "undefined" in shown(found) and "Nothing cheaper" in shown(found)
    studyfigure.draw(found, "")
    with pytest.raises(CheckpointError, match="no finite numbers"):
        _ = made([setting("ddim", 2, 0.1)], l1=None).chosen


def test_what_is_chosen_is_what_a_recipe_reads() -> None:
    default = made([setting("ddim", 4, 0.1, k=4, how="median")]).chosen.default()
    assert tuple(default) == recipe.KEYS
    assert default["samples"] == 4 and default["combine"] == "median" and default["eta"] is None


def test_a_setting_is_kept_as_it_was() -> None:
    one = setting("ddim", 4, 0.1, k=4, how="median", cc=None)
    assert studytable.read(one.recipe.sampling, studytable.written(one)) == one


@pytest.mark.parametrize("key", ["samples", "combine", "evaluations", "l1", "cc", "seconds"])
def test_what_was_never_kept_is_not_read(key: str) -> None:
    one = setting("ddim", 4, 0.1)
    whole = studytable.written(one)
    wrong = [{k: v for k, v in whole.items() if k != key}]
    if key != "combine":
        odd: list[Any] = ["0.1", [], math.nan, True]
        wrong += [{**whole, key: value} for value in odd]
    if key in ("samples", "evaluations"):
        wrong += [{**whole, key: value} for value in (0, 1.5, None)]
    for record in wrong:
        with pytest.raises((KeyError, TypeError)):
            studytable.read(one.recipe.sampling, record)


def test_the_file_has_every_setting() -> None:
    found = made([setting("ddim", 2, None), setting("ddim", 4, 0.1, k=4), setting("ddim", 8, 0.1)])
    lines = list(csv.DictReader(studytable.text(found).splitlines()))
    assert [line["evaluations_in_all"] for line in lines] == ["2", "8", "16", "50"]
    assert [line["chosen"] for line in lines] == ["false", "true", "false", "false"]
    assert lines[0]["l1"] == "" and lines[0]["within"] == "false" and lines[2]["within"] == "true"
    assert tuple(lines[0]) == studytable.COLUMNS


def test_the_table_has_the_reference_first_and_marks_the_chosen() -> None:
    found = made([setting("ddim", 2, 0.2), setting("ddim", 2, 0.1, k=3, how="median"), setting("ddim", 2, 0.09, k=8)])
    text = shown(found)
    lines = [line for line in text.splitlines() if "│" in line]
    assert "reference" in lines[0] and "cheapest within 1 %: median of 3" in lines[1]
    # The chosen one stands there, not the one whose L1 is lowest.
    assert "median of 3" in lines[1] and "mean of 8" not in text
    assert "1/8.3 of the evaluations" in text and "selected on val" in text and "rewards blur" in text


def test_a_long_table_is_cut_and_still_has_the_chosen() -> None:
    settings = [setting("ddim", steps, 0.3) for steps in range(1, 46)] + [setting("heun", 47, 0.1)]
    text = shown(made(settings))
    lines = [line for line in text.splitlines() if "│" in line]
    assert len(lines) == studytable.LINES and "heun" in lines[-1] and "7 more in the file" in text


def test_the_figure_has_a_curve_for_each_sampler() -> None:
    settings = [setting(name, steps, 0.3 / steps) for name in ("ddim", "heun", "unipc") for steps in (2, 4, 8)]
    settings += [setting(name, steps, 0.2 / steps, k=4) for name in ("ddim", "heun") for steps in (2, 4, 8)]
    text = studyfigure.draw(made(settings), 'a <b> & "c" \x1b[1m \udc80')
    root = ElementTree.fromstring(text)
    panels = root.findall(f"{SVG}g")
    assert len(panels) == 3
    for panel in panels:
        curves = panel.findall(f"{SVG}polyline")
        whole = [curve for curve in curves if curve.get("stroke-dasharray") == "none"]
        assert len(whole) == 4 and len(curves) - len(whole) == 2  # three and the reference's
        assert len({curve.get("stroke") for curve in whole}) == 4
        for curve in curves:
            points = [float(n) for pair in (curve.get("points") or "").split() for n in pair.split(",")]
            assert all(map(math.isfinite, points)) and min(points) >= 0 and max(points[::2]) <= 900
        assert sum(mark.get("class") == "chosen" for mark in panel.findall(f"{SVG}circle")) == 1
    assert "<b>" not in text and "\x1b" not in text
    assert "a &lt;b&gt; &amp;" in text


@pytest.mark.parametrize(
    "values", [[1.0], [0.0], [0.0, 0.0], [1.0, 1.0 + 1e-12], [1e-6, 1e6], [-1.0, 1.0], [3e-8, 2e5]]
)
def test_an_axis_holds_its_values(values: list[float]) -> None:
    one = axes.axis(values, 0, 100)
    assert all(0 <= one.at(value) <= 100 for value in values)
    assert 1 <= len(one.ticks()) <= 20 and all(-1e-6 <= one.at(tick) <= 100 + 1e-6 for tick in one.ticks())


def test_what_several_samples_make() -> None:
    found = studybegun.recipes(REFERENCE, (1, 2, 4))
    # The median of two is their mean.
    assert [(one.samples, one.combine) for one in found] == [(1, "mean"), (2, "mean"), (4, "mean"), (4, "median")]


def _plan(*overrides: str, model: str = "palette") -> tuple[studybench.Plan, Sampling]:
    raw: dict[str, Any] = {"model": {"name": model, "multipliers": [1, 2]}, "data": {"size": 16}}
    if model == "palette":
        raw["model"] |= {"channels": 8, "head_channels": 8, "schedule": {"name": "cosine", "steps": 50}}
    run = models.resolve(config.override(raw, overrides))
    return study.plan_of(restore.model_of(run), run)


def test_nothing_is_tried_twice() -> None:
    plan, reference = _plan(
        "study.samplers=[heun,ddim,heun,ancestral]", "study.steps=[4,3,1,3,50,2]", "study.samples=[2,2]"
    )
    assert reference == REFERENCE and plan[reference] == (1, 2)
    tried = [(one.sampler, one.steps) for one in plan]
    # Heun's sampler takes two as it takes one, and four as three.
    assert [steps for sampler, steps in tried if sampler == "heun"] == [1, 3, 50]
    assert sorted(steps for sampler, steps in tried if sampler == "ddim") == [1, 2, 3, 4, 50]
    assert len(set(tried)) == len(tried) == 3 + 5 + 5


def test_the_plan_begins_with_what_is_cheap_and_takes_spacing_and_bound() -> None:
    plan, reference = _plan("study.samplers=[unipc]", "study.steps=[8,2]", "eval.spacing=snr", "eval.bound=threshold")
    assert list(plan)[-1] == reference == REFERENCE and plan[reference] == (1,)
    assert [(one.steps, one.spacing, one.bound) for one in list(plan)[:2]] == [(n, "snr", "threshold") for n in (2, 8)]
    assert plan[list(plan)[0]] == (1, 2, 4)


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["study.samplers=[ddim,nosuch]"], "study.samplers=nosuch with .* there is no sampler 'nosuch'"),
        (["study.steps=[4,60]"], "study.steps=60 cannot be tried: .* has 50 trained levels: choose from 1 to 50 steps"),
    ],
)
def test_what_cannot_be_tried_is_refused(overrides: list[str], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        _plan(*overrides)


def test_a_model_that_does_not_sample_is_refused() -> None:
    with pytest.raises(ConfigError, match="for models that sample, and unet does not"):
        _plan(model="unet")
