"""Whatever a picture's file holds: pixels of the size asked for, or a DataError of one sentence."""

import io
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from memdist.data import pairs
from memdist.errors import DataError
from tests.fuzz.damage import Change, changes, damaged

_PIXELS = np.random.default_rng(0).integers(0, 256, (13, 17, 3), dtype=np.uint8)


def _encoded(kind: str, mode: str, **how: object) -> bytes:
    wide = (_PIXELS[..., 0].astype(np.uint16) * 257) if mode == "I;16" else None
    picture = Image.fromarray(wide) if wide is not None else Image.fromarray(_PIXELS).convert(mode)
    file = io.BytesIO()
    picture.save(file, kind, **how)
    return file.getvalue()


FILES = {
    "rgb.png": _encoded("PNG", "RGB"),
    "alpha.png": _encoded("PNG", "RGBA"),
    "palette.png": _encoded("PNG", "P"),
    "deep.png": _encoded("PNG", "I;16"),
    "bits.png": _encoded("PNG", "1"),
    "rgb.jpg": _encoded("JPEG", "RGB"),
    "progressive.jpg": _encoded("JPEG", "RGB", progressive=True),
    "cmyk.jpg": _encoded("JPEG", "CMYK"),
    "grey.jpg": _encoded("JPEG", "L"),
    "rgb.webp": _encoded("WEBP", "RGB"),
    "lossless.webp": _encoded("WEBP", "RGBA", lossless=True),
    "rgb.bmp": _encoded("BMP", "RGB"),
    "palette.bmp": _encoded("BMP", "P"),
    "rgb.tiff": _encoded("TIFF", "RGB"),
    "deep.tiff": _encoded("TIFF", "I;16"),
    "lzw.tiff": _encoded("TIFF", "RGB", compression="tiff_lzw"),
    "deflate.tiff": _encoded("TIFF", "L", compression="tiff_adobe_deflate"),
}


@pytest.fixture(autouse=True)
def bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """A bound that damaged headers pass easily, so that a decoder that ignores it is seen."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10_000)


def _decoded(path: Path, size: tuple[int, int] | None, channels: int) -> None:
    try:
        pixels = pairs.decode(path, size, channels, longest=64)
    except DataError as error:
        assert len(str(error).splitlines()) == 1 and str(path) in str(error)
        return
    assert pixels.dtype == np.uint8 and pixels.shape[0] == channels
    assert pixels.shape[1:] == size if size else max(pixels.shape[1:]) <= 64


sizes = st.none() | st.just((8, 8))


@given(st.sampled_from(sorted(FILES)), changes, sizes, st.sampled_from([1, 3]))
def test_a_damaged_picture_is_decoded_or_named(
    tmp_path: Path, name: str, how: list[Change], size: tuple[int, int] | None, channels: int
) -> None:
    path = tmp_path / name
    path.write_bytes(damaged(FILES[name], how))
    _decoded(path, size, channels)


@given(st.sampled_from(sorted(FILES)), st.integers(0, 63), st.binary(min_size=1, max_size=8), sizes)
def test_a_picture_with_a_foreign_header_is_decoded_or_named(
    tmp_path: Path, name: str, at: int, piece: bytes, size: tuple[int, int] | None
) -> None:
    path = tmp_path / name
    path.write_bytes(FILES[name][:at] + piece + FILES[name][at + len(piece) :])
    _decoded(path, size, 3)


@given(st.sampled_from(pairs.SUFFIXES), st.binary(max_size=300))
def test_any_bytes_are_a_picture_or_named(tmp_path: Path, suffix: str, content: bytes) -> None:
    path = tmp_path / f"any{suffix}"
    path.write_bytes(content)
    _decoded(path, (8, 8), 3)


@pytest.mark.parametrize("name", sorted(FILES))
def test_every_cut_of_a_picture_is_decoded_or_named(tmp_path: Path, name: str) -> None:
    whole = FILES[name]
    path = tmp_path / name
    for length in range(0, len(whole), max(1, len(whole) // 60)):
        path.write_bytes(whole[:length])
        _decoded(path, None, 3)
    path.write_bytes(whole)
    assert pairs.decode(path, None, 3).shape == (3, 13, 17)
