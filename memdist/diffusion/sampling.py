"""Samplers: one pure function each, named after its paper.

All are called alike: `sampler(predict_x0, start, levels, seed=...)`.

- `predict_x0(x, level)` gives the clean map [N, C, H, W] for x_t [N, C, H, W] at the noise levels [N], which
  come in the type of `levels` and on the device of x. It holds the network, the condition and the kind of
  prediction; it is called `len(levels) - 1` times.
- `start` [N, C, H, W] is the noise to begin with, float32 or float64, on the device.
- `levels` [K + 1] are increasing gammas on the host, the last one 1 (`schedule.levels`).
- `seed` int64 [N], the items' own, on the device: the noise of step k is `draws.normal(seed, f"sample/{k}",
  ...)`, so that a map does not depend on the batch it was sampled in.
- `scale` is the input scale b of the schedule. With `clip`, predicted clean maps are clamped to [-1, 1] and
  the direction of the step follows the clamped map.

The answer is x at the last level divided by b: the clean map. All coefficients are computed before the loop,
in float64 on the host; nothing in the loop waits for the device. Call them under `torch.inference_mode()` or
`torch.no_grad()`.
"""

from collections.abc import Callable, Iterable
from typing import Protocol

from torch import Tensor

from memdist import draws
from memdist.diffusion.schedule import posterior_weights

PredictX0 = Callable[[Tensor, Tensor], Tensor]
"""(x_t [N, C, H, W], gamma [N]) -> clean map [N, C, H, W]."""


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
        clip: bool = True,
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
    clip: bool = True,
) -> Tensor:
    """Sample from the posteriors q(x_s | x_t, x_0), one after the other (DDPM, arXiv 2006.11239).

    Ho et al. 2020, algorithm 2, with the posterior's variance (eq. 7), between any two levels; the step to
    the clean level adds no noise.
    """
    on_noisy, on_clean, variance = posterior_weights(levels[:-1], levels[1:])
    return _affine(predict_x0, start, levels, on_noisy, on_clean, variance.sqrt(), seed, scale, clip)


def ddim(
    predict_x0: PredictX0,
    start: Tensor,
    levels: Tensor,
    *,
    seed: Tensor,
    eta: float = 0.0,
    scale: float = 1.0,
    clip: bool = True,
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
    return _affine(predict_x0, start, levels, on_noisy, on_clean, deviation, seed, scale, clip)


def _affine(
    predict_x0: PredictX0,
    x: Tensor,
    levels: Tensor,
    on_noisy: Tensor,
    on_clean: Tensor,
    deviation: Tensor,
    seed: Tensor,
    scale: float,
    clip: bool,
) -> Tensor:
    """Run the steps x <- on_noisy * x + on_clean * b * x_0 + deviation * noise, whose weights are [K] on the host."""
    steps: Iterable[tuple[float, float, float]] = zip(
        on_noisy.tolist(), on_clean.tolist(), deviation.tolist(), strict=True
    )
    on_device = levels.to(x.device)
    for k, (keep, add, noise) in enumerate(steps):
        x0 = predict_x0(x, on_device[k].expand(len(x)))
        if clip:
            x0 = x0.clamp(-1, 1)
        x = keep * x + (add * scale) * x0
        if noise > 0:
            x = x + noise * draws.normal(seed, f"sample/{k}", tuple(x.shape[1:])).to(x.dtype)
    return x / scale


SAMPLERS: dict[str, Sampler] = {"ancestral": ancestral, "ddim": ddim}
"""The samplers by the names that users give them."""
