"""Model 3: Palette, diffusion of the map conditioned on the picture (Saharia et al. 2021, arXiv 2111.05826; Khan 2023)."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from memdist import draws
from memdist.config import Count, Dropout, Positive, Settings
from memdist.diffusion import sampling as samplers
from memdist.diffusion import schedule
from memdist.diffusion.schedule import Prediction
from memdist.errors import ConfigError
from memdist.model import Loss, Model, Nets, Pair, Sampling, Scratch, Stage, Task, Update
from memdist.models.unet import check_stride
from memdist.nets.palette_unet import GuidedUNet
from memdist.nets.sr3_unet import SR3UNet

_ENDS = {"linear_beta": (1e-6, 1e-2), "quad_beta": (1e-6, 1e-2), "cosine": (0.0, 1.0), "sigmoid": (-3.0, 3.0)}
"""Where `start` and `end` of a schedule stand unless they are set; others have none."""
_LIMITS = {"linear_beta": (0, 1), "quad_beta": (0, 1), "cosine": (0, 1), "sigmoid": (-100, 100)}
"""Between which values they lie; variances (beta) do not reach them."""


class NoiseSchedule(Settings):
    """Noise levels that are trained: gamma falls from clean (1) to noise (0)."""

    name: Literal["linear_beta", "quad_beta", "cosine_beta", "linear", "cosine", "sigmoid"] = "linear_beta"
    """linear_beta: variances from start to end (DDPM, Palette); quad_beta: their square roots; cosine_beta: that of Nichol and
    Dhariwal 2021; linear, cosine, sigmoid: gamma(t) of Chen 2023 (arXiv 2301.10972)."""
    steps: Annotated[int, Field(ge=2, le=10**6)] = 2000
    """Trained noise steps, >= 2."""
    start: float | None = None
    """linear_beta, quad_beta: first variance (1e-6); cosine: 0; sigmoid: -3; others have none."""
    end: float | None = None
    """linear_beta, quad_beta: last variance (0.01); cosine: 1; sigmoid: 3; others have none."""
    temperature: Positive = 1.0
    """cosine and sigmoid: tau of Chen 2023, > 0."""

    @model_validator(mode="after")
    def _fits(self) -> NoiseSchedule:
        if self.name not in _ENDS and (self.start is not None or self.end is not None):
            raise ValueError(f"without start and end: the {self.name} schedule has none")
        if self.name not in ("cosine", "sigmoid") and self.temperature != 1.0:
            raise ValueError(f"without temperature, which belongs to cosine and sigmoid and not to {self.name}")
        if self.name in _ENDS:
            start, end = self.ends
            low, high = _LIMITS[self.name]
            inside = low <= start < end <= high
            if not inside or (self.name.endswith("_beta") and (start == low or end == high)):
                raise ValueError(f"start < end between {low} and {high} for {self.name}, not {start} and {end}")
        table = self.table()
        if not (
            bool(table.isfinite().all()) and bool((table.diff() <= 0).all()) and float(table[0]) > float(table[-1])
        ):
            raise ValueError(
                "start, end and temperature between which the noise level falls: this schedule is flat or undefined"
            )
        return self

    @property
    def ends(self) -> tuple[float, float]:
        """Start and end, or what they are unless set."""
        start, end = _ENDS[self.name]
        return (start if self.start is None else self.start, end if self.end is None else self.end)

    def table(self) -> Tensor:
        """Trained levels, cleanest first: float64 [steps], decreasing."""
        if self.name == "cosine_beta":
            return schedule.cosine_beta(self.steps)
        if self.name.endswith("_beta"):
            variances = schedule.linear_beta if self.name == "linear_beta" else schedule.quad_beta
            return variances(self.steps, *self.ends)
        times = schedule.times(self.steps)
        if self.name == "linear":
            return schedule.linear(times)
        start, end = self.ends
        curve = schedule.cosine if self.name == "cosine" else schedule.sigmoid
        return curve(times, start=start, end=end, temperature=self.temperature)


class Palette(Model):
    """Palette diffusion: U-Net on picture and noisy map, conditioned on the noise level."""

    class Config(Settings):
        """Settings of the diffusion model."""

        name: Literal["palette"] = "palette"
        """The model."""
        net: Literal["guided", "sr3"] = "guided"
        """guided: the guided-diffusion U-Net (Palette's); sr3: that of SR3."""
        channels: Count = 64
        """Channels that multipliers count in."""
        multipliers: Annotated[
            tuple[Annotated[int, Field(ge=1, le=1024)] | Annotated[float, Field(gt=0, le=1024)], ...],
            Field(min_length=1, max_length=16),
        ] = (1, 2, 4, 8)
        """Channels of each level in units of `channels`, cut to whole ones; each level but the last halves the picture."""
        blocks: Count = 2
        """Residual blocks a level."""
        attention: tuple[Count, ...] = (16,)
        """Side lengths in pixels of the levels with self-attention, never rates; the middle always has it."""
        head_channels: Count = 32
        """guided only: channels of an attention head."""
        heads: Count | None = None
        """guided only: heads of each attention, however wide it is; null: as many as head_channels makes."""
        scale_shift: bool = True
        """guided only: the noise level scales and shifts normalised features; false: it is added before the normalisation."""
        resample: Literal["block", "conv", "pool"] = "block"
        """guided only: pictures are halved and doubled by residual blocks, by convolutions, or by mean and repetition alone."""
        norm_groups: Count = 32
        """sr3 only: groups of its normalisation, a divisor of channels."""
        dropout: Dropout = 0.0
        """Dropout in residual blocks, probability below 1."""
        schedule: NoiseSchedule = NoiseSchedule()
        """Noise levels."""
        scale: Positive = 1.0
        """Input scale b of Chen 2023: less than 1 makes each level noisier."""
        normalise_input: bool = True
        """Divide what the network sees by its standard deviation, where scale is not 1 (Chen 2023, section 2.2)."""
        prediction: Prediction = "epsilon"
        """What the network predicts: epsilon (the noise), x0 (the map) or v (Salimans and Ho 2022, arXiv 2202.00512)."""

    networks = ("denoiser",)
    scores = ("loss",)
    samples = True
    config: Config

    def __init__(self, config: Config, task: Task) -> None:
        """Check that the network takes the picture size and the attention resolutions."""
        super().__init__(config, task)
        check_stride(task.size, 2 ** (len(config.multipliers) - 1), "model.multipliers")
        with torch.device("meta"):
            self._denoiser()
        self._table = config.schedule.table()
        self._tables: dict[torch.device, Tensor] = {}

    def _denoiser(self) -> nn.Module:
        c, task = self.config, self.task
        channels = task.image_channels + task.map_channels
        common: dict[str, Any] = {
            "image_size": task.size,
            "channels": c.channels,
            "multipliers": c.multipliers,
            "blocks": c.blocks,
            "attention": c.attention,
            "dropout": c.dropout,
        }
        if c.net == "sr3":
            return SR3UNet(channels, task.map_channels, norm_groups=c.norm_groups, **common)
        common |= {"head_channels": c.head_channels, "heads": c.heads}
        return GuidedUNet(channels, task.map_channels, scale_shift=c.scale_shift, resample=c.resample, **common)

    def stage(self) -> Stage:
        """One network, one update."""
        return Stage(nets={"denoiser": self._denoiser()}, updates=(Update(net="denoiser", loss=self._loss),))

    def averaged(self) -> tuple[str, ...]:
        """The denoiser."""
        return ("denoiser",)

    def _on(self, device: torch.device) -> Tensor:
        """The noise table on a device, in float64 where the device has it."""
        if device not in self._tables:
            self._tables[device] = self._table.float().to(device) if device.type == "mps" else self._table.to(device)
        return self._tables[device]

    def _output(self, nets: Nets, image: Tensor, noisy: Tensor, gamma: Tensor) -> Tensor:
        seen = noisy
        if self.config.normalise_input and self.config.scale != 1:
            seen = schedule.normalised(noisy, gamma, scale=self.config.scale)
        return nets["denoiser"](torch.cat((image, seen), dim=1), gamma.float()).float()

    def _errors(self, nets: Nets, batch: Pair) -> Tensor:
        """Squared error of the prediction at one noise level a picture, from its seed: float32 [N]."""
        c = self.config
        gamma = schedule.draw(self._on(batch.map.device), batch.seed)
        noise = draws.normal(batch.seed, "noise", tuple(batch.map.shape[1:]))
        noisy = schedule.diffuse(batch.map, noise, gamma, scale=c.scale)
        wanted = schedule.target(c.prediction, batch.map, noise, gamma, scale=c.scale)
        return (self._output(nets, batch.image, noisy, gamma) - wanted).square().mean(dim=(1, 2, 3))

    def _loss(self, nets: Nets, batch: Pair, _: Scratch) -> Loss:
        value = self._errors(nets, batch).mean()
        return Loss(value, {"loss": value.detach()})

    def score(self, nets: Nets, batch: Pair) -> dict[str, Tensor]:
        """Denoising error at a level and a noise that belong to the picture."""
        return {"loss": self._errors(nets, batch)}

    def check(self, sampling: Sampling) -> None:
        """Raise a ConfigError for an unknown sampler, more steps than were trained, or what the sampler cannot do."""
        name = sampling.sampler
        if name not in samplers.SAMPLERS:
            raise ConfigError(f"there is no sampler {name!r}; choose one of {', '.join(samplers.SAMPLERS)}")
        if sampling.steps > len(self._table):
            # Heun's sampler takes two evaluations a level: counted by levels it would bear more, and be told of half as many.
            raise ConfigError(
                f"{sampling.steps} sampling steps are asked for, but the noise table has {len(self._table)} trained levels: "
                f"choose from 1 to {len(self._table)} steps."
            )
        if sampling.eta is not None and name not in samplers.NOISY:
            raise ConfigError(f"eta belongs to {' and '.join(samplers.NOISY)} and not to {name}: leave it out")
        levels = self._levels(sampling)
        if name not in samplers.LENIENT and levels[0] < samplers.NOISIEST:
            raise ConfigError(
                f"{name} cannot start at the noise table's last level, {levels[0]:.1g}, where the log-SNR has no end: use "
                "eval.spacing=snr or karras, or the sampler ddim or ancestral"
            )
        if name not in samplers.LENIENT and not bool((levels.diff() > 0).all()):
            raise ConfigError(
                f"{name} cannot take {sampling.steps} steps with spacing {sampling.spacing}, as the noise table is flat in "
                "places: use another spacing, fewer steps, or the sampler ddim"
            )

    def evaluations(self, sampling: Sampling) -> int:
        """As many as steps; Heun's sampler takes one fewer of an even number."""
        return samplers.evaluations(sampling.sampler, samplers.intervals(sampling.sampler, sampling.steps))

    def slowest(self) -> Sampling:
        """All trained steps, ancestral: what the papers report."""
        return Sampling(sampler="ancestral", steps=len(self._table))

    def _levels(self, sampling: Sampling) -> Tensor:
        steps = samplers.intervals(sampling.sampler, sampling.steps)
        return schedule.levels(self._table, steps, sampling.spacing)

    def predict(self, nets: Nets, image: Tensor, seed: Tensor, sampling: Sampling) -> Tensor:
        """Sample a map from noise that belongs to the picture."""
        c = self.config
        levels = self._levels(sampling)
        levels = levels.float() if image.device.type == "mps" else levels

        def predict_x0(x: Tensor, gamma: Tensor) -> Tensor:
            return schedule.to_x0(c.prediction, self._output(nets, image, x, gamma), x, gamma, scale=c.scale)

        start = draws.normal(seed, "start", (self.task.map_channels, *image.shape[2:]))
        own = {} if sampling.eta is None else {"eta": sampling.eta}
        sample = samplers.SAMPLERS[sampling.sampler]
        return sample(predict_x0, start, levels, seed=seed, scale=c.scale, bound=sampling.bound, **own)
