"""What a step takes, found on fake tensors: networks whose memory can be reckoned by hand."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from memdist import models
from memdist.distributed import blocks
from memdist.model import Loss, Model, Nets, Pair, Sampling, Scratch, Stage, Update
from memdist.train import footprint, optim, shares, start
from memdist.train.footprint import Footprint, Pass, Size
from memdist.train.live import Live
from tests import tiny

IN, OUT = 48, 1024
"""Numbers of a picture of 4 x 4 with 3 channels, and of what a linear net makes of it."""
WEIGHTS = IN * OUT


class Line(Model):
    """One linear layer whose mean square is descended."""

    networks = ("unet",)

    def stage(self) -> Stage:
        return Stage(nets={"unet": nn.Linear(IN, OUT, bias=False)}, updates=(Update(net="unet", loss=self._loss),))

    def averaged(self) -> tuple[str, ...]:
        return ("unet",)

    def _loss(self, nets: Nets, batch: Pair, _: Scratch) -> Loss:
        return Loss(nets["unet"](batch.image.flatten(1)).square().mean(), {})

    def predict(self, nets: Nets, image: Tensor, seed: Tensor, sampling: Sampling) -> Tensor:
        return image


def settings(**more: Any) -> Any:
    raw = {"model": {"name": "unet", "channels": 4, "multipliers": [1, 2]}, "data": {"size": 4}, "device": "cpu"}
    return models.resolve(raw | more)


def line(device: str = "cpu", **more: Any) -> Footprint:
    run = settings(**more)
    return Footprint(run, Line(run.model, None), device)  # type: ignore[arg-type]


@pytest.mark.parametrize("micro", [1, 2, 4, 7, 64])
def test_a_linear_net_by_hand(micro: int) -> None:
    (found,) = line().passes(micro)
    one = 4 * micro * OUT
    # Backward of the square, grad * (2 * y.pow(1)): all five are there until the product is.
    # Later the gradient of the output and that of the weights are; beside either two scalars, the loss and its gradient.
    assert found.activations == max(5 * one, one + 4 * WEIGHTS) + 8
    assert found.joint == found.activations
    assert found.flops == 2 * 2 * micro * WEIGHTS  # no gradient of the pictures is asked for
    assert found.calls == {"unet": 1} and found.every == 1


@pytest.mark.parametrize("variant", ["unet", "pix2pix", "pix2pix penalty", "palette", "unet dropout"])
@pytest.mark.parametrize("more", [{}, {"precision": "bf16"}, {"activation_checkpointing": True}], ids=str)
def test_any_micro_batch_is_on_the_line_of_two(variant: str, more: dict[str, Any]) -> None:
    if variant == "pix2pix penalty" and "activation_checkpointing" in more:
        return  # the model refuses it
    run = models.resolve({**copy.deepcopy(tiny.VARIANTS[variant]), "data": {"size": 16}, **more})
    found = Footprint(run, start.build(run), "cuda")
    again = run.activation_checkpointing
    for micro in (3, 8):
        exact = Footprint.of(found.courses(micro, again))
        for a, b in zip(found.passes(micro), exact, strict=True):
            assert a.activations == pytest.approx(b.activations, rel=0.01)
            assert a.joint == pytest.approx(b.joint, rel=0.01)
            assert a.flops == pytest.approx(b.flops)


def test_what_is_computed_again_is_not_kept() -> None:
    run = models.resolve({**copy.deepcopy(tiny.VARIANTS["palette"]), "data": {"size": 16}})
    found = Footprint(run, start.build(run), "cpu")
    plain, again = found.passes(16, False)[0], found.passes(16, True)[0]
    assert again.activations < 0.6 * plain.activations
    assert 1.15 < again.flops / plain.flops < 1.4  # forward once more, of three


def test_cuda_keeps_other_things_than_a_cpu() -> None:
    def kept(device: str, variant: str, **more: Any) -> int:
        run = models.resolve(
            {**copy.deepcopy(tiny.VARIANTS[variant]), "data": {"size": 16}, "channels_last": "never", **more}
        )
        return Footprint(run, start.build(run), device).passes(64)[0].activations

    assert kept("cuda", "unet dropout") < kept("cpu", "unet dropout")  # bytes rather than numbers
    assert kept("cuda", "palette", precision="bf16") > kept("cpu", "palette", precision="bf16")  # fp32 normalisation
    assert kept("cuda", "unet") == kept("cpu", "unet")


@pytest.mark.parametrize("name", ["sgd", "adam", "adamw", "adadelta"])
@pytest.mark.parametrize("kernel", ["fused", "foreach"])
def test_what_an_optimiser_keeps_and_takes(name: str, kernel: str) -> None:
    if (name, kernel) == ("adadelta", "fused"):
        return
    run = settings(optim={"unet": {"name": name, "kernel": kernel, "weight_decay": 0.1 if name == "sgd" else 0}})
    net = nn.Linear(256, 256, bias=False)
    told = footprint.size(net, run.optim.unet, averaged=False)
    optimiser = optim.make(list(net.parameters()), run.optim.unet)
    for _ in range(2):
        net.weight.grad = torch.ones_like(net.weight)
        live = Live([net.weight, net.weight.grad, *_tensors(optimiser)])
        with live:
            optimiser.step()
    states = [t for t in _tensors(optimiser) if t.numel() > 1]
    assert sum(t.numel() for t in states) == told.moments * told.weights
    assert max(live.beside) == pytest.approx(4 * told.scratch, abs=1024)


def _tensors(optimiser: torch.optim.Optimizer) -> list[Tensor]:
    return [v for state in optimiser.state.values() for v in state.values() if isinstance(v, Tensor)]


def test_units_are_blocks_and_what_is_outside_of_them() -> None:
    run = models.resolve({**copy.deepcopy(tiny.VARIANTS["palette"]), "data": {"size": 16}})
    net = start.build(run).stage().nets["denoiser"]
    found = blocks.blocks(net)
    # The lists' items, and two sequences: what embeds the noise level, and the middle.
    assert len(found) == len(net.encoder) + len(net.decoder) + 2  # type: ignore[arg-type]
    size = footprint.size(net, run.optim.denoiser, averaged=True)
    assert sum(size.units) == size.weights and len(size.units) == len(found) + 1


# What strategies hold

P, W = 1000, 4
SIZE = Size(weights=P, buffers=0, moments=2, averaged=True, scratch=0, units=(400, 300, 300))
PASS = Pass(net="a", every=1, activations=5000, joint=7000, flops=1, calls={"a": 1})


@pytest.mark.parametrize(
    ("way", "weights", "gradients", "optimiser", "averages", "passing", "activations"),
    [
        ("ddp", 4 * P, 4 * P, 8 * P, 4 * P, 0, 5000),
        ("fsdp", P, P, 2 * P, P, 4 * (400 + 300 + 400), 5000),
        # The bucket; gradients grow while activations go.
        ("deepspeed 1", 4 * P + P, 4 * P, 2 * P, P, 4 * P, 7000 - 4 * P),
        # The bucket, in which gradients are before they are shared out.
        ("deepspeed 2", 4 * P + P, P, 2 * P, P, 4 * P - P, 5000),
        # The bucket, gathered weights, and these once more as they were sent.
        ("deepspeed 3", 2 * P, P, 2 * P, P, 3 * 4 * P, 5000),
    ],
)
def test_shares_of_four_ranks(
    way: str, weights: int, gradients: int, optimiser: int, averages: int, passing: int, activations: int
) -> None:
    need = shares.peak(way, {"a": SIZE}, (PASS,), world=W)
    assert (need.weights, need.gradients, need.optimiser) == (weights, gradients, optimiser)
    assert (need.averages, need.passing, need.activations) == (averages, passing, activations)
    assert need.total == weights + gradients + optimiser + averages + passing + activations and need.host == 0


@pytest.mark.parametrize(("way", "copies"), [("deepspeed 1", 2), ("deepspeed 2", 2)])
def test_sharing_gradients_out_may_be_the_peak(way: str, copies: int) -> None:
    small = Pass(net="a", every=1, activations=10, joint=20, flops=1, calls={"a": 1})
    need = shares.peak(way, {"a": SIZE}, (small,), world=W)
    assert need.gradients + need.passing + need.activations == copies * 4 * P


def test_fsdp_keeps_whole_gradients_until_the_last_micro_batch() -> None:
    one, two = (shares.peak("fsdp", {"a": SIZE}, (PASS,), world=W, accumulations=n) for n in (1, 2))
    assert two.gradients == one.gradients + 4 * P and two.passing == one.passing


def test_alone_gradients_grow_while_activations_go() -> None:
    need = shares.peak("one", {"a": SIZE}, (PASS,), world=1)
    assert need.gradients + need.activations == 7000
    assert shares.peak("one", {"a": SIZE}, (PASS,), world=1, accumulations=2).activations == 5000


def test_who_has_gradients_of_networks_that_rest() -> None:
    sizes = {"a": SIZE, "b": SIZE}
    for way in shares.TABLE:
        one, two = (shares.peak(way, s, (PASS,), world=W) for s in ({"a": SIZE}, sizes))
        assert two.gradients == (2 if way in ("ddp", "deepspeed 3") else 1) * one.gradients
        assert two.optimiser == 2 * one.optimiser


@pytest.mark.parametrize("way", shares.TABLE)
def test_what_goes_to_the_host_leaves_the_device(way: str) -> None:
    kept = shares.peak(way, {"a": SIZE}, (PASS,), world=W)
    for offload in ("optimizer", "all"):
        moved = shares.peak(way, {"a": SIZE}, (PASS,), world=W, offload=offload)
        assert moved.total + moved.host == pytest.approx(kept.total)
        assert moved.optimiser == moved.averages == 0 and moved.host > 0


def test_a_step_of_the_optimiser_may_be_the_peak() -> None:
    greedy = Size(weights=P, buffers=0, moments=2, averaged=False, scratch=2 * P, units=(P,))
    assert shares.peak("ddp", {"a": greedy}, (PASS,), world=1).passing == 4 * 2 * P - 5000
