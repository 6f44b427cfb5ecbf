"""Counter-based draws: the published generator, its distributions, independence of batch, order, seed and stream."""

import hashlib
import math

import numpy as np
import pytest
import torch
from scipy import stats

from memdist import draws

MASK = 2**64 - 1
SEEDS = torch.tensor([0, 1, -1, 2**63 - 1, -(2**63), 123456789])


class SplitMix64:
    """The generator of Steele, Lea and Flood (2014), figure 17, in whole numbers."""

    def __init__(self, state: int) -> None:
        self.state = state & MASK

    def next(self) -> int:
        self.state = (self.state + 0x9E3779B97F4A7C15) & MASK
        return self.mix(self.state)

    @staticmethod
    def mix(z: int) -> int:
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
        return z ^ (z >> 31)


def _reference(seed: int, stream: str) -> SplitMix64:
    return SplitMix64(SplitMix64.mix((seed & MASK) ^ (draws.key("stream", stream) & MASK)))


def _many(count: int) -> torch.Tensor:
    return torch.from_numpy(draws.seeds(draws.key("test"), np.arange(count)))


def test_the_reference_is_the_published_generator() -> None:
    # First outputs for seed 1234567, as published with the C code (Vigna, prng.di.unimi.it).
    generator = SplitMix64(1234567)
    assert [generator.next() for _ in range(3)] == [6457827717110365317, 3203168211198807973, 9817491932198370423]


def test_seeds_are_the_generators_outputs() -> None:
    generator = SplitMix64(1234567)
    expected = np.array([generator.next() for _ in range(50)], dtype=np.uint64).view(np.int64)
    positions = np.arange(50)
    np.testing.assert_array_equal(draws.seeds(1234567, positions), expected)
    np.testing.assert_array_equal(draws.seeds(1234567, positions[::-1].reshape(5, 10)), expected[::-1].reshape(5, 10))
    np.testing.assert_array_equal(draws.seeds(1234567 - 2**64, positions), expected)


def test_keys_are_stable_and_keep_parts_apart() -> None:
    def by_hand(*parts: tuple[bytes, bytes]) -> int:
        text = b"".join(len(raw).to_bytes(8, "little") + kind + raw for kind, raw in parts)
        return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little", signed=True)

    assert draws.key("ab", 1, b"x") == by_hand((b"str", b"ab"), (b"int", b"1"), (b"bytes", b"x"))
    different = [("ab",), ("a", "b"), ("b", "a"), ("ab", ""), (1,), ("1",), (b"1",), (-1,), ()]
    assert len({draws.key(*parts) for parts in different}) == len(different)
    assert all(-(2**63) <= draws.key(n) < 2**63 for n in range(100))


@pytest.mark.parametrize("stream", ["noise", "level", ""])
def test_uniforms_are_the_top_bits_of_the_generator(stream: str) -> None:
    drawn = draws.uniform(SEEDS, stream, (2, 3))
    assert drawn.shape == (6, 2, 3) and drawn.dtype == torch.float32
    for row, seed in zip(drawn, SEEDS.tolist(), strict=True):
        generator = _reference(seed, stream)
        assert row.flatten().tolist() == [(generator.next() >> 40) * 2.0**-24 for _ in range(6)]


@pytest.mark.parametrize("high", [1, 2, 7, 1000, 2**20])
def test_integers_are_the_top_bits_of_the_generator(high: int) -> None:
    drawn = draws.integers(SEEDS, "level", high, (5,))
    assert drawn.shape == (6, 5) and drawn.dtype == torch.int64
    for row, seed in zip(drawn, SEEDS.tolist(), strict=True):
        generator = _reference(seed, "level")
        assert row.tolist() == [((generator.next() >> 33) * high) >> 31 for _ in range(5)]


@pytest.mark.parametrize("count", [1, 2, 5, 8])
def test_normals_are_box_and_mullers(count: int) -> None:
    drawn = draws.normal(SEEDS, "noise", (count,))
    assert drawn.shape == (6, count) and drawn.dtype == torch.float32
    for row, seed in zip(drawn, SEEDS.tolist(), strict=True):
        generator = _reference(seed, "noise")
        bits = [generator.next() for _ in range((count + 1) // 2)]
        radius = [math.sqrt(-2 * math.log(((b >> 32) + 1) * 2.0**-32)) for b in bits]
        angle = [(b & 0xFFFFFFFF) * 2.0**-32 * 2 * math.pi for b in bits]
        pairs = list(zip(radius, angle, strict=True))
        expected = [r * math.cos(a) for r, a in pairs] + [r * math.sin(a) for r, a in pairs]
        torch.testing.assert_close(row, torch.tensor(expected[:count]), rtol=1e-5, atol=2e-6)


def test_committed_values() -> None:
    """What a run drew yesterday it draws tomorrow: a change here makes every resumed run another run."""
    seed = torch.tensor([0, -5])
    assert draws.key("run", 7) == -3495237911134223236
    assert draws.seeds(draws.key("run", 7), np.array([0, 1])).tolist() == [-3241813439866654253, 844611440169762968]
    assert draws.permutation(draws.key("epoch", 3), 8).tolist() == [2, 1, 0, 5, 3, 7, 6, 4]
    assert (draws.uniform(seed, "flip") * 2**24).tolist() == [11483086.0, 11050459.0]
    assert draws.integers(seed, "shift", 1000, (2,)).tolist() == [[747, 674], [360, 552]]
    torch.testing.assert_close(
        draws.normal(seed, "noise", (3,)),
        torch.tensor([[-0.694096, -1.491877, 0.193384], [0.744345, 0.062749, 0.007871]]),
        rtol=0,
        atol=2e-6,
    )


@pytest.mark.parametrize("shape", [(), (1,), (3, 5, 7)])
def test_an_item_draws_the_same_alone_and_in_any_batch(shape: tuple[int, ...]) -> None:
    seeds = _many(9)
    order = torch.tensor([4, 0, 8, 2])
    for draw in (
        lambda s: draws.normal(s, "noise", shape),
        lambda s: draws.uniform(s, "noise", shape),
        lambda s: draws.integers(s, "noise", 100, shape),
    ):
        whole = draw(seeds)
        assert whole.shape == (9, *shape)
        assert torch.equal(draw(seeds[order]), whole[order])
        assert torch.equal(torch.cat([draw(seeds[i : i + 1]) for i in range(9)]), whole)


def test_a_longer_uniform_draw_starts_like_a_shorter_one() -> None:
    assert torch.equal(draws.uniform(SEEDS, "x", (10,))[:, :4], draws.uniform(SEEDS, "x", (4,)))


def test_drawing_leaves_global_generators_alone() -> None:
    torch.manual_seed(3)
    before = torch.get_rng_state()
    draws.normal(SEEDS, "noise", (4,))
    draws.uniform(SEEDS, "noise", (4,))
    assert torch.equal(torch.get_rng_state(), before)


def test_an_empty_batch_draws_nothing() -> None:
    none = torch.zeros(0, dtype=torch.int64)
    assert draws.normal(none, "x", (3,)).shape == (0, 3)
    assert draws.uniform(none, "x").shape == (0,)


@pytest.mark.parametrize("by", ["positions", "seeds"])
def test_normals_are_normal(by: str) -> None:
    seeds, shape = (_many(4), (50000,)) if by == "positions" else (torch.arange(200000), (1,))
    drawn = draws.normal(seeds, "noise", shape).flatten().double().numpy()
    n = drawn.size
    assert np.isfinite(drawn).all() and np.abs(drawn).max() <= math.sqrt(64 * math.log(2)) + 1e-5
    # Five standard errors of each moment of a normal sample.
    assert abs(drawn.mean()) < 5 / math.sqrt(n)
    assert abs(drawn.var() - 1) < 5 * math.sqrt(2 / n)
    assert abs((drawn**3).mean()) < 5 * math.sqrt(15 / n)
    assert abs((drawn**4).mean() - 3) < 5 * math.sqrt(96 / n)
    assert stats.kstest(drawn, "norm").pvalue > 1e-3


@pytest.mark.parametrize("by", ["positions", "seeds"])
def test_uniforms_are_uniform(by: str) -> None:
    seeds, shape = (_many(4), (50000,)) if by == "positions" else (torch.arange(200000), (1,))
    drawn = draws.uniform(seeds, "flip", shape).flatten().double().numpy()
    assert drawn.min() >= 0 and drawn.max() < 1
    assert stats.kstest(drawn, "uniform").pvalue > 1e-3


@pytest.mark.parametrize("bits", [0, -1, 2**63 - 1, -(2**63), 2**32 - 1, -(2**32)])
def test_the_ends_of_the_range(bits: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(draws, "_bits", lambda seed, stream, count: torch.full((len(seed), count), bits))
    uniform = draws.uniform(SEEDS, "x", (2,))
    assert (uniform >= 0).all() and (uniform < 1).all()
    normal = draws.normal(SEEDS, "x", (2,))
    assert torch.isfinite(normal).all() and (normal.abs() <= 6.7).all()
    whole = draws.integers(SEEDS, "x", 2**20, (2,))
    assert (whole >= 0).all() and (whole < 2**20).all()


def test_integers_cover_their_range_evenly() -> None:
    counts = np.bincount(draws.integers(_many(10), "level", 7, (7000,)).flatten().numpy(), minlength=7)
    assert counts.size == 7
    assert stats.chisquare(counts).pvalue > 1e-3


def test_neighbouring_seeds_streams_and_positions_are_unrelated() -> None:
    n = 20000
    bound = 5 / math.sqrt(n)
    near = draws.normal(torch.tensor([7, 8, 9, 7 ^ 2**32, -7, 7 + 2**62]), "noise", (n,)).double().numpy()
    other = draws.normal(torch.tensor([7]), "noise2", (n,)).double().numpy()
    related = np.corrcoef(np.vstack((near, other)))
    assert np.abs(related - np.eye(7)).max() < bound
    for lag in (1, 2, 3, 64, 128, n // 2):
        assert abs(np.corrcoef(near[0, :-lag], near[0, lag:])[0, 1]) < 5 / math.sqrt(n - lag)
    # The two halves of Box and Muller's pair are unrelated in size as well.
    cosine, sine = np.abs(near[0, : n // 2]), np.abs(near[0, n // 2 :])
    assert abs(np.corrcoef(cosine, sine)[0, 1]) < 5 / math.sqrt(n / 2)
    # Across items: the first draws of successive seeds.
    first = draws.normal(torch.arange(n), "noise", (2,)).double().numpy()
    assert abs(np.corrcoef(first[:-1, 0], first[1:, 0])[0, 1]) < bound
    assert abs(np.corrcoef(first[:, 0], first[:, 1])[0, 1]) < bound


@pytest.mark.parametrize("n", [0, 1, 2, 17, 1000])
def test_a_permutation_has_each_number_once(n: int) -> None:
    order = draws.permutation(draws.key("epoch", n), n)
    np.testing.assert_array_equal(np.sort(order), np.arange(n))


def test_every_permutation_is_as_likely() -> None:
    orders = [tuple(draws.permutation(draws.key("epoch", epoch), 4)) for epoch in range(4800)]
    _, counts = np.unique(orders, axis=0, return_counts=True)
    assert counts.size == 24
    assert stats.chisquare(counts).pvalue > 1e-3


def test_permutations_of_successive_epochs_are_unrelated() -> None:
    orders = np.array([draws.permutation(draws.key("epoch", 1, epoch), 500) for epoch in range(20)])
    related = np.corrcoef(orders) - np.eye(20)
    assert np.abs(related).max() < 5 / math.sqrt(500)
