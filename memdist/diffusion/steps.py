"""What samplers are made of: bounded predictions, and steps that are linear in x and in predictions.

Weights are floats, computed before the first step; nothing here waits for the device.
"""

from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from memdist import draws

PredictX0 = Callable[[Tensor, Tensor], Tensor]
"""(x_t [N, C, H, W], gamma [N]) -> clean map [N, C, H, W]."""

Bound = Literal["clamp", "threshold", "none"]
"""clamp: to [-1, 1]; threshold: beyond the 99.5th percentile s of a map's sizes, if s > 1, cut and divided by s (Saharia et
al. 2022, arXiv 2205.11487, section 2.3); none: as it is."""

PERCENTILE = 0.995


class Step(NamedTuple):
    """x <- keep * x + sum of weights[j] * b * x_0, predicted j evaluations ago + noise * a standard normal."""

    keep: float
    weights: tuple[float, ...]
    noise: float = 0.0


def bounded(clean: Tensor, bound: Bound) -> Tensor:
    """Bring predicted clean maps [N, C, H, W] into [-1, 1], or leave them."""
    if bound == "none":
        return clean
    if bound == "clamp":
        return clean.clamp(-1, 1)
    largest = (
        torch.quantile(clean.abs().flatten(1).float(), PERCENTILE, dim=1).clamp_min(1).to(clean)[:, None, None, None]
    )
    return clean.clamp(-largest, largest) / largest


def linear(
    predict_x0: PredictX0,
    x: Tensor,
    levels: Tensor,
    steps: Sequence[Step],
    seed: Tensor,
    scale: float,
    bound: Bound,
    corrections: Sequence[Step] = (),
) -> Tensor:
    """Run steps that are linear in x and the predictions; correction k does step k over, once the next prediction is there."""
    on_device = levels.to(x.device)
    predicted: list[Tensor] = []
    before = x
    for k, step in enumerate(steps):
        predicted.insert(0, bounded(predict_x0(x, on_device[k].expand(len(x))), bound))
        if 0 < k <= len(corrections):
            x = combined(corrections[k - 1], before, predicted, scale)
        before = x
        x = combined(step, x, predicted, scale)
        if step.noise > 0:
            x = x + step.noise * draws.normal(seed, f"sample/{k}", tuple(x.shape[1:])).to(x.dtype)
        del predicted[3:]
    return x / scale


def combined(step: Step, x: Tensor, predicted: Sequence[Tensor], scale: float) -> Tensor:
    """Take one step from x [N, C, H, W], the predictions newest first; without its noise."""
    x = step.keep * x
    for weight, clean in zip(step.weights, predicted, strict=False):
        if weight:
            x = x + (weight * scale) * clean
    return x


def parts(levels: Tensor) -> tuple[list[float], list[float], list[float]]:
    """Weights of signal and noise in x_t, and half the log-SNR, of each level; infinite at a clean one."""
    gamma = levels.double()
    signal, noise = gamma.sqrt(), (1 - gamma).sqrt()
    return signal.tolist(), noise.tolist(), (signal.log() - noise.log()).tolist()
