"""The decoding of a file."""

import hashlib
import math
import struct
import zlib
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
from PIL import Image

from memdist.data import area, pairs
from memdist.data.pairs import Half
from memdist.errors import DataError
from tests import bad_pictures


def picture(path: Path, pixels, **options) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(pixels, dtype=np.uint8)).save(path, **options)
    return path


def test_shrinking_is_the_mean_over_areas(tmp_path):
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (8, 12, 3))
    path = picture(tmp_path / "a.png", pixels)
    got = pairs.decode(path, (4, 3), 3)
    expected = pixels.reshape(4, 2, 3, 4, 3).mean(axis=(1, 3)).transpose(2, 0, 1)
    assert got.dtype == np.uint8 and got.shape == (3, 4, 3) and got.flags.c_contiguous
    np.testing.assert_array_equal(got, np.floor(expected + 0.5))
    np.testing.assert_array_equal(pairs.decode(path, None, 3), pixels.transpose(2, 0, 1))


def exact(pixels: np.ndarray, box: pairs.Box, target: tuple[int, int]) -> np.ndarray:
    """The mean over each cell of a region, rounded half up, in fractions."""

    def shares(low: float, high: float, cells: int, side: int) -> list[list[Fraction]]:
        start, width = Fraction(low), (Fraction(high) - Fraction(low)) / cells
        edges = [start + i * width for i in range(cells + 1)]

        def share(left: Fraction, pixel: int) -> Fraction:
            covered: Fraction = min(left + width, Fraction(pixel + 1)) - max(left, Fraction(pixel))
            return max(Fraction(0), covered) / width

        return [[share(left, pixel) for pixel in range(side)] for left in edges[:-1]]

    down = np.array(shares(box[1], box[3], target[0], pixels.shape[0]))
    across = np.array(shares(box[0], box[2], target[1], pixels.shape[1]))
    means = down @ pixels.astype(object) @ across.T
    return np.vectorize(lambda mean: math.floor(mean + Fraction(1, 2)))(means)


def test_a_pixel_on_an_edge_counts_by_its_share(tmp_path):
    path = picture(tmp_path / "a.png", [[0, 255, 0, 0]])
    assert pairs.decode(path, (1, 3), 1).tolist() == [[[64, 128, 0]]]


@pytest.mark.parametrize("seed", range(40))
def test_shrinking_is_exact(seed):
    rng = np.random.default_rng(seed)
    height, width = (int(side) for side in rng.integers(2, 60, 2))
    values = rng.integers(0, 256, (height, width)) if seed % 2 else 255 * rng.integers(0, 2, (height, width))
    box = (rng.integers(0, 8) / 8, 0.0, width - rng.integers(0, 4) / 8, height - rng.integers(0, 8) / 8)
    low, high = int(box[3]), int(box[2] - box[0])
    target = (int(rng.integers(1, low + 1)), int(rng.integers(1, high + 1)))
    got = pairs.resized(Image.fromarray(values.astype(np.uint8)), box, target, "area")
    np.testing.assert_array_equal(np.asarray(got), exact(values, box, target))


def test_large_pictures_shrink_exactly(monkeypatch):
    """Sums beyond what single precision holds."""
    values = np.random.default_rng(0).integers(0, 256, (1, 70_003))
    got = pairs.resized(Image.fromarray(values.astype(np.uint8)), (0, 0, 70_003, 1), (1, 2), "area")
    # The pixel in the middle counts by half on both sides.
    sums = np.array(
        [2 * values[0, :35_001].sum() + values[0, 35_001], 2 * values[0, 35_002:].sum() + values[0, 35_001]]
    )
    np.testing.assert_array_equal(np.asarray(got)[0], (2 * sums + 70_003) // (2 * 70_003))
    colours = np.random.default_rng(0).integers(0, 256, (301, 401, 3)).astype(np.uint8)
    whole = pairs.resized(Image.fromarray(colours), (0, 0, 401, 301), (97, 89), "area")
    monkeypatch.setattr(area, "_AT_ONCE", 1)  # line by line
    parts = pairs.resized(Image.fromarray(colours), (0, 0, 401, 301), (97, 89), "area")
    np.testing.assert_array_equal(np.asarray(whole), np.asarray(parts))


@pytest.mark.parametrize("turned", [False, True])
def test_each_direction_shrinks_or_grows_by_itself(turned, tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (5, 9))
    small = exact(pixels, (0, 0, 9, 5), (5, 4)).astype(np.uint8)
    grown = np.asarray(Image.fromarray(small).resize((4, 11), Image.Resampling.BILINEAR))
    path = picture(tmp_path / "a.png", pixels.T if turned else pixels)
    got = pairs.decode(path, (4, 11) if turned else (11, 4), 1)[0]
    np.testing.assert_array_equal(got.T if turned else got, grown)


def test_a_jpeg_of_odd_sides_is_decoded_small_and_close(tmp_path):
    y, x = np.mgrid[:403, :517]
    smooth = 127.5 + 127.5 * np.sin(x / 40) * np.cos(y / 30)
    path = picture(tmp_path / "a.jpg", smooth, quality=95)
    fine = np.asarray(Image.open(path)).repeat(16, axis=0).repeat(16, axis=1)
    wanted = fine.reshape(16, 403, 16, 517).mean(axis=(1, 3))
    assert np.abs(pairs.decode(path, (16, 16), 1)[0].astype(int) - wanted).max() <= 2


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


def tiff(path: Path, pixels: np.ndarray, order: Literal["<", ">"], **tags: int) -> Path:
    """An uncompressed TIFF, byte by byte; `order` is < (II) or > (MM)."""
    height, width = pixels.shape[:2]
    samples = pixels.shape[2] if pixels.ndim == 3 else 1
    bits, data = pixels.dtype.itemsize * 8, pixels.astype(pixels.dtype.newbyteorder(order)).tobytes()
    values = {256: width, 257: height, 259: 1, 262: 1 if samples == 1 else 2, 277: samples, 278: height, 279: len(data)}
    values |= {int(tag[1:]): value for tag, value in tags.items()}
    after = 8 + 2 + 12 * (len(values) + 2) + 4
    extra = struct.pack(f"{order}{samples}H", *[bits] * samples) if samples > 1 else b""
    values |= {258: after if extra else bits, 273: after + len(extra)}
    out = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}IH", 8, len(values))
    for tag in sorted(values):
        if tag == 258 and extra:
            out += struct.pack(f"{order}HHII", tag, 3, samples, values[tag])
        elif tag in (273, 279):
            out += struct.pack(f"{order}HHII", tag, 4, 1, values[tag])
        else:
            out += struct.pack(f"{order}HHIHH", tag, 3, 1, values[tag], 0)
    path.write_bytes(out + struct.pack(f"{order}I", 0) + extra + data)
    return path


def png16(path: Path, pixels: np.ndarray, colour: int) -> Path:
    """A PNG of 16 bits a channel, byte by byte; `colour` is 0 (grey), 2 (RGB), 4 (grey, alpha) or 6 (RGBA)."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    height, width = pixels.shape[:2]
    lines = b"".join(b"\0" + line.astype(">u2").tobytes() for line in pixels)
    header = struct.pack(">IIBBBBB", width, height, 16, colour, 0, 0, 0)
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(lines)) + chunk(b"IEND", b"")
    )
    return path


DEEP = np.random.default_rng(1).integers(0, 65536, (5, 7, 4)).astype(np.uint16)


def test_16_bit_greys_are_rounded(tmp_path):
    grey = DEEP[..., 0]
    expected = np.round(grey / 257).astype(np.uint8)
    for path in (
        png16(tmp_path / "a.png", grey, 0),
        tiff(tmp_path / "little.tif", grey, "<"),
        tiff(tmp_path / "big.tif", grey, ">"),
    ):
        np.testing.assert_array_equal(pairs.decode(path, None, 1)[0], expected)
    white = tiff(tmp_path / "white.tif", grey, "<", t262=0)  # 0 is white
    np.testing.assert_array_equal(pairs.decode(white, None, 1)[0], np.round((65535 - grey) / 257))
    Image.fromarray(grey).save(tmp_path / "hole.png", transparency=int(grey[2, 3]))
    expected[2, 3] = 0
    np.testing.assert_array_equal(pairs.decode(tmp_path / "hole.png", None, 1)[0], expected)


def test_16_bit_colours_are_cut_to_8(tmp_path):
    expected = DEEP.transpose(2, 0, 1) >> 8
    for path in (
        png16(tmp_path / "rgb.png", DEEP[..., :3], 2),
        tiff(tmp_path / "little.tif", DEEP[..., :3], "<"),
        tiff(tmp_path / "big.tif", DEEP[..., :3], ">"),
    ):
        np.testing.assert_array_equal(pairs.decode(path, None, 3), expected[:3])
    on_black = expected[:3] * (expected[3] / 255)
    got = pairs.decode(png16(tmp_path / "rgba.png", DEEP, 6), None, 3)
    np.testing.assert_allclose(got, on_black, atol=1)
    got = pairs.decode(png16(tmp_path / "la.png", DEEP[..., [0, 3]], 4), None, 1)
    np.testing.assert_allclose(got[0], expected[0] * (expected[3] / 255), atol=1)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["png", "webp", "bare tif", "lzw tif", "16 bit tif", "jpg"])
def test_every_orientation_of_every_format(tmp_path, kind, orientation):
    y, x = np.mgrid[:16, :24]
    stored = (y * 8 + x * 4).astype(np.uint8)
    turned = {2: stored[:, ::-1], 3: stored[::-1, ::-1], 4: stored[::-1], 5: stored.T, 6: np.rot90(stored, -1)}
    shown = {1: stored, **turned, 7: stored[::-1, ::-1].T, 8: np.rot90(stored)}[orientation]
    path = tmp_path / f"a.{kind.split()[-1]}"
    if kind in ("bare tif", "16 bit tif"):
        tiff(path, stored if kind[0] == "b" else stored.astype(np.uint16) * 257, "<", t274=orientation)
    else:
        exif = Image.Exif()
        exif[0x0112] = orientation
        options: dict[str, dict[str, Any]] = {"webp": {"lossless": True}, "jpg": {"quality": 100}}
        options["lzw tif"] = {"compression": "tiff_lzw"}
        picture(path, stored, exif=exif, **options.get(kind, {}))
    atol = 2 if kind == "jpg" else 0
    np.testing.assert_allclose(pairs.decode(path, None, 1)[0].astype(int), shown, atol=atol)
    whole = pairs.decode(picture(tmp_path / "whole.png", shown), (5, 5), 1, crop=True)
    np.testing.assert_allclose(pairs.decode(path, (5, 5), 1, crop=True).astype(int), whole, atol=atol)


@pytest.mark.parametrize(
    "name, mode, colour, expected, options",
    [
        ("a.bmp", "P", 3, [9, 30, 90], {}),
        ("a.tif", "P", 3, [9, 30, 90], {}),
        ("a.png", "P", 3, [9, 30, 90], {}),
        ("a.png", "P", 3, [0, 0, 0], {"transparency": 3}),
        ("a.png", "RGB", (9, 8, 7), [0, 0, 0], {"transparency": (9, 8, 7)}),
        ("a.webp", "RGBA", (255, 255, 255, 0), [0, 0, 0], {"lossless": True}),
        ("a.tif", "RGBA", (200, 100, 50, 255), [200, 100, 50], {}),
        ("a.tif", "1", 1, [255] * 3, {}),
        ("a.bmp", "1", 1, [255] * 3, {}),
        ("a.tif", "CMYK", (0, 255, 255, 0), [255, 0, 0], {}),
        ("a.jpg", "CMYK", (0, 255, 255, 0), [255, 0, 0], {"quality": 100}),
    ],
)
def test_more_kinds_of_picture(tmp_path, name, mode, colour, expected, options):
    made = Image.new(mode, (8, 8), colour)
    if mode == "P":
        made.putpalette([v for i in range(256) for v in (3 * i % 256, 10 * i % 256, 30 * i % 256)])
    made.save(tmp_path / name, **options)
    np.testing.assert_allclose(pairs.decode(tmp_path / name, (5, 5), 3)[:, 2, 2].astype(int), expected, atol=2)


# Halves, crops and filters


def test_halves(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (6, 20, 3))
    path = picture(tmp_path / "a.png", pixels)
    parts: dict[Half, np.ndarray] = {"left": pixels[:, :10], "right": pixels[:, 10:]}
    looks: list[dict[str, Any]] = [{}, {"crop": True}, {"resize": "lanczos"}]
    for half, part in parts.items():
        np.testing.assert_array_equal(pairs.decode(path, None, 3, half=half), part.transpose(2, 0, 1))
        alone = picture(tmp_path / f"{half}.png", part)
        for look in looks:
            for size in ((4, 4), (9, 30)):
                got = pairs.decode(path, size, 3, half=half, **look)
                np.testing.assert_array_equal(got, pairs.decode(alone, size, 3, **look))
    odd = picture(tmp_path / "odd.png", pixels[:, :19])
    with pytest.raises(DataError, match=r"odd\.png is 19 pixels wide, an odd number"):
        pairs.decode(odd, (4, 4), 3, half="left")


def test_halves_of_a_jpeg_do_not_shine_through(tmp_path):
    pixels = np.zeros((512, 1040, 3))
    pixels[:, 520:] = 255  # the edge lies within a block of a coarser decoding
    path = picture(tmp_path / "a.jpg", pixels, quality=100, subsampling=0)
    assert pairs.decode(path, (32, 32), 3, half="left").max() <= 1
    assert pairs.decode(path, (32, 32), 3, half="right").min() >= 254


@pytest.mark.parametrize("shape", [(30, 41), (41, 30), (25, 25), (1, 9)])
def test_a_crop_is_the_largest_centred_square(tmp_path, shape):
    pixels = np.random.default_rng(0).integers(0, 256, (*shape, 3))
    side = min(shape)
    top, left = (shape[0] - side) // 2, (shape[1] - side) // 2
    square = pixels[top : top + side, left : left + side]
    path, alone = picture(tmp_path / "a.png", pixels), picture(tmp_path / "square.png", square)
    np.testing.assert_array_equal(pairs.decode(path, None, 3, crop=True), square.transpose(2, 0, 1))
    for resize in ("area", "lanczos"):
        for size in ((7, 7), (60, 60), (20, 40)):
            got = pairs.decode(path, size, 1, crop=True, resize=resize)
            np.testing.assert_array_equal(got, pairs.decode(alone, size, 1, resize=resize))
    assert pairs.decode(path, None, 1, crop=True, longest=10).shape[1:] == (min(side, 10),) * 2


def test_a_cropped_jpeg_is_decoded_small_and_close(tmp_path, monkeypatch):
    y, x = np.mgrid[:512, :1037]
    pixels = np.stack((y / 2, x / 5, (x + y) / 8), axis=-1)
    path = picture(tmp_path / "a.jpg", pixels, quality=95)
    square = pixels[:, 262:774]
    whole = square.reshape(32, 16, 32, 16, 3).mean(axis=(1, 3)).transpose(2, 0, 1)
    seen = []
    cut = pairs._cut

    def watched(small: Image.Image, box: pairs.Box, share: float) -> tuple[Image.Image, pairs.Box]:
        seen.append((small.size, share))
        return cut(small, box, share)

    monkeypatch.setattr(pairs, "_cut", watched)
    np.testing.assert_allclose(pairs.decode(path, (32, 32), 3, crop=True), whole, atol=3)
    assert seen == [((130, 64), 0.125)]


def test_lanczos_is_sharper_and_rings(tmp_path):
    edge = np.zeros((32, 32))
    edge[:, 16:] = 200
    path = picture(tmp_path / "a.png", edge)
    assert pairs.decode(path, (64, 64), 1).max() == 200
    sharp = pairs.decode(path, (64, 64), 1, resize="lanczos")
    assert sharp.max() > 205 and sharp.shape == (1, 64, 64)


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


@pytest.mark.parametrize(
    "pixels, how, why",
    [
        (DEEP[..., :3], {"planes": True}, "16-bit channels in planes of their own, uncompressed"),
        (DEEP[..., :3], {"planes": True, "order": ">"}, "16-bit channels in planes of their own, uncompressed"),
        (DEEP[..., :1], {"planes": True}, "16-bit channels in planes of their own, uncompressed"),
        (DEEP[..., 0].astype(np.int8), {"t339": 2}, "8-bit signed integers"),
        (DEEP[..., 0].astype(np.int16), {"t339": 2}, "16-bit signed integers"),
        (DEEP[..., :3].astype(np.uint8), {"t262": 8}, "LAB colours"),
        (DEEP[..., 0].astype(np.float64), {"t339": 3}, "1 channel of 64-bit floating point"),
        (DEEP[..., 0].astype(np.float16), {"t339": 3}, "1 channel of 16-bit floating point"),
        (DEEP.astype(np.uint8), {"t262": 1}, "4 channels of 8-bit unsigned integers"),
    ],
)
def test_what_would_be_read_wrongly_is_refused(tmp_path, pixels, how, why):
    (tmp_path / "a.tif").write_bytes(bad_pictures.tiff(pixels, **how))
    for channels in (1, 3):
        with pytest.raises(DataError, match=rf"a\.tif cannot be read as a picture \({why}"):
            pairs.decode(tmp_path / "a.tif", None, channels)


def test_planes_that_are_read_right(tmp_path):
    (tmp_path / "bytes.tif").write_bytes(bad_pictures.tiff(DEEP[..., :3].astype(np.uint8), planes=True))
    np.testing.assert_array_equal(
        pairs.decode(tmp_path / "bytes.tif", None, 3), DEEP[..., :3].astype(np.uint8).transpose(2, 0, 1)
    )


def test_bombs(tmp_path):
    """Files of some hundred bytes that say they are huge are refused before memory is asked for."""
    side = 60_000

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    (tmp_path / "a.png").write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
    )
    tiff(tmp_path / "a.tif", np.zeros((2, 2), dtype=np.uint8), "<", t256=side, t257=side, t278=side)
    for name in ("a.png", "a.tif"):
        for look in ({}, {"crop": True}, {"half": "left"}):
            with pytest.raises(DataError, match=r"too many pixels"):
                pairs.decode(tmp_path / name, (4, 4), 3, **look)


def test_of_many_frames_the_first_is_taken(tmp_path):
    frames = [Image.new("L", (4, 4), i) for i in range(7, 57)]
    frames[0].save(tmp_path / "many.tif", save_all=True, append_images=frames[1:])
    assert pairs.decode(tmp_path / "many.tif", None, 1, crop=True).tolist() == [[[7] * 4] * 4]
    path = tiff(tmp_path / "loop.tif", np.full((4, 4), 9, dtype=np.uint8), "<")
    raw = bytearray(path.read_bytes())
    raw[-20:-16] = struct.pack("<I", 8)  # the next frame is this one
    path.write_bytes(raw)
    assert pairs.decode(path, None, 1).tolist() == [[[9] * 4] * 4]


def test_other_formats_are_not_opened(tmp_path):
    for kind in ("GIF", "PPM"):
        Image.new("RGB", (4, 4)).save(tmp_path / "a.png", kind)
        with pytest.raises(DataError, match="cannot be read as a picture"):
            pairs.decode(tmp_path / "a.png", (4, 4), 3)
    (tmp_path / "a.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 4 4\n%%EndComments\n")
    with pytest.raises(DataError, match="cannot be read as a picture"):
        pairs.decode(tmp_path / "a.png", (4, 4), 3)


def test_content_hash(tmp_path):
    (tmp_path / "a").write_bytes(b"abc")
    assert pairs.content_hash(tmp_path / "a") == hashlib.sha256(b"abc").hexdigest()
    with pytest.raises(DataError, match="gone cannot be read: no such file"):
        pairs.content_hash(tmp_path / "gone")
