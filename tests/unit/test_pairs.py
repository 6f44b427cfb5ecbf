"""Pairs of files, and the decoding of one."""

import hashlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from memdist.data import pairs
from memdist.errors import DataError


def picture(path: Path, pixels, **options) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(pixels, dtype=np.uint8)).save(path, **options)
    return path


@pytest.fixture
def folders(tmp_path):
    for stem in ("b", "a", "only"):
        picture(tmp_path / "images" / f"{stem}.JPG", np.zeros((4, 4, 3)), format="jpeg")
    for name in ("a.png", "b.webp", "else.png", "more.png"):
        picture(tmp_path / "maps" / name, np.zeros((4, 4, 3)))
    (tmp_path / "images" / "notes.txt").write_text("hello")
    (tmp_path / "images" / "._a.jpg").write_text("what a Mac leaves")
    return tmp_path / "images", tmp_path / "maps"


def test_pairs_are_found_by_stem_and_sorted(folders):
    found = pairs.find(*folders)
    assert [p.stem for p in found.pairs] == ["a", "b"]
    assert [(p.image.name, p.map.name) for p in found.pairs] == [("a.JPG", "a.png"), ("b.JPG", "b.webp")]
    assert found.unpaired == ["else", "more", "only"]


@pytest.mark.parametrize("given, missing", [((1, 0), "data.maps is"), ((0, 0), "data.images and data.maps is")])
def test_folders_that_are_not_given(given, missing, tmp_path):
    with pytest.raises(DataError, match=missing) as error:
        pairs.find(*(tmp_path if g else None for g in given))
    assert "data.images=DIR data.maps=DIR" in str(error.value) and "memdist data make --out DIR" in str(error.value)


def test_folders_that_cannot_be_used(folders, tmp_path):
    images, maps = folders
    with pytest.raises(DataError, match=r"data.maps = .*nowhere does not exist"):
        pairs.find(images, tmp_path / "nowhere")
    with pytest.raises(DataError, match=r"data.images = .*notes.txt is not a folder"):
        pairs.find(images / "notes.txt", maps)
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "notes.txt").touch()
    with pytest.raises(DataError, match=r"data.maps = .*empty holds no pictures"):
        pairs.find(images, tmp_path / "empty")
    picture(tmp_path / "other" / "z.png", np.zeros((4, 4)))
    with pytest.raises(DataError, match=r"no picture in .*a\.JPG.* a map in .*z\.png"):
        pairs.find(images, tmp_path / "other")
    picture(maps / "a.bmp", np.zeros((4, 4)))
    with pytest.raises(DataError, match=r"the stem 'a': a\.bmp and a\.png"):
        pairs.find(images, maps)


def test_shrinking_is_the_mean_over_areas(tmp_path):
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (8, 12, 3))
    path = picture(tmp_path / "a.png", pixels)
    got = pairs.decode(path, (4, 3), 3)
    expected = pixels.reshape(4, 2, 3, 4, 3).mean(axis=(1, 3)).transpose(2, 0, 1)
    assert got.dtype == np.uint8 and got.shape == (3, 4, 3) and got.flags.c_contiguous
    # Pillow rounds after each direction.
    np.testing.assert_allclose(got, expected, atol=1.01)
    np.testing.assert_array_equal(pairs.decode(path, None, 3), pixels.transpose(2, 0, 1))


def test_growing_does_not_overshoot(tmp_path):
    path = picture(tmp_path / "a.png", np.kron(np.eye(4), np.full((2, 2), 200)))
    got = pairs.decode(path, (16, 16), 1)
    assert got.shape == (1, 16, 16) and got.min() == 0 and got.max() == 200


def test_own_size_with_a_longest_side(tmp_path):
    path = picture(tmp_path / "a.png", np.full((40, 20, 3), 7))
    assert pairs.decode(path, None, 3, longest=10).shape == (3, 10, 5)
    assert pairs.decode(path, None, 3, longest=40).shape == (3, 40, 20)


def test_exif_orientation_is_applied(tmp_path):
    pixels = np.zeros((40, 64, 3))
    pixels[:, :32] = 255  # the left half is white
    exif = Image.Exif()
    exif[0x0112] = 6  # turn clockwise to see it upright: the left becomes the top
    path = picture(tmp_path / "a.jpg", pixels, exif=exif)
    got = pairs.decode(path, None, 1)
    assert got.shape == (1, 64, 40)
    assert got[0, :24].min() > 250 and got[0, 40:].max() < 5
    assert pairs.decode(path, None, 1, longest=32).shape == (1, 32, 20)


@pytest.mark.parametrize(
    "mode, colour, expected",
    [
        ("L", 77, [77] * 3),
        ("RGBA", (200, 100, 50, 0), [0] * 3),
        ("RGBA", (200, 100, 50, 255), [200, 100, 50]),
        ("LA", (200, 255), [200] * 3),
        ("I;16", 51400, [200] * 3),
        ("1", 1, [255] * 3),
    ],
)
def test_kinds_of_picture(tmp_path, mode, colour, expected):
    Image.new(mode, (5, 5), colour).save(tmp_path / "a.png")
    assert pairs.decode(tmp_path / "a.png", (5, 5), 3)[:, 2, 2].tolist() == expected


def test_a_large_jpeg_is_decoded_small_and_close(tmp_path):
    y, x = np.mgrid[:512, :512]
    pixels = np.stack((y / 2, x / 2, (x + y) / 4), axis=-1)
    path = picture(tmp_path / "a.jpg", pixels, quality=95)
    whole = pixels.reshape(32, 16, 32, 16, 3).mean(axis=(1, 3)).transpose(2, 0, 1)
    np.testing.assert_allclose(pairs.decode(path, (32, 32), 3), whole, atol=3)


def test_files_that_are_no_pictures(tmp_path, monkeypatch):
    (tmp_path / "text.png").write_text("hello")
    with pytest.raises(DataError, match=r"text\.png cannot be read as a picture: replace"):
        pairs.decode(tmp_path / "text.png", (4, 4), 3)
    whole = picture(tmp_path / "a.png", np.random.default_rng(0).integers(0, 256, (32, 32, 3))).read_bytes()
    for length in (0, 20, 60, len(whole) // 2):
        (tmp_path / "torn.png").write_bytes(whole[:length])
        with pytest.raises(DataError, match=r"torn\.png cannot be read as a picture"):
            pairs.decode(tmp_path / "torn.png", (4, 4), 3)
    with pytest.raises(DataError, match=r"gone\.png is not there"):
        pairs.decode(tmp_path / "gone.png", (4, 4), 3)
    Image.new("F", (4, 4)).save(tmp_path / "float.tif")
    with pytest.raises(DataError, match=r"float\.tif .*32 bits"):
        pairs.decode(tmp_path / "float.tif", (4, 4), 3)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)  # 32 x 32 is a little more, where Pillow only warns
    with pytest.raises(DataError, match=r"a\.png has too many pixels"):
        pairs.decode(tmp_path / "a.png", (4, 4), 3)


def test_content_hash(tmp_path):
    (tmp_path / "a").write_bytes(b"abc")
    assert pairs.content_hash(tmp_path / "a") == hashlib.sha256(b"abc").hexdigest()
    with pytest.raises(DataError, match="gone cannot be read: no such file"):
        pairs.content_hash(tmp_path / "gone")
