"""Samplers against closed forms: a Gaussian target has an exact denoiser, an exact flow and exact moments."""

import math
from typing import Any

import pytest
import torch
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from diffusers.schedulers.scheduling_dpmsolver_multistep import DPMSolverMultistepScheduler
from diffusers.schedulers.scheduling_unipc_multistep import UniPCMultistepScheduler
from torch import Tensor

from memdist import draws
from memdist.diffusion import sampling, schedule
from memdist.diffusion.sampling import SAMPLERS, Sampler, ancestral, ddim
from memdist.diffusion.steps import bounded

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
        out = ddim(gaussian(scale), start, levels, seed=SEED, scale=scale, bound="none")
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
    out = SAMPLERS[sampler](gaussian(scale), start, levels, seed=SEED, scale=scale, bound="none", **settings)
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
    torch.testing.assert_close(x, start, rtol=1e-6, atol=0)
    assert level.tolist() == [TABLE[-1].item()] * len(SEED)


@pytest.mark.parametrize("name", SAMPLERS)
def test_each_level_is_evaluated_once(name):
    levels = schedule.levels(TABLE, 7)
    seen = []

    def predict_x0(x: Tensor, level: Tensor) -> Tensor:
        seen.append(level[0].item())
        return x

    SAMPLERS[name](predict_x0, noise(1, 2, 2), levels, seed=SEED)
    if name == "heun":  # twice but for the first and the last
        assert seen == sorted([*levels[:-1].tolist(), *levels[1:-1].tolist()])
    else:
        assert seen == levels[:-1].tolist()
    assert sampling.intervals(name, len(seen)) == 7


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
    assert sampler(predict_x0, start, levels, seed=SEED, bound="none").eq(3).all()


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
        out = ddim(predict_x0, x, levels, seed=SEED, eta=eta, bound="none")
        torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-4)


# Solvers of higher order


def errors(name: str, counts: tuple[int, ...], **more: Any) -> list[float]:
    """Largest distance from the exact flow, of a Gaussian target, with so many steps even in log-SNR."""
    start, found = noise(1, 4, 4), []
    for steps in counts:
        levels = schedule.levels(TABLE, steps, "snr")
        out = SAMPLERS[name](gaussian(), start, levels, seed=SEED, bound="none", **more)
        found.append((out - flow(start, levels[0])).abs().max().item())
    return found


@pytest.mark.parametrize(
    ("name", "more", "counts", "order"),
    [
        ("ddim", {}, (160, 320), 1),
        ("dpmpp_2m", {}, (160, 320), 2),
        ("heun", {}, (160, 320), 2),
        ("unipc", {"order": 1}, (160, 320), 2),  # the corrector gives one
        ("unipc", {"order": 2}, (160, 320), 3),
    ],
)
def test_orders_of_convergence(name: str, more: dict[str, Any], counts: tuple[int, int], order: int) -> None:
    coarse, fine = errors(name, counts, **more)
    assert math.log2(coarse / fine) == pytest.approx(order, abs=0.15)


def test_three_predictions_give_order_3_at_least() -> None:
    """Before rounding and the step from the last trained level to the clean one are all that is left."""
    for name, more in (("dpmpp_3m_sde", {"eta": 0.0}), ("unipc", {"order": 3})):
        coarse, fine = errors(name, (80, 160), **more)
        assert math.log2(coarse / fine) > 2.9


def test_higher_orders_need_fewer_steps() -> None:
    found = {name: errors(name, (40,))[0] for name in ("ddim", "dpmpp_2m", "unipc")}
    assert found["ddim"] > 5 * found["dpmpp_2m"] > 25 * found["unipc"]


@pytest.mark.parametrize("eta", [0.5, 1.0])
@pytest.mark.parametrize("scale", [1.0, 0.5])
def test_a_stochastic_solver_gives_the_targets_moments(eta: float, scale: float) -> None:
    levels = schedule.levels(TABLE, 60, "snr")
    start = noise(3, 48, 48, dtype=torch.float32)
    out = sampling.dpmpp_3m_sde(gaussian(scale), start, levels, seed=SEED, eta=eta, scale=scale, bound="none")
    count = out.numel()
    assert out.mean().item() == pytest.approx(MEAN, abs=4 * DEVIATION / math.sqrt(count) + 1e-3)
    assert out.std().item() == pytest.approx(DEVIATION, rel=4 / math.sqrt(2 * count) + 5e-3)


@pytest.mark.parametrize(
    ("kind", "settings", "name", "more"),
    [
        (DPMSolverMultistepScheduler, {"algorithm_type": "dpmsolver++", "solver_order": 2}, "dpmpp_2m", {}),
        (UniPCMultistepScheduler, {"solver_type": "bh2", "solver_order": 2}, "unipc", {"order": 2}),
        (UniPCMultistepScheduler, {"solver_type": "bh2", "solver_order": 3}, "unipc", {"order": 3}),
    ],
)
@pytest.mark.parametrize("steps", [2, 5, 12])
@pytest.mark.filterwarnings("ignore:__array__ implementation")  # of theirs
def test_multistep_solvers_are_diffusers(
    kind: Any, settings: dict[str, Any], name: str, more: dict[str, Any], steps: int
) -> None:
    ends = {"final_sigmas_type": "zero", "timestep_spacing": "trailing", "lower_order_final": True}
    theirs = kind(beta_start=1e-4, beta_end=0.02, prediction_type="sample", **ends, **settings)
    theirs.set_timesteps(steps)
    table, predict_x0 = schedule.linear_beta(1000, 1e-4, 0.02), gaussian()
    levels = torch.cat([table[theirs.timesteps], torch.ones(1, dtype=torch.float64)])
    start = noise(3, 4, 4)
    x = start
    for step in theirs.timesteps:
        x = theirs.step(predict_x0(x, table[step].expand(len(x))), step, x).prev_sample
    out = SAMPLERS[name](predict_x0, start, levels, seed=SEED, bound="none", **more)
    torch.testing.assert_close(out, x, rtol=0, atol=2e-6)


def test_heun_is_edms_algorithm() -> None:
    """Step by step in sigma, from its own words: Euler, then the mean of both slopes."""
    levels = schedule.levels(TABLE, 6, "snr")
    sigma = (1 / levels - 1).sqrt()
    start = noise(3, 4, 4)
    predict_x0 = gaussian()

    def denoise(x: Tensor, k: int) -> Tensor:
        return predict_x0(x * levels[k].sqrt(), levels[k].expand(len(x)))

    x = start / levels[0].sqrt()
    for k in range(6):
        slope = (x - denoise(x, k)) / sigma[k]
        ahead = x + (sigma[k + 1] - sigma[k]) * slope
        if k < 5:
            ahead = x + (sigma[k + 1] - sigma[k]) * 0.5 * (slope + (ahead - denoise(ahead, k + 1)) / sigma[k + 1])
        x = ahead
    out = sampling.heun(predict_x0, start, levels, seed=SEED, bound="none")
    torch.testing.assert_close(out, x, rtol=1e-12, atol=1e-12)


def test_thresholding_keeps_the_shape_of_what_is_too_large() -> None:
    maps = torch.linspace(-2, 2, 2000).view(1, 1, 20, 100).repeat(2, 1, 1, 1)
    maps[1] *= 0.4
    found = bounded(maps, "threshold")
    assert found.abs().max() == 1
    torch.testing.assert_close(found[0, 0, 10, 0] / found[0, 0, 15, 0], maps[0, 0, 10, 0] / maps[0, 0, 15, 0])
    assert torch.equal(found[1], maps[1])
