"""Metrics of predicted maps: one value a picture, each with its formula, range and channel rule.

A prediction and its truth are NCHW floats in [-1, 1] of one shape; every metric answers float32[N]. A value
that the picture leaves undefined is NaN: `summarise` leaves it out of the mean and counts it. Nothing here
waits for the device. torch is imported where tensors are made, so that whoever shows scores can read METRICS
without.

Sums run in float64. What float32 rounding (resizing, tanh) leaves of a flat map is no structure, so a map
whose intensity spans less than FLAT counts as constant, and one whose brightest intensity is below FLAT
counts as black; one step of an 8-bit channel is 1.3e-3.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

FLAT = 1e-6
"""Intensities, in [0, 1], that differ by less than this are the same."""
KL_EPSILON = 2.0**-52
"""The epsilon of the MIT saliency benchmark's KL: float64's machine epsilon, 2.220446e-16."""
CHUNK = 2**17
"""Elements of maps that are scored at once on a CPU."""
PSNR_CAP = 100.0
"""PSNR of identical maps, and of any that are nearly so, in dB: an infinity would swallow every mean."""
SSIM_WINDOW = 11
"""Side of SSIM's Gaussian window, in pixels."""
SSIM_SIGMA = 1.5
"""Standard deviation of SSIM's Gaussian window, in pixels."""


@dataclass(frozen=True)
class Metric:
    """One metric, and what a reader must know to trust its figures.

    function: (prediction, truth), both NCHW in [-1, 1] -> float32[N]; formula: in words and symbols, with
    what is undefined; range: least and greatest value; better: which end is good; channels: what becomes of
    the channels; primary: a score to judge by, rather than one that is only kept beside the others.
    """

    name: str
    function: Callable[[Tensor, Tensor], Tensor]
    formula: str
    range: tuple[float, float]
    better: Literal["lower", "higher"]
    channels: str
    primary: bool


@dataclass(frozen=True)
class Summary:
    """The mean over the `n` pictures whose value is defined (None if none); `undefined` were left out."""

    mean: float | None
    n: int
    undefined: int


def _exact(maps: Tensor) -> Tensor:
    """The maps in float64, or in float32 on Apple's GPUs, which have no other."""
    return maps.float() if maps.device.type == "mps" else maps.double()


def _intensity(maps: Tensor) -> Tensor:
    """NCHW in [-1, 1] -> intensity [N, H * W] in [0, 1]: the channel mean; exactly zero for a black map."""
    intensity = (_exact(maps).mean(dim=1).flatten(1) + 1) / 2
    return intensity.masked_fill(intensity.amax(dim=1, keepdim=True) < FLAT, 0.0)


def _distribution(intensity: Tensor) -> tuple[Tensor, Tensor]:
    """Intensity [N, P] -> the same over its sum (a black map stays zero); whether it is black, bool[N]."""
    total = intensity.sum(dim=1, keepdim=True)
    black = total == 0
    return intensity / total.masked_fill(black, 1.0), black.squeeze(1)


def _centred(intensity: Tensor) -> Tensor:
    # The second pass takes off what the rounded first mean left.
    intensity = intensity - intensity.mean(dim=1, keepdim=True)
    return intensity - intensity.mean(dim=1, keepdim=True)


def l1(prediction: Tensor, truth: Tensor) -> Tensor:
    """Mean absolute difference of maps NCHW in [-1, 1] -> float32[N] in [0, 2]."""
    assert prediction.shape == truth.shape, (prediction.shape, truth.shape)
    return (_exact(prediction) - _exact(truth)).abs().mean(dim=(1, 2, 3)).float()


def cc(prediction: Tensor, truth: Tensor) -> Tensor:
    """Pearson correlation of the intensities of maps NCHW in [-1, 1] -> float32[N]; NaN if one is flat."""
    assert prediction.shape == truth.shape, (prediction.shape, truth.shape)
    x, y = _intensity(prediction), _intensity(truth)
    constant = (x.amax(1) - x.amin(1) < FLAT) | (y.amax(1) - y.amin(1) < FLAT)
    x, y = _centred(x), _centred(y)
    r = (x * y).sum(1) / (x.square().sum(1) * y.square().sum(1)).sqrt()
    return r.masked_fill(constant, math.nan).float()


def sim(prediction: Tensor, truth: Tensor) -> Tensor:
    """Histogram intersection of the intensities of maps NCHW in [-1, 1] -> float32[N], NaN if one is black.

    Unlike the MIT benchmark's, neither map is stretched to its own minimum and maximum first: here black
    means something.
    """
    assert prediction.shape == truth.shape, (prediction.shape, truth.shape)
    (p, p_black), (q, q_black) = _distribution(_intensity(prediction)), _distribution(_intensity(truth))
    return p.minimum(q).sum(1).masked_fill(p_black | q_black, math.nan).float()


def kl(prediction: Tensor, truth: Tensor) -> Tensor:
    """KL(truth || prediction) of the intensities of maps NCHW in [-1, 1] -> float32[N]; NaN for black truths.

    With p and q the intensities of prediction and truth over their sums, in nats: sum q ln(eps + q / (p +
    eps)), eps = KL_EPSILON, as in `KLdiv.m` of the MIT saliency benchmark (Bylinskii et al.). A black
    prediction stays zero, and costs the most; a black truth, to which that code gives a perfect score, has no
    distribution.
    """
    assert prediction.shape == truth.shape, (prediction.shape, truth.shape)
    (p, _), (q, q_black) = _distribution(_intensity(prediction)), _distribution(_intensity(truth))
    divergence = (q * (KL_EPSILON + q / (p + KL_EPSILON)).log()).sum(1)
    return divergence.masked_fill(q_black, math.nan).float()


def psnr(prediction: Tensor, truth: Tensor) -> Tensor:
    """Peak signal-to-noise ratio of maps NCHW in [-1, 1] (range 2) -> float32[N] in dB, at most PSNR_CAP."""
    assert prediction.shape == truth.shape, (prediction.shape, truth.shape)
    mse = (_exact(prediction) - _exact(truth)).square().mean(dim=(1, 2, 3))
    return (10 * (4 / mse).log10()).clamp(max=PSNR_CAP).float()


def _windowed(maps: Tensor) -> Tensor:
    """Gaussian mean over every window that lies inside: [M, H, W] -> [M, H - 10, W - 10]."""
    offsets = np.arange(SSIM_WINDOW) - SSIM_WINDOW // 2
    weights = np.exp(-(offsets**2) / (2 * SSIM_SIGMA**2))
    weights /= weights.sum()
    # Shifted sums, and not a convolution: six times as fast in float64 on a CPU, and never TF32 or autocast.
    for axis in (1, 2):
        inside = maps.shape[axis] - SSIM_WINDOW + 1
        total = maps.narrow(axis, 0, inside) * float(weights[0])
        for shift in range(1, SSIM_WINDOW):
            total.add_(maps.narrow(axis, shift, inside), alpha=float(weights[shift]))
        maps = total
    return maps


def ssim(prediction: Tensor, truth: Tensor) -> Tensor:
    """Structural similarity of maps NCHW in [-1, 1] -> float32[N]; NaN if a side is shorter than SSIM_WINDOW.

    Wang, Bovik, Sheikh and Simoncelli 2004, equation 13: maps as [0, 1] (L = 1), K1 = 0.01, K2 = 0.03,
    Gaussian window, population covariances, only windows that lie inside the map; the mean over windows and
    channels.
    """
    assert prediction.shape == truth.shape, (prediction.shape, truth.shape)
    n, _, height, width = prediction.shape
    if min(height, width) < SSIM_WINDOW:
        return prediction.new_full((n,), math.nan).float()
    x, y = (((_exact(maps) + 1) / 2).flatten(0, 1) for maps in (prediction, truth))
    c1, c2 = 0.01**2, 0.03**2
    mx, my = _windowed(x), _windowed(y)
    vx, vy, cov = _windowed(x * x) - mx * mx, _windowed(y * y) - my * my, _windowed(x * y) - mx * my
    index = (2 * mx * my + c1) * (2 * cov + c2) / ((mx * mx + my * my + c1) * (vx + vy + c2))
    return index.view(n, -1).mean(1).float()


_INTENSITY = "intensity: the channel mean, mapped to [0, 1]"
_ALL = (
    Metric(
        name="l1",
        function=l1,
        formula="mean |prediction - truth|, in units of [-1, 1]",
        range=(0.0, 2.0),
        better="lower",
        channels="mean over channels and pixels",
        primary=True,
    ),
    Metric(
        name="cc",
        function=cc,
        formula="Pearson correlation of the two intensities; undefined if either spans less than 1e-6",
        range=(-1.0, 1.0),
        better="higher",
        channels=_INTENSITY,
        primary=True,
    ),
    Metric(
        name="sim",
        function=sim,
        formula="sum min(p, q), with p and q the intensities of prediction and truth over their sums (without"
        " stretching them first); undefined if either map is black",
        range=(0.0, 1.0),
        better="higher",
        channels=_INTENSITY,
        primary=True,
    ),
    Metric(
        name="kl",
        function=kl,
        formula="KL(truth || prediction) = sum q ln(eps + q / (p + eps)), with p and q the intensities of"
        " prediction and truth over their sums and eps = 2.220446e-16, in nats; undefined if the truth is black",
        range=(0.0, -math.log(KL_EPSILON)),
        better="lower",
        channels=_INTENSITY,
        primary=True,
    ),
    Metric(
        name="psnr",
        function=psnr,
        formula="10 log10(2^2 / mean (prediction - truth)^2), in dB, at most 100 (identical maps)",
        range=(0.0, PSNR_CAP),
        better="higher",
        channels="mean square over channels and pixels",
        primary=False,
    ),
    Metric(
        name="ssim",
        function=ssim,
        formula="structural similarity (Wang et al. 2004) of the maps in [0, 1]: 11 x 11 Gaussian window of sigma"
        " 1.5 inside the map, K1 = 0.01, K2 = 0.03, L = 1; undefined if a side is shorter than 11",
        range=(-1.0, 1.0),
        better="higher",
        channels="each channel alone, then their mean",
        primary=False,
    ),
)
METRICS: Mapping[str, Metric] = {metric.name: metric for metric in _ALL}
"""Every metric by name, in the order in which scores are shown."""


def score(prediction: Tensor, truth: Tensor) -> dict[str, Tensor]:
    """All METRICS of maps NCHW in [-1, 1]: name -> float32[N], on the maps' device, NaN where undefined."""
    import torch

    # A CPU is eight times as fast on pictures that fit its caches; the values are a picture's own either way.
    few = max(1, CHUNK // prediction[0].numel()) if prediction.device.type == "cpu" else len(prediction)
    parts = list(zip(torch.split(prediction, few), torch.split(truth, few), strict=True))
    return {name: torch.cat([metric.function(p, t) for p, t in parts]) for name, metric in METRICS.items()}


def summarise(values: NDArray[np.floating]) -> Summary:
    """Average per-picture values, floating [N], over those that are not NaN, and count both kinds."""
    assert values.ndim == 1, values.shape
    defined = values[~np.isnan(values)]
    mean = float(defined.mean(dtype=np.float64)) if len(defined) else None
    return Summary(mean=mean, n=len(defined), undefined=len(values) - len(defined))


def resize(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """Bring maps NCHW in [-1, 1] to (height, width) `size`, still in [-1, 1]; at that size they are only clamped.

    Bilinear, antialiased when shrinking, corners not aligned.
    """
    from torch.nn.functional import interpolate

    if tuple(maps.shape[-2:]) != size:
        maps = interpolate(maps, size=size, mode="bilinear", antialias=True, align_corners=False)
    return maps.clamp(-1.0, 1.0)
