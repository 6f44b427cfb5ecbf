"""What the training loop costs over a bare loop on the same network, batch and optimiser."""

from __future__ import annotations

import contextlib
import io
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from memdist import models
from memdist.config import plain
from memdist.data import example, loader, sources
from memdist.distributed import strategy as strategy_
from memdist.distributed.strategy import freeze
from memdist.errors import ConfigError
from memdist.model import Pair, Scratch
from memdist.train import loop, optim, start
from memdist.train.signals import Signals

BLOCK = 10
"""Steps of one loop before the other has its turn."""
WARM = 10


def main(run: Any, *, steps: int) -> None:
    """Print the ratio of step times, memdist's loop over a bare one, and the share of a step that waits for data.

    Both train the same network with the same optimiser on batches of one size from one set of decoded pictures, without
    augmentation; blocks of steps alternate, so that what else the machine does meets both.
    """
    if run.precision != "fp32":
        raise ConfigError(
            f"precision = {run.precision!r} cannot be measured against the bare loop, which is fp32; use fp32"
        )
    with tempfile.TemporaryDirectory(prefix="memdist-bench-") as folder:
        settings = quiet(run, Path(folder))
        strategy = strategy_.make(settings)
        session = opened(settings, Path(folder), Path(folder) / "run", strategy)
        with (
            # What a run says of its losses is no figure of this command's.
            contextlib.redirect_stdout(io.StringIO()),
            Signals() as signals,
            loader.Loader(
                session.data.pixels,
                session.data.rows["train"],
                seed=settings.seed,
                batch_size=settings.batch.size,
                micro=settings.batch.size,
                device=strategy.device,
                resident=settings.data.resident,
            ) as batches,
        ):
            leg = loop.Leg(session, signals)
            bare = Bare(session)
            timed(lambda: leg.advance(batches), WARM, strategy.device)
            timed(bare.step, WARM, strategy.device)
            ours, theirs = [], []
            leg.waited = 0.0
            for _ in range(max(2, steps // BLOCK)):
                ours.append(timed(lambda: leg.advance(batches), BLOCK, strategy.device))
                theirs.append(timed(bare.step, BLOCK, strategy.device))
            waited = leg.waited / sum(ours)
            leg.close()
    ratio = statistics.median(a / b for a, b in zip(ours, theirs, strict=True))
    per_step = 1000 * statistics.median(ours) / BLOCK
    machine = (
        torch.cuda.get_device_name(strategy.device)
        if strategy.device.type == "cuda"
        else platform.processor() or platform.machine()
    )
    what = f"{settings.batch.size} pictures of {settings.data.size} x {settings.data.size}"
    print(f"{run.model.name}, {what}, on {strategy.device} ({machine})")
    print(
        f"step: {per_step:.2f} ms; memdist's loop over a bare loop: {ratio:.4f} (median of {len(ours)} pairs of {BLOCK} steps)"
    )
    print(f"waiting for data: {100 * waited:.3f} % of a step")


def quiet(run: Any, folder: Path, batch: int | None = None) -> Any:
    """Settings under which a step is a step and nothing else; `batch`: pictures of one, over all ranks, rather than the run's.

    Where the run names no pictures, it gets example data in `folder`.
    """
    raw = plain(run)
    if not sources.given(run.data):
        raw["data"] |= {
            "images": str(folder / "data" / "images"),
            "maps": str(folder / "data" / "maps"),
            "cache": str(folder),
        }
    raw["augment"] = {"flip": 0, "translation": 0, "cutout": 0, "colour": 0}
    raw["log"] |= {"tensorboard": False, "wandb": None}
    raw["checkpoint"]["every_minutes"] = 1e6
    raw["batch"] = {"size": batch or run.batch.size, "micro": None}
    return models.resolve(raw)


def opened(settings: Any, folder: Path, out: Path, strategy: strategy_.Strategy, pairs: int = 0) -> start.Session:
    """Open a run whose epoch outlasts the measurement, so that nothing is validated or saved in between.

    Example data in `folder`, if that is what the settings name, is made first: so many pairs, or enough for a batch.
    """
    if str(settings.data.images) == str(folder / "data" / "images"):
        count = pairs or enough(settings.batch.size)

        def make() -> None:
            example.make(folder / "data", count, settings.data.size, 0, 1)

        strategy.first(make)
    session = start.open_session(settings, out, strategy, start.build(settings), extend=False)
    session.data.rows["train"] = np.tile(session.data.rows["train"], 10_000)
    return session


def enough(batch: int) -> int:
    """Pairs of example data for batches of a size."""
    return max(2 * batch, 64)


class Bare:
    """A training loop as a person would write it for one script: index, loss, backward, step."""

    def __init__(self, session: start.Session, wrap: Callable[[nn.Module], nn.Module] = lambda net: net) -> None:
        """Networks as the session has them; `wrap` is put around the one that moves, so that ranks share its gradient."""
        rows = np.unique(session.data.rows["train"])
        pixels, device = session.data.pixels, session.strategy.device
        self.images = torch.from_numpy(pixels.images[rows]).to(device)
        self.maps = torch.from_numpy(pixels.maps[rows]).to(device)
        self.batch = session.run.batch.size // session.strategy.world
        # Weights and optimisers of its own: both loops train from the same start.
        self.stage, averages = start.place(session.run, session.model, device)
        start.dress(session.run, self.stage, averages, session.strategy)
        self.optimisers = {
            n: optim.make(list(net.parameters()), getattr(session.run.optim, n)) for n, net in self.stage.nets.items()
        }
        # Another network is called bare meanwhile: its wrapper would wait for gradients that do not come.
        self.nets = {name: {**self.stage.nets, name: wrap(net)} for name, net in self.stage.nets.items()}
        self.number = 0

    def step(self) -> None:
        """Take one."""
        chosen = torch.randint(len(self.images), (self.batch,), device=self.images.device)
        image = self.images[chosen].float() / 127.5 - 1
        map_ = self.maps[chosen].float() / 127.5 - 1
        batch = Pair(image, map_, chosen)
        scratch: Scratch = {}
        for update in self.stage.updates:
            if (self.number + 1) % update.every:
                continue
            if len(self.stage.nets) > 1:
                freeze(self.stage.nets, update.net)
            update.loss(self.nets[update.net], batch, scratch).value.backward()  # type: ignore[no-untyped-call]
            self.optimisers[update.net].step()
            self.optimisers[update.net].zero_grad(set_to_none=True)
        self.number += 1


def timed(step: Callable[[], object], count: int, device: torch.device) -> float:
    """Seconds of so many steps, until the device has done them."""
    before = time.perf_counter()
    for _ in range(count):
        step()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - before
