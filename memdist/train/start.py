"""Everything that stands before the first step: checks, data, networks, and what a run folder already holds."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from memdist import config, draws, models, rundir
from memdist.config import Run
from memdist.data import cache as cache_
from memdist.data import check as check_
from memdist.data import fixations, leaks
from memdist.data import loader as loader_
from memdist.data import sources as sources_
from memdist.data import split as split_
from memdist.distributed import blocks
from memdist.distributed import strategy as strategy_
from memdist.errors import CheckpointError, ConfigError
from memdist.model import Model, Sampling, Stage, Task
from memdist.train import (
    checkpoint,
    contents,
    dataset,
    distribution,
    optim,
    provenance,
    report,
    restore,
    select,
    trivial,
    whole,
)
from memdist.train.ema import Averages
from memdist.train.select import Selection
from memdist.train.watch import Watch


@dataclass
class Session:
    """A run that is ready to take its next step."""

    run: Any
    out: Path
    strategy: strategy_.Strategy
    data: dataset.Dataset
    model: Model
    stage: Stage
    averages: Averages
    watch: Watch
    shapes: dict[str, checkpoint.Shapes] = field(default_factory=dict)
    """Of networks and averages as a checkpoint keeps them, by file: known while they are held whole."""
    step: int = 0
    seconds: float = 0.0
    """Time spent training in former legs."""
    selection: Selection = field(default_factory=Selection)
    state: dict[str, Any] = field(default_factory=dict)
    """Rest of the checkpoint that the run goes on from."""
    choice: whole.Choice = field(default_factory=whole.Choice)
    """Which checkpoint that is, and what was passed over; known to the main process."""
    still_ours: Callable[[], None] = lambda: None
    """Asked before the run folder is written into: raises where another process has taken it over."""
    scalers: dict[str, dict[str, float]] = field(default_factory=dict)
    """Initial state of the loss scalers."""
    anchor: tuple[int, int | None] = (0, None)
    """Step that a rollback leads to (0: the initial weights), and the best step as of then."""
    saved: bool = False
    """Whether there is a checkpoint; known to the main process."""
    rollbacks: list[dict[str, Any]] = field(default_factory=list)
    """The rollbacks so far, as metrics.jsonl has them: step, rollback (its number), reason, rate."""

    @property
    def rate(self) -> float:
        """Factor on all learning rates that rollbacks have brought about."""
        return float(self.rollbacks[-1]["rate"]) if self.rollbacks else 1.0

    @property
    def parameters(self) -> dict[str, int]:
        """Parameters of each network."""
        nets = self.stage.nets
        own = {name: {key for key, _ in net.named_parameters()} for name, net in nets.items()}
        shapes = self.shapes[checkpoint.NETS]
        return {name: sum(math.prod(shapes[name][key]) for key in keys) for name, keys in own.items()}

    @property
    def epochs(self) -> float:
        """Epochs so far."""
        return self.step * self.run.batch.size / len(self.data.rows["train"])

    @property
    def epoch(self) -> int:
        """Whole epochs so far."""
        return self.step * int(self.run.batch.size) // len(self.data.rows["train"])

    @property
    def total(self) -> int:
        """Steps of the whole run."""
        return self._end(self.run.epochs)

    @property
    def pause(self) -> int:
        """Step at which this leg ends: the run's last, or that of `until`."""
        return self._end(min(self.run.epochs, self.run.until or self.run.epochs))

    def _end(self, epochs: int) -> int:
        return loader_.epoch_end(epochs, len(self.data.rows["train"]), self.run.batch.size)


def default_folder(name: str, overrides: Sequence[str], run: Run) -> Path:
    """Run folder for a configuration: runs/<name>/<identity overrides>-<hash of the identity keys and the data's place>."""
    fixed = config.identity(run)
    named = [o for o in overrides if o.partition("=")[0] in fixed]
    words = [re.sub(r"[^\w.=,+-]+", "_", o.rpartition(".")[2] if "." in o.partition("=")[0] else o) for o in named]
    place = sources_.place(run.data)
    return Path("runs", name, f"{','.join(words)[:80] or 'default'}-{config.fingerprint(fixed | place)}")


def build(run: Any, *, here: bool = True) -> Model:
    """Make the model and check what can be checked without data, for this machine (`here`) or any; raises ConfigError."""
    strategy_.check(run, here=here)
    kind, data = models.load(run.model.name), run.data
    task = Task(size=data.size, image_channels=data.image_channels, map_channels=data.map_channels)
    if why := kind.unfit(task):
        raise ConfigError(f"{run.model.name} {why}")
    model: Model = kind(run.model, task)
    wanted = {run.strategy, run.precision}
    wanted |= {setting for setting in ("compile", "activation_checkpointing") if getattr(run, setting)}
    for setting, why in model.refuses().items():
        if setting in wanted:
            raise ConfigError(f"{run.model.name} cannot run with {setting}: {why}")
    if run.activation_checkpointing:
        check_recomputing(run)
    select.check(run.select, model.scores)
    report.check(run.log)
    fixations.check(run.data.fixations)
    distribution.check(run.eval.fid_weights)
    model.check(Sampling(sampler=run.validate_.sampler, steps=run.validate_.steps))
    model.check(Sampling(sampler=run.eval.sampler, steps=run.eval.steps))
    return model


def check_recomputing(run: Any) -> None:
    """Raise a ConfigError where the blocks of a run's networks cannot be computed again in backward."""
    with torch.device("meta"):
        for name, net in restore.model_of(run).stage().nets.items():
            blocks.check(name, net)


def micro_batch(run: Run, world: int, pairs: int) -> int:
    """Pictures a rank sends through the network at once; raises ConfigError where the batch does not divide."""
    size, micro = run.batch.size, run.batch.micro
    if size > pairs:
        raise ConfigError(
            f"batch.size = {size} is larger than the training split of {pairs} pairs; use at most {pairs}"
        )
    if micro is None:
        micro = size // world if size % world == 0 else 0
    if micro == 0 or size % (micro * world):
        raise ConfigError(
            f"batch.size = {size} cannot be shared by {world} ranks in micro-batches of {run.batch.micro or 'equal size'}: "
            "make it a multiple of ranks x batch.micro"
        )
    return micro


def open_session(
    run: Any,
    out: Path,
    strategy: strategy_.Strategy,
    model: Model,
    *,
    extend: bool,
    hold: Callable[[], None] = lambda: None,
) -> Session:
    """Make a run ready for its next step: new, or as its last checkpoint left it. The folder of a new run is written here.

    `hold` is called by the main process once all is checked and before anything is written.
    """
    former: list[Any] = []

    def look() -> int:
        former[:] = [restore.former_run(run, out, extend)]
        if former == [None] and run.init.from_ is not None:
            restore.parent(run.init.from_)  # before pictures are decoded
        return int(former == [None])

    # The main process alone looks: what another rank sees of a folder may be a minute old, and all must go the same way.
    new = bool(strategy_.from_main(strategy, look))
    checked = check_.cheap if new else lambda _: []
    data = dataset.load(run, strategy, lambda stems: micro_batch(run, strategy.world, len(stems["train"])), checked)
    if new:
        data.notes.extend(leaks.repeated(data.table))
    else:
        strategy.first(lambda: _refuse_other_data(run, out, data))
    if model.wants_mean_map:
        mean = trivial.mean_map(data.pixels, data.rows["train"])
        model = type(model)(run.model, dataclasses.replace(model.task, mean_map=mean))
    stage, averages = place(run, model, strategy.device, home=strategy.home, whole=not strategy.shares)
    shapes: dict[str, checkpoint.Shapes] = {
        checkpoint.NETS: checkpoint.shapes_of(stage.nets),
        checkpoint.AVERAGES: checkpoint.shapes_of(averages.nets),
    }
    watch = Watch(run.divergence, model.floors())
    session = Session(run, out, strategy, data, model, stage, averages, watch, shapes)
    last = 0 if new else strategy_.from_main(strategy, lambda: _choose(session))
    if not last and run.init.from_ is not None:
        restore.start_from(run.init.from_, stage.nets, averages.nets)
    if strategy.shares:
        averages.part()
    dress(run, stage, averages, strategy)
    strategy.prepare(
        stage,
        lambda name, weights: optim.make(weights, getattr(run.optim, name)),
        {name: getattr(run.optim, name).clip for name in stage.nets},
    )
    if strategy.shares:
        averages.deal_out(strategy)
    session.scalers = strategy.scalers()
    if last:
        take_up(session, last)

    def begin() -> None:
        hold()
        _record(session, former[0])

    strategy.first(begin)
    return session


def _refuse_other_data(run: Any, out: Path, data: dataset.Dataset) -> None:
    if split_.fingerprint(split_.read(out / rundir.SPLIT)) != split_.fingerprint(data.table):
        raise CheckpointError(
            f"{out} was trained on other data: the pictures, maps or split of {sources_.said(run.data)} differ from its "
            f"{rundir.SPLIT}; use the same data, or another folder with --out"
        )


def place(
    run: Any, model: Model, device: torch.device, *, home: torch.device | None = None, whole: bool = True
) -> tuple[Stage, Averages]:
    """Build networks and their averages with seeded weights, on the device or at `home`, in the device's layout.

    Weights that are to be dealt out (not `whole`) lie in rows; then what goes in takes the layout along instead.
    """
    restore.affordable(model)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(draws.key("init", run.seed) & (2**63 - 1))
        stage = model.stage()
    if run.sync_batch_norm:
        stage = dataclasses.replace(stage, nets={name: blocks.synchronised(net) for name, net in stage.nets.items()})
    last = run.channels_last == "always" or (run.channels_last == "auto" and (device.type == "cuda" or run.compile))
    for net in stage.nets.values():
        net.to(home or device).train()
        if last and whole:
            # Weights of convolutions only: what has four axes.
            net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        elif last:
            net.register_forward_pre_hook(_channels_last)
    return stage, Averages(stage.nets, model.averaged(), run.ema.decay)


def _channels_last(_: nn.Module, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    return tuple(x.contiguous(memory_format=torch.channels_last) if x.ndim == 4 else x for x in inputs)


def dress(run: Any, stage: Stage, averages: Averages, strategy: strategy_.Strategy) -> None:
    """Have networks compute what they keep not, and compile them, if asked for."""
    if run.activation_checkpointing:
        for net in stage.nets.values():
            blocks.recompute(net)
    if not run.compile:
        return
    cache_.keep_compiled(run.data.cache)
    for name, net in stage.nets.items():
        if name in stage.eager:
            continue
        if strategy.shares:
            blocks.compiled(net)
        else:
            net.compile(fullgraph=True)
    if not strategy.shares:
        for net in averages.nets.values():
            net.compile(fullgraph=True)


def fault(session: Session, step: int) -> str | None:
    """What keeps a session from going on from a checkpoint, in words."""
    return whole.fault(session.out, step, session.shapes, scaled=session.run.precision == "fp16")


def _choose(session: Session) -> int:
    """Find the newest checkpoint that is whole, and pass over what is not; 0 where there is none yet."""
    session.choice = whole.choose(session.out, lambda step: fault(session, step))
    return session.choice.step


def take_up(session: Session, step: int) -> None:
    """Restore networks, averages, optimisers and everything else from a checkpoint that was found to be whole."""
    out = session.out
    state = whole.state(out, step)
    contents.take(out, step, session.stage, session.averages, session.strategy)
    session.strategy.load_scalers(state["scalers"])
    session.selection = Selection(**state["selection"])
    best = session.selection.step

    def lost() -> int:
        return int(best is not None and best not in checkpoint.steps(out))

    # Looked up by the main process alone: what another rank sees of a folder may be a minute old.
    if strategy_.from_main(session.strategy, lost):
        session.selection.value = session.selection.step = None
    session.step, session.seconds, session.state, session.saved = state["step"], state["seconds"], state, True
    session.watch = Watch(session.run.divergence, session.model.floors())
    session.watch.load(state["watch"])
    session.anchor, session.rollbacks = (state["anchor"][0], state["anchor"][1]), list(state["rollbacks"])


def _record(session: Session, former: Any) -> None:
    """Write what a new run folder starts with, or note that the run is taken up again."""
    run, out = session.run, session.out
    rundir.make_folder(out)
    before = config.flat(former) if former is not None else {}
    changed = {key: value for key, value in config.flat(run).items() if former is not None and before.get(key) != value}
    entry = provenance.leg(session.strategy.device, session.strategy.world, changed) | {"from_step": session.step}
    if session.choice.passed:
        entry["passed_over"] = session.choice.passed
    if session.choice.lost:
        entry["lost_lines"] = session.choice.lost
    history = rundir.read_json(out / rundir.PROVENANCE)
    record = {
        "seed": run.seed,
        "split_seed": run.data.split_seed,
        "split_sha256": split_.fingerprint(session.data.table),
        "identity": config.fingerprint(config.identity(run), 64),
        "legs": [*history.get("legs", []), entry],
    }
    if former is None:
        split_.write(out / rundir.SPLIT, session.data.table)
    rundir.write_json(out / rundir.PROVENANCE, record)
    # Last: a folder with a configuration is a run folder.
    rundir.write_text(out / rundir.CONFIG, config.dump(run))


def identity_of(session: Session) -> str:
    """Short name of a run, the same each time it is taken up."""
    return config.fingerprint(config.identity(session.run) | {"out": str(session.out.absolute())}, 16)


def introduction(session: Session) -> list[str]:
    """Sentences that a person should read before training starts."""
    run, strategy, rows = session.run, session.strategy, session.data.rows
    counts = ", ".join(f"{name} {len(part)}" for name, part in rows.items())
    processes = f"{strategy.world} process{'es' if strategy.world > 1 else ''}"
    lines = [
        f"{run.model.name} on {strategy.device} ({run.precision}, {processes}): {counts}; "
        f"step {session.step} of {session.total}; run folder {session.out}"
    ]
    lines += session.choice.sentences()
    lines += session.data.notes
    lines += session.model.notes()
    if len(rows["test"]) == 0:
        lines.append("there is no test split: every score of this run is marked as selected on, and so optimistic")
    if run.compile:
        lines += [f"{name} is not compiled: {why}" for name, why in session.stage.eager.items()]
    if run.precision == "bf16" and strategy.device.type == "cpu":
        lines.append("bf16 on a CPU without bf16 units is slower than fp32")
    return lines
