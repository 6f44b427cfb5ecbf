"""One file, read and decoded once: what is wrong with it, and what comparing it with others needs."""

from __future__ import annotations

import hashlib
import io
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import numpy as np
import numpy.typing as npt

from memdist.data import damage, duplicates, header, pairs, stored
from memdist.data.findings import Finding, Kind
from memdist.data.pairs import Part, Role, View

if TYPE_CHECKING:
    from PIL.Image import Image as Image_
    from PIL.ImageFile import ImageFile

Bytes = npt.NDArray[np.uint8]

STEP = 2
"""Steps of 255 that are no structure: what compression makes of a flat picture."""
COLOURED = 12
"""Steps of 255 by which the channels of a pixel must differ to be a colour: chroma noise of JPEGs is less."""


class Statistics(NamedTuple):
    """Luminance of a map at its own size, each in [0, 1]."""

    mean: float
    std: float
    low: float
    high: float
    black: float
    """Share of pixels that are exactly black."""


class Looks(NamedTuple):
    """What a file that training could read looks like."""

    thumbnail: Bytes
    """uint8 [3 or map channels, t, t], resized as `pairs.decode` does."""
    coloured: bool
    mark: duplicates.Mark | None
    """Of pictures, not of maps."""
    statistics: Statistics | None
    """Of maps."""


class Facts(NamedTuple):
    """What is known of a file."""

    findings: list[Finding]
    sha256: str = ""
    """Content hash, 64 hexadecimal digits; empty where the file could not be read."""
    size: tuple[int, int] | None = None
    """(width, height) in pixels, upright; None where no header could be read."""
    looks: Looks | None = None
    """None where training could not decode it."""


def examine(view: View, files: Sequence[Part]) -> list[Facts]:
    """Examine files. Raises nothing that a file can cause."""
    return [_file(look, view) for look in files]


def _file(part: Part, view: View) -> Facts:
    path, half, _ = part
    from PIL import Image

    if (entry := header.entry(path)) is not None:
        return Facts([entry])
    try:
        data = path.read_bytes()
    except OSError as error:
        return Facts([Finding(Kind.UNREADABLE, path, (error.strerror or str(error)).lower())])
    digest = hashlib.sha256(data).hexdigest()
    found: list[Finding] = []

    def note(kind: Kind, detail: str = "") -> None:
        found.append(Finding(kind, path, detail))

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        try:
            file = Image.open(io.BytesIO(data), formats=header.formats())
        except (Image.DecompressionBombWarning, Image.DecompressionBombError):
            note(Kind.BOMB, f"more than {Image.MAX_IMAGE_PIXELS:,}")
            return Facts(found, digest)
        except Exception as error:  # the readers of a dozen formats fail in as many ways
            return Facts([header.unopened(path, data, error)], digest)
        size = file.size
        if file.format not in header.READ:
            note(Kind.NO_PICTURE, f"it is {file.format}, which is not read")
            return Facts(found, digest, size)
        try:
            found += header.read(path, file)
            if (lost := damage.find(file.format or "", data)) is not None:
                note(Kind.TORN, lost)
            size = size[::-1] if header.orientation(file) >= 5 else size
            if any(f.kind is Kind.UNREAD for f in found):
                return Facts(found, digest, size)
            before = header.orientation(file)
            of_pixels, looks = _pixels(part, file, view)
            if before == 1 and (late := header.orientation(file)) > 1:  # a PNG may say so after its pixels
                note(Kind.ROTATED, f"orientation {late}")
                size = size[::-1] if late >= 5 else size
        except Exception as error:  # nor do they fail alike on pixels
            if not any(f.kind is Kind.TORN for f in found):
                note(Kind.TORN, header.words(error))
            return Facts(found, digest, size)
    if half is not None:
        if size[0] % 2:
            note(Kind.SOURCE, f"{size[0]} pixels wide, an odd number: it has no two halves")
            return Facts(found, digest, size)
        size = (size[0] // 2, size[1])
    torn = any(f.kind is Kind.TORN for f in found)
    # What was decoded although a part is lost is compared with nothing.
    return Facts(found + of_pixels, digest, size, None if torn else looks)


def _pixels(part: Part, file: Image_, view: View) -> tuple[list[Finding], Looks | None]:
    """Decode an open file; whatever its decoder raises goes through."""
    from PIL import ImageOps

    found = []
    path, half, role = part
    side = view.size
    assert side is not None
    if role == "image" and half is None and not view.crop:
        # A JPEG is decoded at a half, quarter or eighth where that is enough; all of its bytes are read.
        least = 2 * max(side, duplicates.SIDE)
        file.draft(None, (least, least))
    file.load()
    if file.mode in ("I", "F"):
        wrong = ~np.isfinite(np.asarray(file))
        if wrong.any():
            found.append(Finding(Kind.NON_FINITE, path, f"{int(wrong.sum())} of {wrong.size} pixels"))
        return found, None
    if file.has_transparency_data:
        shown = np.asarray(file.convert("RGBA").getchannel("A"))
        if shown.min() < 255:
            found.append(Finding(Kind.ALPHA, path, f"{(shown < 255).mean():.1%} of its pixels"))
    upright = file if header.orientation(file) == 1 else ImageOps.exif_transpose(file)
    picture = stored.plain(cast("ImageFile", file), upright)
    channels = view.channels(role)
    if half is not None and picture.width % 2:
        return found, None
    if half is not None or view.crop:
        picture = picture.crop(cast(Any, pairs.region(path, picture.width, picture.height, half, view.crop)))
    looks = _looks(picture, role, side, channels, view.filter(role))
    return found + [Finding(kind, path, detail) for kind, detail in _content(picture, role, channels, looks)], looks


def _small(picture: Image_, mode: str, side: int, resize: pairs.Resize = "area") -> Bytes:
    """uint8 [side, side] or [side, side, 3]."""
    picture = picture if picture.mode == mode else picture.convert(mode)
    return np.asarray(pairs.resized(picture, (0, 0, *picture.size), (side, side), resize), dtype=np.uint8)


def _looks(picture: Image_, role: Role, side: int, channels: int, resize: pairs.Resize) -> Looks:
    from PIL import Image

    grey = picture.mode in ("L", "1")
    colours = None if grey and channels == 1 else _small(picture, "RGB", side, resize)
    spread = 0 if grey or colours is None else _colour(colours)
    if channels == 3:
        assert colours is not None
        thumbnail = np.ascontiguousarray(colours.transpose(2, 0, 1))
    else:
        thumbnail = _small(picture, "L", side, resize)[None]
    if role == "image":
        small = Image.fromarray(_small(picture, "RGB", duplicates.SIDE))
        mark = duplicates.fingerprint(np.asarray(small.convert("L")))
        return Looks(thumbnail, spread > COLOURED, mark, None)
    return Looks(thumbnail, spread > COLOURED, None, _statistics(picture))


def _colour(pixels: Bytes) -> int:
    """Most by which the channels of a pixel of uint8 [H, W, 3] differ."""
    red, green, blue = (pixels[..., channel] for channel in range(3))
    high, low = np.maximum(np.maximum(red, green), blue), np.minimum(np.minimum(red, green), blue)
    return int((high - low).max())


def _statistics(picture: Image_) -> Statistics:
    counts = np.array(picture.convert("L").histogram(), dtype=np.float64)
    values, share, present = np.arange(256) / 255, counts / counts.sum(), np.flatnonzero(counts)
    mean = float(values @ share)
    spread = float(np.sqrt(max(0.0, float((values - mean) ** 2 @ share))))
    return Statistics(mean, spread, present[0] / 255, present[-1] / 255, float(share[0]))


def _content(picture: Image_, role: Role, channels: int, looks: Looks) -> list[tuple[Kind, str]]:
    # Means over areas span no more than the pixels do: what is not flat made small is not flat.
    flat = int(np.ptp(looks.thumbnail, axis=(1, 2)).max()) <= STEP
    high: list[int] = []
    if flat:
        bands = picture.convert("L" if picture.mode in ("L", "1") else "RGB").split()
        ends = [np.flatnonzero(band.histogram())[[0, -1]] for band in bands]
        high = [int(last) for _, last in ends]
        flat = all(last - first <= STEP for first, last in ends)
    if role == "image":
        return [(Kind.FLAT_PICTURE, f"value {', '.join(map(str, high))} of 255")] if flat else []
    if flat and max(high) <= STEP:
        return [(Kind.BLACK_MAP, "")]
    if flat:
        return [(Kind.FLAT_MAP, f"value {', '.join(map(str, high))} of 255")]
    return [(Kind.COLOUR_LOST, "")] if channels == 1 and looks.coloured else []
