"""Samplers: one pure function each, named after its paper.

All are called alike: `sampler(predict_x0, start, levels, seed=...)`.

- `predict_x0(x, level)` gives the clean map [N, C, H, W] for x_t [N, C, H, W] at the noise levels [N], which
  come in the type of `levels` and on the device of x. It holds the network, the condition and the kind of
  prediction; it is called once a step, by Heun's sampler twice but
  for the last.
- `start` [N, C, H, W] is the noise to begin with, float32 or float64, on the device.
- `levels` [K + 1] are increasing gammas on the host, the last one 1 (`schedule.levels`).
- `seed` int64 [N], the items' own, on the device: the noise of step k is `draws.normal(seed, f"sample/{k}",
  ...)`, so that a map does not depend on the batch it was sampled in.
- `scale` is the input scale b of the schedule. `bound` is what is done to each predicted clean map: the
  direction of the step follows the bounded map.

The answer is x at the last level divided by b: the clean map. All coefficients are computed before the loop,
in float64 on the host; nothing in the loop waits for the device. Call them under `torch.inference_mode()` or
`torch.no_grad()`.

Solvers of higher order work in half the log-SNR, lambda = log(sqrt(gamma) / sqrt(1 - gamma)), in which the part
of the flow that is linear in x has an exact answer; only the prediction is taken for a polynomial.
"""

import math
from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from memdist.diffusion.schedule import posterior_weights
from memdist.diffusion.steps import Bound, PredictX0, Step, bounded, combined, linear, parts


class Sampler(Protocol):
    """What every sampler can be called with; settings of its own have defaults."""

    def __call__(
        self,
        predict_x0: PredictX0,
        start: Tensor,
        levels: Tensor,
        *,
        seed: Tensor,
        scale: float = 1.0,
        bound: Bound = "clamp",
    ) -> Tensor:
        """Sample clean maps; see the module for the arguments."""
        ...


def ancestral(
    predict_x0: PredictX0,
    start: Tensor,
    levels: Tensor,
    *,
    seed: Tensor,
    scale: float = 1.0,
    bound: Bound = "clamp",
) -> Tensor:
    """Sample from the posteriors q(x_s | x_t, x_0), one after the other (DDPM, arXiv 2006.11239).

    Ho et al. 2020, algorithm 2, with the posterior's variance (eq. 7), between any two levels; the step to
    the clean level adds no noise.
    """
    on_noisy, on_clean, variance = posterior_weights(levels[:-1], levels[1:])
    steps = [Step(x, (x0,), s) for x, x0, s in _rows(on_noisy, on_clean, variance.sqrt())]
    return linear(predict_x0, start, levels, steps, seed, scale, bound)


def ddim(
    predict_x0: PredictX0,
    start: Tensor,
    levels: Tensor,
    *,
    seed: Tensor,
    eta: float = 0.0,
    scale: float = 1.0,
    bound: Bound = "clamp",
) -> Tensor:
    """Sample by DDIM (Song et al. 2020, arXiv 2010.02502, eq. 12 with the deviation of eq. 16).

    `eta` in [0, 1]: 0 is deterministic, and a first-order solver of the probability-flow equation; 1 is
    `ancestral`.
    """
    gamma, cleaner = levels[:-1], levels[1:]
    deviation = eta * ((1 - cleaner) / (1 - gamma) * ((cleaner - gamma) / cleaner)).sqrt()
    # epsilon is (x_t - sqrt(gamma) * b * x_0) / sqrt(1 - gamma): that leaves a weight for x_t and one for b * x_0.
    on_noisy = ((1 - cleaner - deviation**2).clamp_min(0) / (1 - gamma)).sqrt()
    on_clean = cleaner.sqrt() - on_noisy * gamma.sqrt()
    steps = [Step(x, (x0,), s) for x, x0, s in _rows(on_noisy, on_clean, deviation)]
    return linear(predict_x0, start, levels, steps, seed, scale, bound)


def dpmpp_2m(
    predict_x0: PredictX0,
    start: Tensor,
    levels: Tensor,
    *,
    seed: Tensor,
    scale: float = 1.0,
    bound: Bound = "clamp",
) -> Tensor:
    """Sample by DPM-Solver++(2M), a multistep solver of second order (Lu et al. 2022, arXiv 2211.01095, algorithm 2).

    The first step and the one to the clean level are of first order: before the one there is nothing, and the other has
    no end in lambda.
    """
    signal, noise, half = parts(levels)
    steps = []
    for k in range(len(levels) - 1):
        h = half[k + 1] - half[k]
        gain = signal[k + 1] * -math.expm1(-h)
        back = 0.0 if k == 0 or math.isinf(h) else h / (2 * (half[k] - half[k - 1]))
        steps.append(Step(noise[k + 1] / noise[k], (gain * (1 + back), -gain * back)))
    return linear(predict_x0, start, levels, steps, seed, scale, bound)


def dpmpp_3m_sde(
    predict_x0: PredictX0,
    start: Tensor,
    levels: Tensor,
    *,
    seed: Tensor,
    eta: float = 1.0,
    scale: float = 1.0,
    bound: Bound = "clamp",
) -> Tensor:
    """Sample by SDE-DPM-Solver++ with three predictions, exact for those that are quadratic in lambda.

    Lu et al. 2022 (arXiv 2211.01095, section 5) with one prediction more. `eta` scales the noise that is added; 0 solves
    the probability-flow equation, with order 3. (k-diffusion's sampler of this name takes half of the curvature, and so has
    order 2.)
    """
    signal, noise, half = parts(levels)
    steps = []
    for k in range(len(levels) - 1):
        h = half[k + 1] - half[k]
        if math.isinf(h):
            steps.append(Step(0.0, (signal[k + 1],)))
            continue
        long = h * (1 + eta)
        # The integral of e^(s - long) times (s / h)^j over the step, for j = 0, 1, 2.
        first = -math.expm1(-long)
        second = 1 - first / long
        third = 1 - 2 * second / long
        weights = [first, 0.0, 0.0]
        if k == 1:
            near = second * h / (half[k] - half[k - 1])
            weights = [first + near, -near, 0.0]
        elif k > 1:
            r0, r1 = (half[k] - half[k - 1]) / h, (half[k - 1] - half[k - 2]) / h
            # The parabola through the last three predictions, by its divided differences.
            bend = (second * r0 + third) / (r0 + r1)
            near, far = (second + bend) / r0, bend / r1
            weights = [first + near, -near - far, far]
        added = noise[k + 1] * math.sqrt(-math.expm1(-2 * h * eta))
        keep = signal[k + 1] / signal[k] * math.exp(-long)
        steps.append(Step(keep, tuple(signal[k + 1] * w for w in weights), added))
    return linear(predict_x0, start, levels, steps, seed, scale, bound)


def unipc(
    predict_x0: PredictX0,
    start: Tensor,
    levels: Tensor,
    *,
    seed: Tensor,
    order: int = 3,
    scale: float = 1.0,
    bound: Bound = "clamp",
) -> Tensor:
    """Sample by UniPC, predictor and corrector of `order` 1, 2 or 3 (Zhao et al. 2023, arXiv 2302.04867).

    Multistep, of the predicted clean map, with B(h) = e^h - 1 (its appendix E). Each evaluation corrects the step that led
    to it and predicts the next, so that the corrector costs none. Steps at both ends are of lower order.
    """
    signal, noise, half = parts(levels)
    last = len(levels) - 2
    steps, corrections = [], []
    for k in range(last + 1):
        h = half[k + 1] - half[k]
        if math.isinf(h):
            steps.append(Step(0.0, (signal[k + 1],)))
            continue
        used = min(order, k + 1, last + 1 - k)
        ratios = [(half[k - j] - half[k]) / h for j in range(1, used)]
        keep, gain = noise[k + 1] / noise[k], signal[k + 1] * -math.expm1(-h)
        steps.append(Step(keep, _unified(ratios, h, gain, ahead=False)))
        corrections.append(Step(keep, _unified(ratios, h, gain, ahead=True)))
    return linear(predict_x0, start, levels, steps, seed, scale, bound, corrections)


def heun(
    predict_x0: PredictX0,
    start: Tensor,
    levels: Tensor,
    *,
    seed: Tensor,
    scale: float = 1.0,
    bound: Bound = "clamp",
) -> Tensor:
    """Sample by Heun's method of second order, two evaluations a step (EDM: Karras et al. 2022, arXiv 2206.00364, algorithm 1).

    In EDM's coordinates x / sqrt(gamma) with the noise sigma = sqrt(1 / gamma - 1); written as weights of x and of the two
    predictions, so that float32 bears a sigma of thousands. The step to the clean level is Euler's, with one evaluation.

    A step from sigma to a fraction of it weights the difference of its two predictions by about sigma / (2 sigma'), whatever
    they are: from gamma = 1e-9 (sigma = 31623) few evaluations give noise, even with the exact prediction (EDM starts at 80).
    """
    signal, noise, _ = parts(levels)
    on_device = levels.to(start.device)

    def predicted(x: Tensor, k: int) -> Tensor:
        return bounded(predict_x0(x, on_device[k].expand(len(x))), bound)

    x = start
    for k in range(len(levels) - 1):
        here = predicted(x, k)
        keep = noise[k + 1] / noise[k]
        share = keep * signal[k] / signal[k + 1]  # of sigma that is left
        gain = signal[k + 1] * (1 - share)
        ahead = combined(Step(keep, (gain,)), x, [here], scale)
        if share == 0:
            x = ahead
        else:
            weights = (gain / (2 * share), gain * (1 - 1 / (2 * share)))
            x = combined(Step(keep, weights), x, [predicted(ahead, k + 1), here], scale)
    return x / scale


def _unified(ratios: Sequence[float], h: float, gain: float, *, ahead: bool) -> tuple[float, ...]:
    """Weights of the predictions, newest first, in a step of UniPC; with `ahead` the newest is the one at the step's end.

    `ratios` are the places of the earlier predictions from the step's start, in steps (negative). The differences to the
    prediction at its start are weighted so that polynomials in lambda are integrated exactly (the paper's eq. 5 and 6).
    """
    places = [*ratios, *([1.0] if ahead else [])]
    if not places:
        return (gain,)
    # phi_(n + 1)(-h) n! / B(-h), by the recurrence of the phi functions.
    phi, factorial, wanted = math.expm1(-h) / -h - 1, 1, []
    for n in range(1, len(places) + 1):
        wanted.append(phi * factorial / math.expm1(-h))
        factorial *= n + 1
        phi = phi / -h - 1 / factorial
    if len(places) == 1:
        rho = [0.5]  # as the paper has it for order 2, where every choice converges alike
    else:
        powers = torch.tensor([[p**n for p in places] for n in range(len(places))], dtype=torch.float64)
        rho = torch.linalg.solve(powers, torch.tensor(wanted, dtype=torch.float64)).tolist()
    on = [gain * r / p for r, p in zip(rho, places, strict=True)]
    start = gain - sum(on)
    return (on[-1], start, *on[:-1]) if ahead else (start, *on)


def _rows(*columns: Tensor) -> list[tuple[float, ...]]:
    return list(zip(*(column.tolist() for column in columns), strict=True))


SAMPLERS: dict[str, Sampler] = {
    "ancestral": ancestral,
    "ddim": ddim,
    "dpmpp_2m": dpmpp_2m,
    "dpmpp_3m_sde": dpmpp_3m_sde,
    "heun": heun,
    "unipc": unipc,
}
"""The samplers by the names that users give them."""


NOISY = ("ddim", "dpmpp_3m_sde")
"""Those that take `eta`."""
LENIENT = ("ancestral", "ddim")
"""Those that bear the same level twice, and one of noise alone."""
NOISIEST = 1e-12
"""Others start at no gamma below it: they divide by the signal, or work in its logarithm."""


def intervals(sampler: str, evaluations: int) -> int:
    """Steps that a sampler takes with at most so many evaluations of the network: Heun's takes two a step but for the last."""
    return (evaluations + 1) // 2 if sampler == "heun" else evaluations


def evaluations(sampler: str, intervals: int) -> int:
    """Evaluations of the network in so many steps of a sampler."""
    return 2 * intervals - 1 if sampler == "heun" else intervals
