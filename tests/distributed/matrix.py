"""What `test_matrix.py` looks at: runs of every strategy and world, and checkpoints that move between them."""

import contextlib
import hashlib
import io
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from memdist import rundir
from memdist.distributed import strategy as strategy_
from memdist.train import checkpoint, contents, loop, rollback, start, whole
from memdist.train.saving import Saver
from memdist.train.signals import Signals
from memdist.train.watch import Verdict
from tests import tiny
from tests.distributed import worlds

Scenario = tuple[str, int, Callable[[int], Any]]

MODELS = ("unet", "pix2pix", "palette")
TWO = ("fsdp", "zero1", "zero2", "zero3")
"""Strategies beside ddp, on two ranks."""

MODES: dict[str, tuple[str, dict[str, Any], tuple[str, ...]]] = {
    "bf16": ("palette", {"precision": "bf16"}, ("ddp", *TWO)),
    "fp16": ("pix2pix", {"precision": "fp16"}, ("ddp", *TWO)),
    "recomputed": ("palette", {"activation_checkpointing": True}, ("ddp", "fsdp", "zero1", "zero2")),
    "offloaded": ("pix2pix", {"deepspeed.offload": "optimizer"}, ("zero1", "zero2", "zero3")),
    "offloaded whole": ("unet", {"deepspeed.offload": "all"}, ("zero3",)),
    "clipped weights": ("pix2pix clip", {}, ("ddp", *TWO)),
    "clipped": ("pix2pix vanilla batch", {}, ("ddp", *TWO)),
    "penalty": ("pix2pix penalty", {}, ("ddp", "fsdp")),
}
"""Name -> variant, settings, strategies: on two ranks they are all alike."""
PLAIN = {"recomputed": "palette", "offloaded": "pix2pix", "offloaded whole": "unet"}
"""Modes that change nothing but memory: they are the plain run of a model."""

FROM = (("ddp", 2), ("fsdp", 2), ("fsdp", 3), ("zero1", 2), ("zero2", 3), ("zero3", 2), ("zero3", 3), ("ddp", 1))
TO = (("ddp", 1), ("ddp", 3), ("fsdp", 2), ("fsdp", 3), ("zero1", 3), ("zero2", 2), ("zero3", 2), ("zero3", 3))
SAVED, LAST = 5, 7
MOVED = {"batch.size": 12, "log.every": 1, "validate.every": 100}


def name(*words: object) -> str:
    return "-".join(str(word).replace(" ", "_") for word in words)


def moves() -> list[tuple[str, tuple[str, int], tuple[str, int]]]:
    """Variant, from, to. Palette, which has averages: all kinds of both; two networks: each kind once on either side."""
    palette = [("palette", a, b) for i, a in enumerate(FROM) for j, b in enumerate(TO) if (i + j) % 3 == 0]
    gan = [("pix2pix", a, b) for a, b in zip(FROM, (*TO[3:], *TO[:3]), strict=True)]
    momentum = [
        ("pix2pix vanilla batch", ("zero2", 3), ("zero1", 3)),
        ("pix2pix vanilla batch", ("ddp", 1), ("fsdp", 3)),
    ]
    return palette + gan + momentum


def exact(folder: Path) -> list[Scenario]:
    """Twenty steps of each model: on 1 rank with 4 micro-batches, 2 with 2, 4 with 1; and shared in every way."""
    found: list[Scenario] = []

    def add(label: str, variant: str, way: str, world: int, **more: Any) -> None:
        def act(rank: int) -> Any:
            run = worlds.settings(variant, folder, way, **{"validate.every": 2, **more})
            return worlds.train(run, folder / "runs" / label, 20, [7])

        found.append((label, world, act))

    for model in MODELS:
        add(name(model, 1), model, "ddp", 1, **{"batch.micro": 1})
        add(name(model, 4), model, "ddp", 4, **{"batch.micro": 1})
        for way in ("ddp", *TWO):
            add(name(model, way), model, way, 2, **{"batch.micro": 1})
    for mode, (variant, settings, ways) in MODES.items():
        for way in ways:
            add(name(mode, way), variant, way, 2, **settings)
    for way in ("ddp", *TWO):

        def back(rank: int, way: str = way) -> Any:
            run = worlds.settings("palette", folder, way, **{"log.every": 1, "on_divergence": "rollback"})
            return begun_again(run, folder / "runs" / name("back", way))

        found.append((name("back", way), 2, back))
    add(name("fsdp-alone"), "palette", "fsdp", 1, **{"batch.micro": 1})
    add(name("zero-alone"), "palette", "zero2", 1, **{"batch.micro": 1})
    add(name("dropout"), "unet dropout", "ddp", 2)
    return found


def begun_again(run: Any, out: Path) -> dict[str, Any]:
    """Three steps, and the same again from the start."""
    strategy = strategy_.make(run)
    try:
        with Signals() as signals, contextlib.redirect_stdout(io.StringIO()):
            session = start.open_session(run, out, strategy, start.build(run), extend=False)
            for _ in range(2):
                with contextlib.closing(loop.Leg(session, signals)) as leg, leg.loader() as loader:
                    while session.step < 3:
                        leg.advance(loader)
                    strategy.settle()
                done = session.step
                rollback.go_back(session, Verdict(what="it is tried", net="denoiser", step=3, since=1))
        return {"step": done}
    finally:
        strategy.close()


def moving(folder: Path) -> list[Scenario]:
    """Checkpoints of every strategy and world, taken up by others."""
    found: list[Scenario] = []
    begun = sorted({(variant, a) for variant, a, _ in moves()})
    for variant, (way, world) in begun:

        def begin(rank: int, variant: str = variant, way: str = way, world: int = world) -> Any:
            run = worlds.settings(variant, folder, way, **MOVED)
            return worlds.train(run, folder / "from" / name(variant, way, world), SAVED, [SAVED])

        found.append((name("from", variant, way, world), world, begin))
    for variant in sorted({variant for variant, _, _ in moves()}):

        def undisturbed(rank: int, variant: str = variant) -> Any:
            run = worlds.settings(variant, folder, "ddp", **MOVED)
            return worlds.train(run, folder / "whole" / name(variant), LAST)

        found.append((name("whole", variant), 1, undisturbed))
    for variant, a, b in moves():

        def again(rank: int, variant: str = variant, a: Any = a, b: Any = b) -> Any:
            out = folder / "to" / name(variant, *a, *b)
            if rank == 0:
                shutil.copytree(folder / "from" / name(variant, *a), out)
            return same(worlds.settings(variant, folder, b[0], **MOVED), out)

        def go_on(rank: int, variant: str = variant, a: Any = a, b: Any = b) -> Any:
            run = worlds.settings(variant, folder, b[0], **MOVED)
            return worlds.train(run, folder / "to" / name(variant, *a, *b), LAST)

        # A group cannot be joined twice: two scenarios.
        found.append((name("again", variant, *a, *b), b[1], again))
        found.append((name("to", variant, *a, *b), b[1], go_on))
    # Dropout is a function of seed, step and rank: exact where there are as many ranks as before.
    for label, last in (("dropout-stopped", 6), ("dropout-stopped", 12)):

        def dropped(rank: int, last: int = last) -> Any:
            return worlds.train(worlds.settings("unet dropout", folder, "ddp"), folder / "runs" / "stopped", last, [6])

        found.append((f"{label}-{last}", 2, dropped))

    def dropout(rank: int) -> Any:
        return worlds.train(worlds.settings("unet dropout", folder, "ddp"), folder / "runs" / "dropout", 12, [6])

    found.append(("dropout-whole", 2, dropout))
    return found


def same(run: Any, out: Path) -> dict[str, Any]:
    """Take a checkpoint up and write it again at once, and say what its files were and are."""
    strategy = strategy_.make(run)
    try:
        session = start.open_session(run, out, strategy, start.build(run), extend=False)
        step, saver = session.step, Saver(strategy.device)
        state = whole.state(out, step)
        saver.begin(
            contents.everything(session.stage, session.averages, strategy),
            lambda copies: contents.write(out / "again", step, copies, strategy, state),
        )
        saver.wait()
        strategy.first(lambda: None)
        names = (checkpoint.NETS, checkpoint.AVERAGES, checkpoint.OPTIM)
        folders = (checkpoint.folder(out, step), checkpoint.folder(out / "again", step))
        digests = [[hashlib.sha256((folder / file).read_bytes()).hexdigest() for file in names] for folder in folders]
        strategy.gather(torch.zeros(1))  # all have read it
        strategy.first(lambda: rundir.remove_folder(out / "again"))
        return {"was": digests[0], "is": digests[1]}
    finally:
        strategy.close()


if __name__ == "__main__":
    place, me, size = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    if me == 0 and not (place / "data").exists():
        tiny.data(place / "making").rename(place / "data")
    while not (place / "data").exists():
        pass
    worlds.play(place, me, size, exact(place) if size == 4 else moving(place))
