"""Optimisers and learning rates, from settings."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from memdist.config import Optim, Schedule

_FUSED = {"sgd", "adam", "adamw"}


def make(parameters: Sequence[nn.Parameter], settings: Optim) -> torch.optim.Optimizer:
    """Build the optimiser of parameters that are on their device already."""
    kernel = settings.kernel
    if kernel == "auto":
        kernel = "fused" if settings.name in _FUSED else "foreach"
    kwargs: dict[str, Any] = {"lr": settings.lr, "weight_decay": settings.weight_decay}
    kwargs["foreach"] = kernel == "foreach"
    if settings.name in _FUSED:
        kwargs["fused"] = kernel == "fused"
    match settings.name:
        case "sgd":
            return torch.optim.SGD(parameters, momentum=settings.momentum, **kwargs)
        case "adam":
            return torch.optim.Adam(parameters, betas=settings.betas, **kwargs)
        case "adamw":
            return torch.optim.AdamW(parameters, betas=settings.betas, **kwargs)
        case "adadelta":
            return torch.optim.Adadelta(parameters, rho=settings.rho, **kwargs)


def factor(schedule: Schedule, step: int, total: int) -> float:
    """Factor of the learning rate at a step of 0 .. total-1: warm-up times decay."""
    warm = min(1.0, (step + 1) / schedule.warmup) if schedule.warmup else 1.0
    begin = schedule.start * total
    if schedule.name == "constant" or step < begin:
        return warm
    done = min(1.0, (step - begin) / max(1.0, total - begin))
    shape = 1 - done if schedule.name == "linear" else (1 + math.cos(math.pi * done)) / 2
    return warm * (schedule.final + (1 - schedule.final) * shape)


def set_rate(optimiser: torch.optim.Optimizer, settings: Optim, step: int, total: int, lowered: float = 1.0) -> float:
    """Set the learning rate for a step, and give it; `lowered` is a factor that rollbacks have brought about."""
    rate = settings.lr * factor(settings.schedule, step, total) * lowered
    for group in optimiser.param_groups:
        group["lr"] = rate
    return rate
