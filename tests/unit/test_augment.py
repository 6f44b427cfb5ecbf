"""Augmentation: DiffAugment's operations, their probabilities, and that an item's seed alone decides."""

import pytest
import torch

from memdist.augment import augment
from memdist.config import Augment
from memdist.model import Pair

NONE = {"flip": 0, "translation": 0, "cutout": 0, "colour": 0}
EACH = ["flip", "translation", "cutout", "colour"]
ALL = Augment(flip=0.5, translation=0.9, cutout=0.9, colour=0.5)


def only(**probabilities):
    return Augment(**(NONE | probabilities))


@pytest.fixture
def pair():
    generator = torch.Generator().manual_seed(0)
    image = torch.rand(64, 3, 16, 24, generator=generator) * 2 - 1
    return Pair(image, image[:, :1] * 0.5, torch.arange(64) * 7919 - 100)


def test_nothing_asked_for_changes_nothing(pair):
    assert all(a is b for a, b in zip(augment(pair, only()), pair, strict=True))


@pytest.mark.parametrize("settings", [ALL, *(only(**{name: 0.5}) for name in EACH)], ids=["all", *EACH])
def test_an_item_depends_on_its_seed_alone(pair, settings):
    whole = augment(pair, settings)
    order = torch.randperm(64, generator=torch.Generator().manual_seed(1))
    for part in (order[:5], order[5:]):
        got = augment(Pair(*(t[part] for t in pair)), settings)
        assert all(torch.equal(a, b[part]) for a, b in zip(got, whole, strict=True))
    assert torch.equal(whole.seed, pair.seed)


@pytest.mark.parametrize("name", EACH)
@pytest.mark.parametrize("probability", [0.25, 1.0])
def test_probability(name, probability):
    n = 4000
    image = torch.linspace(-1, 1, 3 * 8 * 8).view(1, 3, 8, 8).expand(n, -1, -1, -1)
    got = augment(Pair(image, image, torch.arange(n)), only(**{name: probability}))
    changed = (got.image != image).flatten(1).any(1).float().mean().item()
    still = 1 / 9 if name == "translation" else 0  # a shift of 0 and 0 out of 3 x 3
    assert changed == pytest.approx(probability * (1 - still), abs=0.03)


def test_geometry_is_shared_and_colour_is_not(pair):
    got = augment(pair, only(flip=0.5, translation=0.9, cutout=0.9))
    assert torch.equal(got.image[:, :1] * 0.5, got.map)
    assert torch.equal(augment(pair, only(colour=1)).map, pair.map)


def test_flip(pair):
    got = augment(pair, only(flip=1))
    assert torch.equal(got.image, pair.image.flip(3)) and torch.equal(got.map, pair.map.flip(3))


def test_flip_comes_before_translation(pair):
    flipped = Pair(pair.image.flip(3), pair.map.flip(3), pair.seed)
    expected = augment(flipped, only(translation=1))
    assert torch.equal(augment(pair, only(flip=1, translation=1)).image, expected.image)


def test_translation_shifts_whole_pixels_and_fills_with_zero():
    n, height, width = 400, 16, 24
    ramp = torch.arange(1.0, 1 + height * width).view(1, 1, height, width).expand(n, 1, -1, -1)
    got = augment(Pair(ramp, ramp, torch.arange(n)), only(translation=1)).image
    seen = set()
    for shifted in got[:, 0]:
        value = shifted[height // 2, width // 2].item() - 1
        dy, dx = int(value // width) - height // 2, int(value % width) - width // 2
        seen.add((dy, dx))
        expected = torch.zeros(height + 2 * 2, width + 2 * 3)
        expected[2 : 2 + height, 3 : 3 + width] = ramp[0, 0]
        assert torch.equal(shifted, expected[2 + dy : 2 + dy + height, 3 + dx : 3 + dx + width])
    assert {dy for dy, _ in seen} == set(range(-2, 3)) and {dx for _, dx in seen} == set(range(-3, 4))


@pytest.mark.parametrize("size", [(16, 24), (9, 10)])
def test_cutout_is_a_rectangle_of_half_the_sides(size):
    n, (height, width) = 3000, size
    ones = torch.ones(n, 3, height, width)
    holes = augment(Pair(ones, ones, torch.arange(n)), only(cutout=1)).image == 0
    assert torch.equal(holes[:, 0], holes[:, 2])
    tall, wide = holes[:, 0].any(2).sum(1), holes[:, 0].any(1).sum(1)
    assert torch.equal(tall * wide, holes[:, 0].sum((1, 2))), "it is a rectangle"
    for extent, length in ((tall, height), (wide, width)):
        side = int(length / 2 + 0.5)
        assert extent.max() == side and extent.min() == (side + 1) // 2, "its centre lies anywhere in the picture"
    # The centre of the picture is covered whenever the centre of the hole is near: about half of the time a direction.
    assert holes[:, 0, height // 2, width // 2].float().mean() == pytest.approx(0.25, abs=0.06)


def test_colour_is_brightness_saturation_and_contrast():
    n = 2000
    image = torch.rand(1, 3, 6, 6, generator=torch.Generator().manual_seed(0)) * 2 - 1
    got = augment(Pair(image.expand(n, -1, -1, -1), image.expand(n, -1, -1, -1), torch.arange(n)), only(colour=1)).image
    grey, mean = image.mean(1, keepdim=True), image.mean()
    brightness = got.mean((1, 2, 3)) - mean
    new_grey = got.mean(1, keepdim=True)
    contrast = (new_grey - got.mean((1, 2, 3), keepdim=True)).std((1, 2, 3)) / grey.std()
    saturation = (got - new_grey).std((1, 2, 3)) / (image - grey).std() / contrast
    for factor, low, high in ((brightness, -0.5, 0.5), (contrast, 0.5, 1.5), (saturation, 0, 2)):
        assert low <= factor.min() and factor.max() <= high + 1e-4
        assert factor.mean().item() == pytest.approx((low + high) / 2, abs=0.05)
        assert factor.std().item() == pytest.approx((high - low) / 12**0.5, abs=0.05)
    together = torch.corrcoef(torch.stack((brightness, contrast, saturation)))
    assert (together - torch.eye(3)).abs().max() < 0.07
    # Nothing but these three: a picture is what they make of it.
    k = contrast.view(-1, 1, 1, 1)
    expected = (grey - mean) * k + (image - grey) * k * saturation.view(-1, 1, 1, 1)
    expected = expected + mean + brightness.view(-1, 1, 1, 1)
    torch.testing.assert_close(got, expected, atol=1e-4, rtol=1e-4)


def test_it_is_differentiable_in_picture_and_map():
    generator = torch.Generator().manual_seed(0)
    image = torch.rand(2, 3, 4, 4, dtype=torch.float64, generator=generator).requires_grad_()
    map_ = torch.rand(2, 1, 4, 4, dtype=torch.float64, generator=generator).requires_grad_()

    def run(image, map_):
        return augment(Pair(image, map_, torch.arange(2)), Augment(flip=0.5, translation=1, cutout=1, colour=1))[:2]

    assert torch.autograd.gradcheck(run, (image, map_), atol=1e-4)


def test_the_draws_are_those_of_other_machines_and_versions():
    image = torch.linspace(-1, 1, 2 * 3 * 8 * 8).view(2, 3, 8, 8)
    got = augment(Pair(image, image[:, :1], torch.tensor([1, 2**62])), ALL)
    found = [t.double().sum().item() for t in (*got.image, *got.map)]
    assert found == pytest.approx([-64.3551, 68.4282, -34.8198, 6.7676], abs=1e-3)
