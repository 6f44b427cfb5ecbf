"""Noise tables, and everything that is computed from a noise level.

A noise level is gamma (alpha-bar in DDPM): x_t = sqrt(gamma) * b * x_0 + sqrt(1 - gamma) * epsilon, where b,
the input scale of Chen 2023, is `scale` here. gamma = 1 is clean, gamma = 0 is noise. A table is a decreasing
float64 tensor [T] of the levels that are trained.

Levels are float64 wherever the device has it: 1 - gamma loses up to 6 % in float32 at the clean end of
Palette's table. What follows from a level is computed in the level's own type and only then brought to that
of the pictures.

Sources: DDPM (Ho et al. 2020, arXiv 2006.11239); WaveGrad (Chen et al. 2020, arXiv 2009.00713); progressive
distillation (Salimans & Ho 2022, arXiv 2202.00512); noise scheduling (Chen 2023, arXiv 2301.10972).
"""

import math
from typing import Literal

import torch
from torch import Tensor

from memdist import draws
from memdist.errors import ConfigError

Prediction = Literal["epsilon", "x0", "v"]
"""What a network predicts: noise, clean map, or v = sqrt(gamma) * epsilon - sqrt(1 - gamma) * b * x_0."""

Spacing = Literal["time", "snr", "karras"]
"""How the levels of a sampler are spread: evenly in the table's index, in log(gamma / (1 - gamma)), or in sigma^(1/7) with
sigma = sqrt(1 / gamma - 1) (EDM: Karras et al. 2022, arXiv 2206.00364, eq. 5)."""

RHO = 7
"""EDM's exponent of sigma."""

CLIP = 1e-9
"""The smallest gamma of Chen's functions."""

_SMALLEST = 1e-12  # Divisors are kept above this, so that levels of exactly 0 and 1 give finite numbers.


def linear_beta(steps: int, start: float = 1e-6, end: float = 1e-2) -> Tensor:
    """Table [steps] of variances beta in (0, 1) that grow linearly from `start` to `end` (DDPM; Palette's values)."""
    beta = torch.linspace(start, end, steps, dtype=torch.float64)
    return torch.cumprod(1 - beta, dim=0)


def quad_beta(steps: int, start: float = 1e-6, end: float = 1e-2) -> Tensor:
    """Table [steps] of variances in (0, 1) whose square roots grow linearly (the public Palette's quad)."""
    beta = torch.linspace(start**0.5, end**0.5, steps, dtype=torch.float64) ** 2
    return torch.cumprod(1 - beta, dim=0)


def cosine_beta(steps: int, offset: float = 8e-3, largest: float = 0.999) -> Tensor:
    """Table [steps] of cos^2((t + offset) / (1 + offset) * pi/2), no variance above `largest`.

    Nichol and Dhariwal 2021 (arXiv 2102.09672, section 3.2) in the public Palette's form.
    """
    time = torch.arange(steps + 1, dtype=torch.float64) / steps + offset
    curve = (time / (1 + offset) * (math.pi / 2)).cos() ** 2
    beta = (1 - curve[1:] / curve[:-1]).clamp_max(largest)
    return torch.cumprod(1 - beta, dim=0)


def times(steps: int) -> Tensor:
    """Times 1/steps, 2/steps, ..., 1, float64 [steps]: the functions of time below make a table of them."""
    return torch.arange(1, steps + 1, dtype=torch.float64) / steps


def linear(time: Tensor, *, clip: float = CLIP) -> Tensor:
    """Noise levels that fall evenly as time goes from 0 to 1, never below `clip` (Chen 2023, section 2.1)."""
    return (1 - time).clamp(clip, 1)


def cosine(
    time: Tensor, *, start: float = 0.0, end: float = 1.0, temperature: float = 1.0, clip: float = CLIP
) -> Tensor:
    """Noise level at times t in [0, 1] from cos(s * pi/2) ** (2 * temperature) (Chen 2023, section 2.1).

    s runs from `start` to `end`; the curve is moved and stretched to go from 1 to 0, and kept above `clip`.
    """

    def curve(position: Tensor) -> Tensor:
        # cos(pi/2) is 6e-17, and could be below 0: a broken temperature would make that NaN.
        return (position * (math.pi / 2)).cos().clamp_min(0) ** (2 * temperature)

    return _stretched(curve(_along(time, start, end)), curve(_ends(start, end)), clip)


def sigmoid(
    time: Tensor, *, start: float = -3.0, end: float = 3.0, temperature: float = 1.0, clip: float = CLIP
) -> Tensor:
    """Noise level at times t in [0, 1] from a falling logistic curve of s / temperature (Chen 2023, section 2.1).

    s runs from `start` to `end`; the curve is moved and stretched to go from 1 to 0, and kept above `clip`.
    """

    def curve(position: Tensor) -> Tensor:
        return torch.sigmoid(-position / temperature)

    return _stretched(curve(_along(time, start, end)), curve(_ends(start, end)), clip)


def draw(table: Tensor, seed: Tensor, stream: str = "level") -> Tensor:
    """Draw a noise level for each item: [N] in the table's type, from int64 seeds [N] on the table's device.

    A neighbouring pair of the table is drawn, then a gamma uniformly between the two (WaveGrad, section 3.2;
    Palette), so that every level from the table's first to its last is trained and none beyond. The table has
    at least 2 levels.
    """
    choice, fraction = draws.uniform(seed, stream, (2,)).unbind(1)
    index = (choice * (len(table) - 1)).long()
    cleaner, noisier = table[index], table[index + 1]
    return cleaner + (noisier - cleaner) * fraction


def levels(table: Tensor, steps: int, spacing: Spacing = "time") -> Tensor:
    """Noise levels of a sampler: `steps` from the table, then 1 (clean); float64 [steps + 1], increasing.

    `steps` is the number of network evaluations; each is at one of the first `steps` levels, which all lie
    within what was trained: the first is the noisiest of the table, none is noisier or cleaner than its ends.
    (A table of its own for sampling, as in the public Palette, asks the network for levels it never saw.)
    With spacing `time` they are entries of the table, T/steps apart from its noisy end; with `snr` and `karras`
    they reach from end to end. Raises ConfigError when `steps` is not between 1 and the length of the table.
    """
    if not 1 <= steps <= len(table):
        raise ConfigError(
            f"{steps} sampling steps are asked for, but the noise table has {len(table)} trained levels: "
            f"choose from 1 to {len(table)} steps."
        )
    table = table.double().cpu()
    if spacing == "time":
        # ceil(T * k / steps) in integers, for k = steps ... 1: rounding errors cannot make two levels the same.
        chosen = table[[-(-len(table) * k // steps) - 1 for k in range(steps, 0, -1)]]
    else:
        # A log-SNR is infinite at either end; a table may come as near as float64 goes, or reach it.
        finite = table[(table > _SMALLEST) & (1 - table > _SMALLEST)]
        if not len(finite):
            raise ConfigError(f"spacing {spacing} cannot be: no level of the noise table lies between clean and noise")
        noisiest, cleanest = finite[-1], finite[0]
        first, last = _spread(spacing, torch.stack((noisiest, cleanest)))
        chosen = _gathered(spacing, first + torch.linspace(0, 1, steps, dtype=torch.float64) * (last - first))
        chosen[-1], chosen[0] = cleanest, noisiest  # rounding must not carry the ends out of what was trained
    return torch.cat((chosen, torch.ones(1, dtype=torch.float64)))


def diffuse(clean: Tensor, noise: Tensor, gamma: Tensor, *, scale: float = 1.0) -> Tensor:
    """Noise clean maps [N, C, H, W] to levels gamma [N]: x_t of Chen 2023, section 2.2 (DDPM, eq. 4, at scale 1)."""
    signal, deviation = _parts(gamma, clean)
    return (signal * scale).to(clean) * clean + deviation.to(clean) * noise


def normalised(noisy: Tensor, gamma: Tensor, *, scale: float) -> Tensor:
    """Divide x_t [N, C, H, W] by its deviation at levels gamma [N], that of clean maps taken as 1.

    That is sqrt((b^2 - 1) * gamma + 1) (Chen 2023, section 2.2), 1 at b = 1. It is for the network's eyes
    only. The paper also divides by the deviation measured on each picture; a nearly black map at little noise
    would explode by that.
    """
    gamma = _shaped(gamma, noisy)
    return noisy / ((scale**2 - 1) * gamma + 1).sqrt().to(noisy)


def target(prediction: Prediction, clean: Tensor, noise: Tensor, gamma: Tensor, *, scale: float = 1.0) -> Tensor:
    """What a network should answer that predicts `prediction`, for maps diffused with `noise` to gamma [N]."""
    if prediction == "epsilon":
        return noise
    if prediction == "x0":
        return clean
    signal, deviation = _parts(gamma, clean)
    return signal.to(clean) * noise - (deviation * scale).to(clean) * clean


def to_x0(prediction: Prediction, output: Tensor, noisy: Tensor, gamma: Tensor, *, scale: float = 1.0) -> Tensor:
    """Clean map from a network's output on x_t [N, C, H, W] at levels gamma [N]; not clipped.

    From `epsilon` the map grows without bound as gamma goes to 0, where the noise says nothing of it; `v` is
    exact at both ends (Salimans & Ho 2022, appendix D).
    """
    if prediction == "x0":
        return output
    signal, deviation = _parts(gamma, noisy)
    if prediction == "epsilon":
        return (noisy - deviation.to(noisy) * output) / (signal * scale).clamp_min(_SMALLEST).to(noisy)
    return (signal / scale).to(noisy) * noisy - (deviation / scale).to(noisy) * output


def to_epsilon(prediction: Prediction, output: Tensor, noisy: Tensor, gamma: Tensor, *, scale: float = 1.0) -> Tensor:
    """Noise from a network's output on x_t [N, C, H, W] at levels gamma [N].

    From `x0` it is ill-conditioned as gamma goes to 1, where there is no noise left to see; `v` is exact at
    both ends.
    """
    if prediction == "epsilon":
        return output
    signal, deviation = _parts(gamma, noisy)
    if prediction == "x0":
        return (noisy - (signal * scale).to(noisy) * output) / deviation.clamp_min(_SMALLEST).to(noisy)
    return deviation.to(noisy) * noisy + signal.to(noisy) * output


def posterior_weights(gamma: Tensor, cleaner: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Weights of x_t and of b * x_0 in the mean of q(x_s | x_t, x_0), and its variance.

    DDPM, eq. 6 and 7, between any two levels 0 <= gamma <= cleaner with 0 < cleaner: alpha_t becomes gamma /
    cleaner. Between clean and clean the step is the identity, and to a clean level it ends at x_0 without
    noise.
    """
    kept = gamma / cleaner
    added = (cleaner - gamma) / cleaner  # 1 - kept, without the cancellation
    noise, rest = 1 - gamma, 1 - cleaner
    divisor = torch.where(noise > 0, noise, 1)
    left = torch.where(noise > 0, rest / divisor, 1)
    return kept.sqrt() * left, cleaner.sqrt() * added / divisor, added * left


def posterior(
    x0: Tensor, noisy: Tensor, gamma: Tensor, cleaner: Tensor, *, scale: float = 1.0
) -> tuple[Tensor, Tensor]:
    """Mean [N, C, H, W] and variance [N, 1, 1, 1] of q(x_s | x_t, x_0), from gamma [N] to cleaner [N].

    DDPM, eq. 6 and 7. The public Palette takes the log of the variance and clips it at 1e-20; here it is 0
    where it is 0.
    """
    on_noisy, on_clean, variance = posterior_weights(_shaped(gamma, noisy), _shaped(cleaner, noisy))
    return on_noisy.to(noisy) * noisy + (on_clean * scale).to(noisy) * x0, variance.to(noisy)


def _spread(spacing: Spacing, gamma: Tensor) -> Tensor:
    """Where levels stand on the axis on which they are evenly spaced."""
    return torch.logit(gamma) if spacing == "snr" else ((1 - gamma) / gamma) ** (0.5 / RHO)


def _gathered(spacing: Spacing, place: Tensor) -> Tensor:
    """Levels that stand at places of that axis."""
    return torch.sigmoid(place) if spacing == "snr" else 1 / (1 + place ** (2 * RHO))


def _shaped(gamma: Tensor, pictures: Tensor) -> Tensor:
    return gamma.reshape(gamma.shape + (1,) * (pictures.ndim - gamma.ndim))


def _parts(gamma: Tensor, pictures: Tensor) -> tuple[Tensor, Tensor]:
    """Weights of signal and noise in x_t at scale 1, broadcast over the pictures, in gamma's type."""
    gamma = _shaped(gamma, pictures)
    return gamma.sqrt(), (1 - gamma).sqrt()


def _along(time: Tensor, start: float, end: float) -> Tensor:
    return start + time * (end - start)


def _ends(start: float, end: float) -> Tensor:
    return torch.tensor((start, end), dtype=torch.float64)


def _stretched(curve: Tensor, ends: Tensor, clip: float) -> Tensor:
    first, last = ends
    return ((curve - last) / (first - last)).clamp(clip, 1)
