"""Model 2: a conditional GAN after pix2pix (Isola et al. 2017, arXiv 1611.07004; Khan 2023, model 2)."""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from memdist import draws
from memdist.config import Count, Positive, Settings, Widths
from memdist.errors import ConfigError
from memdist.model import Floor, Loss, Model, Nets, Pair, Sampling, Scratch, Stage, Task, Update
from memdist.models.unet import Bias, Norm, UNetSettings, build_unet, check_stride, coupling_note
from memdist.nets.patchgan import PatchGAN


class Discriminator(Settings):
    """A PatchGAN on picture and map: a grid of logits, one a patch."""

    channels: Count = 64
    """Channels of the first layer, c."""
    multipliers: Widths = (1, 2, 4, 8, 16)
    """Channels of each layer in units of c; all but the last halve the grid (pix2pix itself: 1, 2, 4, 8 with flat_kernel 4)."""
    norm: Norm = "batch"
    """Normalisation: batch, instance, group or none."""
    bias: Bias = "auto"
    """auto: convolutions have a bias where the normalisation has none; never: the first and the last alone (public pix2pix)."""
    flat_kernel: Literal[3, 4] = 3
    """Kernel of the layers that do not halve: 3 keeps the grid (64x64 to 4x4 patches), 4 is pix2pix's (256x256 to 30x30)."""

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels of each layer."""
        return tuple(self.channels * m for m in self.multipliers)


class Pix2Pix(Model):
    """Conditional GAN: U-Net generator, PatchGAN discriminator, L1."""

    class Config(Settings):
        """Settings of the conditional GAN."""

        name: Literal["pix2pix"] = "pix2pix"
        """The model."""
        generator: UNetSettings = UNetSettings()
        """Picture to map."""
        discriminator: Discriminator = Discriminator()
        """Picture and map to logits."""
        loss: Literal["lsgan", "vanilla", "wasserstein"] = "lsgan"
        """lsgan: squared distance of logits to 0 and 1; vanilla: cross-entropy; wasserstein: difference of means (a critic)."""
        constraint: Literal["clip", "penalty"] = "penalty"
        """wasserstein only: what keeps the critic Lipschitz, clipping of its weights or a gradient penalty."""
        clip: Positive = 0.01
        """Weights of the critic are clipped to +-clip after each of its steps (Arjovsky et al. 2017, arXiv 1701.07875)."""
        penalty: Positive = 10.0
        """Weight of (|gradient| - 1)^2 on lines between real and predicted maps (Gulrajani et al. 2017, arXiv 1704.00028)."""
        critic_steps: Count = 5
        """wasserstein only: steps of the critic for one of the generator."""
        l1_weight: Annotated[float, Field(ge=0)] = 1.0
        """Weight of L1 in the generator's loss, >= 0 (pix2pix: 100)."""
        adversarial_weight: Annotated[float, Field(ge=0)] = 1.0
        """Weight of the discriminator's verdict in the generator's loss, >= 0."""

    networks = ("generator", "discriminator")
    config: Config

    def __init__(self, config: Config, task: Task) -> None:
        """Check that both networks take the picture size."""
        super().__init__(config, task)
        check_stride(task.size, 2 ** len(config.generator.multipliers), "model.generator.multipliers")
        with torch.device("meta"):
            cells = self._discriminator().cells(task.size)
        if cells < 1:
            raise ConfigError(
                f"data.size = {task.size} leaves the discriminator no patch to judge: "
                "use larger pictures, or fewer model.discriminator.multipliers"
            )

    @property
    def wants_mean_map(self) -> bool:
        """Only with generator.prior=mean."""
        return self.config.generator.prior == "mean"

    @property
    def _penalised(self) -> bool:
        return self.config.loss == "wasserstein" and self.config.constraint == "penalty"

    def _discriminator(self) -> PatchGAN:
        c, task = self.config.discriminator, self.task
        bias = False if c.bias == "never" else None
        channels = task.image_channels + task.map_channels
        return PatchGAN(channels, c.widths, norm=c.norm, bias=bias, flat_kernel=c.flat_kernel)

    def stage(self) -> Stage:
        """The generator predicts once and moves first, then the discriminator on the same detached map."""
        c = self.config
        nets: dict[str, nn.Module] = {
            "generator": build_unet(c.generator, self.task),
            "discriminator": self._discriminator(),
        }
        critic = c.loss == "wasserstein"
        after = self._clip if critic and c.constraint == "clip" else None
        updates = (
            Update(net="generator", loss=self._generator_loss, every=c.critic_steps if critic else 1),
            Update(net="discriminator", loss=self._discriminator_loss, after=after),
        )
        why = "a gradient penalty differentiates twice, which torch.compile cannot"
        if not self._penalised:
            return Stage(nets=nets, updates=updates)
        return Stage(nets=nets, updates=updates, eager={"discriminator": why}, twice=("discriminator",))

    def averaged(self) -> tuple[str, ...]:
        """The generator."""
        return ("generator",)

    def refuses(self) -> dict[str, str]:
        """A penalty's gradients leave the range of fp16, unseen by the loss scaler, and are differentiated again."""
        if self._penalised:
            return {
                "fp16": "a gradient penalty takes gradients inside the loss, where fp16 has no loss scaling: use bf16 or fp32",
                "deepspeed": "a gradient penalty differentiates twice, which its engines cannot: use strategy=ddp or fsdp",
                "activation_checkpointing": "a gradient penalty differentiates twice through what would be computed again",
            }
        return {}

    def notes(self) -> tuple[str, ...]:
        """Batch normalisation couples pictures."""
        return coupling_note(
            {"the generator": self.config.generator.norm, "the discriminator": self.config.discriminator.norm}
        )

    def floors(self) -> tuple[Floor, ...]:
        """A discriminator that tells all maps apart (a critic's loss is no distance to 0), and one map for all pictures."""
        constant = Floor(
            net="generator",
            log="generator/spread",
            below=0.001,
            of="maps/spread",
            sentence="the generator has collapsed to one map for all pictures",
            maps=True,
        )
        if self.config.loss == "wasserstein" or self.config.adversarial_weight == 0:
            return (constant,)
        perfect = Floor(
            net="discriminator",
            log="discriminator/loss",
            below=1e-4,
            sentence="the discriminator tells all maps apart, so that the generator learns nothing from it",
        )
        return (constant, perfect)

    def _clip(self, weight: Tensor) -> None:
        weight.clamp_(-self.config.clip, self.config.clip)

    def _generator_loss(self, nets: Nets, batch: Pair, scratch: Scratch) -> Loss:
        fake = nets["generator"](batch.image).float()
        scratch["fake"] = fake.detach()
        logits = nets["discriminator"](torch.cat((batch.image, fake), dim=1)).float()
        verdict = -logits.mean() if self.config.loss == "wasserstein" else self._distance(logits, 1.0)
        l1 = F.l1_loss(fake, batch.map)
        value = self.config.adversarial_weight * verdict + self.config.l1_weight * l1
        logs = {
            "generator/loss": value.detach(),
            "generator/adversarial": verdict.detach(),
            "generator/l1": l1.detach(),
        }
        if len(fake) > 1:  # one has none beside it to differ from
            logs |= {"generator/spread": _spread(scratch["fake"]), "maps/spread": _spread(batch.map)}
        return Loss(value, logs)

    def _discriminator_loss(self, nets: Nets, batch: Pair, scratch: Scratch) -> Loss:
        if "fake" not in scratch:
            with torch.no_grad():
                scratch["fake"] = nets["generator"](batch.image).float()
        fake = scratch["fake"]
        on_fake = nets["discriminator"](torch.cat((batch.image, fake), dim=1)).float()
        on_real = nets["discriminator"](torch.cat((batch.image, batch.map), dim=1)).float()
        logs = {"discriminator/real": on_real.detach().mean(), "discriminator/fake": on_fake.detach().mean()}
        if self.config.loss == "wasserstein":
            value = on_fake.mean() - on_real.mean()
            logs["discriminator/distance"] = -value.detach()
            if self._penalised:
                penalty = self._gradient_penalty(nets, batch, fake)
                logs["discriminator/penalty"] = penalty.detach()
                value = value + self.config.penalty * penalty
        else:
            value = 0.5 * (self._distance(on_fake, 0.0) + self._distance(on_real, 1.0))
        return Loss(value, {"discriminator/loss": value.detach(), **logs})

    def _distance(self, logits: Tensor, label: float) -> Tensor:
        labels = torch.full_like(logits, label)
        if self.config.loss == "lsgan":
            return F.mse_loss(logits, labels)
        return F.binary_cross_entropy_with_logits(logits, labels)

    def _gradient_penalty(self, nets: Nets, batch: Pair, fake: Tensor) -> Tensor:
        """Gulrajani et al. 2017, equation 3; a picture's value is the mean over its patches, as in the critic's loss."""
        share = draws.uniform(batch.seed, "gradient penalty")[:, None, None, None]
        between = (share * batch.map + (1 - share) * fake).requires_grad_()
        value = nets["discriminator"](torch.cat((batch.image, between), dim=1)).float().mean(dim=(1, 2, 3))
        (gradient,) = torch.autograd.grad(value.sum(), between, create_graph=True)
        # The square root has no derivative at a gradient of zero, which an untrained critic can have.
        norm = (gradient.square().sum(dim=(1, 2, 3)) + 1e-12).sqrt()
        return (norm - 1).square().mean()

    def predict(self, nets: Nets, image: Tensor, seed: Tensor, sampling: Sampling) -> Tensor:
        """Map of a picture, in one pass of the generator."""
        return nets["generator"](image).float()


def _spread(maps: Tensor) -> Tensor:
    """Mean absolute difference of pictures 1 and 2, 3 and 4, ... of NCHW, in every fourth line: 0 for one map for all.

    Of neighbours, so that micro-batches of any even size give the mean of a step the same value.
    """
    pairs, lines = len(maps) // 2, maps[:, :, ::4]
    return (lines[0 : 2 * pairs : 2] - lines[1 : 2 * pairs : 2]).abs().mean()
