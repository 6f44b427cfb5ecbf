"""Where people looked: fixations of pictures, from one .npz or .csv file.

A fixation is (x, y) in pixels of its picture as it is shown (EXIF orientation applied), from the top left corner: pixel
(0, 0) reaches from 0 to 1, so that a fraction is rounded down to its pixel. Nothing in the file is unpickled, and no size
that it declares is believed before it has been compared with what is there.
"""

from __future__ import annotations

import array
import io
import math
import zipfile
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from memdist.data import sheet
from memdist.data.pairs import PairFile, content_hash, shown
from memdist.data.workers import cores
from memdist.errors import DataError

LARGEST = 2**28
"""Bytes of a file of fixations, unpacked."""
MOST = 10**5
"""Fixations of one picture."""
_FORMS = "an .npz of one array [N, 2 or more] (x, y) for each stem, or a .csv with the columns stem, x and y"

Numbers = npt.NDArray[np.float64]


class Box(NamedTuple):
    """A part of a picture, in pixels of it."""

    left: int
    top: int
    width: int
    height: int


def inside(places: npt.NDArray[np.int32], box: Box) -> npt.NDArray[np.int32]:
    """Pixels (x, y) [n, 2] of a picture that lie in the box, in pixels of the box."""
    moved = places - np.array([box.left, box.top], dtype=np.int32)
    within = (moved >= 0).all(axis=1) & (moved < np.array([box.width, box.height])).all(axis=1)
    return moved[within]


@dataclass(frozen=True)
class Fixations:
    """What a file says of the pictures that are there."""

    path: Path
    sha256: str
    places: Mapping[str, npt.NDArray[np.int32]]
    """Pixels (x, y) [n, 2] by stem, of the part of the picture that is shown."""
    sizes: Mapping[str, tuple[int, int]]
    """(height, width) of that part, of the same stems."""
    ignored: int
    """Stems that no picture has."""


def check(path: Path | None) -> None:
    """Raise DataError where there is no such file, or none by its name: all that can be said without reading it."""
    if path is None:
        return
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "is not a file" if path.exists() else "does not exist"
        raise DataError(f"data.fixations = {path} {what}: give {_FORMS}")
    if path.suffix.lower() not in (".npz", ".csv"):
        raise DataError(f"data.fixations = {path} ends in neither .npz nor .csv: give {_FORMS}")


def read(path: Path, pictures: Mapping[str, PairFile], *, crop: bool = False) -> Fixations:
    """Read the fixations of `pictures`, by stem; those of other stems are counted.

    Of a side-by-side file the picture is its half. With `crop` fixations outside the centred square drop out.

    Raises DataError for a file that is not as it should be, a fixation outside its picture, and where no stem is that of a
    picture.
    """
    check(path)
    sha256 = content_hash(path)
    given = dict(_of_csv(path) if path.suffix.lower() == ".csv" else _of_npz(path))
    known = {stem: places for stem, places in given.items() if stem in pictures}
    if not known:
        some = f"such as {min(given)!r}" if given else "it has none"
        raise DataError(
            f"data.fixations = {path} has no stem of a picture ({some}; pictures are called such as {min(pictures)!r}): name "
            "its arrays or lines after the pictures, without their ending"
        )
    with ThreadPoolExecutor(cores()) as pool:
        looks = list(pool.map(lambda p: shown(p.image, p.image_half, crop), [pictures[stem] for stem in known]))
    sizes = {stem: size for stem, (size, _) in zip(known, looks, strict=True)}
    boxes = {
        stem: Box(box[0], box[1], box[2] - box[0], box[3] - box[1]) for stem, (_, box) in zip(known, looks, strict=True)
    }
    places = {}
    for stem, numbers in known.items():
        if len(numbers) > MOST:
            raise DataError(f"data.fixations = {path} has {len(numbers)} fixations of {stem!r}: give at most {MOST}")
        places[stem] = inside(_in_picture(path, stem, numbers, sizes[stem]), boxes[stem])
    shapes = {stem: (box.height, box.width) for stem, box in boxes.items()}
    return Fixations(path, sha256, places, shapes, len(given) - len(known))


def _in_picture(path: Path, stem: str, numbers: Numbers, shape: tuple[int, int]) -> npt.NDArray[np.int32]:
    height, width = shape
    bad = ~np.isfinite(numbers).all(axis=1)
    if bad.any():
        raise DataError(
            f"data.fixations = {path}: fixation {int(bad.argmax())} of {stem!r} (counted from 0) is not a number; leave out "
            "what was not recorded"
        )
    bad = (numbers < 0).any(axis=1) | (numbers[:, 0] >= width) | (numbers[:, 1] >= height)
    if bad.any():
        at = int(bad.argmax())
        raise DataError(
            f"data.fixations = {path}: fixation {at} of {stem!r} (counted from 0) at x = {numbers[at, 0]:g}, "
            f"y = {numbers[at, 1]:g} is outside its picture of {width} x {height} pixels; give pixels of the picture, counted "
            "from 0 at its top left, and leave out what is beside it"
        )
    return np.floor(numbers).astype(np.int32)


def _of_npz(path: Path) -> Iterator[tuple[str, Numbers]]:
    """Arrays of an .npz, read one after the other."""
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            total = sum(member.file_size for member in members)
            if total > LARGEST:
                raise DataError(f"data.fixations = {path} unpacks to {total} bytes: give a file of at most {LARGEST}")
            seen: set[str] = set()
            for member in members:
                stem = member.filename.removesuffix(".npy")
                if stem == member.filename or stem in seen:
                    why = "stands twice" if stem in seen else "is no array (.npy)"
                    raise DataError(f"data.fixations = {path}: {member.filename!r} in it {why}; give {_FORMS}")
                seen.add(stem)
                # Reads as many bytes as the archive declares, and no more.
                yield stem, _of_npy(path, stem, archive.read(member))
    except DataError:
        raise
    except Exception as error:  # torn archives fail in a dozen ways
        raise DataError(f"data.fixations = {path} cannot be read as an .npz ({error}): give {_FORMS}") from error


def _of_npy(path: Path, stem: str, data: bytes) -> Numbers:
    """One array from the bytes of its .npy file; numpy's own reader would believe the size in its header."""
    file = io.BytesIO(data)
    version = np.lib.format.read_magic(file)
    reader = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, fortran, kind = reader(file)
    if kind.hasobject:
        raise DataError(
            f"data.fixations = {path}: the array of {stem!r} holds Python objects, which would have to be unpickled and are "
            "not; save it as numbers"
        )
    numbers = kind.kind in "iuf"
    if not numbers or (0 not in shape and (len(shape) != 2 or shape[1] < 2)):
        raise DataError(
            f"data.fixations = {path}: the array of {stem!r} is {kind} of shape {list(shape)}; give {_FORMS}, of numbers"
        )
    if 0 in shape:
        return np.empty((0, 2))
    if math.prod(shape) * kind.itemsize != len(data) - file.tell():
        raise ValueError(f"the array of {stem!r} is torn")
    array = np.frombuffer(data, kind, offset=file.tell())
    return np.array(array.reshape(shape, order="F" if fortran else "C")[:, :2], dtype=np.float64)


def _of_csv(path: Path) -> Iterator[tuple[str, Numbers]]:
    """Lines of a CSV by stem."""
    found: dict[str, array.array[float]] = {}
    for line in sheet.walk(path, "data.fixations", ("stem", "x", "y")):
        if isinstance(line, sheet.Fault):
            raise DataError(line.sentence)
        stem, x, y = line.values["stem"], line.values["x"], line.values["y"]
        try:
            found.setdefault(stem, array.array("d")).extend((float(x), float(y)))
        except ValueError as error:
            raise DataError(
                f"line {line.number} of data.fixations = {path} is no stem, x and y ({f'{stem},{x},{y}'[:80]!r}); mend it or "
                "leave it out"
            ) from error
    yield from ((stem, np.array(places).reshape(-1, 2)) for stem, places in found.items())
