"""What `test_ddp.py` looks at, done by two ranks in one job (and by rank 0 alone, as one process)."""

import json
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from memdist.distributed import strategy as strategy_
from memdist.distributed.ddp import Ddp
from memdist.distributed.single import Single
from memdist.errors import DataError
from memdist.model import Loss, Pair, Stage, Update
from memdist.train import evaluate, loop, start
from memdist.train import step as step_
from memdist.train.signals import Signals
from tests import tiny

BATCH = {"batch.size": 4, "epochs": 40, "checkpoint.every": 100, "log.images": 0}


def settings(variant: str, folder: Path, **more: Any) -> Any:
    run = tiny.run(variant, folder / "data", **BATCH, **more)
    return run


def train(run: Any, out: Path, strategy: Any, last: int) -> int | None:
    """Train to step `last`, then leave as a kill would, but for a stop that comes first."""
    with Signals() as signals:
        leg = loop.Leg(start.open_session(run, out, strategy, start.build(run), extend=False), signals)
        try:
            from memdist.data.loader import Loader

            micro = start.micro_batch(run, strategy.world, leg.pairs)
            rows = leg.session.data.rows["train"]
            with Loader(
                leg.session.data.pixels,
                rows,
                seed=run.seed,
                batch_size=run.batch.size,
                micro=micro,
                rank=strategy.rank,
                world=strategy.world,
            ) as loader:
                while leg.session.step < last:
                    code = leg.advance(loader)
                    if code is not None:
                        return code
                strategy.settle()
        finally:
            leg.close()
    return None


def stopped(variant: str, folder: Path, strategy: Ddp) -> None:
    """Rank 1 alone hears of a signal after step 7; both stop, and go on to step 20."""
    run, out = settings(variant, folder), folder / "resumed" / variant
    taken = step_.take_step

    def take_step(session: start.Session, micros: Sequence[Pair], sums: step_.Sums) -> None:
        taken(session, micros, sums)
        if session.step == 7 and strategy.rank == 1:
            os.kill(os.getpid(), signal.SIGUSR1)

    step_.take_step = take_step
    code = train(run, out, strategy, 20)
    step_.take_step = taken
    strategy.first(lambda: None)
    state = json.loads(sorted(out.glob("checkpoints/*/state.json"))[-1].read_text())
    (folder / f"stopped-{variant}-{strategy.rank}.json").write_text(json.dumps({"code": code, "step": state["step"]}))
    train(run, out, strategy, 20)


def statistics(folder: Path, strategy: Ddp) -> None:
    run = settings("pix2pix vanilla batch", folder, **{"ema.decay": 0.9})
    session = start.open_session(run, folder / "statistics", strategy, start.build(run), extend=False)
    from memdist.data.loader import Loader

    with Loader(
        session.data.pixels, session.data.rows["train"], seed=0, batch_size=4, micro=2, rank=strategy.rank, world=2
    ) as loader:
        for step in range(3):
            step_.take_step(session, loader.micro_batches(step), step_.Sums())
    told = {
        f"{name}.{key}": value.flatten().tolist()
        for name, net in [*session.stage.nets.items(), *((f"average {n}", a) for n, a in session.averages.nets.items())]
        for key, value in net.named_buffers()
        if key.endswith(("running_mean", "running_var"))
    }
    (folder / f"statistics-{strategy.rank}.json").write_text(json.dumps(told))


def overflow(folder: Path, strategy: Ddp) -> None:
    """Rank 1's loss overflows fp16 in the second of three steps."""
    mixed = Ddp.__new__(Ddp)
    mixed.__dict__ = {**strategy.__dict__, "precision": "fp16", "_scalers": {}, "_training": None}
    torch.manual_seed(0)
    net = torch.nn.Linear(4, 1)
    optimiser = torch.optim.SGD(net.parameters(), lr=1e-3, fused=True)
    mixed.prepare(Stage(nets={"net": net}, updates=()), {"net": optimiser}, {"net": None})
    told: dict[str, list[Any]] = {"taken": [], "moved": []}
    for step in range(3):
        factor = 1e6 if step == 1 and strategy.rank == 1 else 1.0

        def loss(nets: Any, *_: Any, factor: float = factor) -> Loss:
            value = nets["net"](torch.full((2, 4), 0.1 * factor)).float().mean() / 10
            return Loss(value, {})

        update = Update(net="net", loss=loss)
        before = net.weight.detach().clone()
        with mixed.only("net") as nets, mixed.micro("net", True):
            mixed.backward("net", loss(nets).value, 1)
        taken = mixed.step(update)
        assert taken is not None
        told["taken"].append(float(taken))
        told["moved"].append(not torch.equal(before, net.weight))
    (folder / f"overflow-{strategy.rank}.json").write_text(json.dumps(told))


def failure(folder: Path, strategy: Ddp) -> None:
    def fail() -> None:
        raise DataError("no room")

    try:
        strategy.first(fail)
    except DataError as error:
        (folder / f"failure-{strategy.rank}.json").write_text(json.dumps(str(error)))


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    exact = [name for name in tiny.VARIANTS if "batch" not in name and "dropout" not in name]
    strategy = strategy_.make(settings("unet", folder))
    assert isinstance(strategy, Ddp) and strategy.world == 2
    for variant in [*exact, "unet batch prior"]:
        train(settings(variant, folder), folder / "two" / variant, strategy, 20)
    for variant in ("unet batch prior", "pix2pix", "palette"):
        stopped(variant, folder, strategy)
    statistics(folder, strategy)
    overflow(folder, strategy)
    failure(folder, strategy)
    if strategy.main:
        alone = Single(torch.device("cpu"), "fp32")
        for variant in exact:
            train(settings(variant, folder), folder / "one" / variant, alone, 20)
            micro = settings(variant, folder, **{"batch.micro": 1})
            train(micro, folder / "micro" / variant, alone, 20)
    # Last: it leaves the process group.
    evaluate.evaluate(folder / "two" / "palette", ["val", "test"])


if __name__ == "__main__":
    main(Path(sys.argv[1]))
