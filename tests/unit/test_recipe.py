"""How maps are made of pictures: recipes, their records, what is made of k samples."""

from pathlib import Path

import pytest
import torch

from memdist import models, rundir
from memdist.config import words
from memdist.errors import CheckpointError, ConfigError
from memdist.model import Model, Sampling
from memdist.train import recipe, restore
from memdist.train.recipe import Recipe
from tests import tiny


def _model(variant: str, folder: Path) -> Model:
    return restore.model_of(tiny.run(variant, folder))


def test_the_mean_and_the_median_are_those_of_the_samples() -> None:
    samples = torch.tensor([[0.0, 1.0, 5.0, -2.0]]).reshape(1, 4, 1, 1, 1)
    assert recipe.combined(samples, "mean").item() == 1.0
    assert recipe.combined(samples, "median").item() == 0.5
    assert recipe.combined(samples[:, :3], "median").item() == 1.0
    for how in ("mean", "median"):
        assert recipe.combined(samples[:, :1], how).item() == 0.0


def test_a_recipe_is_what_the_settings_say(tmp_path: Path) -> None:
    run = tiny.run(
        "palette",
        tmp_path,
        **{"eval.sampler": "dpmpp_3m_sde", "eval.eta": 0.5, "eval.spacing": "karras", "eval.samples": 4},
    )
    made = Recipe.of(run.eval, restore.model_of(run))
    expected = Sampling(sampler="dpmpp_3m_sde", steps=3, eta=0.5, spacing="karras", bound="clamp")
    assert (made.sampling, made.samples, made.combine) == (expected, 4, "mean")
    assert Recipe.of(run.eval, _model("unet", tmp_path)).samples == 1


def test_a_record_counts_evaluations_of_the_network(tmp_path: Path) -> None:
    palette = _model("palette", tmp_path)
    made = Recipe(Sampling(sampler="heun", steps=10), samples=3, combine="median")
    record = made.record(palette)
    assert record is not None and record["evaluations"] == 27 and set(record) == {*recipe.KEYS, "evaluations"}
    assert words.sampling(record) == "heun, median of 3 samples, 3 x 9 evaluations"
    assert made.record(_model("unet", tmp_path)) is None


@pytest.mark.parametrize(
    ("record", "said"),
    [
        ({"sampler": "ddim", "steps": 20}, "ddim, 20 evaluations"),
        ({"sampler": "ddim", "steps": 1, "samples": 1, "evaluations": 1}, "ddim, 1 evaluation"),
        (
            {
                "sampler": "ancestral",
                "steps": 2000,
                "spacing": "snr",
                "eta": None,
                "bound": "none",
                "evaluations": 2000,
            },
            "ancestral, 2,000 evaluations, spacing snr, bound none",
        ),
        (
            {"sampler": "ddim", "steps": 1, "samples": 2, "combine": "mean", "evaluations": 2, "eta": 0.5},
            "ddim, mean of 2 samples, 2 x 1 evaluations, eta 0.5",
        ),
    ],
)
def test_a_record_in_words(record: dict[str, object], said: str) -> None:
    assert words.sampling(record) == said


def test_what_a_study_chose_is_the_runs_default(tmp_path: Path) -> None:
    assert recipe.studied(tmp_path) == {}
    chosen = {key: None for key in recipe.KEYS} | {"sampler": "unipc", "more": 1}
    rundir.write_json(tmp_path / rundir.STUDY, {"chosen": chosen})
    assert recipe.studied(tmp_path) == {key: None for key in recipe.KEYS} | {"sampler": "unipc"}
    for broken in ({"chosen": 3}, {"chosen": {"sampler": "ddim"}}):
        rundir.write_json(tmp_path / rundir.STUDY, broken)
        with pytest.raises(CheckpointError, match="does not say what was chosen"):
            recipe.studied(tmp_path)


def test_a_study_of_other_weights_is_told(tmp_path: Path) -> None:
    assert recipe.stale(tmp_path, 10, True, []) is None
    chosen = {key: None for key in recipe.KEYS}
    rundir.write_json(tmp_path / rundir.STUDY, {"chosen": chosen, "checkpoint": 10, "averaged": True})
    assert recipe.stale(tmp_path, 10, True, []) is None
    sentence = recipe.stale(tmp_path, 20, False, ["device=cpu", "eval.samples=2"])
    assert (
        sentence and "(step 10, averaged) than these (step 20): `memdist evaluate RUN --study` looks anew" in sentence
    )
    assert recipe.stale(tmp_path, 20, True, ["eval.steps=2", "eval.sampler=ddim"]) is None


def test_settings_of_sampling_do_not_apply_to_others(tmp_path: Path) -> None:
    unet, palette = _model("unet", tmp_path), _model("palette", tmp_path)
    for key in recipe.KEYS:
        recipe.refuse(palette, [f"eval.{key}=1"])
        with pytest.raises(ConfigError, match=f"eval.{key} and its flag do not apply to unet"):
            recipe.refuse(unet, ["device=cpu", f"eval.{key}=1"])
    recipe.refuse(unet, ["eval.batch=3", "eval.size=9"])


@pytest.mark.parametrize(
    ("sampling", "sentence"),
    [
        ({"sampler": "magic"}, "there is no sampler 'magic'; choose one of ancestral, ddim, dpmpp_2m"),
        ({"sampler": "ddim", "steps": 51}, "51 sampling steps .* choose from 1 to 50 steps"),
        ({"sampler": "unipc", "eta": 0.5}, "eta belongs to ddim and dpmpp_3m_sde and not to unipc"),
    ],
)
def test_what_cannot_be_sampled_is_a_sentence(sampling: dict[str, object], sentence: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=sentence):
        _model("palette", tmp_path).check(Sampling(**sampling))  # type: ignore[arg-type]


def test_a_flat_noise_table_is_no_place_for_solvers(tmp_path: Path) -> None:
    raw = tiny.raw("palette", tmp_path)
    raw["model"]["schedule"] = {"name": "sigmoid", "steps": 1000, "start": -60.0, "end": 60.0}
    palette = restore.model_of(models.resolve(raw))
    palette.check(Sampling(sampler="ddim", steps=1000))
    with pytest.raises(
        ConfigError, match="dpmpp_2m cannot take 1000 steps with spacing time, as the noise table is flat"
    ):
        palette.check(Sampling(sampler="dpmpp_2m", steps=1000))
    palette.check(Sampling(sampler="dpmpp_2m", steps=1000, spacing="snr"))


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"steps": "abc"}, r"\(steps = 'abc'\)"),
        ({"steps": 999}, "999 sampling steps are asked for"),
        ({"sampler": "nope"}, "there is no sampler 'nope'"),
        ({"samples": True, "combine": None}, "samples = True and combine = None"),
        ({"sampler": "heun", "eta": 0.5}, "eta belongs to"),
    ],
)
def test_a_study_that_chose_what_cannot_be_is_named(wrong: dict[str, object], says: str, tmp_path: Path) -> None:
    chosen = {
        "sampler": "ddim",
        "steps": 2,
        "eta": None,
        "spacing": "time",
        "bound": "clamp",
        "samples": 1,
        "combine": "mean",
    }
    model = _model("palette", tmp_path)
    recipe.sound(tmp_path, chosen, model)
    with pytest.raises(
        CheckpointError, match=f"study.json says to sample in a way that cannot be .*{says}.*: delete it"
    ):
        recipe.sound(tmp_path, chosen | wrong, model)


def test_heun_takes_no_more_evaluations_than_levels_were_trained(tmp_path: Path) -> None:
    model = _model("palette", tmp_path)
    trained = model.slowest()
    assert trained is not None
    model.check(Sampling(sampler="heun", steps=trained.steps))
    with pytest.raises(ConfigError, match=f"{trained.steps + 1} sampling steps are asked for"):
        model.check(Sampling(sampler="heun", steps=trained.steps + 1))


def test_solvers_in_log_snr_do_not_start_where_it_has_no_end(tmp_path: Path) -> None:
    # Variances of up to 0.99 leave 1e-218 and less of the signal: Heun's weights would be infinite in float32.
    table = {"name": "linear_beta", "steps": 400, "end": 0.99}
    model = restore.model_of(tiny.run("palette", tmp_path, **{"model.schedule": table}))
    for sampler in ("ancestral", "ddim"):
        model.check(Sampling(sampler=sampler, steps=4))
    for sampler in ("dpmpp_2m", "dpmpp_3m_sde", "heun", "unipc"):
        with pytest.raises(ConfigError, match=f"{sampler} cannot start at the noise table's last level"):
            model.check(Sampling(sampler=sampler, steps=4))
        model.check(Sampling(sampler=sampler, steps=4, spacing="karras"))
