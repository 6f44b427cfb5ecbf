"""Pictures and maps decoded once: memory-mapped uint8 arrays in a folder named by the content of what went in.

Several processes may build one folder at once; the first to finish puts it there, the others take it. A folder whose
files are torn is built again.
"""

from __future__ import annotations

import functools
import hashlib
import io
import json
import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, TypeVar

import numpy as np
import numpy.typing as npt

from memdist import rundir
from memdist.data.pairs import LONGEST, Half, PairFile, View, content_hash
from memdist.data.workers import Progress, cores, spread
from memdist.errors import CheckpointError, DataError

Bytes = npt.NDArray[np.uint8]
Opened = TypeVar("Opened")
Number = TypeVar("Number", bound=np.generic)

FORMAT = 2
"""Version of the decoding and of the files; part of every folder's name."""
_INDEX, _IMAGES, _MAPS = "index.json", "images.npy", "maps.npy"
_FLAT, _SHAPES = "maps.u8", "shapes.npy"
_ATTEMPTS = 5


@dataclass(frozen=True)
class Pixels:
    """Decoded pairs."""

    images: Bytes
    """uint8 [n, image channels, size, size], memory-mapped, read only."""
    maps: Bytes
    """uint8 [n, map channels, size, size], memory-mapped, read only."""
    stems: list[str]
    image_hashes: list[str]
    """SHA-256 of the pictures' files; of a half, that of the file's hash and which half it is."""
    map_hashes: list[str]

    def rows(self, stems: Iterable[str]) -> npt.NDArray[np.int64]:
        """Row of each stem, int64."""
        place = {stem: row for row, stem in enumerate(self.stems)}
        return np.array([place[stem] for stem in stems], dtype=np.int64)


class Truth:
    """Maps to score against, which may differ in size."""

    def __init__(self, flat: Bytes, shapes: npt.NDArray[np.int64]) -> None:
        """Take uint8 pixels end to end, and the int64 [n, 3] (channels, height, width) of each map."""
        self._flat = flat
        self._shapes = shapes
        self._ends = np.cumsum(np.prod(shapes, axis=1))

    def __len__(self) -> int:
        """How many maps."""
        return len(self._shapes)

    def __getitem__(self, i: int) -> Bytes:
        """Copy of map i (0 <= i < n): uint8 [channels, height, width]."""
        channels, height, width = (int(v) for v in self._shapes[i])
        end = int(self._ends[i])
        return np.array(self._flat[end - channels * height * width : end]).reshape(channels, height, width)

    @property
    def sizes(self) -> list[tuple[int, int]]:
        """(height, width) of each map in pixels."""
        return [(int(height), int(width)) for _, height, width in self._shapes]


def keep_compiled(folder: Path | None) -> None:
    """Let torch keep between commands what it compiles, beside the decoded pictures in `folder` (None: the default one)."""
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str((folder or default_folder()) / "inductor"))


def default_folder() -> Path:
    """Folder of caches: $MEMDIST_CACHE, else memdist in $XDG_CACHE_HOME, else ~/.cache/memdist; raises DataError."""
    own, theirs = os.environ.get("MEMDIST_CACHE"), os.environ.get("XDG_CACHE_HOME")
    given = Path(own or theirs or "~/.cache")
    try:
        found = given.expanduser().absolute()
    except RuntimeError as error:  # ~name, and nobody here is called that; or this user has no home
        raise DataError(
            f"the folder of caches cannot be {given}: there is no such home; set MEMDIST_CACHE (or data.cache) to a path in full"
        ) from error
    return found if own else found / "memdist"


def open_or_build(
    pairs: Sequence[PairFile],
    view: View,
    folder: Path | None = None,
    workers: int | None = None,
    progress: Progress | None = None,
) -> Pixels:
    """Open the cache of these pairs, read at a size that `view` names, building it in `folder` if need be.

    `folder` None is `default_folder()`; `workers` and `progress` are those of `workers.spread`. Raises DataError that
    names a file that is no picture, or a folder that cannot be written; nothing half-written stays.
    """
    assert pairs, "no pairs"
    assert view.size is not None
    size = view.size
    files = list(dict.fromkeys(file for p in pairs for file in (p.image, p.map)))  # one file may be both
    by_file = dict(zip(files, hashes(files, workers), strict=True))
    image_hashes = [_of_half(by_file[p.image], p.image_half) for p in pairs]
    map_hashes = [_of_half(by_file[p.map], p.map_half) for p in pairs]
    stems = [p.stem for p in pairs]
    index: dict[str, object] = {"format": FORMAT, **view._asdict(), "stems": stems}
    index |= {"image_hashes": image_hashes, "map_hashes": map_hashes}
    shapes = {
        _IMAGES: (len(pairs), view.image_channels, size, size),
        _MAPS: (len(pairs), view.map_channels, size, size),
    }

    def load(path: Path) -> Pixels | None:
        images = _mapped(path / _IMAGES, np.uint8, shapes[_IMAGES])
        maps = _mapped(path / _MAPS, np.uint8, shapes[_MAPS])
        if images is None or maps is None:
            return None
        return Pixels(images, maps, stems, image_hashes, map_hashes)

    def build(path: Path) -> None:
        work = functools.partial(_decode_pairs, view)
        with open(path / _IMAGES, "wb") as images, open(path / _MAPS, "wb") as maps:
            _header(images, shapes[_IMAGES])
            _header(maps, shapes[_MAPS])
            title = f"decoding pairs at {size} x {size}"
            for left, right in spread(work, pairs, title=title, workers=workers, progress=progress):
                images.write(left.data)
                maps.write(right.data)

    return _opened(folder, "pairs", index, load, build)


def truth(
    pairs: Sequence[PairFile],
    view: View,
    folder: Path | None = None,
    workers: int | None = None,
    progress: Progress | None = None,
) -> Truth:
    """Open the maps of these pairs, in this order, to score against, building their cache if need be.

    Arguments and errors are those of `open_or_build`; `view` may leave each at its own size.
    """
    assert pairs, "no pairs"
    index: dict[str, object] = {"format": FORMAT, "size": view.size, "longest": LONGEST, "crop": view.crop}
    index |= {"channels": view.map_channels, "resize": view.map_resize}
    of_files = hashes([p.map for p in pairs], workers)
    index |= {"map_hashes": [_of_half(h, p.map_half) for h, p in zip(of_files, pairs, strict=True)]}

    def load(path: Path) -> Truth | None:
        shapes = _mapped(path / _SHAPES, np.int64, (len(pairs), 3))
        if shapes is None:
            return None
        try:
            flat = np.memmap(path / _FLAT, dtype=np.uint8, mode="r")
        except (OSError, ValueError):
            return None
        return Truth(flat, np.array(shapes)) if len(flat) == np.prod(shapes, axis=1).sum() else None

    def build(path: Path) -> None:
        work = functools.partial(_decode_maps, view)
        title = "decoding maps to score against"
        parts = spread(work, pairs, title=title, workers=workers, progress=progress)
        shapes = []
        with open(path / _FLAT, "wb") as file:
            for array in (a for part in parts for a in part):
                file.write(array.data)
                shapes.append(array.shape)
        # Through memory: numpy's own error on a full disk does not say that it is full.
        buffer = io.BytesIO()
        np.save(buffer, np.array(shapes, dtype=np.int64))
        rundir.write_bytes(path / _SHAPES, buffer.getvalue())

    return _opened(folder, "truth", index, load, build)


def _of_half(of_file: str, half: Half | None) -> str:
    """Hash of what is read of a file: its two halves must not be taken for one another."""
    return of_file if half is None else hashlib.sha256(f"{of_file} {half}".encode()).hexdigest()


def hashes(files: Sequence[Path], workers: int | None = None) -> list[str]:
    """Content hash of each file; a DataError names one that cannot be read."""
    with ThreadPoolExecutor(workers or cores()) as pool:  # hashing lets go of the interpreter
        return list(pool.map(content_hash, files))


def _opened(
    folder: Path | None,
    name: str,
    index: dict[str, object],
    load: Callable[[Path], Opened | None],
    build: Callable[[Path], None],
) -> Opened:
    """Load the folder that `index` names; build it if it is not there, and again if it is torn."""
    key = hashlib.sha256(json.dumps(index, sort_keys=True).encode()).hexdigest()
    path = (folder or default_folder()) / f"{name}-{key[:16]}"
    for _ in range(_ATTEMPTS):  # more than one only where others remove or tear it meanwhile
        whole = load(path) if _has_index(path, key) else None
        if whole is not None:
            return whole
        try:
            _remove(path)
            rundir.sweep(path.parent)
            with rundir.new_folder(path) as temporary:
                build(temporary)
                rundir.write_json(temporary / _INDEX, index | {"key": key})
        except CheckpointError as error:
            why = (getattr(error.__cause__, "strerror", None) or str(error)).lower()
            raise DataError(
                f"the cache of decoded pictures cannot be written in {path.parent}: {why}; make room there, or choose "
                "another folder with data.cache=DIR or $MEMDIST_CACHE"
            ) from error
    whole = load(path) if _has_index(path, key) else None
    if whole is None:
        raise DataError(
            f"the cache {path} was torn {_ATTEMPTS} times after it was built: choose another data.cache=DIR"
        )
    return whole


def _has_index(path: Path, key: str) -> bool:
    try:
        return rundir.read_json(path / _INDEX).get("key") == key
    except CheckpointError:
        return False


def _remove(path: Path) -> None:
    """Remove a torn folder; it leaves its name at once, so that nobody opens it while it shrinks.

    One that another process has mended meanwhile may go too: what it mapped stays readable, and it is built again.
    """
    rundir.remove_folder(path)


def _mapped(path: Path, kind: type[Number], shape: tuple[int, ...]) -> npt.NDArray[Number] | None:
    """Map an array file; None for one that is absent, torn, longer than it should be or of another kind or shape."""
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
        whole = array.dtype == kind and array.shape == shape and path.stat().st_size == array.offset + array.nbytes
    except (OSError, ValueError, EOFError):
        return None
    return array if whole else None


def _header(file: BinaryIO, shape: tuple[int, ...]) -> None:
    header = {"descr": "|u1", "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, header)


def _decode_pairs(view: View, part: Sequence[PairFile]) -> tuple[Bytes, Bytes]:
    images = np.stack([view.decode(p.image_part) for p in part])
    return images, np.stack([view.decode(p.map_part) for p in part])


def _decode_maps(view: View, part: Sequence[PairFile]) -> list[Bytes]:
    return [view.decode(p.map_part) for p in part]
