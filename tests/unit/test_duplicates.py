"""Near duplicates: what they are, and that none is missed for the sake of speed."""

import itertools
from io import BytesIO

import numpy as np
import pytest
from PIL import Image, ImageEnhance

from memdist.data import duplicates, groupfile
from memdist.data.duplicates import SIDE
from memdist.errors import CheckpointError

COUNT = 60


def scene(seed: int) -> Image.Image:
    cells = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return Image.fromarray(cells).resize((200, 150), Image.Resampling.BICUBIC)


def mark(picture: Image.Image) -> duplicates.Mark:
    return duplicates.fingerprint(np.asarray(picture.convert("L").resize((SIDE, SIDE), Image.Resampling.BOX)))


def recompressed(picture: Image.Image) -> Image.Image:
    file = BytesIO()
    picture.save(file, "JPEG", quality=25)
    return Image.open(file)


CHANGES = {
    "half": lambda p: p.resize((100, 75)),
    "squeezed": lambda p: p.resize((64, 64)),
    "double": lambda p: p.resize((400, 300)),
    "recompressed": recompressed,
    "darker": lambda p: ImageEnhance.Brightness(p).enhance(0.7),
    "less contrast": lambda p: ImageEnhance.Contrast(p).enhance(0.6),
    "grey": lambda p: p.convert("L"),
    "mirrored": lambda p: p.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
}


@pytest.mark.parametrize("name", CHANGES)
def test_changed_copies_are_found_and_no_others(name):
    pictures = [scene(seed) for seed in range(COUNT)]
    marks = [mark(p) for p in pictures] + [mark(CHANGES[name](p)) for p in pictures]
    assert duplicates.near(marks) == [(i, i + COUNT) for i in range(COUNT)]


@pytest.mark.parametrize("name", ["upside down", "cropped"])
def test_what_is_said_not_to_be_found_is_not(name):
    picture = scene(0)
    other = {"upside down": picture.transpose(Image.Transpose.ROTATE_180), "cropped": picture.crop((60, 40, 190, 140))}
    assert duplicates.near([mark(picture), mark(other[name])]) == []


def test_featureless_pictures_are_no_group():
    rng = np.random.default_rng(0)
    flat = [np.full((SIDE, SIDE), v, np.uint8) for v in (0, 0, 90, 255)]
    noisy = [(128 + rng.integers(-2, 3, (SIDE, SIDE))).astype(np.uint8) for _ in range(4)]
    assert duplicates.near([duplicates.fingerprint(g) for g in flat + noisy]) == []


def test_thousands_of_one_picture_are_pairs_with_the_first():
    marks = [mark(scene(1))] * 3000
    assert duplicates.near(marks) == [(0, i) for i in range(1, 3000)]


@pytest.mark.parametrize("at_once", [10, 2_000_000])
def test_no_pair_within_the_radius_is_missed(at_once, monkeypatch):
    monkeypatch.setattr(duplicates, "_AT_ONCE", at_once)
    rng = np.random.default_rng(0)
    n = 300 if at_once > 10 else 40
    rows = rng.integers(0, 2**63, (n, 2), dtype=np.uint64)
    for i in range(1, n, 2):  # the one before it with 0 to 19 bits turned over
        rows[i] = rows[i - 1]
        for bit in rng.choice(128, i % 20, replace=False):
            rows[i, bit // 64] ^= np.uint64(1) << np.uint64(bit % 64)
    found = {
        (int(a), int(b)) for left, right in duplicates._candidates(rows, rows) for a, b in zip(left, right, strict=True)
    }
    apart = {(i, j): int(np.bitwise_count(rows[i] ^ rows[j]).sum()) for i, j in itertools.combinations(range(n), 2)}
    assert found == {pair for pair, bits in apart.items() if bits <= duplicates.RADIUS}
    assert len(found) > n / 4


def test_bits_are_those_of_plain_code():
    grey = np.random.default_rng(3).integers(0, 256, (SIDE, SIDE), dtype=np.uint8)
    k, x = np.arange(8)[:, None], np.arange(SIDE)
    basis = np.cos(np.pi * k * (2 * x + 1) / (2 * SIDE)) * np.where(k == 0, np.sqrt(1 / SIDE), np.sqrt(2 / SIDE))
    waves = (basis @ grey @ basis.T).reshape(-1)
    waves[0] = 0
    middle = np.median(waves)
    expected = "".join("1" if w > middle else "0" for w in waves)
    assert f"{duplicates.fingerprint(grey).bits[1]:064b}" == expected
    ramp = np.tile(np.arange(SIDE, dtype=np.uint8) * 8, (SIDE, 1))
    assert duplicates.fingerprint(ramp).bits[0] == 2**64 - 1 and duplicates.fingerprint(ramp).mirrored[0] == 0


def test_groups_are_what_pairs_connect():
    assert duplicates.groups(7, [(1, 4), (4, 6), (2, 3)]) == [[1, 4, 6], [2, 3]]
    assert duplicates.groups(3, []) == []
    assert duplicates.groups(4, [(2, 3), (1, 2), (0, 3)]) == [[0, 1, 2, 3]]


def test_the_file_of_groups(tmp_path):
    path = tmp_path / "g.csv"
    groupfile.write(path, {"b": "a", "a": "a", 'c,"d"': "e"})
    assert path.read_text() == 'stem,group\na,a\nb,a\n"c,""d""",e\n'
    groupfile.check(path)
    assert path.exists() and list(tmp_path.iterdir()) == [path]
    for bad in (tmp_path, tmp_path / "no" / "g.csv", path / "g.csv"):
        with pytest.raises(CheckpointError, match="cannot write"):
            groupfile.check(bad)


def test_a_new_group_takes_no_name_of_another() -> None:
    """Groups are named after their first member, and a person may have named another group so."""
    former = {"x": "a", "y": "scene"}
    assert groupfile._added(former, {"a": "a", "b": "a"}) == {"x": "a", "y": "scene", "a": "a (2)", "b": "a (2)"}
    # One that grows from a group of the file takes its members along.
    assert groupfile._added(former, {"a": "a", "x": "a"}) == {"x": "a", "y": "scene", "a": "a"}
    assert groupfile._added(former, {"c": "c", "y": "c"}) == {"x": "a", "y": "c", "c": "c"}
