"""Maps by a restored model: batches of one shape, found by trying; the same map alone and among others."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from memdist import models, rundir
from memdist.distributed.single import Single
from memdist.errors import ConfigError
from memdist.model import Sampling
from memdist.train import mapper, restore
from memdist.train.mapper import Mapper, find_batch
from memdist.train.recipe import Recipe
from tests import tiny

CPU = torch.device("cpu")
SAMPLING = Sampling(sampler="dpmpp_3m_sde", steps=3)


@pytest.fixture
def found(tmp_path: Path) -> restore.Restored:
    run = tiny.run("palette x0", tmp_path)
    model = restore.model_of(run)
    nets = {name: net.eval().requires_grad_(False) for name, net in model.stage().nets.items()}
    for parameter in nets["denoiser"].parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return restore.Restored(run, model, nets, 1, False)


def _made(found: restore.Restored, batch: int, samples: int = 1, compiled: bool = False) -> Mapper:
    return Mapper(found, Recipe(SAMPLING, samples), CPU, "fp32", batch, compiled=compiled)


def _images(n: int) -> torch.Tensor:
    return torch.rand(n, 3, tiny.SIZE, tiny.SIZE) * 2 - 1


def _seeds(n: int, k: int) -> torch.Tensor:
    return mapper.seeds(3, [f"{i:064x}" for i in range(n)], k, CPU)


def test_seeds_are_those_of_run_content_and_replicate() -> None:
    first = _seeds(4, 3)
    assert first.shape == (4, 3) and len(first.unique()) == 12
    assert torch.equal(_seeds(4, 2), first[:, :2])
    assert not torch.equal(mapper.seeds(4, ["a"], 1, CPU), mapper.seeds(3, ["a"], 1, CPU))


@pytest.mark.filterwarnings("ignore:.*script_method.*:DeprecationWarning")  # torch's compiler uses it itself
@pytest.mark.parametrize("compiled", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_map_is_the_same_bits_in_any_company(found: restore.Restored, compiled: bool) -> None:
    made = _made(found, 4, compiled=compiled)
    images, seeds = _images(7), _seeds(7, 2)
    whole = made.sample(images, seeds)
    assert whole.shape == (7, 2, 3, tiny.SIZE, tiny.SIZE) and whole.abs().max() <= 1
    assert whole.std() > 0.01
    order = torch.tensor([5, 0, 6, 2])
    assert torch.equal(made.sample(images[order], seeds[order]), whole[order])
    for i in range(7):
        assert torch.equal(made.sample(images[i : i + 1], seeds[i : i + 1, 1:]), whole[i : i + 1, 1:])


def test_other_batches_give_the_same_grey_levels(found: restore.Restored) -> None:
    images, seeds = _images(5), _seeds(5, 1)
    one, many = _made(found, 1).maps(images, seeds), _made(found, 16).maps(images, seeds)
    assert ((one - many).abs() * 127.5).max() < 1


def test_k_samples_are_those_of_their_seeds(found: restore.Restored) -> None:
    images, seeds = _images(2), _seeds(2, 3)
    drawn = _made(found, 3, 3).sample(images, seeds)
    torch.testing.assert_close(_made(found, 3, 3).maps(images, seeds), drawn.mean(1))
    for k in range(3):
        alone = _made(found, 3).sample(images, seeds[:, k : k + 1])[:, 0]
        assert torch.equal(alone, drawn[:, k])
    assert not torch.equal(drawn[:, 0], drawn[:, 1])


# Finding the batch


def _costs(seconds: dict[int, float]) -> Iterator[int]:
    yield from seconds


@pytest.mark.parametrize(
    ("each", "most", "best", "free"),
    [
        # Seconds a map by batch: it grows cheaper up to 8; then three times nothing is gained.
        ({1: 8, 2: 5, 4: 3, 8: 2, 16: 2, 32: 2, 64: 2, 128: 1}, 512, 8, True),
        # Two turns that a busy machine spoils are passed over.
        ({1: 8, 2: 9, 4: 8.5, 8: 3, 16: 2.99, 32: 3, 64: 3}, 512, 8, True),
        # All that there is to predict.
        ({1: 8, 2: 5, 4: 3}, 4, 4, False),
    ],
)
def test_the_largest_batch_that_still_pays(each: dict[int, float], most: int, best: int, free: bool) -> None:
    assert find_batch(lambda size: size * each[size], most, CPU) == (best, free)


def test_a_device_that_is_full_ends_the_search() -> None:
    def measure(size: int) -> float:
        if size > 16:
            raise torch.OutOfMemoryError("full")
        return 1.0

    assert find_batch(measure, 512, CPU) == (16, True)


def test_what_was_found_is_remembered(found: restore.Restored, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[int] = []

    def seconds(_: Mapper, batch: int) -> float:
        tried.append(batch)
        return 1.0 * batch if batch > 4 else 4.0

    monkeypatch.setattr(mapper, "seconds", seconds)
    run = models.resolve(tiny.raw("palette x0", tmp_path, **{"eval.compile": "never"}))
    strategy = Single(CPU, "fp32")
    first = mapper.prepare(tmp_path, found, run, Recipe(SAMPLING), strategy, maps=100)
    assert first.batch == 4 and max(tried) == 32 and not first.compiled
    assert list(rundir.read_json(tmp_path / rundir.BATCHES).values()) == [4]
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged" / rundir.BATCHES).write_text("{")
    assert mapper.prepare(tmp_path / "damaged", found, run, Recipe(SAMPLING), strategy, maps=100).batch == 4
    tried.clear()
    again = mapper.prepare(tmp_path, found, run, Recipe(SAMPLING), strategy, maps=6)
    # Two batches of 3 rather than one of 4 and one of 2 that is filled up.
    assert again.batch == 3 and not tried


def test_what_is_long_is_compiled_where_it_can_be(
    found: restore.Restored, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mapper, "seconds", lambda _, batch: 1.0)
    run = models.resolve(tiny.raw("palette x0", tmp_path, **{"eval.batch": 8}))

    def compiled(maps: int) -> bool:
        return mapper.prepare(tmp_path, found, run, Recipe(SAMPLING), Single(CPU, "fp32"), maps=maps).compiled

    # Three evaluations of a second for 8 maps; it pays from 600 s.
    monkeypatch.setattr(mapper, "can_compile", lambda device: True)
    assert not compiled(1500) and compiled(1700)
    monkeypatch.setattr(mapper, "can_compile", lambda device: False)
    assert not compiled(1700)


def test_a_model_that_does_not_sample_is_not_tried(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mapper, "seconds", None)
    run = tiny.run("unet", tmp_path)
    model = restore.model_of(run)
    nets = {name: net.eval() for name, net in model.stage().nets.items()}
    given = restore.Restored(run, model, nets, 1, False)
    made = mapper.prepare(tmp_path, given, run, Recipe(Sampling()), Single(CPU, "fp32"), maps=200)
    assert (made.batch, made.compiled) == (50, False)
    assert made.maps(_images(3), _seeds(3, 1)).shape == (3, 3, tiny.SIZE, tiny.SIZE)


def test_what_cannot_be_had_is_told_by_its_setting(
    found: restore.Restored, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    strategy = Single(CPU, "fp32")

    def check(**settings: str) -> None:
        mapper.check(found, models.resolve(tiny.raw("palette x0", tmp_path, **settings)), strategy)

    with pytest.raises(ConfigError, match=r"^eval\.precision = 'fp16' needs a GPU .* use eval\.precision=fp32$"):
        check(**{"eval.precision": "fp16"})
    with pytest.raises(ConfigError, match=r"^precision = 'fp16' needs a GPU"):
        check(precision="fp16")
    check(**{"eval.compile": "auto"})
    monkeypatch.setattr(mapper, "can_compile", lambda _: False)
    check(**{"eval.compile": "auto"})
    with pytest.raises(
        ConfigError, match=r"eval\.compile=always cannot be: .* no C\+\+ compiler .* eval\.compile=auto"
    ):
        check(**{"eval.compile": "always"})


def test_many_samples_of_a_picture_are_held_for_few_pictures(found: restore.Restored) -> None:
    made = _made(found, 512)
    assert [made.pictures(k) for k in (1, 8, 9, 1024)] == [512, 512, 455, 4]
    assert _made(found, 2).pictures(1024) == 2
