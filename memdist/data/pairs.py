"""Pairs of files with one stem, and the decoding of one file."""

from __future__ import annotations

import hashlib
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt

from memdist.errors import DataError

if TYPE_CHECKING:
    from PIL.Image import Image

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")
"""Endings by which pictures are known, in any case."""


_ORIENTATION = 0x0112
"""EXIF tag; 5 to 8 lie on their side."""


class PairFile(NamedTuple):
    """The two files of a pair."""

    stem: str
    """File name without its ending, the same for both."""
    image: Path
    map: Path


class Found(NamedTuple):
    """What two folders hold."""

    pairs: list[PairFile]
    """Sorted by stem."""
    unpaired: list[str]
    """Sorted stems that only one of the folders has; they are left out."""


def find(images: Path | None, maps: Path | None) -> Found:
    """Pair the pictures of two folders by stem.

    Raises DataError for a folder that is not given, not there or without pictures, for two files with one stem, and
    where no stem stands in both.
    """
    if images is None or maps is None:
        missing = " and ".join(n for n, f in (("data.images", images), ("data.maps", maps)) if f is None)
        raise DataError(
            f"{missing} is not set: give data.images=DIR data.maps=DIR, two folders of pictures with the same stems "
            "(`memdist data make --out DIR` makes example data)"
        )
    left, right = pictures(images, "data.images"), pictures(maps, "data.maps")
    common = sorted(left.keys() & right.keys())
    if not common:
        raise DataError(
            f"no picture in {images} (such as {min(left.values()).name}) has the stem of a map in {maps} "
            f"(such as {min(right.values()).name}): a picture and its map must have the same name up to the ending"
        )
    return Found([PairFile(s, left[s], right[s]) for s in common], sorted(left.keys() ^ right.keys()))


def pictures(folder: Path, name: str) -> dict[str, Path]:
    """Pictures of a folder (not of those within it) by stem, sorted; hidden files are passed over.

    `name` is what the folder is called in messages (`data.images`). Raises DataError as `find` does.
    """
    if not folder.is_dir():
        what = "is not a folder" if folder.exists() else "does not exist"
        raise DataError(f"{name} = {folder} {what}: give a folder of pictures ({_endings()})")
    try:
        files = sorted(f for f in folder.iterdir() if f.suffix.lower() in SUFFIXES and not f.name.startswith("."))
    except OSError as error:
        why = (error.strerror or str(error)).lower()
        raise DataError(f"{name} = {folder} cannot be read: {why}; give a folder that you may read") from error
    if not files:
        raise DataError(f"{name} = {folder} holds no pictures: give a folder of pictures ({_endings()})")
    found: dict[str, Path] = {}
    for file in files:
        if file.stem in found:
            raise DataError(
                f"{name} = {folder} holds two pictures with the stem {file.stem!r}: {found[file.stem].name} and "
                f"{file.name}; keep one of them"
            )
        found[file.stem] = file
    return found


def decode(
    path: Path, size: tuple[int, int] | None, channels: int, *, longest: int | None = None
) -> npt.NDArray[np.uint8]:
    """Decode a picture: uint8 [channels, height, width], 3 channels (RGB) or 1 (luminance).

    `size` is (height, width) in pixels, whatever the aspect; None keeps the picture's own, made smaller with its aspect
    until its longer side is at most `longest` pixels. Pictures shrink by the mean over the area of each new pixel (BOX)
    and grow bilinearly: neither overshoots, so that what is black stays black. EXIF orientation is applied,
    transparency lies on black, 16-bit greys are scaled to 8 bits, of an animation the first picture is taken.
    Raises DataError that names the file, if it is no picture, is torn or has too many pixels for a picture (over 89
    million, Pillow's bound against decompression bombs).
    """
    from PIL import Image, ImageOps, UnidentifiedImageError

    assert channels in (1, 3), channels
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # remarks on odd metadata are nothing that a person can act upon
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path) as file:
                sideways = file.getexif().get(_ORIENTATION, 1) >= 5
                target = size or _within(file.size if sideways else file.size[::-1], longest)
                # A JPEG is decoded at a half, quarter or eighth where that is still at least twice what is wanted.
                file.draft(None, (2 * max(target), 2 * max(target)))
                picture = _opaque(ImageOps.exif_transpose(file)).convert("RGB" if channels == 3 else "L")
            height, width = target
            if picture.size != (width, height):
                shrinks = width <= picture.width and height <= picture.height
                filter_ = Image.Resampling.BOX if shrinks else Image.Resampling.BILINEAR
                picture = picture.resize((width, height), filter_)
            pixels = np.asarray(picture, dtype=np.uint8).reshape(height, width, channels)
    except FileNotFoundError as error:
        raise DataError(f"{path} is not there any more: restore it, or run again without it") from error
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        raise DataError(f"{path} has too many pixels: make it smaller than {Image.MAX_IMAGE_PIXELS}") from error
    except Exception as error:  # the decoders of a dozen formats fail in as many ways
        why = "" if isinstance(error, UnidentifiedImageError) else f" ({error})"
        raise DataError(f"{path} cannot be read as a picture{why}: replace it or take it out") from error
    return np.ascontiguousarray(pixels.transpose(2, 0, 1))


def content_hash(path: Path) -> str:
    """SHA-256 of a file's bytes, 64 hexadecimal digits; a DataError names a file that cannot be read."""
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        why = (error.strerror or str(error)).lower()
        raise DataError(f"{path} cannot be read: {why}; restore it or take it out") from error


def _within(size: tuple[int, ...], longest: int | None) -> tuple[int, int]:
    """(height, width), made smaller with its aspect until the longer is at most `longest`."""
    height, width = size
    if longest is None or max(size) <= longest:
        return height, width
    return max(1, round(height * longest / max(size))), max(1, round(width * longest / max(size)))


def _opaque(picture: Image) -> Image:
    """Lay what is transparent on black, and bring 16-bit greys to 8 bits."""
    from PIL import Image

    if picture.mode.startswith("I;16"):
        return Image.fromarray(((np.asarray(picture).astype(np.uint32) + 128) // 257).astype(np.uint8))
    if picture.mode in ("I", "F"):
        raise ValueError("32 bits a pixel: save it with 8 or 16")
    if picture.has_transparency_data:
        picture = picture.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", picture.size, (0, 0, 0, 255)), picture)
    return picture


def _endings() -> str:
    return ", ".join(s[1:] for s in SUFFIXES)
