"""What every model of the registry keeps, whatever it is."""

import copy
from pathlib import Path
from typing import get_args

import pytest
import torch
from torch import Tensor

from memdist import models
from memdist.config import fields
from memdist.diffusion import sampling, schedule
from memdist.distributed.single import Single
from memdist.model import Model, Pair, Sampling, Task
from memdist.train import checkpoint, contents, optim
from memdist.train.ema import Averages
from memdist.train.step import due
from tests import tiny

SAMPLING = Sampling(steps=3)


def test_every_model_has_a_variant() -> None:
    assert {name.split()[0] for name in tiny.VARIANTS} == set(models.REGISTRY)


@pytest.fixture(params=tiny.VARIANTS)
def made(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[object, Model]:
    run = tiny.run(request.param, tmp_path)
    kind = models.load(run.model.name)
    mean = torch.linspace(-0.9, 0.9, 3 * tiny.SIZE**2).reshape(3, tiny.SIZE, tiny.SIZE)
    return run, kind(run.model, Task(size=tiny.SIZE, image_channels=3, map_channels=3, mean_map=mean))


def batch(count: int, seed: int = 0) -> Pair:
    generator = torch.Generator().manual_seed(seed)
    shape = (count, 3, tiny.SIZE, tiny.SIZE)
    image = torch.rand(shape, generator=generator) * 2 - 1
    # Maps that follow the picture, so that there is something to learn.
    return Pair(image, image.flip(1).tanh(), torch.arange(count) + 10 * seed)


def equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def test_it_says_what_it_is(made) -> None:
    run, model = made
    stage = model.stage()
    assert set(stage.nets) == set(model.networks)
    assert set(model.averaged()) <= set(model.networks)
    assert {update.net for update in stage.updates} == set(model.networks)
    assert set(stage.eager) <= set(model.networks)
    assert model.Config().name == run.model.name
    assert all(info.description for _, info, _ in fields(model.Config))


def test_weights_follow_the_seed(made) -> None:
    _, model = made
    torch.manual_seed(1)
    first = model.stage().nets
    torch.manual_seed(1)
    again = model.stage().nets
    torch.manual_seed(2)
    other = model.stage().nets
    for name in first:
        assert equal(first[name].state_dict(), again[name].state_dict())
        assert not equal(first[name].state_dict(), other[name].state_dict())


def test_a_map_is_the_same_alone_and_in_a_batch(made) -> None:
    _, model = made
    nets = {name: net.eval() for name, net in model.stage().nets.items()}
    pair = batch(3)
    with torch.no_grad():
        together = model.predict(nets, pair.image, pair.seed, SAMPLING)
        alone = model.predict(nets, pair.image[1:2], pair.seed[1:2], SAMPLING)
    assert together.shape == pair.map.shape and together.dtype == torch.float32
    torch.testing.assert_close(together[1:2], alone, rtol=1e-4, atol=1e-5)


def test_scores_are_one_value_a_picture(made) -> None:
    _, model = made
    nets = {name: net.eval() for name, net in model.stage().nets.items()}
    with torch.no_grad():
        values = model.score(nets, batch(3))
    assert tuple(values) == model.scores
    assert all(value.shape == (3,) and value.isfinite().all() for value in values.values())


def strategy_for(run, stage) -> Single:
    strategy = Single(torch.device("cpu"), "fp32")
    strategy.prepare(
        stage,
        lambda name, weights: optim.make(weights, getattr(run.optim, name)),
        {name: getattr(run.optim, name).clip for name in stage.nets},
    )
    return strategy


def test_an_update_moves_its_network_and_no_other(made) -> None:
    run, model = made
    stage = model.stage()
    strategy = strategy_for(run, stage)
    scratch: dict[str, Tensor] = {}
    for update in stage.updates:
        before = {name: copy.deepcopy(dict(net.named_parameters())) for name, net in stage.nets.items()}
        for _ in range(4):  # layers that start at zero hide those behind them from the first steps
            with strategy.only(update.net) as nets, strategy.micro(update.net, True):
                loss = update.loss(nets, batch(4), scratch)
                strategy.backward(update.net, loss.value, 1)
                assert all(
                    p.grad is None for name, net in stage.nets.items() if name != update.net for p in net.parameters()
                )
            strategy.step(update)
        for name, net in stage.nets.items():
            moved = {key for key, p in net.named_parameters() if not torch.equal(p, before[name][key])}
            # A bias before a normalisation, or one that both terms of a Wasserstein loss share, has no gradient.
            weights = {key for key, p in net.named_parameters() if p.ndim > 1}
            assert weights <= moved if name == update.net else not moved, name


def test_it_overfits_four_pictures(made) -> None:
    run, model = made
    torch.manual_seed(0)
    stage = model.stage()
    strategy = strategy_for(run, stage)
    pair = batch(4)
    predicting = model.averaged()[0]

    def error() -> float:
        nets = {name: net.eval() for name, net in stage.nets.items()}
        with torch.no_grad():
            maps = model.predict(nets, pair.image, pair.seed, SAMPLING)
        for net in stage.nets.values():
            net.train()
        return float((maps - pair.map).abs().mean())

    before = error()
    for step in range(200 * max(update.every for update in stage.updates)):
        scratch: dict[str, Tensor] = {}
        seeded = pair._replace(seed=pair.seed + 1000 * step)  # new noise each step, as in training
        for update in due(stage.updates, step):
            with strategy.only(update.net) as nets, strategy.micro(update.net, True):
                strategy.backward(update.net, update.loss(nets, seeded, scratch).value, 1)
            strategy.step(update)
    assert error() < 0.7 * before, (before, error(), predicting)


def test_a_checkpoint_gives_back_every_bit(made, tmp_path: Path) -> None:
    run, model = made
    stage = model.stage()
    strategy = strategy_for(run, stage)
    averages = Averages(stage.nets, model.averaged(), run.ema.decay)

    def step(stage, strategy, averages, number: int) -> None:
        scratch: dict[str, Tensor] = {}
        for update in stage.updates:
            torch.manual_seed(number)
            with strategy.only(update.net) as nets, strategy.micro(update.net, True):
                strategy.backward(update.net, update.loss(nets, batch(4, number), scratch).value, 1)
            strategy.step(update)
            averages.update(update.net, number, None)
        averages.copy_buffers()

    step(stage, strategy, averages, 0)
    contents.write(tmp_path, 1, contents.everything(stage, averages, strategy), strategy, {})
    assert checkpoint.steps(tmp_path) == [1] and checkpoint.read_state(tmp_path, 1)["step"] == 1
    other = model.stage()
    restored = strategy_for(run, other)
    kept = Averages(other.nets, model.averaged(), run.ema.decay)
    contents.take(tmp_path, 1, other, kept, restored)
    for number in (1, 2):
        step(stage, strategy, averages, number)
        step(other, restored, kept, number)
    for name in stage.nets:
        assert equal(stage.nets[name].state_dict(), other.nets[name].state_dict())
    for name in averages.nets:
        assert equal(averages.nets[name].state_dict(), kept.nets[name].state_dict())


@pytest.mark.parametrize("spacing", get_args(schedule.Spacing))
@pytest.mark.parametrize("name", sampling.SAMPLERS)
def test_every_sampler_takes_as_many_evaluations_as_it_says(
    name: str, spacing: schedule.Spacing, tmp_path: Path
) -> None:
    run = tiny.run("palette", tmp_path)
    model = models.load("palette")(run.model, Task(size=tiny.SIZE, image_channels=3, map_channels=3))
    net, calls = model.stage().nets["denoiser"].eval(), []

    def counted(x: torch.Tensor, level: torch.Tensor) -> torch.Tensor:
        calls.append(float(level[0]))
        return net(x, level)

    for steps in (1, 2, 7):
        calls.clear()
        chosen = Sampling(sampler=name, steps=steps, spacing=spacing)
        model.check(chosen)
        with torch.no_grad():
            maps = model.predict({"denoiser": counted}, batch(2).image, batch(2).seed, chosen)
        assert maps.shape == (2, 3, tiny.SIZE, tiny.SIZE) and maps.abs().max() <= 1 + 1e-5
        assert len(calls) == model.evaluations(chosen) == (steps - 1 if name == "heun" and steps == 2 else steps)
        # Levels that were trained, and no others.
        table = run.model.schedule.table().float()
        assert min(calls) >= float(table[-1]) - 1e-9 and max(calls) <= float(table[0])
