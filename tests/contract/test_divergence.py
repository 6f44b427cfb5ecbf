"""Trainings that go wrong, for every model: what they say, what they leave, and that they go back the same each time."""

import json
import math
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from memdist import models, rundir
from memdist.distributed.single import Single
from memdist.errors import CheckpointError, DivergedError
from memdist.model import Floor
from memdist.models.pix2pix import Pix2Pix
from memdist.train import checkpoint, loop
from memdist.train import step as step_
from memdist.train.signals import RESUME_ME
from tests import tiny

MODELS = ["unet", "pix2pix", "palette"]
BACK = {"on_divergence": "rollback"}
OFTEN = {"checkpoint.every_minutes": 1e-9}
"""A checkpoint after each step; without it, after steps 5, 9 and 14, where epochs end."""


class Killed(BaseException):
    """Ends a process's work on the spot, as SIGKILL does: nothing may follow it."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.data(tmp_path_factory.mktemp("data"))


def after_steps(monkeypatch: pytest.MonkeyPatch, follow: Callable[[Any], None]) -> None:
    taken = step_.take_step

    def take_step(session: Any, *rest: Any) -> None:
        taken(session, *rest)
        follow(session)

    monkeypatch.setattr(step_, "take_step", take_step)


def poison(monkeypatch: pytest.MonkeyPatch, at: int, above: float = 0.0) -> None:
    """A weight of the network that predicts is lost after step `at`, while the rates' factor is larger than `above`."""

    def follow(session: Any) -> None:
        if session.step == at and session.rate > above:
            net = session.stage.nets[session.model.averaged()[0]]
            with torch.no_grad():
                next(net.parameters())[0] = math.nan

    after_steps(monkeypatch, follow)


def finite(out: Path) -> int:
    """How many checkpoints there are, all of whose numbers are numbers."""
    for step in checkpoint.steps(out):
        for name in (checkpoint.NETS, checkpoint.AVERAGES, checkpoint.OPTIM):
            for key, value in load_file(checkpoint.folder(out, step) / name).items():
                assert value.isfinite().all(), (step, name, key)
        json.loads((checkpoint.folder(out, step) / "state.json").read_text(), parse_constant=pytest.fail)
    return len(checkpoint.steps(out))


def lines(out: Path) -> list[dict[str, Any]]:
    return rundir.read_lines(out / rundir.METRICS)


def outcome(out: Path) -> tuple[bytes, dict[str, Any]]:
    last = checkpoint.folder(out, checkpoint.steps(out)[-1])
    names = (checkpoint.NETS, checkpoint.AVERAGES, checkpoint.OPTIM)
    state = json.loads((last / "state.json").read_text())
    # What a clock shows, and where the file of what it showed ends.
    del state["seconds"], state["lengths"]["timing"]
    return (out / rundir.METRICS).read_bytes(), {"state": state} | {n: (last / n).read_bytes() for n in names}


def stopped(run: Any, out: Path) -> str:
    with pytest.raises(DivergedError) as error:
        loop.train(run, out)
    words = str(error.value)
    assert "\n" not in words and not words.endswith(".")
    state = rundir.read_json(out / rundir.STATE)
    assert state["state"] == "diverged" and state["why"] in words
    finite(out)
    return words


# Stop


@pytest.mark.parametrize("model", MODELS)
def test_a_rate_that_is_far_too_high(model: str, folder: Path, tmp_path: Path) -> None:
    nets = models.load(model).networks
    words = stopped(tiny.run(model, folder, **{f"optim.{net}.lr": 1e30 for net in nets}), tmp_path / "run")
    assert " is nan at step 2" in words or " is inf at step 2" in words
    assert "there is no checkpoint from before yet" in words and "on_divergence=rollback" in words
    assert any(f"a lower optim.{net}.lr than 1e+30" in words for net in nets)
    assert lines(tmp_path / "run") == []


@pytest.mark.parametrize("often", [{}, OFTEN])
@pytest.mark.parametrize("model", MODELS)
def test_a_weight_that_is_lost(
    model: str, often: dict[str, Any], folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    poison(monkeypatch, 7)
    words = stopped(tiny.run(model, folder, **often), tmp_path / "run")
    # Where a checkpoint was asked for after step 7, none was written.
    assert "at step 8" in words and f"the checkpoint of step {6 if often else 5} is from before" in words
    assert finite(tmp_path / "run") >= 1
    assert [line["step"] for line in lines(tmp_path / "run")][-1] == 6
    # The same again says the same.
    assert stopped(tiny.run(model, folder, **often), tmp_path / "run") == words


def test_a_weight_that_is_lost_on_the_last_step(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    poison(monkeypatch, 14)
    words = stopped(tiny.run("unet", folder), tmp_path / "run")
    assert "the weights of unet are no longer finite at step 14; the checkpoint of step 9 is from before" in words


def test_a_run_that_diverged_remembers_it_and_may_go_on(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    poison(monkeypatch, 7, above=0.7)
    stopped(tiny.run("unet", folder), tmp_path / "run")
    capfd.readouterr()
    stopped(tiny.run("unet", folder), tmp_path / "run")
    assert (
        "this run diverged last time: train/loss is nan at step 8; from the same checkpoint" in capfd.readouterr().out
    )
    assert loop.train(tiny.run("unet", folder, **BACK), tmp_path / "run") == 0
    assert "this time it goes back when it does" in capfd.readouterr().out
    assert loop.train(tiny.run("unet", folder, **BACK), tmp_path / "whole") == 0
    assert outcome(tmp_path / "run") == outcome(tmp_path / "whole")


def explode(monkeypatch: pytest.MonkeyPatch, at: int, above: float = 0.0) -> None:
    """Gradients are a million times what they are in the `at`-th step, while the rates' factor is larger than `above`."""
    begun, backward = step_.take_step, Single.backward
    taken: list[int] = []

    def take_step(session: Any, *rest: Any) -> None:
        taken[:] = [session.step + 1 == at and session.rate > above]
        begun(session, *rest)

    def larger(self: Single, net: str, value: torch.Tensor, accumulations: int) -> None:
        backward(self, net, value * 1e6 if taken == [True] else value, accumulations)

    monkeypatch.setattr(step_, "take_step", take_step)
    monkeypatch.setattr(Single, "backward", larger)


@pytest.mark.parametrize("model", MODELS)
def test_an_explosion(model: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    explode(monkeypatch, 11)
    words = stopped(tiny.run(model, folder, **{"divergence.warmup": 5}), tmp_path / "run")
    assert "the gradient norm of" in words and "at step 11, where" in words and "divergence.gradient=null" in words
    assert "the checkpoint of step 9 is from before" in words
    # It can be let go on: the gradient was finite.
    assert loop.train(tiny.run(model, folder, **{"divergence.gradient": "null"}), tmp_path / "run") == 0
    assert finite(tmp_path / "run") >= 1


def test_a_generator_that_paints_one_map(folder: Path, tmp_path: Path) -> None:
    # So high a rate saturates tanh at once: a real collapse, in finite numbers.
    run = tiny.run("pix2pix", folder, **{"optim.generator.lr": 1e6, "divergence.collapse_steps": 6, **OFTEN})
    words = stopped(run, tmp_path / "run")
    assert "the generator has collapsed to one map for all pictures: train/generator/spread has been below" in words
    assert "for 6 steps, since step " in words and "divergence.collapse_steps=null" in words


def test_a_generator_that_paints_one_map_where_a_step_sees_one_picture(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There a step has no two maps to tell apart; validation has, every 18 steps."""
    one = {"batch.size": 1, "divergence.collapse_steps": 6, "checkpoint.keep_every": 1}
    assert loop.train(tiny.run("pix2pix", folder, **{**one, "divergence.collapse_steps": 1}), tmp_path / "sound") == 0

    def follow(session: Any) -> None:
        if session.step >= 20 and session.rate > 0.7:  # the output's bias outweighs all else
            session.stage.nets["generator"].output.bias.data.fill_(50.0)

    after_steps(monkeypatch, follow)
    words = stopped(tiny.run("pix2pix", folder, epochs=5, **one), tmp_path / "run")
    assert (
        "has collapsed to one map for all pictures: the maps predicted in validation have differed by less than"
        in words
    )
    # The first validation that sees it is followed by one more.
    assert "for 6 steps, since step 36; the checkpoint of step 18 is from before" in words
    assert loop.train(tiny.run("pix2pix", folder, epochs=5, **one, **BACK), tmp_path / "run") == 0
    (record,) = [line for line in lines(tmp_path / "run") if "rollback" in line]
    assert record["step"] == 18


def test_a_discriminator_that_tells_all_apart(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    floor = Floor(net="discriminator", log="discriminator/loss", below=100.0, sentence="it tells all apart")
    monkeypatch.setattr(Pix2Pix, "floors", lambda _: (floor,))
    words = stopped(tiny.run("pix2pix", folder, **{"divergence.collapse_steps": 12}), tmp_path / "run")
    assert "it tells all apart: train/discriminator/loss has been below 100 for 12 steps, since step 1" in words
    # Checkpoints 5 and 9 are of the collapse itself.
    assert "there is no checkpoint from before yet" in words


# Rollback


@pytest.mark.parametrize("often", [{}, OFTEN])
@pytest.mark.parametrize("model", MODELS)
def test_a_rollback_leads_to_the_epochs_end_before(
    model: str, often: dict[str, Any], folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stood: list[int] = []

    def follow(session: Any) -> None:
        if session.step == 6 and session.rate == 0.5:
            stood.extend(checkpoint.steps(session.out))

    with monkeypatch.context() as patch:
        poison(patch, 7, above=0.7)
        after_steps(patch, follow)
        assert loop.train(tiny.run(model, folder, **BACK, **often), tmp_path / "run") == 0
    # What was saved on the way that was given up is gone before anything new is.
    assert stood == [5]
    assert finite(tmp_path / "run") >= 1
    told = lines(tmp_path / "run")
    (record,) = [line for line in told if "rollback" in line]
    assert record["step"] == 5 and record["rollback"] == 1 and record["rate"] == 0.5 and "step 8" in record["reason"]
    steps = [line["step"] for line in told if "rollback" not in line]
    assert steps == sorted(steps) and steps[-1] == 14
    name = models.load(model).networks[0]
    rates = {line["step"]: line[f"lr/{name}"] for line in told if f"lr/{name}" in line}
    assert rates[6] == rates[14] == rates[2] / 2
    assert rundir.read_json(tmp_path / "run" / rundir.STATE)["rollbacks"] == 1
    # Up to there it is the run that nothing happened to.
    assert loop.train(tiny.run(model, folder), tmp_path / "sound") == 0
    sound = [line for line in lines(tmp_path / "sound") if line["step"] <= 5]
    assert told[: len(sound)] == sound


# Every variant; and what a rollback must bring back that not every run has: layouts, compiled nets, loss scalers.
STARTS: list[Any] = [(name, {}) for name in MODELS]
STARTS += [pytest.param(name, {}, marks=pytest.mark.slow) for name in tiny.VARIANTS if name not in MODELS]
STARTS += [("unet", {"channels_last": "always"}), ("unet batch prior", {"precision": "fp16"})]
# What torch's own compiler is warned of is none of ours.
_COMPILED = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]
STARTS += [pytest.param("pix2pix", {"compile": "true"}, marks=_COMPILED)]


@pytest.mark.parametrize(("variant", "settings"), STARTS)
def test_a_rollback_to_the_start_is_a_run_at_lower_rates(
    variant: str, settings: dict[str, Any], folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MEMDIST_TEST_FP16_ON_CPU", "1")
    run = tiny.run(variant, folder, **BACK, **settings)
    with monkeypatch.context() as patch:
        poison(patch, 3, above=0.7)
        assert loop.train(run, tmp_path / "back") == 0
    halved = {f"optim.{net}.lr": getattr(run.optim, net).lr / 2 for net in models.load(run.model.name).networks}
    assert loop.train(tiny.run(variant, folder, **halved, **settings), tmp_path / "lower") == 0
    assert lines(tmp_path / "back")[1:] == lines(tmp_path / "lower")
    back, lower = (outcome(tmp_path / name)[1] for name in ("back", "lower"))
    assert all(back[name] == lower[name] for name in (checkpoint.NETS, checkpoint.AVERAGES, checkpoint.OPTIM))
    assert back["state"]["scalers"] == lower["state"]["scalers"]


@pytest.mark.parametrize("at", ["before they go", "once they are gone"])
def test_a_rollback_to_the_start_that_is_killed_has_lost_nothing(
    at: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tiny.run("unet", folder, **BACK, **OFTEN)
    prune = checkpoint.prune

    def killed(out: Path, keep: set[int]) -> None:
        if keep:
            prune(out, keep)
            return
        if at == "once they are gone":
            prune(out, keep)
        monkeypatch.setattr(loop.Leg, "note", lambda *_: None)
        raise Killed

    with monkeypatch.context() as patch, pytest.raises(Killed):
        poison(patch, 3, above=0.7)
        patch.setattr(checkpoint, "prune", killed)
        loop.train(run, tmp_path / "run")
    monkeypatch.undo()
    assert (checkpoint.steps(tmp_path / "run") == []) == (at == "once they are gone")
    poison(monkeypatch, 3, above=0.7)
    assert loop.train(run, tmp_path / "run") == 0
    assert loop.train(run, tmp_path / "whole") == 0
    assert outcome(tmp_path / "run") == outcome(tmp_path / "whole")


def test_rollbacks_come_to_an_end(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    poison(monkeypatch, 7)
    run = tiny.run("unet", folder, **BACK, **{"divergence.rollbacks": 2, "divergence.rate": 0.1})
    words = stopped(run, tmp_path / "run")
    assert "it went back 2 times (divergence.rollbacks), to 0.01 of its learning rates" in words
    assert [(line["rollback"], line["step"]) for line in lines(tmp_path / "run") if "rollback" in line] == [
        (1, 5),
        (2, 5),
    ]
    assert stopped(run, tmp_path / "run") == words


def test_the_way_back_from_a_collapse_leads_to_before_it_began(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def follow(session: Any) -> None:
        if session.step >= 6 and session.rate > 0.7:  # the output's bias outweighs all else
            session.stage.nets["generator"].output.bias.data.fill_(50.0)

    after_steps(monkeypatch, follow)
    settings = {"divergence.collapse_steps": 6, "checkpoint.keep_every": 1}
    words = stopped(tiny.run("pix2pix", folder, **settings), tmp_path / "run")
    assert "since step 7; the checkpoint of step 5 is from before" in words
    assert checkpoint.steps(tmp_path / "run") == [5, 9]
    assert loop.train(tiny.run("pix2pix", folder, **settings, **BACK), tmp_path / "run") == 0
    (record,) = [line for line in lines(tmp_path / "run") if "rollback" in line]
    assert record["step"] == 5


def _remove(path: Path) -> None:
    rundir.remove_folder(path)


def _flip(path: Path) -> None:
    content = bytearray((path / checkpoint.NETS).read_bytes())
    content[-8] ^= 64
    (path / checkpoint.NETS).write_bytes(content)


def _cut(path: Path) -> None:
    (path / checkpoint.OPTIM).write_bytes(b"x" * 30)


def _empty(path: Path) -> None:
    (path / "state.json").write_text('{"step": 5}')


@pytest.mark.parametrize("harm", [_remove, _flip, _cut, _empty])
@pytest.mark.parametrize("often", [False, True])
def test_a_rollback_whose_checkpoint_is_torn_goes_back_further_or_less_far(
    harm: Callable[[Path], None],
    often: bool,
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    def tear(session: Any) -> None:
        if session.step == 7 and session.rate > 0.7:
            harm(checkpoint.folder(session.out, 5))

    poison(monkeypatch, 7, above=0.7)
    after_steps(monkeypatch, tear)
    more = OFTEN if often else {}
    assert loop.train(tiny.run("unet", folder, **BACK, **more), tmp_path / "run") == 0
    told = capfd.readouterr().out
    assert "warning: the checkpoint of step 5, to which the run would go back, cannot be used" in told
    assert ("that of step 6" if often else "it goes back to the start") in told
    (record,) = [line for line in lines(tmp_path / "run") if "rollback" in line]
    assert record["step"] == (6 if often else 0)
    assert finite(tmp_path / "run") > 0


def test_what_cannot_be_gone_back_to_loses_nothing(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert loop.train(tiny.run("unet", folder), tmp_path / "parent") == 0
    run = tiny.run("unet", folder, **BACK, **OFTEN, **{"init.from": str(tmp_path / "parent")})

    def move(session: Any) -> None:
        if session.step == 3:
            (tmp_path / "parent").rename(tmp_path / "elsewhere")

    poison(monkeypatch, 3)
    after_steps(monkeypatch, move)
    with pytest.raises(CheckpointError, match="is no run folder"):
        loop.train(run, tmp_path / "run")
    assert checkpoint.steps(tmp_path / "run") and finite(tmp_path / "run")
    assert rundir.read_json(tmp_path / "run" / rundir.STATE)["state"] == "failed"
    monkeypatch.undo()
    (tmp_path / "elsewhere").rename(tmp_path / "parent")
    assert loop.train(run, tmp_path / "run") == 0


def test_after_a_torn_checkpoint_the_way_back_is_still_there(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tiny.run("unet", folder, epochs=5, **BACK, **{"select.min_delta": 10})
    for at in (11, 14):
        with monkeypatch.context() as patch:

            def stop(session: Any, at: int = at) -> None:
                if session.step == at:
                    signal.raise_signal(signal.SIGTERM)

            after_steps(patch, stop)
            assert loop.train(run, tmp_path / "run") == 75
    _flip(checkpoint.folder(tmp_path / "run", checkpoint.steps(tmp_path / "run")[-1]))
    poison(monkeypatch, 12, above=0.7)
    assert loop.train(run, tmp_path / "run") == 0
    (record,) = [line for line in lines(tmp_path / "run") if "rollback" in line]
    assert record["step"] == 9


# Killed and resumed


def in_pieces(run: Any, out: Path, lengths: list[int], trouble: Callable[[pytest.MonkeyPatch], None]) -> None:
    """Train in processes that are killed after so many steps of their own, the last of them never."""
    for length in lengths:
        left = [length]

        def follow(_: Any, left: list[int] = left) -> None:
            left[0] -= 1
            if left[0] == 0:
                raise Killed

        with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
            trouble(patch)
            after_steps(patch, follow)
            patch.setattr(loop.Leg, "note", lambda *_: None)
            loop.train(run, out)
    with pytest.MonkeyPatch.context() as patch:
        trouble(patch)
        assert loop.train(run, out) == 0


# Steps 1 to 8, and twice from 6: killed before the trouble, on it, before the next checkpoint, and after that, on step 10.
PIECES = [[3, 2], [7], [8, 8], [9, 2, 3], [10, 11], [16], [12], [14, 1]]


_LONG = ["unet batch prior", "pix2pix penalty", "pix2pix vanilla batch", "palette"]
CASES: list[Any] = [("pix2pix", {}, PIECES[1::2]), ("palette", OFTEN, PIECES[2:4])]
CASES += [pytest.param(name, often, PIECES, marks=pytest.mark.slow) for name in _LONG for often in ({}, OFTEN)]


@pytest.mark.parametrize(("variant", "often", "pieces"), CASES)
def test_killed_runs_go_back_as_if_nothing_had_happened(
    variant: str, often: dict[str, Any], pieces: list[list[int]], folder: Path, tmp_path: Path
) -> None:
    run = tiny.run(variant, folder, **BACK, **often)

    def trouble(patch: pytest.MonkeyPatch) -> None:
        poison(patch, 7, above=0.3)

    in_pieces(run, tmp_path / "whole", [], trouble)
    whole = outcome(tmp_path / "whole")
    assert whole[1]["state"]["rollbacks"][-1]["rate"] == 0.25
    for number, lengths in enumerate(pieces):
        in_pieces(run, tmp_path / str(number), lengths, trouble)
        assert outcome(tmp_path / str(number)) == whole, lengths


def test_a_run_that_was_stopped_by_a_signal_goes_back_to_the_same_place(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tiny.run("unet", folder, **BACK)
    with monkeypatch.context() as patch:
        explode(patch, 9, above=0.7)
        run = tiny.run("unet", folder, **BACK, **{"divergence.warmup": 5})
        assert loop.train(run, tmp_path / "whole") == 0
    for at in (6, 7, 8):
        with monkeypatch.context() as patch:
            explode(patch, 9, above=0.7)
            told: list[int] = []

            def follow(session: Any, at: int = at, told: list[int] = told) -> None:
                if session.step == at and not told:
                    told.append(at)
                    os.kill(os.getpid(), signal.SIGTERM)

            after_steps(patch, follow)
            assert loop.train(run, tmp_path / str(at)) == RESUME_ME
            assert checkpoint.steps(tmp_path / str(at))[-1] == at
            assert loop.train(run, tmp_path / str(at)) == 0
        assert outcome(tmp_path / str(at)) == outcome(tmp_path / "whole")


# No false alarms


def test_an_fp16_overflow_is_no_divergence(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEMDIST_TEST_FP16_ON_CPU", "1")
    backward, calls = Single.backward, []

    def larger(self: Single, net: str, value: torch.Tensor, accumulations: int) -> None:
        calls.append(net)
        backward(self, net, value * (1e30 if len(calls) in (2, 6, 7) else 1), accumulations)

    monkeypatch.setattr(Single, "backward", larger)
    settings = {"precision": "fp16", "divergence.warmup": 1, "divergence.gradient": 100}
    assert loop.train(tiny.run("unet", folder, **settings), tmp_path / "run") == 0
    assert finite(tmp_path / "run") >= 1
    norms = [line["grad_norm/unet"] for line in lines(tmp_path / "run") if "grad_norm/unet" in line]
    assert len(norms) >= 6 and all(math.isfinite(norm) for norm in norms)
    state = rundir.read_json(checkpoint.folder(tmp_path / "run", 14) / "state.json")
    assert state["scalers"]["unet"]["scale"] <= 2**16 / 8


def test_norms_are_logged(folder: Path, tmp_path: Path) -> None:
    assert loop.train(tiny.run("pix2pix clip", folder), tmp_path / "run") == 0
    told = [line for line in lines(tmp_path / "run") if "train/discriminator/loss" in line]
    for line in told:
        assert line["grad_norm/discriminator"] > 0 and line["weight_norm/discriminator"] > 0
        # The critic moves in each step, the generator in every second.
        assert line["grad_norm/generator"] > 0
    # Its 1,000 or so weights are clipped to 0.01.
    assert told[-1]["weight_norm/discriminator"] < 0.01 * math.sqrt(10_000)


# At its own rate this generator saturates within 50 steps, and is rightly found out (the next test).
SOUND: dict[str, dict[str, Any]] = {"pix2pix vanilla batch": {"optim.generator.lr": 0.002}}
STRICT = {"divergence.warmup": 5, "divergence.gradient": 100, "divergence.collapse_steps": 20, "epochs": 25}
STRICT |= {"validate.every": 25}


@pytest.mark.slow
@pytest.mark.parametrize("variant", tiny.VARIANTS)
def test_nothing_is_found_where_nothing_is_wrong(variant: str, folder: Path, tmp_path: Path) -> None:
    run = tiny.run(variant, folder, **STRICT, **SOUND.get(variant, {}))
    assert loop.train(run, tmp_path / "run") == 0
    assert finite(tmp_path / "run") >= 1


@pytest.mark.slow
def test_a_generator_that_saturates_on_its_own_is_found(folder: Path, tmp_path: Path) -> None:
    words = stopped(tiny.run("pix2pix vanilla batch", folder, **STRICT), tmp_path / "run")
    assert "the generator has collapsed to one map for all pictures" in words and "is from before" in words
