"""Noise tables, levels and conversions, against closed forms, the papers' formulas and diffusers."""

import math

import pytest
import torch
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from diffusers.schedulers.scheduling_dpmsolver_multistep import DPMSolverMultistepScheduler

from memdist import draws
from memdist.diffusion import schedule
from memdist.errors import ConfigError

PALETTE = schedule.linear_beta(2000, 1e-6, 1e-2)
TABLES = {
    "linear_beta": PALETTE,
    "quad_beta": schedule.quad_beta(2000, 1e-6, 2e-2),
    "cosine_beta": schedule.cosine_beta(1000),
    "linear": schedule.linear(schedule.times(1000)),
    "cosine": schedule.cosine(schedule.times(1000)),
    "cosine moved": schedule.cosine(schedule.times(1000), start=0.2, end=1.0, temperature=1.5),
    "sigmoid": schedule.sigmoid(schedule.times(1000)),
    "sigmoid moved": schedule.sigmoid(schedule.times(1000), start=0.0, end=3.0, temperature=0.7),
}
GAMMA = torch.tensor([0.0, 1e-9, 1e-4, 0.3, 0.9, 1 - 1e-6, 1.0], dtype=torch.float64)


def pictures(kind: str, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return draws.normal(torch.arange(len(GAMMA)), kind, (2, 3, 3)).to(dtype).clamp(-3, 3)


@pytest.mark.parametrize("name", TABLES)
def test_tables_fall_from_clean_to_noise(name):
    table = TABLES[name]
    assert table.dtype == torch.float64
    assert (table.diff() < 0).all()
    assert table[0] < 1 and table[0] > 0.99
    assert 0 < table[-1] < 1e-4


@pytest.mark.parametrize(
    ("mine", "name"),
    [(schedule.quad_beta(1000, 1e-4, 2e-2), "scaled_linear"), (schedule.cosine_beta(1000), "squaredcos_cap_v2")],
)
def test_other_variances_are_diffusers(mine, name):
    theirs = DDPMScheduler(num_train_timesteps=1000, beta_start=1e-4, beta_end=2e-2, beta_schedule=name)
    torch.testing.assert_close(mine.float(), theirs.alphas_cumprod, rtol=2e-5, atol=0)


def test_linear_beta_is_diffusers():
    theirs = DDPMScheduler(num_train_timesteps=2000, beta_start=1e-6, beta_end=1e-2, beta_schedule="linear")
    torch.testing.assert_close(PALETTE.float(), theirs.alphas_cumprod, rtol=2e-4, atol=1e-7)


def test_linear_beta_by_hand():
    expected = torch.tensor([0.9, 0.9 * 0.8, 0.9 * 0.8 * 0.7], dtype=torch.float64)
    torch.testing.assert_close(schedule.linear_beta(3, 0.1, 0.3), expected, rtol=1e-14, atol=0)


@pytest.mark.parametrize(("start", "end", "temperature"), [(0.0, 1.0, 1.0), (0.2, 1.0, 2.0), (0.0, 0.5, 0.5)])
@pytest.mark.parametrize("kind", ["cosine", "sigmoid"])
def test_chen_by_the_papers_pseudocode(kind, start, end, temperature):
    def curve(position: float) -> float:
        if kind == "cosine":
            return math.cos(position * math.pi / 2) ** (2 * temperature)
        return 1 / (1 + math.exp(-position / temperature))

    gamma = getattr(schedule, kind)(schedule.times(8), start=start, end=end, temperature=temperature)
    for index, time in enumerate(schedule.times(8).tolist()):
        stretched = (curve(end) - curve(time * (end - start) + start)) / (curve(end) - curve(start))
        assert gamma[index].item() == pytest.approx(min(1.0, max(1e-9, stretched)), rel=1e-9)


def test_cosine_of_chen_is_cosine_squared():
    torch.testing.assert_close(
        schedule.cosine(torch.tensor([0.0, 1 / 3, 0.5], dtype=torch.float64)),
        torch.tensor([1.0, 0.75, 0.5], dtype=torch.float64),
    )


def test_clip_keeps_the_end_above_it():
    for function in (schedule.linear, schedule.cosine, schedule.sigmoid):
        assert function(schedule.times(4), clip=1e-3)[-1].item() == 1e-3


def test_drawn_levels_are_trained_ones():
    table = schedule.linear_beta(5, 0.1, 0.5)
    drawn = schedule.draw(table, torch.arange(20_000))
    assert drawn.dtype == torch.float64
    assert table[-1] <= drawn.min() and drawn.max() <= table[0]
    # Each gap is drawn equally often, and evenly within.
    gaps = torch.bucketize(-drawn, -table, right=True) - 1
    assert torch.bincount(gaps).tolist() == pytest.approx([5000] * 4, abs=250)
    for gap in range(4):
        middle = (table[gap] + table[gap + 1]) / 2
        assert drawn[gaps == gap].mean().item() == pytest.approx(middle.item(), rel=0.01)


def test_drawn_levels_depend_on_the_item_alone():
    seeds = torch.arange(8)
    assert torch.equal(schedule.draw(PALETTE, seeds)[3:], schedule.draw(PALETTE, seeds[3:]))


@pytest.mark.parametrize("spacing", ["time", "snr", "karras"])
@pytest.mark.parametrize("name", TABLES)
@pytest.mark.parametrize("steps", [1, 2, 7, 20, 999, 1000])
def test_levels_lie_within_what_was_trained(name, steps, spacing):
    table = TABLES[name]
    levels = schedule.levels(table, steps, spacing)
    assert len(levels) == steps + 1 and levels[-1] == 1
    assert (levels.diff() > 0).all()
    assert levels[0] == table[-1]
    assert levels[:-1].max() <= table[0]


def test_levels_of_time_are_entries_of_the_table():
    table = TABLES["linear"]
    assert torch.equal(schedule.levels(table, 1000)[:-1], table.flip(0))
    assert torch.equal(schedule.levels(table, 4)[:-1], table[[999, 749, 499, 249]])


def test_levels_of_snr_are_even_in_its_logarithm():
    levels = schedule.levels(PALETTE, 50, "snr")[:-1]
    assert levels[-1] == PALETTE[0]
    gaps = torch.logit(levels).diff()
    torch.testing.assert_close(gaps, gaps.mean().expand(49), rtol=1e-6, atol=0)


def test_levels_of_karras_are_even_in_the_seventh_root_of_sigma():
    levels = schedule.levels(PALETTE, 50, "karras")[:-1]
    assert levels[0] == PALETTE[-1] and levels[-1] == PALETTE[0]
    gaps = ((1 - levels) / levels).sqrt().pow(1 / 7).diff()
    torch.testing.assert_close(gaps, gaps.mean().expand(49), rtol=1e-6, atol=0)


def test_karras_levels_are_those_of_the_paper():
    # EDM, eq. 5, written out: sigma from the table's noisiest to its cleanest level.
    levels = schedule.levels(PALETTE, 4, "karras")[:-1]
    high, low = (math.sqrt(1 / float(gamma) - 1) for gamma in (PALETTE[-1], PALETTE[0]))
    sigmas = [(high ** (1 / 7) + i / 3 * (low ** (1 / 7) - high ** (1 / 7))) ** 7 for i in range(4)]
    expected = torch.tensor([1 / (1 + sigma**2) for sigma in sigmas], dtype=torch.float64)
    torch.testing.assert_close(levels, expected, rtol=1e-9, atol=0)


@pytest.mark.parametrize("steps", [2, 10, 50])
def test_karras_levels_are_those_of_diffusers(steps):
    sigma = (1 / PALETTE - 1).sqrt().flip(0)  # noisiest first, as theirs
    theirs = DPMSolverMultistepScheduler(use_karras_sigmas=True)._convert_to_karras(sigma.numpy(), steps)
    ours = (1 / schedule.levels(PALETTE, steps, "karras")[:-1] - 1).sqrt()
    torch.testing.assert_close(ours, torch.as_tensor(theirs, dtype=torch.float64), rtol=1e-6, atol=0)


@pytest.mark.parametrize("spacing", ["snr", "karras"])
def test_a_level_that_is_clean_already_is_no_level_to_begin_with(spacing):
    table = torch.tensor([1.0, 1.0, 0.9, 0.5, 0.1], dtype=torch.float64)
    levels = schedule.levels(table, 3, spacing)
    assert levels.isfinite().all() and (levels.diff() > 0).all() and levels[2] == 0.9


@pytest.mark.parametrize("steps", [0, 6])
def test_too_many_steps_are_refused(steps):
    with pytest.raises(ConfigError, match=f"{steps} sampling steps .* has 5 trained levels: choose from 1 to 5 steps"):
        schedule.levels(schedule.linear_beta(5, 0.1, 0.5), steps)


@pytest.mark.parametrize("scale", [1.0, 0.5])
@pytest.mark.parametrize("prediction", ["epsilon", "x0", "v"])
def test_conversions_undo_diffusion(prediction, scale):
    clean, noise = pictures("clean"), pictures("noise")
    noisy = schedule.diffuse(clean, noise, GAMMA, scale=scale)
    output = schedule.target(prediction, clean, noise, GAMMA, scale=scale)
    x0 = schedule.to_x0(prediction, output, noisy, GAMMA, scale=scale)
    epsilon = schedule.to_epsilon(prediction, output, noisy, GAMMA, scale=scale)
    assert x0.isfinite().all() and epsilon.isfinite().all()
    known_x0 = slice(1, None) if prediction == "epsilon" else slice(None)  # pure noise says nothing of the map
    known_epsilon = slice(None, -1) if prediction == "x0" else slice(None)
    torch.testing.assert_close(x0[known_x0], clean[known_x0], rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(epsilon[known_epsilon], noise[known_epsilon], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("prediction", ["epsilon", "x0", "v"])
def test_conversions_keep_float32_and_stay_finite(prediction):
    clean, noise = pictures("clean", torch.float32), pictures("noise", torch.float32)
    noisy = schedule.diffuse(clean, noise, GAMMA)
    output = schedule.target(prediction, clean, noise, GAMMA)
    for result in (
        schedule.to_x0(prediction, output + 0.1, noisy, GAMMA),
        schedule.to_epsilon(prediction, output + 0.1, noisy, GAMMA),
    ):
        assert result.dtype == torch.float32 and result.isfinite().all()


def test_diffusion_by_hand():
    clean, noise = torch.full((1, 1, 1, 1), 2.0), torch.full((1, 1, 1, 1), 10.0)
    gamma = torch.tensor([0.36], dtype=torch.float64)
    assert schedule.diffuse(clean, noise, gamma).item() == pytest.approx(0.6 * 2 + 0.8 * 10)
    assert schedule.diffuse(clean, noise, gamma, scale=0.5).item() == pytest.approx(0.6 * 1 + 0.8 * 10)
    assert schedule.target("v", clean, noise, gamma, scale=0.5).item() == pytest.approx(0.6 * 10 - 0.8 * 1)
    # Far in the clean, where 1 - gamma has lost its digits in float32.
    nearly = torch.tensor([1 - 1e-8], dtype=torch.float64)
    assert (schedule.diffuse(clean * 0, noise, nearly)).item() == pytest.approx(1e-4 * 10, rel=1e-6)


@pytest.mark.parametrize("scale", [0.3, 1.0, 2.0])
def test_normalised_maps_have_variance_1(scale):
    seeds = torch.arange(4)
    clean, noise = draws.normal(seeds, "clean", (3, 64, 64)), draws.normal(seeds, "noise", (3, 64, 64))
    gamma = torch.tensor([0.01, 0.4, 0.7, 0.99], dtype=torch.float64)
    noisy = schedule.diffuse(clean, noise, gamma, scale=scale)
    assert schedule.normalised(noisy, gamma, scale=scale).std((1, 2, 3)).tolist() == pytest.approx([1] * 4, abs=0.03)
    assert torch.equal(schedule.normalised(noisy, gamma, scale=1.0), noisy)


def test_posterior_is_bayes():
    """For Gaussians the posterior is known: precision-weighted sum of q(x_s | x_0) and q(x_t | x_s)."""
    gamma, cleaner = GAMMA[1:6], torch.tensor([1e-4, 0.3, 0.9, 1 - 1e-6, 1 - 1e-7], dtype=torch.float64)
    x0, noisy = pictures("clean")[:5], pictures("noise")[:5]
    mean, variance = schedule.posterior(x0, noisy, gamma, cleaner, scale=0.7)
    g, c = gamma.view(-1, 1, 1, 1), cleaner.view(-1, 1, 1, 1)
    prior_precision, step_precision = 1 / (1 - c), (g / c) / (1 - g / c)
    precision = prior_precision + step_precision
    expected = (prior_precision * c.sqrt() * 0.7 * x0 + step_precision * noisy / (g / c).sqrt()) / precision
    torch.testing.assert_close(variance, 1 / precision, rtol=1e-6, atol=0)
    torch.testing.assert_close(mean, expected, rtol=1e-6, atol=1e-9)


def test_posterior_at_the_ends():
    x0, noisy = pictures("clean")[:3], pictures("noise")[:3]
    # From noise to clean, from noise to some level, from clean to clean.
    gamma = torch.tensor([0.0, 0.0, 1.0], dtype=torch.float64)
    cleaner = torch.tensor([1.0, 0.25, 1.0], dtype=torch.float64)
    mean, variance = schedule.posterior(x0, noisy, gamma, cleaner)
    torch.testing.assert_close(mean, torch.stack((x0[0], 0.5 * x0[1], noisy[2])))
    assert variance.flatten().tolist() == [0.0, 0.75, 0.0]


def test_posterior_is_diffusers():
    theirs = DDPMScheduler(num_train_timesteps=100, beta_start=1e-4, beta_end=0.2, clip_sample=False)
    table = schedule.linear_beta(100, 1e-4, 0.2)
    noisy, epsilon = pictures("noisy", torch.float32)[:1], pictures("epsilon", torch.float32)[:1]
    for index in (99, 50, 1):
        noise = torch.randn(noisy.shape, generator=torch.Generator().manual_seed(3))
        step = theirs.step(epsilon, index, noisy, generator=torch.Generator().manual_seed(3))
        gamma, cleaner = table[index : index + 1], table[index - 1 : index]
        x0 = schedule.to_x0("epsilon", epsilon, noisy, gamma)
        torch.testing.assert_close(x0, step.pred_original_sample, rtol=1e-4, atol=1e-5)
        mean, variance = schedule.posterior(x0, noisy, gamma, cleaner)
        torch.testing.assert_close(mean + variance.sqrt() * noise, step.prev_sample, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("spacing", ["snr", "karras"])
def test_levels_spread_in_noise_keep_from_ends_that_are_infinite(spacing: schedule.Spacing) -> None:
    table = torch.tensor([1.0, 0.9, 0.5, 1e-9, 1e-218, 0.0], dtype=torch.float64)
    found = schedule.levels(table, 3, spacing)
    assert found.isfinite().all() and found[0] == 1e-9 and found[2] == 0.9 and bool((found.diff() > 0).all())
    with pytest.raises(ConfigError, match=f"spacing {spacing} cannot be: no level of the noise table"):
        schedule.levels(torch.tensor([1.0, 1.0, 0.0], dtype=torch.float64), 2, spacing)
