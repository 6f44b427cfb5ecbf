"""What a name of the file system and the header of a picture tell; no pixel is decoded."""

from __future__ import annotations

import functools
import stat
from pathlib import Path
from typing import TYPE_CHECKING

from memdist.data import pairs
from memdist.data.findings import Finding, Kind

if TYPE_CHECKING:
    from PIL.Image import Image as Image_

KNOWN = (*pairs.FORMATS, "DIB", "GIF", "AVIF", "JPEG2000", "PPM")
"""Formats that are told by name, whether they are read or not; none that runs another program (EPS)."""
ENDINGS = {"PNG": (".png",), "JPEG": (".jpg", ".jpeg"), "WEBP": (".webp",), "BMP": (".bmp",), "TIFF": (".tif", ".tiff")}
ENDINGS |= {"MPO": ENDINGS["JPEG"]}
LARGEST = 2**30
"""Bytes of the largest file that is read: a picture of Pillow's most pixels, uncompressed at 16 bits, is half of it."""
_ORIENTATION = 0x0112
_BITS_PER_SAMPLE = 258


def entry(path: Path) -> Finding | None:
    """What a name of the file system is, when it is no file with bytes in it; nothing is opened."""
    try:
        status = path.stat()
    except OSError as error:
        if path.is_symlink() and isinstance(error, FileNotFoundError):
            return Finding(Kind.BROKEN_LINK, path, f"-> {path.readlink()}")
        return Finding(Kind.UNREADABLE, path, (error.strerror or str(error)).lower())
    if stat.S_ISDIR(status.st_mode):
        return Finding(Kind.FOLDER, path)
    if not stat.S_ISREG(status.st_mode):  # to open a pipe would wait for ever
        return Finding(Kind.SPECIAL, path)
    if status.st_size == 0:
        return Finding(Kind.EMPTY, path)
    if status.st_size > LARGEST:
        return Finding(Kind.BOMB, path, f"a file of {status.st_size / 2**30:.1f} GiB")
    return None


@functools.cache
def formats() -> list[str]:
    """Those of KNOWN that this build of Pillow can open."""
    from PIL import Image

    Image.init()
    return [name for name in KNOWN if name in Image.OPEN]


def read(path: Path, file: Image_) -> list[Finding]:
    """What the header of an open picture tells; its pixels are not decoded."""
    found = []
    if path.suffix.lower() in pairs.SUFFIXES and path.suffix.lower() not in ENDINGS.get(file.format or "", ()):
        found.append(Finding(Kind.ENDING, path, f"it is {file.format}"))
    bits = _bits(file)
    if bits == 16:
        found.append(Finding(Kind.DEPTH_16, path, file.mode))
    if file.mode == "1":
        found.append(Finding(Kind.DEPTH_1, path))
    if file.mode in ("P", "PA"):
        found.append(Finding(Kind.PALETTE, path))
    if file.mode in ("CMYK", "LAB", "HSV", "YCbCr"):
        found.append(Finding(Kind.COLOURS, path, file.mode))
    if (turned := orientation(file)) > 1:
        found.append(Finding(Kind.ROTATED, path, f"orientation {turned}"))
    # Cameras put a preview beside the picture (MPO).
    frames = getattr(file, "n_frames", 1) if file.format != "MPO" else 1
    if frames > 1:
        found.append(Finding(Kind.FRAMES, path, f"{frames} of them"))
    return found


def orientation(file: Image_) -> int:
    """EXIF orientation of an open picture, 1 (upright) to 8, from 5 on its side; its pixels are not decoded."""
    if file.format == "PNG" and not {"exif", "Raw profile type exif"} & file.info.keys():
        return 1  # what stands after the pixels would be found only by decoding them
    given = file.getexif().get(_ORIENTATION, 1)
    return given if given in range(2, 9) else 1


def _bits(file: Image_) -> int:
    """Bits a channel as stored: Pillow reads coloured PNGs of 16 bits as of 8."""
    if file.format == "PNG":
        return 16 if str(file.tile[0].args).endswith("16B") else 8  # type: ignore[attr-defined]
    if file.mode.startswith("I;16"):
        return 16
    if file.format == "TIFF":
        given = file.tag_v2.get(_BITS_PER_SAMPLE, (1,))  # type: ignore[attr-defined]
        return max(given) if isinstance(given, tuple) else int(given)
    return 8
