"""How a picture is stored: its way to 8 bits a channel, and the ways that are not read."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from memdist.data import quiet

if TYPE_CHECKING:
    from PIL.Image import Image
    from PIL.ImageFile import ImageFile
    from PIL.TiffImagePlugin import ImageFileDirectory_v2

# TIFF tags
_WIDTH, _HEIGHT, _BITS, _COMPRESSION, _PHOTOMETRIC = 256, 257, 258, 259, 262
_CHANNELS, _PLANES, _FORMAT = 277, 284, 339
_PLACES = ((273, 279), (324, 325))
"""Where strips or tiles begin, and how many bytes each has."""
_NUMBERS = {1: "unsigned integers", 2: "signed integers", 3: "floating point", 5: "complex integers", 6: "complex"}


def plain(file: ImageFile, picture: Image) -> Image:
    """Lay what is transparent on black, and bring 16-bit greys to 8 bits; `file` is what the picture came from.

    Raises ValueError for 32 bits a channel.
    """
    from PIL import Image
    from PIL.TiffImagePlugin import TiffImageFile

    if picture.mode.startswith("I;16"):
        greys = np.asarray(picture).astype(np.uint32)
        if isinstance(file, TiffImageFile) and file.tag_v2.get(_PHOTOMETRIC) == 0:  # white is 0
            greys = 65535 - greys  # Pillow does so for 8 bits alone
        see_through = picture.info.get("transparency")
        if isinstance(see_through, int):
            greys[greys == see_through] = 0
        return Image.fromarray(((greys + 128) // 257).astype(np.uint8))
    if picture.mode in ("I", "F"):
        raise ValueError("32 bits a channel: save it with 8 or 16 bits")
    if picture.has_transparency_data:
        picture = picture.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", picture.size, (0, 0, 0, 255)), picture)
    return picture


def refuse(file: Image) -> None:
    """Raise ValueError for an open picture that is `unread`."""
    if (why := unread(file)) is not None:
        raise ValueError(f"{why}: save it as grey or RGB of 8 or 16 bits without a sign")


def unread(file: Image) -> str | None:
    """Say why an open picture is not read although Pillow would give pixels, wrong ones; None for what is read."""
    from PIL.TiffImagePlugin import TiffImageFile

    if file.mode == "LAB":
        return "LAB colours"
    if not isinstance(file, TiffImageFile):
        return None
    tags = file.tag_v2
    bits, numbers = max(_several(tags, _BITS)), max(_several(tags, _FORMAT))
    if numbers == 2 and bits < 32:
        return f"{bits}-bit signed integers"  # of 8 bits, taken for unsigned
    if bits == 16 and tags.get(_PLANES, 1) == 2 and tags.get(_COMPRESSION, 1) == 1:
        return "16-bit channels in planes of their own, uncompressed"  # taken for planes of 8 bits
    return None


def unread_file(source: Path | bytes) -> str | None:
    """Say what a TIFF holds that no decoder here takes, given its file or its bytes; None where it is torn or no TIFF."""
    try:
        with io.BytesIO(source) if isinstance(source, bytes) else open(source, "rb") as file:
            return _unread_tiff(file)
    except Exception:  # a directory of tags can be torn in as many ways as it has bytes
        return None


def _unread_tiff(file: BinaryIO) -> str | None:
    from PIL.TiffImagePlugin import ImageFileDirectory_v2

    head = file.read(8)
    if head[:4] not in (b"II*\0", b"MM\0*"):
        return None
    with quiet.quiet():
        tags = ImageFileDirectory_v2(head)
        file.seek(tags.next)
        tags.load(file)
    length = file.seek(0, io.SEEK_END)
    for starts, sizes in _PLACES:
        if starts in tags:
            parts = zip(_several(tags, starts), _several(tags, sizes), strict=True)
            if min(tags[_WIDTH], tags[_HEIGHT]) < 1 or any(start + size > length for start, size in parts):
                return None
            channels, bits = tags.get(_CHANNELS, 1), max(_several(tags, _BITS))
            numbers = _NUMBERS.get(max(_several(tags, _FORMAT)), "numbers")
            how = f"TIFF compression {tags.get(_COMPRESSION, 1)}, photometric interpretation {tags.get(_PHOTOMETRIC)}"
            return f"{channels} channel{'s' * (channels != 1)} of {bits}-bit {numbers}, {how}"
    return None


def _several(tags: ImageFileDirectory_v2, tag: int) -> tuple[int, ...]:
    """Values of a tag, of which there may be one; (1,), what TIFF assumes of those that are asked for, if it is not there."""
    given: Any = tags.get(tag, 1)
    return given if isinstance(given, tuple) else (given,)
