"""What a person sees while a run trains: a live line on a terminal, plain lines elsewhere, TensorBoard, W&B."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from memdist import output, rundir
from memdist.config import Log
from memdist.errors import ConfigError
from memdist.train.board import Board


def check(settings: Log) -> None:
    """Raise a ConfigError when Weights & Biases is asked for and not installed."""
    import importlib.util

    if settings.wandb is not None and importlib.util.find_spec("wandb") is None:
        raise ConfigError(
            f"log.wandb = {settings.wandb!r} needs wandb, which is not installed: pip install wandb, or log.wandb=null"
        )


class Report:
    """Speaks for a run; on ranks other than the main one it is silent."""

    def __init__(
        self,
        run: Path,
        settings: Log,
        *,
        speaks: bool,
        step: int,
        steps: int,
        pairs: int,
        batch: int,
        resume_id: str,
        device: torch.device,
    ) -> None:
        """Report on steps `step` .. `steps` of a run whose epochs have `pairs` pairs and whose steps have `batch`."""
        self._speaks, self._steps, self._pairs, self._batch = speaks, steps, pairs, batch
        self._device = device
        self._writer: Board | None = None
        self._wandb: Any = None
        self._bars: Any = None
        self._mark = (time.monotonic(), step)
        self._losses = ""
        if not speaks:
            return
        self._console = output.console(needed=False)
        if settings.tensorboard:
            with rundir.naming(run / rundir.TENSORBOARD):
                self._writer = Board(run / rundir.TENSORBOARD, purge_step=step + 1)
        if settings.wandb is not None:
            import wandb

            self._wandb = wandb.init(project=settings.wandb, dir=str(run), id=resume_id, resume="allow")
        if self._console.is_terminal:
            from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

            self._bars = Progress(
                TextColumn("epoch {task.fields[epoch]:.1f}"),
                BarColumn(),
                TextColumn("step {task.completed}/{task.total} {task.fields[speed]}"),
                TimeRemainingColumn(),
                TextColumn("{task.fields[losses]}"),
                console=self._console,
            )
            self._bar = self._bars.add_task("", total=steps, completed=step, epoch=0.0, speed="", losses="")
            self._bars.start()

    def say(self, sentence: str) -> None:
        """Print a sentence; what cannot be printed is no reason to end a training."""
        if self._speaks:
            self._console.print(sentence, soft_wrap=True)

    def step(self, step: int) -> None:
        """Take note of steps done; cheap, called each step."""
        if self._bars is not None:
            self._bars.update(self._bar, completed=step, epoch=step * self._batch / self._pairs)

    def losses(self, step: int, values: Mapping[str, float]) -> dict[str, float]:
        """Report training losses fetched at a log interval; gives steps/s and pictures/s since the last one."""
        now = time.monotonic()
        seconds, steps = now - self._mark[0], step - self._mark[1]
        self._mark = (now, step)
        rate = steps / seconds if seconds > 0 else 0.0
        speed = {"steps_per_second": rate, "pictures_per_second": rate * self._batch, "memory_gib": self._memory()}
        if not self._speaks:
            return speed
        shown = "  ".join(
            f"{name.removeprefix('train/')} {value:.4g}" for name, value in values.items() if not name.startswith("lr/")
        )
        text = f"{rate:.1f} steps/s, {rate * self._batch:.0f} pictures/s, {speed['memory_gib']:.1f} GiB"
        if self._bars is not None:
            self._bars.update(self._bar, speed=text, losses=shown)
        else:
            left = (self._steps - step) / rate if rate else 0.0
            self.say(
                f"step {step}/{self._steps}  epoch {step * self._batch / self._pairs:.2f}  {shown}  {text}, {_clock(left)} left"
            )
        self._scalars(step, {**values, **speed})
        return speed

    def validation(self, step: int, values: Mapping[str, float | None], best: bool) -> None:
        """Report a validation."""
        if not self._speaks:
            return
        shown = "  ".join(f"{name} {value:.4f}" for name, value in values.items() if value is not None)
        self.say(f"epoch {step * self._batch // self._pairs}: {shown}{'  (best)' if best else ''}")
        self._scalars(step, {name: value for name, value in values.items() if value is not None})
        # What validating took is no training time.
        self._mark = (time.monotonic(), step)

    def grid(self, step: int, picture: torch.Tensor) -> None:
        """Show a grid of samples: uint8 [3, H, W] on the CPU."""
        self._tell(lambda board: board.image(step, "val/samples", picture))
        if self._wandb is not None:
            import wandb

            self._wandb.log({"val/samples": wandb.Image(picture.permute(1, 2, 0).numpy())}, step=step)

    def close(self) -> None:
        """Flush and end."""
        if self._bars is not None:
            self._bars.stop()
        self._tell(lambda board: board.close())
        if self._wandb is not None:
            self._wandb.finish()

    def _scalars(self, step: int, values: Mapping[str, float]) -> None:
        self._tell(lambda board: board.scalars(step, values))
        if self._wandb is not None:
            self._wandb.log(dict(values), step=step)

    def _tell(self, what: Callable[[Board], None]) -> None:
        """Tell TensorBoard, which a run can do without: a disk that refuses ends its file, with one warning."""
        if self._writer is None:
            return
        try:
            what(self._writer)
        except OSError as error:
            with contextlib.suppress(OSError):
                self._writer.close()
            self._writer = None
            why = (error.strerror or str(error)).lower()
            self.say(f"warning: nothing more is written for TensorBoard until the next start: {why}")

    def _memory(self) -> float:
        """Peak GiB: of the device where there is one (a number the allocator keeps, no sync), else of this process."""
        if self._device.type == "cuda":
            return torch.cuda.max_memory_allocated(self._device) / 2**30
        import resource
        import sys

        unit = 2**30 if sys.platform == "darwin" else 2**20
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


def _clock(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
