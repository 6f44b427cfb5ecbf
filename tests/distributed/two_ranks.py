"""What `test_ddp.py` looks at, done by two ranks in one job (and by rank 0 alone, as one process)."""

import contextlib
import io
import itertools
import json
import math
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from memdist import cli, locks, rundir
from memdist.distributed import strategy as strategy_
from memdist.distributed.ddp import Ddp
from memdist.distributed.single import Single
from memdist.errors import DataError, is_shared
from memdist.model import Loss, Pair, Stage, Update
from memdist.train import checkpoint, distribution, evaluate, loop, start
from memdist.train import step as step_
from memdist.train.signals import Signals
from memdist.train.watch import Watch
from tests import looks, tiny

WRONG = ("pix2pix", "palette")
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
    fresh: dict[str, Any] = {
        "_scalers": {},
        "_training": None,
        "_bare": {},
        "_wrapped": {},
        "_weights": {},
        "optimisers": {},
    }
    mixed.__dict__ = {**strategy.__dict__, "precision": "fp16", **fresh}
    torch.manual_seed(0)
    net = torch.nn.Linear(4, 1)

    def sgd(_: str, weights: list[torch.nn.Parameter]) -> torch.optim.Optimizer:
        return torch.optim.SGD(weights, lr=1e-3, fused=True)

    mixed.prepare(Stage(nets={"net": net}, updates=()), sgd, {"net": None})
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
        taken = mixed.step(update).taken
        assert taken is not None
        told["taken"].append(float(taken))
        told["moved"].append(not torch.equal(before, net.weight))
    (folder / f"overflow-{strategy.rank}.json").write_text(json.dumps(told))


class Killed(BaseException):
    """Ends the work of all ranks on the spot."""


def go_wrong(variant: str, folder: Path, strategy: Any, where: str, steps: int | None = None) -> None:
    """Train 14 steps, rolled back where the last rank alone sees a loss that is no number; killed after so many steps."""
    more = {"on_divergence": "rollback", "checkpoint.every_minutes": 1e-9}
    run = tiny.run(variant, folder / "data", **more)
    out = folder / where / variant
    begun, add, steps_left = step_.take_step, Watch.add, itertools.count(1)
    lost: list[bool] = []

    def take_step(session: start.Session, micros: Sequence[Pair], sums: step_.Sums) -> None:
        lost[:] = [session.step == 6 and session.rate > 0.3 and strategy.rank == strategy.world - 1]
        begun(session, micros, sums)
        if next(steps_left) == steps:
            raise Killed

    def losing(self: Watch, net: str, loss: Loss) -> None:
        logs = {name: value * math.nan if lost == [True] else value for name, value in loss.logs.items()}
        add(self, net, Loss(loss.value, logs))

    step_.take_step, Watch.add = take_step, losing  # type: ignore[method-assign]
    try:
        with Signals() as signals:
            loop.go_on(start.open_session(run, out, strategy, start.build(run), extend=False), signals)
    except Killed:
        strategy.settle()
        strategy.first(lambda: None)
    finally:
        step_.take_step, Watch.add = begun, add  # type: ignore[method-assign]


class Unsendable(Exception):
    """Cannot be made again from its words."""

    def __init__(self, *, what: str) -> None:
        super().__init__(what)


def failure(folder: Path, strategy: Ddp) -> None:
    told = []
    for error in (DataError("no room"), KeyboardInterrupt(), Unsendable(what="odd"), FileNotFoundError(2, "no", "a")):

        def fail(error: BaseException = error) -> None:
            raise error

        try:
            strategy.first(fail)
        except BaseException as found:
            told.append([type(found).__name__, str(found), is_shared(found)])
    (folder / f"failure-{strategy.rank}.json").write_text(json.dumps(told))


def hide(patch: pytest.MonkeyPatch, out: Path) -> None:
    """What a folder holds is not seen where it is listed or looked up; who knows a name can open it, as over a network."""

    def seen(real: Any) -> Any:
        return lambda self, **options: not self.is_relative_to(out) and real(self, **options)

    def listed(real: Any) -> Any:
        return lambda self, *of, **options: iter(()) if self.is_relative_to(out) else real(self, *of, **options)

    for name, blinded in (("is_file", seen), ("is_dir", seen), ("exists", seen), ("iterdir", listed), ("glob", listed)):
        patch.setattr(Path, name, blinded(getattr(Path, name)))


def blind(folder: Path, strategy: Ddp) -> None:
    """Trainings of one folder of which rank 1 sees nothing; gives exit codes and what each rank says on standard error."""
    config = folder / f"blind-{strategy.rank}.yaml"
    config.write_text(json.dumps(tiny.raw("unet", folder / "data")))
    told: list[list[Any]] = []

    def train(name: str, *settings: str) -> None:
        out, said = folder / name, io.StringIO()
        with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stderr(said):
            patch.setattr(strategy_, "make", lambda _: strategy)
            patch.setattr(Ddp, "close", lambda _: strategy.settle())
            if strategy.rank == 1:
                hide(patch, out)
            try:
                cli.main(["train", str(config), "--out", str(out), *settings])
            except SystemExit as end:
                told.append([end.code, said.getvalue()])
        strategy.first(lambda: None)

    train("blind", "epochs=1")
    train("blind", "epochs=3")
    train("blind", "seed=1")
    train("blind", "data.split_seed=1")
    with locks.hold(folder / "blind") if strategy.main else contextlib.nullcontext():
        strategy.first(lambda: None)
        train("blind")
    checkpoints = folder / "blind" / rundir.CHECKPOINTS
    strategy.first(lambda: os.rename(checkpoints, folder / "away"))
    train("blind")
    strategy.first(lambda: os.rename(folder / "away", checkpoints))
    train("data")
    train("blind-wrong", "optim.unet.lr=1e30")
    train("blind-wrong", "optim.unet.lr=1e30")
    (folder / f"blind-{strategy.rank}.json").write_text(json.dumps(told))


def torn(folder: Path, strategy: Ddp) -> None:
    """The last checkpoint has a flipped bit: the main process finds it, and both ranks go on from the one before."""
    run, out = settings("unet", folder, **{"checkpoint.every_minutes": 1e-9}), folder / "torn"
    train(run, out, strategy, 6)

    def harm() -> None:
        path = sorted(out.glob("checkpoints/*/nets.safetensors"))[-1]
        content = path.read_bytes()
        path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))

    strategy.first(harm)
    last = checkpoint.steps(out)[-1]
    strategy.gather(torch.zeros(1))
    session = start.open_session(run, out, strategy, start.build(run), extend=False)
    told = {"last": last, "step": session.step, "said": session.choice.sentences()}
    (folder / f"torn-{strategy.rank}.json").write_text(json.dumps(told))


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    exact = [name for name in tiny.VARIANTS if "batch" not in name and "dropout" not in name]
    strategy = strategy_.make(settings("unet", folder))
    assert isinstance(strategy, Ddp) and strategy.world == 2
    for variant in [*exact, "unet batch prior"]:
        train(settings(variant, folder), folder / "two" / variant, strategy, 20)
    for variant in ("unet batch prior", "pix2pix", "palette"):
        stopped(variant, folder, strategy)
    for variant in WRONG:
        go_wrong(variant, folder, strategy, "wrong")
        for pieces in (7, 6, 9, None):
            go_wrong(variant, folder, strategy, "wrong-killed", pieces)
        go_wrong(variant, folder, strategy, "wrong-moved", 9)
    statistics(folder, strategy)
    overflow(folder, strategy)
    failure(folder, strategy)
    torn(folder, strategy)
    blind(folder, strategy)
    if strategy.main:
        alone = Single(torch.device("cpu"), "fp32")
        for variant in exact:
            train(settings(variant, folder), folder / "one" / variant, alone, 20)
            micro = settings(variant, folder, **{"batch.micro": 1})
            train(micro, folder / "micro" / variant, alone, 20)
        for variant in WRONG:
            go_wrong(variant, folder, alone, "wrong-alone")
            go_wrong(variant, folder, alone, "wrong-moved")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(strategy_, "reading", lambda _: strategy)
        patch.setattr(Ddp, "close", lambda _: strategy.settle())
        score(folder / "two" / "palette", folder)
    strategy.close()


def score(run: Path, folder: Path) -> None:
    """Score with fixations, FID where pictures are many (here: train) and KID where they are few."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(distribution, "load", lambda path, device: looks.EXTRACTOR)
        patch.setattr(distribution, "FEWEST", 10)
        fixations = looks.fixations(folder / "data" / "images", run / "fixations.npz")
        evaluate.evaluate(run, ["train", "val", "test"], overrides=[f"data.fixations={fixations}"])


if __name__ == "__main__":
    main(Path(sys.argv[1]))
