"""Model 1: a U-Net autoencoder that regresses the map (Khan 2023, "Predicting Memorable Regions Of Images", model 1)."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from memdist.config import Count, Dropout, Settings, Widths
from memdist.errors import ConfigError
from memdist.model import Loss, Model, Nets, Pair, Sampling, Scratch, Stage, Task, Update
from memdist.nets.unet import DROPPED, UNet

Norm = Literal["batch", "instance", "group", "none"]
Bias = Literal["auto", "never"]


class UNetSettings(Settings):
    """A U-Net from picture to map."""

    channels: Count = 64
    """Channels of the first level, c."""
    multipliers: Widths = (1, 2, 4, 8, 16)
    """Channels of each level in units of c; each level halves the picture, so size must be a multiple of 2**levels."""
    norm: Norm = "batch"
    """Normalisation: batch, instance, group or none."""
    bias: Bias = "auto"
    """auto: convolutions have a bias where the normalisation has none; never: the output layer alone (the public pix2pix)."""
    dropout: Dropout = 0.0
    """Dropout in the decoder levels dropout_levels, probability below 1."""
    dropout_levels: tuple[Annotated[int, Field(ge=0, le=15)], ...] = DROPPED
    """Decoder levels with dropout, 0 the deepest: 0, 1, 2 in the pix2pix paper; 1 .. levels - 5 in its public code."""
    prior: Literal["none", "mean"] = "none"
    """mean: the untrained net predicts the training split's mean map (a fixed logit added before tanh); none: zero plus noise."""

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels of each level."""
        return tuple(self.channels * m for m in self.multipliers)


def build_unet(settings: UNetSettings, task: Task) -> UNet:
    """U-Net for a task, output in (-1, 1)."""
    return UNet(
        task.image_channels,
        task.map_channels,
        settings.widths,
        norm=settings.norm,
        bias=False if settings.bias == "never" else None,
        dropout=settings.dropout,
        dropout_levels=settings.dropout_levels,
        prior=task.mean_map if settings.prior == "mean" else None,
    )


def check_stride(size: int, stride: int, key: str) -> None:
    """Raise a ConfigError when a picture size cannot be halved as often as the network does."""
    if size % stride:
        raise ConfigError(
            f"data.size = {size} does not fit {key}, whose levels halve the picture down by {stride}: "
            f"use a multiple of {stride}, or fewer {key} entries"
        )


def coupling_note(norms: dict[str, str]) -> tuple[str, ...]:
    """What to know of normalisation that couples the pictures of a micro-batch."""
    batch = [net for net, norm in norms.items() if norm == "batch"]
    if not batch:
        return ()
    return (
        f"batch normalisation in {' and '.join(batch)} depends on the micro-batch: other numbers of ranks or micro-batches give "
        "other results (instance, group or none do not)",
    )


class UNetModel(Model):
    """U-Net autoencoder trained on L1."""

    class Config(UNetSettings):
        """Settings of the U-Net autoencoder."""

        name: Literal["unet"] = "unet"
        """The model."""

    networks = ("unet",)
    config: Config

    def __init__(self, config: Config, task: Task) -> None:
        """Check that the picture size can be halved as often as there are levels."""
        super().__init__(config, task)
        check_stride(task.size, 2 ** len(config.multipliers), "model.multipliers")

    @property
    def wants_mean_map(self) -> bool:
        """Only with prior=mean."""
        return self.config.prior == "mean"

    def stage(self) -> Stage:
        """One network, one update."""
        nets: dict[str, nn.Module] = {"unet": build_unet(self.config, self.task)}
        return Stage(nets=nets, updates=(Update(net="unet", loss=self._loss),))

    def averaged(self) -> tuple[str, ...]:
        """The U-Net."""
        return ("unet",)

    def notes(self) -> tuple[str, ...]:
        """Batch normalisation couples pictures."""
        return coupling_note({"the U-Net": self.config.norm})

    def _loss(self, nets: Nets, batch: Pair, _: Scratch) -> Loss:
        value = F.l1_loss(nets["unet"](batch.image).float(), batch.map)
        return Loss(value, {"loss": value.detach()})

    def predict(self, nets: Nets, image: Tensor, seed: Tensor, sampling: Sampling) -> Tensor:
        """Map of a picture, in one pass."""
        return nets["unet"](image).float()
