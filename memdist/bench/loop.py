"""What the training loop costs over a bare loop on the same network, batch and optimiser."""

from __future__ import annotations

import contextlib
import io
import platform
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

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
        session = _session(run, Path(folder))
        strategy, settings = session.strategy, session.run
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
            bare = _Bare(session)
            _timed(lambda: leg.advance(batches), WARM, strategy.device)
            _timed(bare.step, WARM, strategy.device)
            ours, theirs = [], []
            leg.waited = 0.0
            for _ in range(max(2, steps // BLOCK)):
                ours.append(_timed(lambda: leg.advance(batches), BLOCK, strategy.device))
                theirs.append(_timed(bare.step, BLOCK, strategy.device))
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


def _session(run: Any, folder: Path) -> start.Session:
    """Open a run whose epoch outlasts the measurement, so that nothing is validated or saved in between."""
    raw = plain(run)
    if not sources.given(run.data):
        example.make(folder / "data", max(2 * run.batch.size, 64), run.data.size, 0, 1)
        raw["data"] |= {
            "images": str(folder / "data" / "images"),
            "maps": str(folder / "data" / "maps"),
            "cache": str(folder),
        }
    raw["augment"] = {"flip": 0, "translation": 0, "cutout": 0, "colour": 0}
    raw["log"] |= {"tensorboard": False, "wandb": None}
    raw["batch"]["micro"] = None
    settings = models.resolve(raw)
    strategy = strategy_.make(settings)
    session = start.open_session(settings, folder / "run", strategy, start.build(settings), extend=False)
    session.data.rows["train"] = np.tile(session.data.rows["train"], 10_000)
    return session


class _Bare:
    """A training loop as a person would write it for one script: index, loss, backward, step."""

    def __init__(self, session: start.Session) -> None:
        rows = np.unique(session.data.rows["train"])
        pixels, device = session.data.pixels, session.strategy.device
        self.images = torch.from_numpy(pixels.images[rows]).to(device)
        self.maps = torch.from_numpy(pixels.maps[rows]).to(device)
        self.batch = session.run.batch.size
        # Weights and optimisers of its own: both loops train from the same start.
        self.stage, averages = start.place(session.run, session.model, device)
        start.dress(session.run, self.stage, averages, session.strategy)
        self.optimisers = {
            n: optim.make(list(net.parameters()), getattr(session.run.optim, n)) for n, net in self.stage.nets.items()
        }
        self.number = 0

    def step(self) -> None:
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
            update.loss(self.stage.nets, batch, scratch).value.backward()  # type: ignore[no-untyped-call]
            self.optimisers[update.net].step()
            self.optimisers[update.net].zero_grad(set_to_none=True)
        self.number += 1


def _timed(step: Any, count: int, device: torch.device) -> float:
    before = time.perf_counter()
    for _ in range(count):
        step()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - before
