"""Example data: scenes of textured objects on textured ground, and maps of what stands out in them.

No picture of anyone is needed to try memdist. What a map shows is decided by what can be seen in its picture:

- *true schema* (green): objects that stand out, by their contrast to what lies round them, their saturation and their
  size, and more so when they look like a face or like writing;
- *false schema* (red): objects that look familiar, by a regular texture (stripes, checks), unless they stand out.

Twenty imagined viewers agree or not, each with a probability that follows from these properties; where too few agree
the map stays black. Maps are blocky: 16 cells a side. Objects lie anywhere, so that the mean map knows little.
"""

from __future__ import annotations

import functools
import os
import uuid
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from memdist import draws, rundir
from memdist.data.workers import Progress, spread
from memdist.errors import ConfigError, DataError

Floats = npt.NDArray[np.floating[Any]]

FORMAT = 1
"""Version of the scenes; part of the manifest."""
SMALLEST = 16
"""Height and width below which there are no cells to draw."""
LARGEST, MOST = 4096, 10_000_000
"""Height and width, and pairs, above which a slip of the finger is likelier than a wish."""
_CELLS = 16
_VIEWERS = 20
_AGREED = 0.3
_MANIFEST, _MAKING = "manifest.json", "making.json"


def make(
    out: Path, pairs: int, size: int, seed: int, workers: int | None = None, progress: Progress | None = None
) -> int:
    """Fill out/images (JPEG) and out/maps (PNG) with `pairs` scenes, `size` x `size` pixels; return how many are new.

    Scene i is a function of (seed, i, size) alone. The same call on the same folder makes what is missing. `workers`
    and `progress` are those of `workers.spread`. Raises DataError for a folder that holds anything else, ConfigError
    for numbers that cannot be, CheckpointError where the folder cannot be written.
    """
    if not (1 <= pairs <= MOST and SMALLEST <= size <= LARGEST):
        raise ConfigError(
            f"--pairs {pairs} --size {size}: pairs should be 1 to {MOST:,} and size {SMALLEST} to {LARGEST}"
        )
    settings = {"format": FORMAT, "pairs": pairs, "size": size, "seed": seed}
    complete = _begun(out, settings)
    for folder in (out / "images", out / "maps"):
        rundir.make_folder(folder)
    if not complete:
        rundir.write_json(out / _MAKING, settings)
    missing = [i for i in range(pairs) if not all(_there(path) for path in _files(out, i))]
    work = functools.partial(_make, out, size, seed)
    for _ in spread(work, missing, title=f"making scenes of {size} x {size}", workers=workers, progress=progress):
        pass
    _flush([path for i in missing for path in _files(out, i)])
    rundir.write_json(out / _MANIFEST, settings)
    (out / _MAKING).unlink(missing_ok=True)
    return len(missing)


def scene(seed: int, index: int, size: int) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:
    """Picture and map of one scene, each uint8 [size, size, 3]."""
    rng = np.random.Generator(np.random.Philox(key=draws.key("example", seed, index) % 2**64))
    canvas = _ground(rng, size)
    ground = canvas.mean(axis=(0, 1))
    owner = np.full((size, size), -1)
    quiet = rng.random() < 0.12  # a scene in which little stands out
    objects = [_thing(rng, ground, quiet) for _ in range(rng.integers(3, 7))]
    for number, thing in enumerate(objects):
        _paint(rng, canvas, owner, number, thing)
    canvas = canvas * (1 + 0.25 * (_noise(rng, size, 3) - 0.5)[..., None])  # uneven light
    canvas += rng.normal(0, 0.02, canvas.shape).astype(np.float32)
    canvas = canvas.clip(0, 1)
    cells = np.zeros((_CELLS, _CELLS, 3))
    for number, thing in enumerate(objects):
        true, false = _agreement(rng, canvas, owner, number, thing)
        covered = _cells(owner == number) > 0.35
        for channel, strength in ((1, true), (0, false)):
            if strength >= _AGREED:
                cells[..., channel] = np.maximum(cells[..., channel], strength * covered)
    where = np.arange(size) * _CELLS // size
    return (canvas * 255).round().astype(np.uint8), (cells * 255).round().astype(np.uint8)[where][:, where]


@dataclass(frozen=True)
class _Thing:
    """One object; lengths in halves of the picture's side, from its centre."""

    shape: str
    texture: str
    x: float
    y: float
    radius: float
    angle: float
    colour: Floats
    """RGB in [0, 1]."""
    second: Floats
    """Colour of every other stripe or field, of eyes and mouth, or of writing."""

    def frame(self, size: int, widen: float = 1.0) -> tuple[Floats, Floats, Floats]:
        """Own coordinates of every pixel, and their distance from the centre, 1 at the edge of the object x `widen`."""
        axis = (np.arange(size, dtype=np.float32) + 0.5) * (2 / size) - 1
        x, y = axis[None, :] - np.float32(self.x), axis[:, None] - np.float32(self.y)
        cos, sin = np.float32(np.cos(self.angle)), np.float32(np.sin(self.angle))
        u, v = (x * cos + y * sin) / self.radius, (y * cos - x * sin) / self.radius
        if self.shape in ("disc", "face"):
            distance = np.sqrt(u**2 + (v * 0.8) ** 2)
        elif self.shape == "triangle":
            distance = np.maximum(np.maximum(np.abs(u) * 1.5 + v * 0.8, -v * 1.4), 0)
        else:
            distance = np.maximum(np.abs(u), np.abs(v) * 1.3)
        return u, v, distance / np.float32(widen)


def _thing(rng: np.random.Generator, ground: Floats, quiet: bool) -> _Thing:
    shape = str(rng.choice(["disc", "box", "triangle", "face", "sign"], p=[0.27, 0.27, 0.2, 0.13, 0.13]))
    if quiet and shape in ("face", "sign"):
        shape = "disc"
    regular = 0.05 if quiet else 0.2
    chances = [0.6 - regular, 0.4 - regular, regular, regular]
    texture = str(rng.choice(["plain", "speckle", "stripes", "checks"], p=chances))
    if rng.random() < 0.45 and not quiet:
        colour = _hsv(rng.random(), rng.uniform(0.65, 1), rng.uniform(0.75, 1))
    else:
        colour = (ground + rng.normal(0, 0.07, 3)).clip(0, 1).astype(np.float32)
    dark = colour * np.float32(rng.uniform(0.35, 0.6))
    if shape == "face":
        colour = np.array([0.9, 0.7, 0.55], np.float32) * np.float32(rng.uniform(0.45, 1.05))
        dark = colour * np.float32(0.2)
    elif shape == "sign":
        colour, dark = np.full(3, rng.uniform(0.8, 1), np.float32), np.full(3, rng.uniform(0, 0.25), np.float32)
    return _Thing(
        shape=shape,
        texture="plain" if shape in ("face", "sign") else texture,
        x=float(rng.uniform(-0.9, 0.9)),
        y=float(rng.uniform(-0.9, 0.9)),
        radius=float(rng.uniform(0.18, 0.38)),
        angle=float(rng.normal(0, 0.15) if shape in ("face", "sign") else rng.uniform(0, 2 * np.pi)),
        colour=colour.clip(0, 1),
        second=dark,
    )


def _paint(rng: np.random.Generator, canvas: Floats, owner: npt.NDArray[np.int64], number: int, thing: _Thing) -> None:
    """Lay an object over what was painted before, with edges one pixel soft."""
    size = len(owner)
    u, v, distance = thing.frame(size)
    pattern = np.zeros_like(distance)
    if thing.shape == "face":
        for eye in (-0.4, 0.4):
            pattern += (np.hypot(u - eye, v + 0.3) < 0.17).astype(np.float32)
        pattern += ((np.abs(v - 0.5) < 0.1) & (np.abs(u) < 0.4)).astype(np.float32)
    elif thing.shape == "sign":
        words = rng.random((8, 16)) < 0.7
        line, letter = ((v + 1) * 4).astype(int).clip(0, 7), ((u + 1) * 8).astype(int).clip(0, 15)
        pattern += words[line, letter] & (((v + 1) * 4) % 1 < 0.5) & (np.abs(u) < 0.85) & (np.abs(v) < 0.65)
    elif thing.texture == "speckle":
        pattern += _noise(rng, size, 32) > 0.6
    else:
        waves = np.float32(rng.uniform(3.5, 5) * np.pi * thing.radius / 0.3)
        if thing.texture == "stripes":
            pattern += np.sin(u * waves) > 0
        elif thing.texture == "checks":
            pattern += np.sin(u * waves) * np.sin(v * waves) > 0
    shade = 1 + 0.2 * (_noise(rng, size, 6) - 0.5)[..., None]
    surface = (thing.colour + pattern.clip(0, 1)[..., None] * (thing.second - thing.colour)) * shade
    alpha = ((1 - distance) * np.float32(thing.radius * size / 2) + 0.5).clip(0, 1)[..., None]
    canvas += alpha * (surface - canvas)
    owner[alpha[..., 0] > 0.5] = number


def _agreement(
    rng: np.random.Generator, canvas: Floats, owner: npt.NDArray[np.int64], number: int, thing: _Thing
) -> tuple[float, float]:
    """Fractions of the viewers that take the object as true schema and as false schema, from what is seen of it."""
    inside = owner == number
    area = inside.mean()
    votes = rng.random((2, _VIEWERS))
    if area < 0.005:  # covered by others
        return 0.0, 0.0
    around = (thing.frame(len(owner), 1.5)[2] < 1) & ~inside
    colour, other = canvas[inside].mean(axis=0), canvas[around].mean(axis=0)
    contrast = float(np.linalg.norm(colour - other))
    saturation = float((colour.max() - colour.min()) / (colour.max() + 0.05))
    special = {"face": 0.5, "sign": 0.35}.get(thing.shape, 0.0)
    stands_out = contrast + 0.5 * saturation + special + 2 * min(area, 0.1) - 0.85
    familiar = 0.3 * (thing.texture in ("stripes", "checks")) - 0.15 - max(stands_out, 0)
    chances = 1 / (1 + np.exp(np.array([-12 * stands_out, -20 * familiar])))
    true, false = (votes < chances[:, None]).mean(axis=1)
    return float(true), float(false)


def _ground(rng: np.random.Generator, size: int) -> Floats:
    """float32 [size, size, 3]: two dull colours, mixed by noise of several scales and from top to bottom."""
    hue, value = rng.random(), rng.uniform(0.3, 0.7)
    first = _hsv(hue, rng.uniform(0.05, 0.35), value)
    second = _hsv(hue + rng.uniform(-0.1, 0.1), rng.uniform(0.05, 0.35), value + rng.uniform(-0.2, 0.2))
    grain = sum(_noise(rng, size, cells) / 2**i for i, cells in enumerate((4, 9, 20, 45))) / 1.875
    slope = np.linspace(0, 1, size, dtype=np.float32)[:, None] * np.float32(rng.uniform(-0.6, 0.6))
    mixed = ((grain - 0.5) * 2 + 0.5 + slope).clip(0, 1)[..., None]
    return (first + mixed * (second - first)).astype(np.float32)


def _noise(rng: np.random.Generator, size: int, cells: int) -> Floats:
    """float32 [size, size] in [0, 1): random values on a grid, with straight lines between."""
    weights = _between(size, cells)
    return weights @ rng.random((cells + 1, cells + 1), dtype=np.float32) @ weights.T


@functools.lru_cache(maxsize=32)
def _between(size: int, cells: int) -> Floats:
    """float32 [size, cells + 1]: weights of linear interpolation."""
    place = (np.arange(size, dtype=np.float32) + 0.5) / size * cells
    return (1 - np.abs(place[:, None] - np.arange(cells + 1, dtype=np.float32))).clip(0)


def _cells(mask: npt.NDArray[np.bool_]) -> npt.NDArray[np.float64]:
    """Fraction of each cell that is true: [cells, cells]."""
    edges = -(-np.arange(_CELLS) * len(mask) // _CELLS)
    counts = np.add.reduceat(np.add.reduceat(mask.astype(float), edges, axis=0), edges, axis=1)
    sides = np.diff(np.append(edges, len(mask)))
    return counts / np.outer(sides, sides)


def _hsv(hue: float, saturation: float, value: float) -> Floats:
    wheel = np.abs((hue * 6 + np.array([0.0, 4, 2])) % 6 - 3) - 1
    return np.float32(value) * (1 - np.float32(saturation) * (1 - wheel.clip(0, 1))).astype(np.float32)


def _make(out: Path, size: int, seed: int, part: Sequence[int]) -> None:
    from PIL import Image

    for i in part:
        for path, pixels in zip(_files(out, i), scene(seed, i, size), strict=True):
            # Flushed to the disk all together at the end: one by one would take longer than drawing.
            temporary = path.with_name(f".{uuid.uuid4().hex[:8]}{path.suffix}")
            with rundir.naming(path):
                Image.fromarray(pixels).save(temporary, quality=92)
                os.replace(temporary, path)


def _files(out: Path, i: int) -> tuple[Path, Path]:
    return out / "images" / f"scene-{i:05}.jpg", out / "maps" / f"scene-{i:05}.png"


def _there(path: Path) -> bool:
    return path.is_file() and path.stat().st_size > 0


def _begun(out: Path, settings: dict[str, int]) -> bool:
    """Whether the folder was filled before by these settings; False: it is empty or half filled by them."""
    if out.exists() and not out.is_dir():
        raise DataError(f"{out} is a file: give a folder for example data with --out")
    if not out.exists() or not any(out.iterdir()):
        return False
    for name in (_MANIFEST, _MAKING):
        if rundir.read_json(out / name) == settings:
            return name == _MANIFEST
    asked = ", ".join(f"{name} {value}" for name, value in settings.items())
    raise DataError(f"{out} is not empty and holds no example data of {asked}: choose another folder with --out")


def _flush(files: Sequence[Path]) -> None:
    def sync(path: Path) -> None:
        with open(path, "rb") as file:
            os.fsync(file.fileno())

    with ThreadPoolExecutor(8) as pool:
        done: Iterator[None] = pool.map(sync, files)
        for _ in done:
            pass
    for folder in {path.parent for path in files}:
        rundir.sync_folder(folder)
