"""Which checkpoint is best, and when to stop early: pure, and part of each checkpoint."""

from __future__ import annotations

import math
from dataclasses import dataclass

from memdist import metrics
from memdist.config import Select
from memdist.errors import ConfigError


def check(settings: Select, scores: tuple[str, ...]) -> None:
    """Raise a ConfigError when the run will never log the chosen metric."""
    known = [f"val/{name}" for name in (*metrics.METRICS, *scores)]
    if settings.metric not in known:
        raise ConfigError(f"select.metric = {settings.metric!r} is not measured here; choose one of {', '.join(known)}")


def higher(metric: str) -> bool:
    """Whether a larger value is better; a model's own scores are errors."""
    name = metric.removeprefix("val/")
    return name in metrics.METRICS and metrics.METRICS[name].better == "higher"


@dataclass
class Selection:
    """The best validation so far."""

    value: float | None = None
    step: int | None = None
    since: int = 0
    """Validations since the best one."""

    def update(self, settings: Select, value: float, step: int) -> bool:
        """Take note of a validation; true when it is the best. A value that is no number never is."""
        sign = -1.0 if higher(settings.metric) else 1.0
        better = math.isfinite(value) and (self.value is None or sign * value < sign * self.value - settings.min_delta)
        if better:
            self.value, self.step, self.since = value, step, 0
        else:
            self.since += 1
        return better

    def exhausted(self, settings: Select) -> bool:
        """Whether patience is at its end."""
        return settings.patience is not None and self.since >= settings.patience
