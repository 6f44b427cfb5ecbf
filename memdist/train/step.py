"""One step of training, and what is summed over steps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from memdist import draws
from memdist.distributed import strategy as strategy_
from memdist.model import Pair, Scratch, Update
from memdist.train import optim
from memdist.train.start import Session


class Sums:
    """Training losses, summed on the device and fetched once per log interval."""

    def __init__(self, micros: int = 1) -> None:
        """Empty; a rank takes a step in so many micro-batches."""
        self._micros = micros
        self._totals: dict[str, Tensor] = {}
        self._counts: dict[str, int] = {}

    def add(self, values: Mapping[str, Tensor]) -> None:
        """Add one micro-batch's means."""
        for name, value in values.items():
            before = self._totals.get(name)
            self._totals[name] = value.float() if before is None else before + value
            self._counts[name] = self._counts.get(name, 0) + 1

    def fetch(self, strategy: strategy_.Strategy) -> dict[str, float]:
        """Means since the last fetch, over all ranks; empties."""
        names = sorted(self._totals)
        if not names:
            return {}
        means = torch.stack([self._totals[name] / self._counts[name] for name in names])
        self._totals, self._counts = {}, {}
        return dict(zip(names, strategy.mean(means).tolist(), strict=True))

    def state(self, strategy: strategy_.Strategy) -> dict[str, Any]:
        """What a checkpoint keeps: the sums of every rank."""
        names = sorted(self._totals)
        totals = (
            torch.stack([self._totals[n] for n in names])[None] if names else torch.zeros(1, 0, device=strategy.device)
        )
        counts = [self._counts[n] for n in names]
        return {"names": names, "counts": counts, "totals": strategy.gather(totals).tolist(), "micros": self._micros}

    def load(self, state: Mapping[str, Any], strategy: strategy_.Strategy) -> None:
        """Restore a rank's own sums, or, at another world size, their mean."""
        ranks = state["totals"]
        mine = (
            ranks[strategy.rank]
            if len(ranks) == strategy.world
            else [sum(c) / len(ranks) for c in zip(*ranks, strict=True)]
        )
        # A step that was taken in other micro-batches is to weigh as much as one that follows.
        before = state.get("micros", self._micros)  # an older memdist did not keep it
        scaled = [value * (self._micros / before) for value in mine]
        self._totals = {n: torch.tensor(v, device=strategy.device) for n, v in zip(state["names"], scaled, strict=True)}
        self._counts = {n: c * self._micros // before for n, c in zip(state["names"], state["counts"], strict=True)}


def take_step(session: Session, micros: Sequence[Pair], sums: Sums) -> None:
    """One step: each update that is due moves its network, the others frozen."""
    run, strategy, step = session.run, session.strategy, session.step
    # Dropout alone draws from the global generator: a function of seed, step and rank.
    _generator(strategy.device).manual_seed(draws.key("dropout", run.seed, step, strategy.rank) & (2**63 - 1))
    scratches: list[Scratch] = [{} for _ in micros]
    for update in due(session.stage.updates, step):
        settings = getattr(run.optim, update.net)
        optim.set_rate(strategy.optimisers[update.net], settings, step, session.total, session.rate)
        with strategy.only(update.net) as nets:
            for number, (micro, scratch) in enumerate(zip(micros, scratches, strict=True), 1):
                with strategy.micro(update.net, number == len(micros)):
                    loss = update.loss(nets, micro, scratch)
                    strategy.backward(update.net, loss.value, len(micros))
                sums.add(loss.logs)
                session.watch.add(update.net, loss)
        stepped = strategy.step(update)
        session.watch.stepped(update.net, stepped)
        session.averages.update(update.net, step, stepped.taken)
    strategy.finish_step()
    session.averages.copy_buffers()
    session.step += 1
    session.watch.close(session.step)


def _generator(device: torch.device) -> torch.Generator:
    """The device's global generator; torch.manual_seed would seed those of all devices, at a millisecond each."""
    if device.type == "cuda":
        return torch.cuda.default_generators[device.index or 0]
    if device.type == "mps":
        return torch.mps._get_default_mps_generator()
    return torch.default_generator


def due(updates: Sequence[Update], step: int) -> list[Update]:
    """Updates of a step, in order: one with `every` = k is taken at the k-th, 2k-th ... step."""
    return [update for update in updates if (step + 1) % update.every == 0]
