"""The cache: what it holds, when it is built again, and that it is whole or absent."""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from memdist.data import cache, workers
from memdist.data.pairs import PairFile, View, decode
from memdist.errors import DataError


def quiet(done: int, total: int) -> None:
    assert 0 < done <= total


def make(folder: Path, n: int, seed: int = 0) -> list[PairFile]:
    rng = np.random.default_rng(seed)
    found = []
    for i in range(n):
        files = []
        for kind in ("images", "maps"):
            (folder / kind).mkdir(parents=True, exist_ok=True)
            files.append(folder / kind / f"p{i}.png")
            shape = (int(rng.integers(9, 20)), int(rng.integers(9, 20)), 3)
            Image.fromarray(rng.integers(0, 256, shape, dtype=np.uint8)).save(files[-1])
        found.append(PairFile(f"p{i}", files[0], files[1]))
    return found


@pytest.fixture
def pairs(tmp_path):
    return make(tmp_path / "data", 5)


def entries(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir()) if folder.exists() else []


def test_it_holds_the_decoded_pictures(pairs, tmp_path):
    got = cache.open_or_build(pairs, View(8, map_channels=1), tmp_path / "cache", 1, quiet)
    assert got.images.shape == (5, 3, 8, 8) and got.maps.shape == (5, 1, 8, 8)
    assert isinstance(got.images, np.memmap) and not got.images.flags.writeable
    for i, pair in enumerate(pairs):
        np.testing.assert_array_equal(got.images[i], decode(pair.image, (8, 8), 3))
        np.testing.assert_array_equal(got.maps[i], decode(pair.map, (8, 8), 1))
    assert got.stems == [p.stem for p in pairs] and got.rows(["p3", "p0"]).tolist() == [3, 0]
    assert got.image_hashes == cache.hashes([p.image for p in pairs])


def test_it_is_built_once_for_one_content_and_transform(pairs, tmp_path, monkeypatch):
    folder = tmp_path / "cache"
    built = []

    def counted(*args, **options):
        built.append(1)
        return workers.spread(*args, **options)

    monkeypatch.setattr(cache, "spread", counted)
    cache.open_or_build(pairs, View(8), folder, 1, quiet)
    cache.open_or_build(pairs, View(8), folder, 1, quiet)
    assert len(built) == 1
    moved = [p._replace(image=p.image.rename(p.image.with_suffix(".x.png"))) for p in pairs]
    cache.open_or_build(moved, View(8), folder, 1, quiet)
    assert len(built) == 1, "where the files lie is no matter"
    cache.open_or_build(moved, View(9), folder, 1, quiet)
    cache.open_or_build(moved, View(8, map_channels=1), folder, 1, quiet)
    cache.open_or_build(moved[:4], View(8), folder, 1, quiet)
    Image.new("RGB", (9, 9)).save(pairs[0].map)
    cache.open_or_build(moved, View(8), folder, 1, quiet)
    assert len(built) == 5 and len(entries(folder)) == 5
    halves = [p._replace(image_half="left", map_half="right") for p in moved]
    for file in (f for p in moved for f in (p.image, p.map)):
        Image.new("RGB", (12, 8)).save(file)
    for given, options in (
        (moved, {}),
        (moved, {"image_channels": 1}),
        (moved, {"crop": True}),
        (moved, {"resize": "lanczos"}),
        (moved, {"map_resize": "lanczos"}),
        (halves, {}),
        ([p._replace(image_half="right", map_half="left") for p in moved], {}),
    ):
        cache.open_or_build(given, View(8)._replace(**options), folder, 1, quiet)
    assert len(built) == 12 and len(entries(folder)) == 12


def test_a_broken_picture_is_named_and_leaves_nothing(pairs, tmp_path):
    pairs[3].map.write_text("no picture")
    for build in (cache.open_or_build, cache.truth):
        with pytest.raises(DataError, match=r"maps/p3\.png cannot be read as a picture"):
            build(pairs, View(8), tmp_path / "cache", 1, quiet)
        assert entries(tmp_path / "cache") == []


@pytest.mark.parametrize("damage", ["short", "long", "index", "absent", "shape", "header"])
def test_a_torn_cache_is_built_again(pairs, tmp_path, damage):
    folder = tmp_path / "cache"
    whole = np.array(cache.open_or_build(pairs, View(8), folder, 1, quiet).images)
    (home,) = folder.iterdir()
    images = home / "images.npy"
    if damage == "short":
        os.truncate(images, images.stat().st_size - 1)
    elif damage == "long":
        images.write_bytes(images.read_bytes() + b"1")
    elif damage == "index":
        (home / "index.json").write_text("{")
    elif damage == "absent":
        images.unlink()
    elif damage == "shape":
        np.save(images, whole[1:])
    elif damage == "header":
        images.write_bytes(b"")
    np.testing.assert_array_equal(cache.open_or_build(pairs, View(8), folder, 1, quiet).images, whole)
    assert entries(folder) == [home.name]


def test_processes_give_what_one_gives(tmp_path):
    pairs = make(tmp_path / "data", workers.FEW)
    told = []
    many = cache.open_or_build(pairs, View(8), tmp_path / "a", 2, lambda done, total: told.append((done, total)))
    one = cache.open_or_build(pairs, View(8), tmp_path / "b", 1, quiet)
    np.testing.assert_array_equal(many.images, one.images)
    np.testing.assert_array_equal(many.maps, one.maps)
    assert told[-1] == (workers.FEW, workers.FEW) and told == sorted(told)
    pairs[40].image.write_text("no picture")
    with pytest.raises(DataError, match=r"p40\.png"):
        cache.open_or_build(pairs, View(8), tmp_path / "c", 2, quiet)
    assert entries(tmp_path / "c") == []


def test_several_build_at_once(pairs, tmp_path):
    folder = tmp_path / "cache"
    with ThreadPoolExecutor(8) as pool:
        got = list(pool.map(lambda _: cache.open_or_build(pairs, View(8), folder, 1, quiet), range(16)))
    assert all(np.array_equal(g.images, got[0].images) for g in got)
    assert len(entries(folder)) == 1


def test_a_folder_that_cannot_be_written(pairs, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match=r"cannot be written in .*file.*data\.cache=DIR or \$MEMDIST_CACHE"):
        cache.open_or_build(pairs, View(8), tmp_path / "file" / "cache", 1, quiet)


def test_truth_at_one_size(pairs, tmp_path):
    got = cache.truth(pairs[1:3], View(6), tmp_path / "cache", 1, quiet)
    assert len(got) == 2 and got.sizes == [(6, 6), (6, 6)]
    np.testing.assert_array_equal(got[1], decode(pairs[2].map, (6, 6), 3))
    assert got[0].flags.writeable


def test_truth_at_the_maps_own_sizes(pairs, tmp_path):
    Image.new("RGB", (1024, 512), (9, 8, 7)).save(pairs[1].map)
    for _ in range(2):  # built, then opened
        got = cache.truth(pairs, View(None), tmp_path / "cache", 1, quiet)
        assert got.sizes[1] == (128, 256) and got[1].shape == (3, 128, 256) and got[1][1].mean() == 8
        for i, pair in enumerate(pairs):
            np.testing.assert_array_equal(got[i], decode(pair.map, None, 3, longest=256))
    (home,) = (tmp_path / "cache").iterdir()
    last = got[4]
    os.truncate(home / "maps.u8", 100)
    np.testing.assert_array_equal(cache.truth(pairs, View(None), tmp_path / "cache", 1, quiet)[4], last)


LOOK: dict[str, Any] = {"crop": True, "resize": "lanczos", "map_resize": "area"}


def test_halves_of_one_file(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (9, 24, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    Image.fromarray(pixels[:, :12]).save(tmp_path / "left.png")
    Image.fromarray(pixels[:, 12:]).save(tmp_path / "right.png")
    read: list[Path] = []

    def counted(path: Path) -> str:
        read.append(path)
        return f"{len(read):064}"

    monkeypatch.setattr(cache, "content_hash", counted)
    both = [PairFile("a", tmp_path / "a.png", tmp_path / "a.png", image_half="right", map_half="left")]
    got = cache.open_or_build(both, View(6, 1, 1, **LOOK), tmp_path / "cache", 1, quiet)
    # Read once; but the halves are not one picture, and the other way round they are other pairs.
    assert read == [tmp_path / "a.png"] and got.image_hashes != got.map_hashes
    assert got.images.shape == got.maps.shape == (1, 1, 6, 6)
    image = decode(tmp_path / "right.png", (6, 6), 1, crop=True, resize="lanczos")
    np.testing.assert_array_equal(got.images[0], image)
    np.testing.assert_array_equal(got.maps[0], decode(tmp_path / "left.png", (6, 6), 1, crop=True))
    native = cache.truth(both, View(None, map_channels=1, crop=True), tmp_path / "cache", 1, quiet)
    np.testing.assert_array_equal(native[0], decode(tmp_path / "left.png", None, 1, crop=True))
    other = [both[0]._replace(map_half="right")]
    assert not np.array_equal(
        cache.truth(other, View(None, map_channels=1, crop=True), tmp_path / "cache", 1, quiet)[0], native[0]
    )
    assert cache.truth(both, View(None, map_channels=1), tmp_path / "cache", 1, quiet).sizes == [(9, 12)]


def test_maps_of_another_size_than_their_pictures(tmp_path):
    for name, size in (("image", (40, 30)), ("map", (7, 21))):
        Image.fromarray(np.full((size[1], size[0]), 50, dtype=np.uint8)).save(tmp_path / f"{name}.png")
    pairs = [PairFile("a", tmp_path / "image.png", tmp_path / "map.png")]
    got = cache.open_or_build(pairs, View(8, map_channels=1), tmp_path / "cache", 1, quiet)
    assert got.images.shape == (1, 3, 8, 8) and got.maps.shape == (1, 1, 8, 8) and (got.maps == 50).all()
    assert cache.truth(pairs, View(None, map_channels=1), tmp_path / "cache", 1, quiet).sizes == [(21, 7)]
    assert cache.truth(pairs, View(None, map_channels=1, crop=True), tmp_path / "cache", 1, quiet).sizes == [(7, 7)]


def test_default_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("MEMDIST_CACHE", str(tmp_path / "own"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert cache.default_folder() == tmp_path / "own"
    monkeypatch.delenv("MEMDIST_CACHE")
    assert cache.default_folder() == tmp_path / "xdg" / "memdist"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache.default_folder() == tmp_path / "home" / ".cache" / "memdist"


def test_workers_start_without_torch():
    code = "import sys, memdist.data.cache, memdist.data.example; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "False\n"
