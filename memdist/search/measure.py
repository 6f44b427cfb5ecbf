"""What a cell is made of, and how long its steps take here: networks are built without content, a few steps are real."""

from __future__ import annotations

from typing import Any, NamedTuple

from memdist.errors import SearchError

PAIRS = 1600
"""Pairs that are reckoned with where no data are named: as many as `memdist data make` makes."""
FORWARD = 1 / 3
"""Of a training step's time what a prediction takes: forward without backward, which takes twice as long."""


class Look(NamedTuple):
    """A configuration, without a step of it."""

    kind: str
    """What its speed depends on: those of one kind are as fast."""
    weights: int
    """Numbers of all its networks."""
    stored: int
    """Bytes of a checkpoint: weights, averages, states of the optimisers."""


class Pairs(NamedTuple):
    """How many pairs a run has."""

    train: int
    val: int
    assumed: bool
    """No data are named."""


def look(run: Any) -> Look:
    """Look at a run's networks; raises ConfigError."""
    import torch

    from memdist import config
    from memdist.train import footprint, start

    model = start.build(run, here=False)
    with torch.device("meta"):
        stage = model.stage()
    sizes = [
        footprint.size(net, getattr(run.optim, name), name in model.averaged() and run.ema.decay is not None)
        for name, net in stage.nets.items()
    ]
    stored = 0
    for size in sizes:
        stored += footprint.FP32 * size.weights * (1 + size.moments + size.averaged) + size.buffers * (
            1 + size.averaged
        )
    parts = [repr(net) for net in stage.nets.values()] + [f"{u.net}/{u.every}" for u in stage.updates]
    parts += [str(value) for value in (run.batch, run.validate_, run.data.size, run.data.image_channels)]
    parts += [str(value) for value in (run.data.map_channels, run.precision, run.compile, run.channels_last)]
    parts.append(str(run.activation_checkpointing))
    return Look(config.fingerprint({"kind": parts}), sum(size.weights for size in sizes), stored)


def pairs(run: Any) -> Pairs:
    """Pairs of a run's splits, found but not decoded; assumed where no data are named. Raises DataError."""
    from memdist.data import sources, split

    if sources.given(run.data):
        stems, _ = split.deal(sources.find(run.data).pairs, run.data)
        return Pairs(len(stems["train"]), len(stems["val"]), False)
    val, test = (share if isinstance(share, float) else 0.1 for share in (run.data.val, run.data.test))
    held = round(PAIRS * val)
    return Pairs(PAIRS - held - round(PAIRS * test), held, True)


def epoch(run: Any, there: Pairs, threads: int, gpu: str = "here") -> float:
    """Seconds of an epoch with its share of validation, by a few steps on this machine's device with random pictures.

    `gpu`: a kind of the catalogue instead, reckoned from its operations. Raises ConfigError and SearchError.
    """
    import torch

    from memdist.distributed import strategy as strategy_
    from memdist.model import Sampling
    from memdist.plan import gpus, timing
    from memdist.train import footprint, start

    model = start.build(run, here=gpu == "here")
    micro = start.micro_batch(run, 1, there.train)
    with torch.device("meta"):
        updates = model.stage().updates
    if gpu != "here":
        kind = gpus.find(gpu)
        gpus.check_precision(kind, run.precision)
        passes = footprint.Footprint(run, model, "cuda").passes(micro)
        taken = timing.reckoned(passes, micro, kind, run.precision)
    else:
        device, before = strategy_.device_of(run.device), torch.get_num_threads()
        torch.set_num_threads(threads)
        try:
            taken = timing.measured(run, model, device, micro)
        except torch.OutOfMemoryError as error:
            raise SearchError(
                f"a step of {micro} pictures finds no room on {device}, so that it cannot be timed: set batch.micro, or plan "
                "for another GPU with --gpu"
            ) from error
        finally:
            torch.set_num_threads(before)
    picture = sum(taken[update.net] / update.every for update in updates)
    settings = run.validate_
    maps = min(settings.images or there.val, there.val) + min(settings.train_images, there.train)
    evaluations = model.evaluations(Sampling(sampler=settings.sampler, steps=settings.steps))
    predicted = maps * max(1, evaluations) / settings.every + (there.val if model.scores else 0)
    return float(picture * (there.train + FORWARD * predicted))
