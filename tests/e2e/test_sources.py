"""One tiny run from each source of pairs, with groups, crops and grey pictures: trained, resumed, scored, predicted, shown."""

import csv
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from PIL import Image

from memdist import models, rundir
from memdist.compare import page, table
from memdist.data import pairs, split
from memdist.errors import CheckpointError, ConfigError, DataError
from memdist.predict import pictures
from memdist.train import dataset, describe, evaluate, loop, start
from tests import tiny

NO_FOLDERS = {"data.images": "null", "data.maps": "null"}


class Source(NamedTuple):
    """A source on the disk."""

    variant: str
    settings: dict[str, Any]


def two_folders(tmp: Path, images: list[Path], maps: list[Path]) -> Source:
    """Splits as sub-folders; grey maps at half the size of their pictures, as TIFF."""
    for at, (image, map_) in enumerate(zip(images, maps, strict=True)):
        part = "test" if at < 6 else "val" if at < 12 else "train"
        for kind in ("images", "maps"):
            (tmp / kind / part).mkdir(parents=True, exist_ok=True)
        shutil.copy(image, tmp / "images" / part / image.name)
        with Image.open(map_) as picture:
            picture.convert("L").resize((9, 11)).save(tmp / "maps" / part / f"{image.stem}.tif")
    (tmp / "groups.csv").write_text("stem,group\ntrain/scene-00020,twins\ntrain/scene-00021,twins\n")
    settings = {"data.images": tmp / "images", "data.maps": tmp / "maps", "data.map_channels": 1}
    return Source("unet batch prior", settings | {"data.groups": tmp / "groups.csv", "data.crop": "true"})


def side_by_side(tmp: Path, images: list[Path], maps: list[Path]) -> Source:
    """Pictures with the map on the left, wider than high, read as greys."""
    (tmp / "both").mkdir()
    for image, map_ in zip(images, maps, strict=True):
        both = Image.new("RGB", (48, 16))
        for at, path in ((0, map_), (24, image)):
            with Image.open(path) as picture:
                both.paste(picture.convert("RGB").resize((24, 16)), (at, 0))
        both.save(tmp / "both" / f"{image.stem}.png")
    lines = [f"{image.stem},{at // 3}" for at, image in enumerate(images)]
    (tmp / "groups.csv").write_text("\n".join(["stem,group", *lines]))
    settings = {
        "data.side_by_side": tmp / "both",
        "data.direction": "BtoA",
        "data.image_channels": 1,
        "data.crop": "true",
    }
    return Source("pix2pix", NO_FOLDERS | settings | {"data.groups": tmp / "groups.csv", "data.resize": "lanczos"})


def csv_file(tmp: Path, images: list[Path], maps: list[Path]) -> Source:
    """Paths with odd names and groups."""
    lines = [["image", "map", "group"]]
    for at, (image, map_) in enumerate(zip(images, maps, strict=True)):
        folder = tmp / "pictures" / ("a%2Fb" if at % 2 else ".b")
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(image, folder / f"{at:03}, {'x' * 180}{image.suffix}")
        shutil.copy(map_, tmp / map_.name)
        lines.append([f"pictures/{folder.name}/{at:03}, {'x' * 180}{image.suffix}", map_.name, f"burst {at // 2}"])
    with open(tmp / "pairs.csv", "w", newline="") as file:
        csv.writer(file).writerows(lines)
    settings = {"data.csv": tmp / "pairs.csv", "data.image_channels": 1, "data.map_channels": 1}
    return Source("palette", NO_FOLDERS | settings | {"data.map_resize": "lanczos"})


KINDS = {"two folders": two_folders, "side by side": side_by_side, "csv": csv_file}


class Trained(NamedTuple):
    """A run and what it was trained on."""

    out: Path
    tmp: Path
    run: Any
    images: list[Path]


@pytest.fixture(scope="module", params=KINDS)
def trained(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    tmp = tmp_path_factory.mktemp("source")
    data = tiny.data(tmp / "example")
    images, maps = (sorted((data / kind).iterdir()) for kind in ("images", "maps"))
    (tmp / "source").mkdir()
    source = KINDS[request.param](tmp / "source", images, maps)
    run = tiny.run(source.variant, data, **{**source.settings, "epochs": 2, "log.tensorboard": "true"})
    assert loop.train(run, tmp / "run") == 0
    evaluate.evaluate(tmp / "run", ["train", "val", "test"])
    return Trained(tmp / "run", tmp, run, images)


def test_it_is_split_and_scored(trained: Trained) -> None:
    rows = split.read(trained.out / rundir.SPLIT)
    assert len(rows) == tiny.PAIRS
    home = {row.stem: row.split for row in rows}
    if trained.run.data.images is not None:
        assert all(stem.startswith(f"{part}/") for stem, part in home.items())
        assert rundir.read_json(trained.out / rundir.SCORES)["test"]["n"] == 6
    elif trained.run.data.csv is not None:
        together: dict[int, set[str]] = {}
        for stem, part in home.items():
            together.setdefault(int(Path(stem).name[:3]) // 2, set()).add(part)
        assert all(len(parts) == 1 for parts in together.values())
    else:
        stems = sorted(home)
        assert all(len({home[stem] for stem in stems[at : at + 3]}) == 1 for at in range(0, tiny.PAIRS, 3))
    sizes = [rundir.read_json(trained.out / rundir.SCORES)["test"]["size"]]
    assert sizes == [{"unet": [9, 9], "pix2pix": [16, 16], "palette": [16, 16]}[trained.run.model.name]]


def test_its_samples_lie_where_they_should_and_are_shown(trained: Trained, tmp_path: Path) -> None:
    stems = split.stems_of(split.read(trained.out / rundir.SPLIT))["test"]
    names = {path.name.split("-", 2)[2] for path in (trained.out / rundir.SAMPLES / "test").iterdir()}
    assert names == {f"{rundir.file_name(stem)}.png" for stem in stems}
    shown = page.write(table.collect([trained.out]), tmp_path / "page.html").read_text()
    assert all(f"<figcaption>{stem} &middot; L1 " in shown for stem in stems[:2])


def test_it_is_taken_up_again_and_scored_where_its_data_lie_now(trained: Trained, tmp_path: Path) -> None:
    assert loop.train(trained.run, trained.out) == 0  # nothing left to do
    moved = tmp_path / "moved"
    shutil.copytree(trained.tmp / "source", moved)
    if trained.run.data.csv is not None:
        overrides = [f"data.csv={moved}/pairs.csv"]
    elif trained.run.data.side_by_side is not None:
        overrides = [f"data.side_by_side={moved}/both"]
    else:
        overrides = [f"data.images={moved}/images", f"data.maps={moved}/maps", "data.groups=null"]
    before = (trained.out / rundir.SCORES_CSV).read_bytes()
    evaluate.evaluate(trained.out, ["train", "val", "test"], overrides=overrides)
    assert (trained.out / rundir.SCORES_CSV).read_bytes() == before
    if trained.run.data.side_by_side is not None:
        with pytest.raises(
            CheckpointError, match=r"split of data\.side_by_side = .* where .* \(data\.side_by_side=DIR\)"
        ):
            evaluate.evaluate(trained.out, ["test"], overrides=[*overrides, "data.groups=null"])


def test_it_predicts_plain_pictures_of_any_size(trained: Trained, tmp_path: Path) -> None:
    for at, size in enumerate([(16, 16), (40, 23)]):
        with Image.open(trained.images[at]) as picture:
            (tmp_path / "in").mkdir(exist_ok=True)
            picture.resize(size).save(tmp_path / "in" / f"{'y' * 230}{at}.png")
    assert pictures.predict(trained.out, [tmp_path / "in"], tmp_path / "out").clean
    made = {tuple(pairs.decode(path, None, 1).shape[1:]) for path in (tmp_path / "out").glob("*.png")}
    assert made == ({(16, 16), (23, 23)} if trained.run.data.crop else {(16, 16), (23, 40)})


def test_its_pictures_are_what_was_asked_for(trained: Trained) -> None:
    data = dataset.load(trained.run)
    settings = trained.run.data
    assert data.pixels.images.shape[1] == settings.image_channels and data.pixels.maps.shape[1] == settings.map_channels
    place = {pair.stem: pair for pair in data.pairs}
    pair = place[data.pixels.stems[3]]
    wanted = pairs.decode(
        pair.image,
        (tiny.SIZE, tiny.SIZE),
        settings.image_channels,
        half="right" if settings.side_by_side else None,
        crop=settings.crop,
        resize=settings.resize,
    )
    np.testing.assert_array_equal(data.pixels.images[3], wanted)


def test_it_is_described(trained: Trained) -> None:
    from rich.console import Console

    console = Console(width=200)
    with console.capture() as capture:
        console.print(describe.describe(trained.run, trained.out))
    assert "pairs: train 1" in capture.get() and "parameters" in capture.get()
    folder = start.default_folder("x", [], trained.run)
    elsewhere = trained.run.data.model_copy(update={"groups": Path("/elsewhere")})
    assert start.default_folder("x", [], trained.run.model_copy(update={"data": elsewhere})) != folder


def test_a_model_says_which_channels_it_takes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = tiny.run("unet", tmp_path, **{"data.image_channels": 1})
    start.build(run)
    monkeypatch.setattr(models.load("unet"), "image_channels", (3,))
    with pytest.raises(ConfigError, match=r"unet does not take data.image_channels = 1: set data.image_channels=3"):
        start.build(run)


def test_notes_name_the_splits_that_were_cut(tmp_path: Path) -> None:
    data = tiny.data(tmp_path / "data")
    lines = ["image,map,split"]
    for at, image in enumerate(sorted((data / "images").iterdir())):
        (map_,) = (data / "maps").glob(f"{image.stem}.*")
        lines.append(f"images/{image.name},maps/{map_.name},{'test' if at < 5 else 'train'}")
    (data / "pairs.csv").write_text("\n".join(lines))
    run = tiny.run("unet", data, **NO_FOLDERS, **{"data.csv": data / "pairs.csv"})
    opened = dataset.load(run)
    assert opened.notes == ["the data name no val split: 6 pairs are cut from their train (data.val=0.2)"]
    assert [len(opened.rows[name]) for name in split.NAMES] == [19, 6, 5]
    (data / "list.txt").write_text(opened.pixels.stems[0])
    with pytest.raises(DataError, match="lists a split that the data name themselves"):
        dataset.load(
            tiny.run("unet", data, **NO_FOLDERS, **{"data.csv": data / "pairs.csv", "data.test": data / "list.txt"})
        )
