"""Whether a training goes wrong: what each step leaves on the device, and what is made of it where the host waits anyway.

A step adds one small tensor: its losses, and the gradient norm of each network that moved. Nothing is computed from them
on the device. `fold` fetches what has gathered, at each log line and before each checkpoint, and goes through it step by
step in Python floats, which are the same on all ranks: so what is found, and at which step, depends neither on when it
is looked for, nor on the number of ranks, nor on where the run was interrupted.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from memdist.config import Divergence
from memdist.distributed import strategy as strategy_
from memdist.model import Floor, Loss

HORIZON = 100
"""Steps of the running mean of a network's gradient norm."""

SKIPPED = 100
"""Steps of a network in a row that overflow fp16: a loss scale of 2^16 that is halved so often is 0."""

FULL = 4096
"""Steps that are fetched at the latest, whatever `log.every` is: what they leave must not fill the device."""


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """That a training has gone wrong."""

    what: str
    """What happened and at which step, as a clause."""
    net: str
    """The network whose optimiser's settings may help."""
    step: int
    """Steps done when it showed."""
    since: int
    """Step at which the trouble began: checkpoints of earlier steps are from before."""
    setting: str | None = None
    """The setting that, as null, lets such a run go on; none for what cannot be trained with."""


class Diverged(Exception):
    """Ends the work on a training that has gone wrong; the loop answers it (`memdist.train.rollback`)."""

    def __init__(self, verdict: Verdict) -> None:
        """Carry the verdict."""
        super().__init__(verdict.what)
        self.verdict = verdict


class _Entry(NamedTuple):
    """What one number of a step is."""

    kind: Literal["loss", "norm", "taken"]
    net: str
    name: str


class _Row(NamedTuple):
    """What a step left on the device."""

    step: int
    entries: list[_Entry]
    values: Tensor
    """float32 [entries]."""


@dataclass
class Usual:
    """What is usual for the gradient norm of one network."""

    count: int = 0
    """Steps that count: those that were taken with a gradient that was not 0."""
    mean: float = 0.0
    """Running mean of the norm's natural logarithm."""
    peak: float = 0.0
    """Highest such mean since the warm-up."""
    total: float = 0.0
    """Sum of norms since the last log line."""
    number: int = 0
    """Steps taken since the last log line."""
    skipped: int = 0
    """Last steps in a row that overflowed fp16."""

    def add(self, norm: float, warmup: int) -> None:
        """Count a step that was taken, norm >= 0."""
        self.skipped = 0
        self.total += norm
        self.number += 1
        if norm > 0:
            self.count += 1
            self.mean += (math.log(norm) - self.mean) * max(1 / self.count, 1 / HORIZON)
            # Before the first step that counts there is no peak: what it starts as, 0, is the logarithm of a norm of 1.
            self.peak = self.mean if self.count <= max(1, warmup) else max(self.peak, self.mean)


class Watch:
    """Keeps an eye on one run. `add`, `stepped` and `close` are called in each step and wait for nothing."""

    def __init__(self, settings: Divergence, floors: Sequence[Floor]) -> None:
        """Nothing is usual yet."""
        self._settings, self._floors = settings, floors
        self._entries: list[_Entry] = []
        self._values: list[Tensor] = []
        self._rows: list[_Row] = []
        self._usual: dict[str, Usual] = {}
        self._since: dict[str, int] = {}
        self._silent: set[str] = set()

    @property
    def calm(self) -> bool:
        """Whether no value lies below its floor, as of the last `fold`."""
        return not self._since

    @property
    def full(self) -> bool:
        """Whether to `fold` now."""
        return len(self._rows) >= FULL

    def add(self, net: str, loss: Loss) -> None:
        """Take note of the loss of a micro-batch and all that is logged of it."""
        self._entries += [_Entry("loss", net, name) for name in loss.logs]
        self._values += loss.logs.values()
        self._entries.append(_Entry("loss", net, f"the loss of {net}"))
        self._values.append(loss.value.detach())

    def stepped(self, net: str, stepped: strategy_.Stepped) -> None:
        """Take note of the gradient with which a network moved, or did not for an overflow."""
        self._entries.append(_Entry("norm", net, f"grad_norm/{net}"))
        self._values.append(stepped.norm)
        if stepped.taken is not None:
            self._entries.append(_Entry("taken", net, ""))
            self._values.append(stepped.taken)

    def close(self, step: int) -> None:
        """End a step, the `step`-th of the run, counted from 1."""
        self._rows.append(_Row(step, self._entries, torch.stack([value.float() for value in self._values])))
        self._entries, self._values = [], []

    def look(self, nets: Mapping[str, nn.Module], strategy: strategy_.Strategy, step: int) -> dict[str, float]:
        """Judge all that has gathered, and the weights after step `step`; gives the L2 norm of each network's weights.

        Called by all ranks alike, at steps that do not depend on clocks or signals. Raises Diverged.
        """
        self.fold(strategy)
        found = _weights(nets, strategy)
        for net, norm in found.items():
            if not math.isfinite(norm):
                raise Diverged(_verdict(step, net, f"the weights of {net} are no longer finite at step {step}"))
        return found

    def sound(self, nets: Mapping[str, nn.Module], strategy: strategy_.Strategy) -> bool:
        """Judge all that has gathered (raises Diverged); gives whether weights and running statistics are finite."""
        self.fold(strategy)
        return all(map(math.isfinite, _weights(nets, strategy).values()))

    def validated(self, predicted: float, true: float, step: int) -> None:
        """Judge the ranges of maps that validation predicted and of true ones, after `look`.

        Raises Diverged where a floor that steps say nothing of has been undercut for so many steps.
        """
        steps = self._settings.collapse_steps
        for floor in self._floors:
            if steps is None or not floor.maps or floor.log not in self._silent:
                continue
            least = floor.below * true
            if not predicted < least:
                self._since.pop(floor.log, None)
                continue
            since = self._since.setdefault(floor.log, step)
            if step - since + 1 >= steps:
                what = (
                    f"{floor.sentence}: the maps predicted in validation have differed by less than {least:.3g} for {steps} "
                    f"steps, since step {since}"
                )
                raise Diverged(_verdict(step, floor.net, what, "divergence.collapse_steps", since))

    def fold(self, strategy: strategy_.Strategy) -> None:
        """Fetch what has gathered and judge it; called by all ranks alike. Raises Diverged for the first bad step."""
        rows, self._rows = self._rows, []
        if not rows:
            return
        ranks = strategy.gather(torch.cat([row.values for row in rows])[None]).tolist()
        place = 0
        for row in rows:
            parts = [rank[place : place + len(row.entries)] for rank in ranks]
            place += len(row.entries)
            self._judge(row, [sum(values) / len(ranks) for values in zip(*parts, strict=True)])

    def norms(self) -> dict[str, float]:
        """Mean gradient norm of each network over the steps taken since the last call; empties."""
        means = {}
        for net, usual in self._usual.items():
            if usual.number:
                means[f"grad_norm/{net}"] = usual.total / usual.number
            usual.total, usual.number = 0.0, 0
        return means

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps, the same on all ranks; everything is folded."""
        assert not self._rows
        return {
            "usual": {net: asdict(usual) for net, usual in self._usual.items()},
            "since": self._since,
            "silent": sorted(self._silent),
        }

    def load(self, state: Mapping[str, Any]) -> None:
        """Restore what `state` gave."""
        self._usual = {net: Usual(**usual) for net, usual in state["usual"].items()}
        self._since = dict(state["since"])
        self._silent = set(state.get("silent", ()))  # an older memdist did not keep it

    def _judge(self, row: _Row, values: list[float]) -> None:
        skipped = {e.net for e, value in zip(row.entries, values, strict=True) if e.kind == "taken" and value < 1}
        logged: dict[str, list[float]] = {}
        for entry, value in zip(row.entries, values, strict=True):
            # An fp16 step that overflowed moved nothing; what it would have done wrong does not count.
            if entry.kind == "loss":
                if not math.isfinite(value) and entry.net not in skipped:
                    raise Diverged(_verdict(row.step, entry.net, f"{_shown(entry.name)} is {value} at step {row.step}"))
                logged.setdefault(entry.name, []).append(value)
            elif entry.kind == "norm":
                self._gradient(row.step, entry.net, value, entry.net in skipped)
        for floor in self._floors:
            # Not every step moves every network; one that did told its values, or never does.
            if any(entry.kind == "loss" and entry.net == floor.net for entry in row.entries):
                (self._silent.discard if floor.log in logged else self._silent.add)(floor.log)
        self._collapse(row, {name: sum(part) / len(part) for name, part in logged.items()})

    def _gradient(self, step: int, net: str, norm: float, skipped: bool) -> None:
        usual, settings = self._usual.setdefault(net, Usual()), self._settings
        if skipped:
            usual.skipped += 1
            if usual.skipped >= SKIPPED:
                what = f"every step of {net} has overflowed fp16 for {SKIPPED} steps, up to step {step}"
                raise Diverged(_verdict(step, net, what))
            return
        if not math.isfinite(norm):
            raise Diverged(_verdict(step, net, f"the gradient norm of {net} is {norm} at step {step}"))
        judged = settings.gradient is not None and usual.count >= max(1, settings.warmup)
        if judged and norm > 0 and math.log(norm) > usual.peak + math.log(settings.gradient or math.inf):
            what = f"the gradient norm of {net} is {norm:.3g} at step {step}, where {math.exp(usual.peak):.3g} is usual"
            raise Diverged(_verdict(step, net, what, "divergence.gradient"))
        usual.add(norm, settings.warmup)

    def _collapse(self, row: _Row, values: Mapping[str, float]) -> None:
        steps = self._settings.collapse_steps
        for floor in self._floors:
            # What a model does not log in a step says nothing of it.
            if steps is None or floor.log not in values:
                continue
            least = floor.below * (1.0 if floor.of is None else values[floor.of])
            if not values[floor.log] < least:
                self._since.pop(floor.log, None)
                continue
            since = self._since.setdefault(floor.log, row.step)
            if row.step - since + 1 >= steps:
                what = f"{floor.sentence}: {_shown(floor.log)} has been below {least:.3g} for {steps} steps, since step {since}"
                raise Diverged(_verdict(row.step, floor.net, what, "divergence.collapse_steps", since))


@torch.no_grad()
def _weights(nets: Mapping[str, nn.Module], strategy: strategy_.Strategy) -> dict[str, float]:
    """L2 norm of the weights of each network, not finite where a weight or a running statistic is not; waits."""
    norms = []
    for name, net in nets.items():
        statistics = [b for b in net.buffers() if b.is_floating_point()]
        norm = strategy.weight_norm(name, net)
        # Zero times what is finite is zero.
        norms.append(norm + 0 * strategy_.norm(statistics) if statistics else norm)
    return dict(zip(nets, torch.stack(norms).tolist(), strict=True))


def _shown(name: str) -> str:
    return name if name.startswith("the ") else f"train/{name}"


def _verdict(step: int, net: str, what: str, setting: str | None = None, since: int | None = None) -> Verdict:
    return Verdict(what=what, net=net, step=step, since=step if since is None else since, setting=setting)
