"""A pair of pictures, and the decoding of one file."""

from __future__ import annotations

import contextlib
import hashlib
import math
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from memdist.data import area, quiet, stored
from memdist.errors import DataError

if TYPE_CHECKING:
    from PIL.Image import Image
    from PIL.ImageFile import ImageFile

    from memdist.config import Data

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")
"""Endings by which pictures are known, in any case."""
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF")
"""Formats that are decoded, whatever the ending says; Pillow's others include some that start programs."""

Half = Literal["left", "right"]
Resize = Literal["area", "lanczos"]
Box = tuple[float, float, float, float]
"""Left, top, right, bottom in pixels."""

LONGEST = 256
"""Longer side in pixels to which pictures are made smaller that are read at their own size."""

ORIENTATION = 0x0112
"""EXIF tag; 5 to 8 lie on their side."""

Role = Literal["image", "map"]
Part = tuple[Path, Half | None, Role]
"""A file, which half of it is read (None: the whole), and for what."""


class PairFile(NamedTuple):
    """The two pictures of a pair: two files, or the halves of one."""

    stem: str
    """Name of the pair, unlike that of any other of its source; may hold "/", so a file's name is `rundir.file_name` of it."""
    image: Path
    map: Path
    split: str | None = None
    """train, val or test where the source says so."""
    group: str | None = None
    """Pairs of one group belong into one split, where the source names groups."""
    image_half: Half | None = None
    """Half of the file that is read; None: the whole."""
    map_half: Half | None = None

    @property
    def image_part(self) -> Part:
        """Where the picture is."""
        return self.image, self.image_half, "image"

    @property
    def map_part(self) -> Part:
        """Where the map is."""
        return self.map, self.map_half, "map"


class View(NamedTuple):
    """How the pictures and maps of a run are read."""

    size: int | None
    """Height and width in pixels to which they are brought, whatever their aspect; None: their own, the longer side at most
    LONGEST."""
    image_channels: int = 3
    map_channels: int = 3
    crop: bool = False
    resize: Resize = "area"
    """Of pictures."""
    map_resize: Resize = "area"

    @classmethod
    def of(cls, data: Data, size: int | None) -> View:
        """As the settings say, at `size`."""
        return cls(size, data.image_channels, data.map_channels, data.crop, data.resize, data.map_resize)

    def channels(self, role: Role) -> int:
        """Channels of a picture or of a map."""
        return self.image_channels if role == "image" else self.map_channels

    def filter(self, role: Role) -> Resize:
        """How a picture or a map is resized."""
        return self.resize if role == "image" else self.map_resize

    def decode(self, part: Part) -> npt.NDArray[np.uint8]:
        """Decode a picture or a map: uint8 [channels, height, width]; errors are those of the function `decode`."""
        path, half, role = part
        square = None if self.size is None else (self.size, self.size)
        longest = LONGEST if self.size is None else None
        return decode(
            path,
            square,
            self.channels(role),
            longest=longest,
            half=half,
            crop=self.crop,
            resize=self.filter(role),
        )


def decode(
    path: Path,
    size: tuple[int, int] | None,
    channels: int,
    *,
    longest: int | None = None,
    half: Half | None = None,
    crop: bool = False,
    resize: Resize = "area",
) -> npt.NDArray[np.uint8]:
    """Decode a picture: uint8 [channels, height, width], 3 channels (RGB) or 1 (luminance).

    Of the picture as it is shown (EXIF orientation applied) `half` takes one half, and then `crop` the largest centred
    square. `size` is (height, width) in pixels, whatever the aspect; None keeps what was taken at its own, made smaller
    with its aspect until its longer side is at most `longest` pixels. With `resize` area, each of the two directions
    shrinks by the exact mean over the area of each new pixel, or grows bilinearly: neither overshoots, so that what is
    black stays black; lanczos is Pillow's, and may ring. Transparency lies on black, 16-bit greys are rounded to 8 bits
    (16-bit colours are cut to them), of an animation the first picture is taken.
    Raises DataError that names the file, if it is no picture, is torn, is stored as `stored.unread` names, is of odd width
    where a half is wanted, or has too many pixels for a picture (over 89 million, Pillow's bound against decompression
    bombs).
    """
    from PIL import ImageOps

    assert channels in (1, 3), channels
    with _naming(path):
        with _opened(path) as file:
            width, height = _upright(file)
            box = region(path, width, height, half, crop)
            target = size or _within((int(box[3] - box[1]), int(box[2] - box[0])), longest)
            whole = (0, 0, width, height)
            # A JPEG is decoded at a half, quarter or eighth where that is still at least twice what is wanted; not
            # where half of it is wanted, as the other half would shine through, nor where it is turned or mirrored: what
            # is left over at its end would come to lie at its start.
            as_stored = half is None and file.getexif().get(ORIENTATION, 1) == 1
            drafted = file.draft(None, (2 * max(target), 2 * max(target))) if as_stored else None
            share = drafted[1][2] / width if drafted else 1.0
            picture = stored.plain(file, ImageOps.exif_transpose(file)).convert("RGB" if channels == 3 else "L")
        if box != whole:
            picture, box = _cut(picture, box, share)
        else:
            # A last column that is covered in part counts for that part.
            box = (0, 0, min(width * share, picture.width), min(height * share, picture.height))
        picture = resized(picture, box, target, resize)
        pixels = np.asarray(picture, dtype=np.uint8).reshape(*target, channels)
    return np.ascontiguousarray(pixels.transpose(2, 0, 1))


def shown(
    path: Path, half: Half | None = None, crop: bool = False
) -> tuple[tuple[int, int], tuple[int, int, int, int]]:
    """(height, width) of a picture, or of its half, and the box (left, top, right, bottom) in its pixels that a model sees.

    Arguments and errors are those of `decode`; only a file's header is read, but for TIFF.
    """
    with _naming(path), _opened(path) as file:
        width, height = _upright(file)
    if half is not None:
        region(path, width, height, half, crop)  # refuses an odd width
        width //= 2
    left, top, right, bottom = (int(edge) for edge in region(path, width, height, None, crop))
    return (height, width), (left, top, right, bottom)


@contextlib.contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Turn what decoders raise into a DataError that names the file."""
    from PIL import Image, UnidentifiedImageError

    try:
        with quiet.quiet():
            yield
    except FileNotFoundError as error:
        raise DataError(f"{path} is not there any more: restore it, or run again without it") from error
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        raise DataError(f"{path} has too many pixels: make it smaller than {Image.MAX_IMAGE_PIXELS}") from error
    except DataError:
        raise
    except Exception as error:  # the decoders of five formats fail in as many ways
        why = stored.unread_file(path) if isinstance(error, UnidentifiedImageError) else str(error)
        said = f" ({why})" if why else ""
        raise DataError(f"{path} cannot be read as a picture{said}: replace it or take it out") from error


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[ImageFile]:
    from PIL import Image

    # Opened here: of a file that it opens itself, Pillow maps a rotated TIFF into memory with its sides exchanged.
    with open(path, "rb") as handle, Image.open(handle, formats=FORMATS) as file:
        stored.refuse(file)
        yield file


def _upright(file: ImageFile) -> tuple[int, int]:
    """Width and height as shown."""
    if file.format == "TIFF":
        file.load()  # which turns it upright
    sideways = file.getexif().get(ORIENTATION) in (5, 6, 7, 8)
    return file.size[::-1] if sideways else file.size


def content_hash(path: Path) -> str:
    """SHA-256 of a file's bytes, 64 hexadecimal digits; a DataError names a file that cannot be read."""
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        why = (error.strerror or str(error)).lower()
        raise DataError(f"{path} cannot be read: {why}; restore it or take it out") from error


def region(path: Path, width: int, height: int, half: Half | None, crop: bool) -> Box:
    """What is wanted of a picture of this size, in whole pixels."""
    left = 0
    if half is not None:
        if width % 2:
            raise DataError(
                f"{path} is {width} pixels wide, an odd number, and has no two halves: data.side_by_side takes pictures "
                "whose left half is the image and right half the map"
            )
        width //= 2
        left = width if half == "right" else 0
    if not crop:
        return left, 0, left + width, height
    side = min(width, height)
    left, top = left + (width - side) // 2, (height - side) // 2
    return left, top, left + side, top + side


def _cut(picture: Image, box: Box, share: float) -> tuple[Image, Box]:
    """Cut out a region, given in pixels of the whole of which the picture is a `share`; and where in the cut it lies."""
    left, top, right, bottom = (edge * share for edge in box)
    right, bottom = min(right, picture.width), min(bottom, picture.height)
    x, y = math.floor(left), math.floor(top)
    cut = picture.crop((x, y, math.ceil(right), math.ceil(bottom)))
    return cut, (left - x, top - y, right - x, bottom - y)


def resized(picture: Image, box: Box, target: tuple[int, int], resize: Resize) -> Image:
    """Bring the region `box` of a picture to (height, width) `target`."""
    from PIL.Image import Resampling, fromarray

    height, width = target
    if picture.size == (width, height) and box == (0, 0, width, height):
        return picture
    if resize == "lanczos":
        return picture.resize((width, height), Resampling.LANCZOS, box)
    left, top, right, bottom = box
    lower, narrower = height <= bottom - top, width <= right - left
    if lower or narrower:
        rows = ((top, bottom), height) if lower else ((0, picture.height), picture.height)
        columns = ((left, right), width) if narrower else ((0, picture.width), picture.width)
        picture = fromarray(area.shrunk(np.asarray(picture), *rows, *columns))
        top, bottom = (0, height) if lower else (top, bottom)
        left, right = (0, width) if narrower else (left, right)
    if lower and narrower:
        return picture
    return picture.resize((width, height), Resampling.BILINEAR, (left, top, right, bottom))


def _within(size: tuple[int, int], longest: int | None) -> tuple[int, int]:
    """(height, width), made smaller with its aspect until the longer is at most `longest`."""
    height, width = size
    if longest is None or max(size) <= longest:
        return height, width
    return max(1, round(height * longest / max(size))), max(1, round(width * longest / max(size)))
