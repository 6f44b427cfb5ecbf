"""The loader: a pure function of the seed and the step, however the work is dealt out."""

import functools
import threading

import numpy as np
import pytest
import torch

from memdist import draws
from memdist.data import loader
from memdist.data.cache import Pixels
from memdist.data.loader import Loader

N = 10


@pytest.fixture
def pixels():
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (N + 4, 3, 4, 4), dtype=np.uint8)
    images[:, 0, 0, 0] = np.arange(N + 4)  # the row, to be read off a batch
    maps = rng.integers(0, 256, (N + 4, 1, 4, 4), dtype=np.uint8)
    for array in (images, maps):
        array.flags.writeable = False
    names = [f"p{i}" for i in range(N + 4)]
    return Pixels(images, maps, names, [f"image {n}" for n in names], [f"map {n}" for n in names])


ROWS = np.arange(2, N + 2)


def dealt(pixels, batch, micro, world, steps, **options):
    """(row, seed) of every pair of each step, over all ranks."""
    whole: list[set[tuple[int, int]]] = [set() for _ in steps]
    for rank in range(world):
        with Loader(pixels, ROWS, seed=3, batch_size=batch, micro=micro, rank=rank, world=world, **options) as deals:
            for seen, step in zip(whole, steps, strict=True):
                parts = deals.micro_batches(step)
                assert len(parts) == batch // micro // world
                for image, _, seed in parts:
                    assert image.shape == (micro, 3, 4, 4) and seed.shape == (micro,)
                    rows = ((image[:, 0, 0, 0] + 1) * 127.5).round().long()
                    seen |= set(zip(rows.tolist(), seed.tolist(), strict=True))
    return whole


def test_order_is_epochs_end_to_end():
    positions = np.arange(3 * N)
    got = loader.order(5, N, positions)
    for epoch in range(3):
        expected = draws.permutation(draws.key("order", 5, epoch), N)
        np.testing.assert_array_equal(got[epoch * N : (epoch + 1) * N], expected)
    shuffled = np.random.default_rng(0).permutation(positions)
    np.testing.assert_array_equal(loader.order(5, N, shuffled), got[shuffled])
    assert not np.array_equal(got[:N], got[N : 2 * N]) and not np.array_equal(got, loader.order(6, N, positions))


@pytest.mark.parametrize("epoch, n, batch, steps", [(0, 10, 4, 0), (1, 10, 4, 3), (2, 10, 4, 5), (3, 8, 8, 3)])
def test_epoch_end(epoch, n, batch, steps):
    assert loader.epoch_end(epoch, n, batch) == steps


@pytest.mark.parametrize("micro, world", [(1, 1), (1, 8), (2, 1), (2, 2), (2, 4), (4, 2), (8, 1)])
def test_ranks_and_micro_batches_do_not_change_the_batch(pixels, micro, world):
    assert dealt(pixels, 8, micro, world, range(5)) == dealt(pixels, 8, 8, 1, range(5))


def test_every_epoch_sees_every_row_once_and_batches_cross_its_end(pixels):
    seen = dealt(pixels, 4, 4, 1, range(5))  # two epochs of 10 in five steps
    rows = [row for step in range(5) for row, _ in sorted(seen[step], key=str)]
    assert sorted(rows) == sorted([*ROWS, *ROWS])
    assert len({seed for step in seen for _, seed in step}) == 20, "a row has a new seed in each epoch"
    positions = np.arange(8, 12)
    expected = ROWS[loader.order(3, N, positions)], draws.seeds(draws.key("item", 3), positions)
    assert seen[2] == set(zip(*(e.tolist() for e in expected), strict=True))


def test_a_batch_may_be_larger_than_the_split(pixels):
    (seen,) = dealt(pixels, 16, 4, 2, [0])
    assert len(seen) == 16 and {row for row, _ in seen} == set(ROWS.tolist())


@pytest.mark.parametrize("resident", ["device", "host"])
def test_a_step_is_the_same_whenever_it_is_asked_for(pixels, resident):
    def get(deals, step):
        return [t.clone() for pair in deals.micro_batches(step) for t in pair]

    make = functools.partial(Loader, pixels, ROWS, seed=1, batch_size=4, micro=2, resident=resident)
    with make() as whole, make() as resumed:
        expected = [get(whole, step) for step in range(8)]
        for step in (5, 6, 7, 2, 3, 3, 0, 100, 7):
            got = get(resumed, step)
            if step < 8:
                assert all(torch.equal(a, b) for a, b in zip(got, expected[step], strict=True))


def test_host_gives_what_device_gives(pixels):
    make = functools.partial(Loader, pixels, ROWS, seed=1, batch_size=6, micro=3)
    with make(resident="host") as host, make(resident="device") as device:
        assert (host.resident, device.resident) == ("host", "device")
        for step in range(20):
            for a, b in zip(host.micro_batches(step), device.micro_batches(step), strict=True):
                assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def test_values_and_types(pixels):
    with Loader(pixels, ROWS, seed=0, batch_size=4, micro=4) as deals:
        assert deals.resident == "device", "a few kilobytes fit anywhere"
        (pair,) = deals.micro_batches(0)
    rows = ROWS[loader.order(0, N, np.arange(4))]
    assert pair.image.dtype == pair.map.dtype == torch.float32 and pair.seed.dtype == torch.int64
    np.testing.assert_allclose(pair.map.numpy(), pixels.maps[rows] / 127.5 - 1, atol=1e-6)
    ends = loader.floats(torch.tensor([0, 255], dtype=torch.uint8))
    assert ends.tolist() == [-1, 1]


def test_auto_reads_ahead_what_does_not_fit(pixels, monkeypatch):
    need = N * (48 + 16)
    for free, expected in ((4 * need, "device"), (4 * need - 1, "host")):
        monkeypatch.setattr(loader, "free_memory", lambda device, free=free: free)
        with Loader(pixels, ROWS, seed=0, batch_size=4, micro=4) as deals:
            assert deals.resident == expected


def test_free_memory_is_a_number_of_bytes():
    assert loader.free_memory(torch.device("cpu")) > 2**20


def test_errors_of_the_thread_surface_and_it_ends(pixels, monkeypatch):
    before = threading.active_count()
    deals = Loader(pixels, ROWS, seed=0, batch_size=4, micro=4, resident="host")
    deals.micro_batches(0)
    assert threading.active_count() == before + 1

    def broken(*_):
        raise OSError("the disk is gone")

    monkeypatch.setattr(loader, "_taken", broken)
    with pytest.raises(OSError, match="the disk is gone"):
        deals.micro_batches(50)
    deals.close()
    assert threading.active_count() == before
    deals.close()


@pytest.mark.parametrize("n, batch, world", [(10, 4, 1), (10, 4, 2), (7, 3, 3), (2, 64, 1), (3, 64, 2), (1, 1, 4)])
def test_evaluation_deals_every_row_once(pixels, n, batch, world):
    rows = np.arange(n)[::-1]
    ranks = [list(loader.batches(pixels, rows, seed=1, batch=batch, rank=rank, world=world)) for rank in range(world)]
    assert len({len(parts) for parts in ranks}) == 1, "equally many forwards on every rank"
    parts = [part for turn in zip(*ranks, strict=True) for part in turn]
    assert len({part.pair.image.shape for part in parts}) == 1
    assert parts[0].pair.image.shape[0] <= min(batch, n)
    assert [row for part in parts for row in part.rows[: part.valid]] == rows.tolist()
    for part in parts:
        np.testing.assert_allclose(part.pair.image.numpy(), pixels.images[part.rows] / 127.5 - 1, atol=1e-6)
        np.testing.assert_allclose(part.pair.map.numpy(), pixels.maps[part.rows] / 127.5 - 1, atol=1e-6)
        expected = [draws.key("picture", 1, f"image p{row}", 0) for row in part.rows]
        assert part.pair.seed.tolist() == expected


def test_evaluation_of_nothing_and_replicates(pixels):
    assert list(loader.batches(pixels, [], seed=0, batch=4, world=2)) == []
    seeds = {
        tuple(next(loader.batches(pixels, [1, 2], seed=s, batch=2, replicate=r)).pair.seed.tolist())
        for s in (0, 1)
        for r in (0, 1)
    }
    assert len(seeds) == 4
