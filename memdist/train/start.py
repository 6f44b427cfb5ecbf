"""Everything that stands before the first step: checks, data, networks, and what a run folder already holds."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from memdist import config, draws, models, rundir
from memdist.config import Run
from memdist.data import cache as cache_
from memdist.data import loader as loader_
from memdist.data import pairs as pairs_
from memdist.data import split as split_
from memdist.distributed import strategy as strategy_
from memdist.errors import CheckpointError, ConfigError
from memdist.model import Model, Sampling, Stage, Task
from memdist.train import checkpoint, optim, provenance, report, restore, select, trivial
from memdist.train.ema import Averages
from memdist.train.score import Rows
from memdist.train.select import Selection


@dataclass
class Data:
    """Decoded pairs and their split."""

    pixels: cache_.Pixels
    table: list[split_.Row]
    rows: dict[str, Rows]
    """Rows of the cache by split."""
    pairs: list[pairs_.PairFile]
    notes: list[str]


@dataclass
class Session:
    """A run that is ready to take its next step."""

    run: Any
    out: Path
    strategy: strategy_.Strategy
    data: Data
    model: Model
    stage: Stage
    optimisers: dict[str, torch.optim.Optimizer]
    averages: Averages
    step: int = 0
    seconds: float = 0.0
    """Time spent training in former legs."""
    selection: Selection = field(default_factory=Selection)
    state: dict[str, Any] = field(default_factory=dict)
    """Rest of the checkpoint that the run goes on from."""

    @property
    def total(self) -> int:
        """Steps of the whole run."""
        return loader_.epoch_end(self.run.epochs, len(self.data.rows["train"]), self.run.batch.size)


def default_folder(name: str, overrides: Sequence[str], run: Run) -> Path:
    """Run folder for a configuration: runs/<name>/<identity overrides>-<hash of the identity keys and the data's place>."""
    fixed = config.identity(run)
    named = [o for o in overrides if o.partition("=")[0] in fixed]
    words = [re.sub(r"[^\w.=,+-]+", "_", o.rpartition(".")[2] if "." in o.partition("=")[0] else o) for o in named]
    place = {"images": str(run.data.images), "maps": str(run.data.maps)}
    return Path("runs", name, f"{','.join(words)[:80] or 'default'}-{config.fingerprint(fixed | place)}")


def open_data(
    run: Run, strategy: strategy_.Strategy | None = None, check: Callable[[dict[str, list[str]]], object] | None = None
) -> Data:
    """Find, split and decode (once, by the main process) the pairs; `check` sees the split before anything is decoded."""
    found = pairs_.find(run.data.images, run.data.maps)
    stems = split_.make([pair.stem for pair in found.pairs], run.data)
    if check is not None:
        check(stems)
    used = {stem for part in stems.values() for stem in part}
    pairs = [pair for pair in found.pairs if pair.stem in used]
    opened: list[cache_.Pixels] = []

    def decode() -> None:
        opened.append(cache_.open_or_build(pairs, run.data.size, run.data.map_channels, run.data.cache, run.workers))

    if strategy is not None:
        strategy.first(decode)
    if not opened:
        decode()
    pixels = opened[0]
    images = dict(zip(pixels.stems, pixels.image_hashes, strict=True))
    maps = dict(zip(pixels.stems, pixels.map_hashes, strict=True))
    notes = []
    if found.unpaired:
        notes.append(f"{len(found.unpaired)} files without a partner are left out, such as {found.unpaired[0]!r}")
    rows = {name: pixels.rows(part) for name, part in stems.items()}
    return Data(pixels, split_.rows(stems, images, maps), rows, pairs, notes)


def cache(run: Run) -> str:
    """Decode the pictures of a configuration; gives a sentence on them."""
    data = open_data(run)
    counts = ", ".join(f"{name} {len(rows)}" for name, rows in data.rows.items())
    size = (data.pixels.images.nbytes + data.pixels.maps.nbytes) / 2**20
    return f"{len(data.pairs)} pairs decoded at {run.data.size} x {run.data.size} ({size:.0f} MiB): {counts}"


def build(run: Any) -> Model:
    """Make the model and check what can be checked without data; raises ConfigError."""
    model: Model = models.load(run.model.name)(
        run.model, Task(size=run.data.size, image_channels=3, map_channels=run.data.map_channels)
    )
    wanted = {run.strategy, run.precision} | ({"compile"} if run.compile else set())
    for setting, why in model.refuses().items():
        if setting in wanted:
            raise ConfigError(f"{run.model.name} cannot run with {setting}: {why}")
    select.check(run.select, model.scores)
    report.check(run.log)
    model.check(Sampling(sampler=run.validate_.sampler, steps=run.validate_.steps))
    model.check(Sampling(sampler=run.eval.sampler, steps=run.eval.steps))
    return model


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


def open_session(run: Any, out: Path, strategy: strategy_.Strategy, model: Model, *, extend: bool) -> Session:
    """Make a run ready for its next step: new, or as its last checkpoint left it. The folder of a new run is written here."""
    former = former_run(run, out, extend)
    data = open_data(run, strategy, lambda stems: micro_batch(run, strategy.world, len(stems["train"])))
    if former is not None and split_.fingerprint(split_.read(out / rundir.SPLIT)) != split_.fingerprint(data.table):
        raise CheckpointError(
            f"{out} was trained on other data: the pictures, maps or split of data.images = {run.data.images} differ from its "
            f"{rundir.SPLIT}; use the same data, or another folder with --out"
        )
    if model.wants_mean_map:
        mean = trivial.mean_map(data.pixels, data.rows["train"])
        task = Task(size=model.task.size, image_channels=3, map_channels=run.data.map_channels, mean_map=mean)
        model = type(model)(run.model, task)
    stage, averages = place(run, model, strategy.device)
    optimisers = {name: optim.make(net, getattr(run.optim, name)) for name, net in stage.nets.items()}
    session = Session(run, out, strategy, data, model, stage, optimisers, averages)
    last = checkpoint.steps(out)[-1:] if former is not None else []
    if not last and run.init.from_ is not None:
        restore.start_from(run.init.from_, stage.nets, averages.nets)
    strategy.prepare(stage, optimisers, {name: getattr(run.optim, name).clip for name in stage.nets})
    if last:
        _take_up(session, last[0])
    strategy.first(lambda: _record(session, former))
    return session


def place(run: Any, model: Model, device: torch.device) -> tuple[Stage, Averages]:
    """Build networks and their averages with seeded weights, on the device, in its layout, compiled if asked for."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(draws.key("init", run.seed) & (2**63 - 1))
        stage = model.stage()
    last = run.channels_last == "always" or (run.channels_last == "auto" and (device.type == "cuda" or run.compile))
    for net in stage.nets.values():
        net.to(device).train()
        if last:
            # Weights of convolutions only: what has four axes.
            net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    averages = Averages(stage.nets, model.averaged(), run.ema.decay)
    if run.compile:
        # The compiler's results are kept between runs, beside the decoded pictures.
        os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str((run.data.cache or cache_.default_folder()) / "inductor"))
        for name, net in (*stage.nets.items(), *averages.nets.items()):
            if name not in stage.eager:
                net.compile(fullgraph=True)
    return stage, averages


def former_run(run: Any, out: Path, extend: bool) -> Any:
    """Settings with which a run folder was last started, None for a new one; raises when this run is not that one."""
    path = out / rundir.CONFIG
    with rundir.naming(out):
        there = path.is_file()
        # A start that was killed leaves what `_record` writes before the configuration.
        begun = {rundir.SPLIT, rundir.PROVENANCE, rundir.LOCK}
        strange = [f for f in (out.iterdir() if out.is_dir() else ()) if f.name not in begun and f.suffix != ".tmp"]
    if not there:
        if strange:
            raise CheckpointError(f"{out} holds other files and is no run folder; choose another folder with --out")
        return None
    former = restore.settings(out)
    if former.model.name != run.model.name:
        raise CheckpointError(
            f"{out} belongs to a {former.model.name} run, not to {run.model.name}; choose another folder with --out"
        )
    then, now = config.identity(former), config.identity(run)
    changed = [key for key in now if now[key] != then.get(key)]
    if changed:
        lines = [
            f"{key} = {now[key]!r} differs from the {then.get(key)!r} that {out} was started with" for key in changed
        ]
        lines[-1] += "; use the same value, or another folder with --out"
        raise CheckpointError("\n".join(lines))
    decays = [name for name in type(run.optim).model_fields if getattr(run.optim, name).schedule.name != "constant"]
    if run.epochs != former.epochs and decays and not extend:
        raise ConfigError(
            f"epochs = {run.epochs} instead of {former.epochs} changes the learning rate of {' and '.join(decays)}, which decays "
            "towards the end: give --extend to do so, or the former number"
        )
    return former


def _take_up(session: Session, step: int) -> None:
    """Restore networks, averages, optimisers and everything else from a checkpoint."""
    out, nets = session.out, session.stage.nets
    state = checkpoint.read_state(out, step)
    checkpoint.load_weights(out, step, nets, averages=False)
    checkpoint.load_weights(out, step, session.averages.nets, averages=True)
    checkpoint.load_optimisers(out, step, nets, session.optimisers)
    session.strategy.load_scalers(state["scalers"])
    session.selection = Selection(**state["selection"])
    session.step, session.seconds, session.state = state["step"], state["seconds"], state


def _record(session: Session, former: Any) -> None:
    """Write what a new run folder starts with, or note that the run is taken up again."""
    run, out = session.run, session.out
    rundir.make_folder(out)
    before = config.flat(former) if former is not None else {}
    changed = {key: value for key, value in config.flat(run).items() if former is not None and before.get(key) != value}
    entry = provenance.leg(session.strategy.device, session.strategy.world, changed) | {"from_step": session.step}
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
    lines += session.data.notes
    lines += session.model.notes()
    if len(rows["test"]) == 0:
        lines.append("there is no test split: every score of this run is marked as selected on, and so optimistic")
    if run.compile:
        lines += [f"{name} is not compiled: {why}" for name, why in session.stage.eager.items()]
    if run.precision == "bf16" and strategy.device.type == "cpu":
        lines.append("bf16 on a CPU without bf16 units is slower than fp32")
    return lines
