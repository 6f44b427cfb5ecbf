"""What a name of the file system and the header of a picture tell; no pixel is decoded."""

from __future__ import annotations

import functools
import stat
from pathlib import Path
from typing import TYPE_CHECKING

from memdist.data import damage, pairs, stored
from memdist.data.findings import Finding, Kind

if TYPE_CHECKING:
    from PIL.Image import Image as Image_

READ = (*pairs.FORMATS, "MPO")
"""Formats that are read: cameras put several JPEGs into one file (MPO)."""
KNOWN = (*pairs.FORMATS, "DIB", "GIF", "AVIF", "JPEG2000", "PPM")
"""Formats that are told by name, whether they are read or not; none that runs another program (EPS)."""
ENDINGS = {"PNG": (".png",), "JPEG": (".jpg", ".jpeg"), "WEBP": (".webp",), "BMP": (".bmp",), "TIFF": (".tif", ".tiff")}
ENDINGS |= {"MPO": ENDINGS["JPEG"]}
LARGEST = 2**30
"""Bytes of the largest file that is read: a picture of Pillow's most pixels, uncompressed at 16 bits, is half of it."""
_BITS_PER_SAMPLE = 258
_PNG = b"\x89PNG\r\n\x1a\n"
_SIGNATURES = (_PNG[:4], b"\xff\xd8\xff", b"RIFF", b"BM", b"II*\0", b"MM\0*", b"GIF8")


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
    if (why := stored.unread(file)) is not None:
        return [*found, Finding(Kind.UNREAD, path, why)]
    if file.mode in ("I", "F"):
        found.append(Finding(Kind.DEPTH_32, path))
    elif _bits(file) == 16:
        found.append(Finding(Kind.DEPTH_16, path, file.mode))
    if file.mode == "1":
        found.append(Finding(Kind.DEPTH_1, path))
    if file.mode in ("P", "PA"):
        found.append(Finding(Kind.PALETTE, path))
    if file.mode in ("CMYK", "HSV", "YCbCr"):
        found.append(Finding(Kind.COLOURS, path, file.mode))
    if (turned := orientation(file)) > 1:
        found.append(Finding(Kind.ROTATED, path, f"orientation {turned}"))
    # Cameras put a preview beside the picture (MPO).
    frames = getattr(file, "n_frames", 1) if file.format != "MPO" else 1
    if frames > 1:
        found.append(Finding(Kind.FRAMES, path, f"{frames} of them"))
    return found


def unopened(path: Path, data: bytes, error: Exception) -> Finding:
    """What a file of these bytes is that Pillow could not open for this reason."""
    from PIL import UnidentifiedImageError

    why = "" if isinstance(error, UnidentifiedImageError) else words(error)
    if not data.startswith(_SIGNATURES):
        return Finding(Kind.NO_PICTURE, path, why)
    if (kind := stored.unread_file(data)) is not None:
        return Finding(Kind.UNREAD, path, kind)
    if data.startswith(_PNG) and damage.find("PNG", data) is None:
        width, height = (int.from_bytes(data[at : at + 4], "big") for at in (16, 20))
        if not width or not height:
            return Finding(Kind.NO_PICTURE, path, f"{width} x {height} pixels")
        return Finding(Kind.UNREAD, path, _of_whole_png(why))
    return Finding(Kind.TORN, path, why or "its header is incomplete")


def _of_whole_png(why: str) -> str:
    if "MAX_TEXT" in why:  # the name of Pillow's bound, which guards against chunks that unpack to gigabytes
        return "a text or colour profile in it is too large: save it without"
    return why or "its header holds what PNG does not know"


def words(error: Exception) -> str:
    """What an error of a decoder says, short."""
    return (str(error) or type(error).__name__).splitlines()[0][:120]


def orientation(file: Image_) -> int:
    """EXIF orientation of an open picture, 1 (upright) to 8, from 5 on its side; its pixels are not decoded."""
    if file.format == "PNG" and not {"exif", "Raw profile type exif"} & file.info.keys():
        return 1  # what stands after the pixels would be found only by decoding them
    given = file.getexif().get(pairs.ORIENTATION, 1)
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
