"""Samplers against closed forms: a Gaussian target has an exact denoiser, an exact flow and exact moments."""

import math

import pytest
import torch
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from torch import Tensor

from memdist import draws
from memdist.diffusion import schedule
from memdist.diffusion.sampling import SAMPLERS, Sampler, ancestral, ddim

MEAN, DEVIATION = 0.4, 0.25
TABLE = schedule.cosine(schedule.times(4000))
SEED = torch.arange(16)


def variance(gamma: Tensor, scale: float) -> Tensor:
    return gamma * (scale * DEVIATION) ** 2 + 1 - gamma


def gaussian(scale: float = 1.0):
    """The best guess E[x_0 | x_t] when x_0 is N(MEAN, DEVIATION^2)."""

    def predict_x0(x: Tensor, level: Tensor) -> Tensor:
        gamma = level.to(x.dtype).view(-1, 1, 1, 1)
        surprise = x - gamma.sqrt() * scale * MEAN
        return MEAN + gamma.sqrt() * scale * DEVIATION**2 / variance(gamma, scale) * surprise

    return predict_x0


def noise(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return draws.normal(SEED, "start", shape).to(dtype)


def flow(start: Tensor, level: Tensor, scale: float = 1.0) -> Tensor:
    """The probability flow keeps the standardised coordinate of a Gaussian, from `level` to the target."""
    return MEAN + DEVIATION * (start - level.sqrt() * scale * MEAN) / variance(level, scale).sqrt()


@pytest.mark.parametrize("scale", [1.0, 0.5])
def test_ddim_converges_to_the_flow_with_order_1(scale):
    start = noise(3, 4, 4)
    errors = []
    for steps in (50, 100, 200, 400):
        levels = schedule.levels(TABLE, steps)
        out = ddim(gaussian(scale), start, levels, seed=SEED, scale=scale, clip=False)
        errors.append((out - flow(start, levels[0], scale)).abs().max().item())
    orders = [math.log2(coarse / fine) for coarse, fine in zip(errors, errors[1:], strict=False)]
    assert orders == pytest.approx([1.0] * 3, abs=0.1)
    assert errors[-1] < 0.011


def moments(levels: Tensor, scale: float, eta: float) -> tuple[float, float]:
    """Mean and variance that the sampler gives from N(0, 1), by recursion over its affine steps in eq. 12 of DDIM."""
    mean, spread = 0.0, 1.0
    for g, c in zip(levels[:-1].tolist(), levels[1:].tolist(), strict=True):
        total = g * (scale * DEVIATION) ** 2 + 1 - g
        gain = math.sqrt(g) * scale * DEVIATION**2 / total  # x_0 = MEAN + gain * (x - sqrt(g) * scale * MEAN)
        sigma = eta * math.sqrt((1 - c) / (1 - g)) * math.sqrt(1 - g / c)
        direction = math.sqrt(max(0.0, 1 - c - sigma**2))
        x0_mean = MEAN + gain * (mean - math.sqrt(g) * scale * MEAN)
        epsilon_mean = (mean - math.sqrt(g) * scale * x0_mean) / math.sqrt(1 - g)
        slope = math.sqrt(c) * scale * gain + direction * (1 - math.sqrt(g) * scale * gain) / math.sqrt(1 - g)
        mean = math.sqrt(c) * scale * x0_mean + direction * epsilon_mean
        spread = slope**2 * spread + sigma**2
    return mean / scale, spread / scale**2


@pytest.mark.parametrize("scale", [1.0, 0.5])
@pytest.mark.parametrize(("sampler", "eta"), [("ancestral", 1.0), ("ddim", 0.5), ("ddim", 0.0)])
def test_moments_are_the_targets(sampler, eta, scale):
    levels = schedule.levels(TABLE, 100)
    settings = {"eta": eta} if sampler == "ddim" else {}
    start = noise(3, 32, 32, dtype=torch.float32)
    out = SAMPLERS[sampler](gaussian(scale), start, levels, seed=SEED, scale=scale, clip=False, **settings)
    mean, spread = moments(levels, scale, eta)
    count = out.numel()
    # Four standard errors of a mean and of a variance.
    assert out.mean().item() == pytest.approx(mean, abs=4 * math.sqrt(spread / count))
    assert out.var().item() == pytest.approx(spread, rel=4 * math.sqrt(2 / count))
    assert (mean, math.sqrt(spread)) == pytest.approx((MEAN, DEVIATION), rel=0.12)


def test_moments_become_exact_with_steps():
    for eta in (0.0, 1.0):
        mean, spread = moments(schedule.levels(TABLE, 4000), 1.0, eta)
        assert (mean, math.sqrt(spread)) == pytest.approx((MEAN, DEVIATION), rel=2e-3)


@pytest.mark.parametrize("name", SAMPLERS)
def test_one_step_is_the_prediction(name):
    start = noise(3, 4, 4, dtype=torch.float32)
    levels = schedule.levels(TABLE, 1)
    answer = draws.normal(SEED, "answer", (3, 4, 4)) * 2
    seen = []

    def predict_x0(x: Tensor, level: Tensor) -> Tensor:
        seen.append((x, level))
        return answer

    out = SAMPLERS[name](predict_x0, start, levels, seed=SEED, scale=0.5)
    torch.testing.assert_close(out, answer.clamp(-1, 1), rtol=1e-6, atol=1e-6)
    ((x, level),) = seen
    assert torch.equal(x, start)
    assert level.tolist() == [TABLE[-1].item()] * len(SEED)


@pytest.mark.parametrize("name", SAMPLERS)
def test_each_level_is_evaluated_once(name):
    levels = schedule.levels(TABLE, 7)
    seen = []

    def predict_x0(x: Tensor, level: Tensor) -> Tensor:
        seen.append(level[0].item())
        return x

    SAMPLERS[name](predict_x0, noise(1, 2, 2), levels, seed=SEED)
    assert seen == levels[:-1].tolist()


@pytest.mark.parametrize("name", SAMPLERS)
def test_an_item_does_not_depend_on_its_batch(name):
    start = noise(3, 4, 4, dtype=torch.float32)
    levels = schedule.levels(TABLE, 10)
    together = SAMPLERS[name](gaussian(), start, levels, seed=SEED)
    alone = SAMPLERS[name](gaussian(), start[5:6], levels, seed=SEED[5:6])
    assert torch.equal(together[5:6], alone)


@pytest.mark.parametrize("name", SAMPLERS)
def test_clipping_bounds_the_answer(name):
    levels = schedule.levels(TABLE, 10)
    start = noise(1, 2, 2)

    def predict_x0(x: Tensor, level: Tensor) -> Tensor:
        return torch.full_like(x, 3.0)

    sampler: Sampler = SAMPLERS[name]
    assert sampler(predict_x0, start, levels, seed=SEED).eq(1).all()
    assert sampler(predict_x0, start, levels, seed=SEED, clip=False).eq(3).all()


def test_ddim_with_eta_1_is_ancestral():
    start, levels = noise(3, 8, 8), schedule.levels(TABLE, 50)
    torch.testing.assert_close(
        ddim(gaussian(), start, levels, seed=SEED, eta=1.0),
        ancestral(gaussian(), start, levels, seed=SEED),
        rtol=1e-9,
        atol=1e-9,
    )


def test_ancestral_is_the_posterior_step_by_step():
    start, levels = noise(3, 4, 4), schedule.levels(TABLE, 5)
    predict_x0, x = gaussian(0.5), start
    for k, (gamma, cleaner) in enumerate(zip(levels[:-1], levels[1:], strict=True)):
        gamma, cleaner = gamma.expand(len(x)), cleaner.expand(len(x))
        mean, spread = schedule.posterior(predict_x0(x, gamma).clamp(-1, 1), x, gamma, cleaner, scale=0.5)
        x = mean + spread.sqrt() * draws.normal(SEED, f"sample/{k}", (3, 4, 4))
    torch.testing.assert_close(
        ancestral(predict_x0, start, levels, seed=SEED, scale=0.5), x / 0.5, rtol=1e-9, atol=1e-9
    )


@pytest.mark.parametrize("eta", [0.0, 0.7])
def test_ddim_steps_are_diffusers(eta):
    """One step between neighbouring levels of a table, with the same noise."""
    theirs = DDIMScheduler(num_train_timesteps=100, beta_start=1e-4, beta_end=0.2, clip_sample=False)
    theirs.set_timesteps(100)
    table = schedule.linear_beta(100, 1e-4, 0.2)
    torch.testing.assert_close(theirs.alphas_cumprod, table.float(), rtol=1e-5, atol=0)
    x, epsilon = noise(3, 4, 4, dtype=torch.float32), draws.normal(SEED, "epsilon", (3, 4, 4))
    added = draws.normal(SEED, "sample/0", (3, 4, 4))

    def predict_x0(x: Tensor, level: Tensor) -> Tensor:
        return schedule.to_x0("epsilon", epsilon, x, level)

    for index in (99, 60, 1):
        expected = theirs.step(epsilon, index, x, eta=eta, variance_noise=added if eta else None).prev_sample
        levels = table[[index, index - 1]]
        out = ddim(predict_x0, x, levels, seed=SEED, eta=eta, clip=False)
        torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-4)
