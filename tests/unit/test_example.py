"""Example data: that maps follow from pictures, and that a folder is finished, reused or refused."""

import json

import numpy as np
import pytest
from PIL import Image

from memdist.config import Data
from memdist.data import example, sources
from memdist.errors import ConfigError, DataError


def quiet(done: int, total: int) -> None:
    assert 0 < done <= total


@pytest.fixture(scope="module")
def scenes():
    return [example.scene(0, i, 48) for i in range(120)]


def lit(map_):
    return (map_ > 0).any(axis=-1)


def test_a_scene_is_a_function_of_its_seed_and_index(scenes):
    for a, b in zip(example.scene(0, 7, 48), scenes[7], strict=True):
        np.testing.assert_array_equal(a, b)
    assert not np.array_equal(example.scene(1, 7, 48)[0], scenes[7][0])
    assert len({image.tobytes() for image, _ in scenes}) == len(scenes)
    # Other machines may round a pixel otherwise, but not draw another scene.
    assert [round(float(a.mean()), 1) for a in scenes[0]] == pytest.approx([104.4, 11.0], abs=0.3)


@pytest.mark.parametrize("size", [16, 48, 50])
def test_maps_are_blocky_and_of_two_colours(size):
    for i in range(10):
        image, map_ = example.scene(3, i, size)
        assert image.shape == map_.shape == (size, size, 3) and image.dtype == map_.dtype == np.uint8
        assert not map_[..., 2].any()
        where = np.arange(size) * 16 // size
        first = np.searchsorted(where, np.arange(16))
        np.testing.assert_array_equal(map_, map_[first][:, first][where][:, where])


def test_maps_are_mostly_black_some_nearly_empty_and_spread(scenes):
    maps = np.stack([map_ for _, map_ in scenes])
    fractions = lit(maps).mean(axis=(1, 2))
    assert 0.1 < fractions.mean() < 0.3 and fractions.max() < 0.8
    assert (fractions < 0.02).mean() > 0.03
    assert (maps[..., 1] > 0).mean() > (maps[..., 0] > 0).mean() > 0.02
    thirds = lit(maps).mean(axis=0).reshape(3, 16, 3, 16).mean(axis=(1, 3))
    assert thirds.min() > thirds.max() / 4, "every part of the frame is lit at times"


def test_what_stands_out_can_be_seen(scenes):
    """Distance from the scene's usual colour and saturation, which nobody trained, tell green from black."""
    own: list[float] = []
    other: list[float] = []
    for (image, map_), (_, stranger) in zip(scenes, scenes[1:] + scenes[:1], strict=True):
        colour = image / 255
        distance = np.linalg.norm(colour - np.median(colour, axis=(0, 1)), axis=-1)
        seen = distance + 0.5 * (colour.max(-1) - colour.min(-1))
        for truth, found in ((map_, own), (stranger, other)):
            if truth[..., 1].any():
                found.append(np.corrcoef(seen.ravel(), truth[..., 1].ravel())[0, 1])
    assert np.mean(own) > 0.45 and abs(np.mean(other)) < 0.12


def test_a_folder_of_pairs(tmp_path):
    out = tmp_path / "new" / "data"
    assert example.make(out, 5, 32, 0, progress=quiet) == 5
    found = sources.find(Data(images=out / "images", maps=out / "maps"))
    assert [p.stem for p in found.pairs] == [f"scene-{i:05}" for i in range(5)] and not found.unpaired
    assert json.loads((out / "manifest.json").read_text()) == {"format": 1, "pairs": 5, "size": 32, "seed": 0}
    assert sorted(p.name for p in out.iterdir()) == ["images", "manifest.json", "maps"]
    image, map_ = example.scene(0, 3, 32)
    np.testing.assert_array_equal(np.asarray(Image.open(found.pairs[3].map)), map_)
    assert np.abs(np.asarray(Image.open(found.pairs[3].image)).astype(float) - image).mean() < 8


def test_the_same_call_finishes_what_is_missing(tmp_path):
    example.make(tmp_path, 6, 16, 0, progress=quiet)
    before = {p: p.read_bytes() for p in tmp_path.rglob("*.*")}
    assert example.make(tmp_path, 6, 16, 0, progress=quiet) == 0
    (tmp_path / "images" / "scene-00002.jpg").unlink()
    (tmp_path / "maps" / "scene-00004.png").write_bytes(b"")  # as a loss of power may leave it
    assert example.make(tmp_path, 6, 16, 0, progress=quiet) == 2
    assert {p: p.read_bytes() for p in tmp_path.rglob("*.*")} == before


def test_what_was_interrupted_goes_on(tmp_path, monkeypatch):
    def stop(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(example, "_flush", stop)
        example.make(tmp_path, 3, 16, 0, progress=quiet)
    (tmp_path / "maps" / "scene-00001.png").unlink()
    with pytest.raises(DataError, match="holds no example data"):
        example.make(tmp_path, 3, 16, 1, progress=quiet)
    assert example.make(tmp_path, 3, 16, 0, progress=quiet) == 1
    assert sorted(p.name for p in tmp_path.iterdir()) == ["images", "manifest.json", "maps"]


def test_what_is_refused(tmp_path):
    for numbers in ((0, 32), (4, 15)):
        with pytest.raises(ConfigError, match="pairs should be 1 to 10,000,000 and size 16 to 4096"):
            example.make(tmp_path / "out", *numbers, 0)
    assert not (tmp_path / "out").exists()
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "holiday.jpg").touch()
    with pytest.raises(DataError, match="own is not empty and holds no example data of .*pairs 4, size 16, seed 0"):
        example.make(tmp_path / "own", 4, 16, 0)
    assert [p.name for p in (tmp_path / "own").iterdir()] == ["holiday.jpg"]
    with pytest.raises(DataError, match=r"holiday\.jpg is a file"):
        example.make(tmp_path / "own" / "holiday.jpg", 4, 16, 0)
    example.make(tmp_path / "done", 2, 16, 0, progress=quiet)
    with pytest.raises(DataError, match="done is not empty"):
        example.make(tmp_path / "done", 3, 16, 0)
