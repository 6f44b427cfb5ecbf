"""The pieces of training, each against a closed form or what it promises."""

import math
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from memdist import config, models, rundir
from memdist.data.cache import Pixels
from memdist.distributed import strategy as strategy_
from memdist.distributed.single import Single
from memdist.errors import CheckpointError, ConfigError, is_shared
from memdist.model import Loss, Pair, Stage, Update
from memdist.train import checkpoint, optim, restore, rollback, score, select, start, trivial
from memdist.train import step as step_
from memdist.train.ema import Averages
from memdist.train.select import Selection
from tests import tiny

# Learning rates


def test_a_constant_rate_warms_up_and_stays() -> None:
    schedule = config.Schedule(warmup=4)
    assert [optim.factor(schedule, step, 100) for step in (0, 1, 3, 4, 99)] == [0.25, 0.5, 1, 1, 1]


def test_a_linear_rate_falls_from_its_start_to_its_end() -> None:
    schedule = config.Schedule(name="linear", start=0.5, final=0.1)
    factors = [optim.factor(schedule, step, 100) for step in (0, 49, 50, 75, 100)]
    assert factors == pytest.approx([1, 1, 1, 0.55, 0.1])


def test_a_cosine_rate_is_half_a_cosine() -> None:
    schedule = config.Schedule(name="cosine", final=0.2)
    for step in (0, 25, 50, 99):
        expected = 0.2 + 0.8 * (1 + math.cos(math.pi * step / 100)) / 2
        assert optim.factor(schedule, step, 100) == pytest.approx(expected)


@pytest.mark.parametrize("name", ["sgd", "adam", "adamw", "adadelta"])
@pytest.mark.parametrize("kernel", ["auto", "foreach", "loop"])
def test_every_kernel_of_an_optimiser_takes_the_same_step(name: str, kernel: str) -> None:
    def moved(kernel: str) -> torch.Tensor:
        torch.manual_seed(0)
        net = nn.Linear(4, 3)
        optimiser = optim.make(
            list(net.parameters()), config.Optim(name=name, lr=0.1, weight_decay=0.01, kernel=kernel)
        )
        for _ in range(3):
            net(torch.ones(2, 4)).square().sum().backward()
            optimiser.step()
            optimiser.zero_grad()
        return net.weight.detach()

    torch.testing.assert_close(moved(kernel), moved("loop"), rtol=1e-5, atol=1e-6)


def test_sgd_takes_the_step_of_the_formula() -> None:
    net = nn.Linear(1, 1, bias=False)
    nn.init.constant_(net.weight, 2.0)
    optimiser = optim.make(list(net.parameters()), config.Optim(name="sgd", lr=0.1, momentum=0.5))
    values = []
    for _ in range(2):
        net(torch.ones(1, 1)).square().sum().backward()  # gradient 2 w
        optimiser.step()
        optimiser.zero_grad()
        values.append(net.weight.item())
    assert values == pytest.approx([2 - 0.1 * 4, 1.6 - 0.1 * (0.5 * 4 + 3.2)])


def test_a_rate_that_rollbacks_lowered_keeps_its_schedule() -> None:
    optimiser = torch.optim.SGD(nn.Linear(1, 1).parameters(), lr=1.0)
    settings = config.Optim(lr=0.2, schedule=config.Schedule(name="linear"))
    assert optim.set_rate(optimiser, settings, 50, 100, 0.25) == pytest.approx(0.2 * 0.5 * 0.25)
    assert optimiser.param_groups[0]["lr"] == pytest.approx(0.025)


def test_the_norm_of_a_gradient_is_from_before_it_was_clipped() -> None:
    net = nn.Linear(2, 1, bias=False)
    strategy = Single(torch.device("cpu"), "fp32")
    strategy.prepare(Stage(nets={"net": net}, updates=()), lambda _, w: torch.optim.SGD(w, lr=1.0), {"net": 0.5})
    for part in ([3.0, 0.0], [0.0, 4.0]):  # two micro-batches
        strategy.backward("net", net(2 * torch.tensor([part])).mean(), 2)
    stepped = strategy.step(Update(net="net", loss=lambda *_: Loss(torch.zeros(()), {})))
    assert float(stepped.norm) == pytest.approx(5.0) and stepped.taken is None


# Devices


@pytest.fixture
def on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[torch.device]]:
    """A machine that has two GPUs, as far as choosing goes; gives those that have been made the current one."""
    current: list[torch.device] = []
    monkeypatch.setattr(torch.cuda, "set_device", current.append)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    yield current
    torch.use_deterministic_algorithms(False)
    torch.backends.cudnn.benchmark = False


@pytest.mark.parametrize("deterministic", [True, False])
def test_deterministic_is_deterministic(deterministic: bool, on_a_gpu: None) -> None:
    run = models.resolve({"model": "unet", "deterministic": deterministic, "device": "cuda"})
    strategy = strategy_.make(run)
    assert strategy.device == torch.device("cuda", 0)
    assert torch.are_deterministic_algorithms_enabled() == deterministic
    assert torch.backends.cudnn.benchmark != deterministic
    assert ("CUBLAS_WORKSPACE_CONFIG" in os.environ) == deterministic
    os.environ.pop("CUBLAS_WORKSPACE_CONFIG", None)


def test_the_gpu_of_a_run_is_the_current_one(on_a_gpu: list[torch.device]) -> None:
    strategy_.make(models.resolve({"model": "unet", "device": "cuda:1"}))
    assert on_a_gpu == [torch.device("cuda", 1)]


def test_deepspeed_takes_the_first_gpu(on_a_gpu: None) -> None:
    with pytest.raises(ConfigError, match="'cuda:1' cannot be with strategy = 'deepspeed', .* CUDA_VISIBLE_DEVICES=1"):
        strategy_.make(models.resolve({"model": "unet", "device": "cuda:1", "strategy": "deepspeed"}))


def test_each_rank_has_a_gpu_of_its_own(on_a_gpu: None, monkeypatch: pytest.MonkeyPatch) -> None:
    for key, value in {"RANK": "2", "WORLD_SIZE": "3", "LOCAL_RANK": "1"}.items():
        monkeypatch.setenv(key, value)
    assert strategy_.device_of("auto") == strategy_.device_of("cuda") == torch.device("cuda", 1)
    assert strategy_.device_of("cuda:0") == torch.device("cuda", 0)
    monkeypatch.setenv("LOCAL_RANK", "2")
    with pytest.raises(ConfigError, match="3 processes were started on this machine, which has 2 GPUs: "):
        strategy_.device_of("auto")
    with pytest.raises(ConfigError, match="'cuda:5' is not on this machine"):
        strategy_.device_of("cuda:5")


def test_ranks_do_not_share_one_gpu(on_a_gpu: None, monkeypatch: pytest.MonkeyPatch) -> None:
    for key, value in {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(key, value)
    with pytest.raises(
        ConfigError, match="'cuda:0' is one GPU and 2 processes were started .* use device=cuda"
    ) as caught:
        strategy_.make(models.resolve({"model": "unet", "device": "cuda:0"}))
    assert is_shared(caught.value)


# Averages


def test_an_average_follows_its_closed_form() -> None:
    net = nn.Linear(1, 1, bias=False)
    nn.init.constant_(net.weight, 0.0)
    averages = Averages({"net": net}, ("net",), 0.6)
    expected = 0.0
    for step in range(20):
        nn.init.constant_(net.weight, step + 1.0)
        averages.update("net", step, None)
        decay = min(0.6, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * (step + 1)
        assert next(averages.nets["net"].parameters()).item() == pytest.approx(expected, rel=1e-5)


def test_an_average_stays_where_a_step_was_skipped() -> None:
    net = nn.Linear(2, 2)
    averages = Averages({"net": net}, ("net",), 0.9)
    (average, _) = averages.nets["net"].parameters()
    before = average.clone()
    with torch.no_grad():
        net.weight += 1
    averages.update("net", 50, torch.tensor(0.0))
    assert torch.equal(average, before)
    averages.update("net", 50, torch.tensor(1.0))
    share = 1 - min(0.9, 51 / 60)
    torch.testing.assert_close(average, before + share)


def test_without_a_decay_there_are_no_averages() -> None:
    assert Averages({"net": nn.Linear(1, 1)}, ("net",), None).nets == {}


# fp16


def test_one_scaler_a_network_and_an_overflow_skips_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEMDIST_TEST_FP16_ON_CPU", "1")
    nets = {name: nn.Linear(4, 1) for name in ("a", "b")}
    clipped: list[int] = []
    stage = Stage(nets=nets, updates=())
    strategy = Single(torch.device("cpu"), "fp16")

    def sgd(_: str, weights: list[nn.Parameter]) -> torch.optim.Optimizer:
        return torch.optim.SGD(weights, lr=0.1, fused=True)

    strategy.prepare(stage, sgd, {"a": None, "b": 1.0})

    def step(name: str, size: float) -> float:
        update = Update(net=name, loss=lambda *_: Loss(torch.zeros(()), {}), after=lambda _: clipped.append(1))
        with strategy.only(name) as chosen, strategy.micro(name, True):
            value = chosen[name](torch.full((2, 4), size)).float().mean() / 10
            strategy.backward(name, value, 1)
        taken = strategy.step(update).taken
        assert taken is not None
        return float(taken)

    before = nets["a"].weight.detach().clone()
    scales = strategy.scalers()
    assert step("a", 1e6) == 0.0
    assert torch.equal(nets["a"].weight, before)
    after = strategy.scalers()
    assert after["a"]["scale"] == scales["a"]["scale"] / 2 and after["b"] == scales["b"]
    assert step("a", 0.1) == 1.0 and step("b", 0.1) == 1.0
    assert not torch.equal(nets["a"].weight, before)
    other = Single(torch.device("cpu"), "fp16")
    other.prepare(stage, sgd, {"a": None, "b": None})
    other.load_scalers(strategy.scalers())
    assert other.scalers() == strategy.scalers()


def test_bf16_computes_in_bf16() -> None:
    strategy = Single(torch.device("cpu"), "bf16")
    with strategy.autocast():
        assert nn.Linear(2, 2)(torch.ones(1, 2)).dtype == torch.bfloat16


def test_clipping_bounds_the_gradient() -> None:
    net = nn.Linear(1, 1, bias=False)
    nn.init.constant_(net.weight, 0.0)
    strategy = Single(torch.device("cpu"), "fp32")
    strategy.prepare(Stage(nets={"net": net}, updates=()), lambda _, w: torch.optim.SGD(w, lr=1.0), {"net": 0.5})
    strategy.backward("net", net(torch.full((1, 1), 100.0)).mean(), 1)
    strategy.step(Update(net="net", loss=lambda *_: Loss(torch.zeros(()), {})))
    assert net.weight.item() == pytest.approx(-0.5, rel=1e-4)


# Selection


def test_selection_keeps_the_best_and_counts_since() -> None:
    settings = config.Select(patience=2, min_delta=0.1)
    selection = Selection()
    taken = [selection.update(settings, value, step) for step, value in enumerate([1.0, 0.95, 0.5, math.nan, 0.45])]
    assert taken == [True, False, True, False, False]
    assert (selection.value, selection.step, selection.since) == (0.5, 2, 2)
    assert selection.exhausted(settings) and not selection.exhausted(config.Select())


def test_selection_knows_which_way_is_better() -> None:
    selection = Selection()
    settings = config.Select(metric="val/cc")
    assert [selection.update(settings, v, 0) for v in (0.1, 0.3, 0.2)] == [True, True, False]
    select.check(settings, ())
    select.check(config.Select(metric="val/loss"), ("loss",))
    with pytest.raises(ConfigError, match="'val/loss' is not measured here"):
        select.check(config.Select(metric="val/loss"), ())


# Checkpoints


def _net(size: int) -> dict[str, nn.Module]:
    return {"net": nn.Linear(size, 2)}


def test_a_checkpoint_of_another_network_is_named(tmp_path: Path) -> None:
    checkpoint.save(tmp_path, 3, _net(4), {}, {})
    with pytest.raises(CheckpointError, match=r"from another network: net differs in 1 tensors, for example weight"):
        checkpoint.load_weights(tmp_path, 3, _net(5), averages=False)


@pytest.mark.parametrize("harm", ["flip", "cut", "lose"])
def test_a_harmed_checkpoint_is_found_out(tmp_path: Path, harm: str) -> None:
    checkpoint.save(tmp_path, 3, _net(4), {}, {"a": 1})
    assert checkpoint.read_state(tmp_path, 3) == {"step": 3, "a": 1}
    path = checkpoint.folder(tmp_path, 3) / checkpoint.NETS
    data = path.read_bytes()
    if harm == "lose":
        path.unlink()
    else:
        path.write_bytes(data[:-1] + (bytes([data[-1] ^ 1]) if harm == "flip" else b""))
    with pytest.raises(CheckpointError, match="is not what was written"):
        checkpoint.read_state(tmp_path, 3)


def test_a_step_is_named_by_its_digits(tmp_path: Path) -> None:
    net = nn.Linear(1, 1)
    for step in (5, 30):
        checkpoint.save(tmp_path, step, {"net": net}, {}, {})
    assert restore.chosen_step(tmp_path, "5") == restore.chosen_step(tmp_path, "0005") == 5
    for choice in ("7", "0", "9" * 5000, "²"):
        with pytest.raises(CheckpointError, match="has no checkpoint '.*; there are best, last and 5, 30$") as caught:
            restore.chosen_step(tmp_path, choice)
        assert len(str(caught.value)) < 300


def test_what_is_left_of_a_run_is_said_as_it_is(tmp_path: Path) -> None:
    assert checkpoint.safe(tmp_path) == "no checkpoint was written yet, and the same command begins anew"
    checkpoint.save(tmp_path, 5, {"net": nn.Linear(1, 1)}, {}, {})
    assert checkpoint.safe(tmp_path) == "the checkpoint of step 5 is safe, and the same command goes on from there"


def test_a_run_that_diverged_for_an_unknown_reason_is_told(tmp_path: Path) -> None:
    session: Any = SimpleNamespace(out=tmp_path, run=SimpleNamespace(on_divergence="stop"))
    assert rollback.remembered(session) == []
    for record, says in (({}, "it is not known why"), ({"why": None}, "it is not known why"), ({"why": "NaN"}, "NaN")):
        rundir.write_json(tmp_path / rundir.STATE, {"state": "diverged", **record})
        for answer in ("stop", "rollback"):
            session.run.on_divergence = answer
            (sentence,) = rollback.remembered(session)
            assert sentence.startswith(f"this run diverged last time: {says}; ")


def test_pruning_keeps_what_it_is_told(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        checkpoint.save(tmp_path, step, _net(2), {}, {})
    checkpoint.prune(tmp_path, {1, 3})
    assert checkpoint.steps(tmp_path) == [1, 3]


# Trivial predictors


@pytest.fixture
def pixels() -> Pixels:
    generator = np.random.default_rng(0)
    maps = np.zeros((6, 3, 32, 32), dtype=np.uint8)
    y, x = np.mgrid[-1:1:32j, -1:1:32j]
    for row in range(6):
        maps[row] = (20 * row + 100) * np.exp(-0.5 * ((y / 0.5) ** 2 + (x / 0.25) ** 2))
    images = generator.integers(0, 256, (6, 3, 32, 32), dtype=np.uint8)
    images[5] = np.clip(images[2].astype(int) + 2, 0, 255)
    names = [f"p{row}" for row in range(6)]
    return Pixels(images, maps, names, names, names)


def predicted(pixels: Pixels, rows: list[int]) -> dict[str, torch.Tensor]:
    train = np.arange(5)
    image = torch.from_numpy(pixels.images[rows]).float() / 127.5 - 1
    batch = Pair(image, image, torch.zeros(len(rows), dtype=torch.int64))
    fitted = trivial.fit(pixels, train, torch.device("cpu"))
    assert tuple(fitted) == trivial.NAMES
    return {name: predictor(batch, np.array(rows)) for name, predictor in fitted.items()}


def test_trivial_predictors_are_what_they_are_called(pixels: Pixels) -> None:
    found = predicted(pixels, [5])
    train = pixels.maps[:5].astype(float) / 127.5 - 1
    assert torch.equal(found["black"], torch.full((1, 3, 32, 32), -1.0))
    np.testing.assert_allclose(found["mean"][0].numpy(), train.mean(0), atol=1e-6)
    np.testing.assert_allclose(found["median"][0].numpy(), np.median(train, axis=0), atol=1e-6)
    # Picture 5 is picture 2, a little brighter.
    np.testing.assert_allclose(found["nearest"][0].numpy(), train[2], atol=1e-6)


def test_the_centre_is_a_gaussian_fitted_to_the_mean(pixels: Pixels) -> None:
    found = predicted(pixels, [5])
    assert float((found["centre"] - found["mean"]).abs().max()) < 0.1
    assert float((found["centre"] - found["mean"]).abs().mean()) < 0.02


def test_a_training_picture_is_not_its_own_neighbour(pixels: Pixels) -> None:
    found = predicted(pixels, [2])["nearest"][0].numpy()
    assert not np.allclose(found, pixels.maps[2] / 127.5 - 1)


def test_scores_are_in_the_order_that_was_asked_for(pixels: Pixels) -> None:
    rows = np.array([4, 0, 3, 1, 2])

    def predict(batch: Pair, these: np.ndarray) -> torch.Tensor:
        return torch.full_like(batch.map, -1.0)

    values = score.measure({"black": predict}, pixels, rows, Single(torch.device("cpu"), "fp32"), seed=0, batch=2)[
        "black"
    ]["l1"]
    expected = [(pixels.maps[row] / 127.5).mean() for row in rows]
    np.testing.assert_allclose(values, expected, rtol=1e-5)


def test_maps_are_scored_at_the_size_of_the_truth(pixels: Pixels) -> None:
    sizes = {0: (16, 24), 1: (20, 20), 2: (16, 24)}

    def predict(batch: Pair, these: np.ndarray) -> torch.Tensor:
        return torch.full_like(batch.map, 0.5)

    values = score.measure(
        {"flat": predict},
        pixels,
        np.arange(3),
        Single(torch.device("cpu"), "fp32"),
        seed=0,
        batch=2,
        truth=lambda row: torch.full((3, *sizes[row]), 0.5 - 0.1 * row),
    )["flat"]["l1"]
    np.testing.assert_allclose(values, [0, 0.1, 0.2], atol=1e-6)


def test_networks_that_no_machine_holds_are_refused(tmp_path: Path) -> None:
    run = tiny.run("unet", tmp_path, **{"model.channels": 1_000_000, "data.map_channels": 1})
    model = start.build(run)
    with pytest.raises(
        ConfigError, match=r"the networks of unet have \d+ GiB of weights, and this machine has \d+ GiB"
    ):
        start.place(run, model, torch.device("cpu"))


def test_deepspeed_that_is_not_installed_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = tiny.run("unet", tmp_path, strategy="deepspeed")
    start.build(run)
    monkeypatch.setitem(sys.modules, "deepspeed", None)
    with pytest.raises(
        ConfigError, match="needs deepspeed, which is not installed: install it .* or use strategy=ddp or fsdp"
    ):
        start.build(run)


def test_steps_weigh_alike_whatever_micro_batches_they_were_taken_in() -> None:
    strategy = Single(torch.device("cpu"), "fp32")
    before, after = step_.Sums(4), step_.Sums(2)
    for value in (1.0, 2.0, 3.0, 4.0):
        before.add({"loss": torch.tensor(value)})
    state = before.state(strategy)
    after.load(state, strategy)
    for value in (10.0, 20.0):
        after.add({"loss": torch.tensor(value)})
    assert after.fetch(strategy) == {"loss": (2.5 + 15) / 2}
    before.load(state, strategy)
    assert before.state(strategy) == state
