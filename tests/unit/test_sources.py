"""The three sources of pairs, their names, and what is wrong with them."""

import os
import random
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from memdist.config import Data
from memdist.data import groups, sheet, sources
from memdist.data.pairs import PairFile
from memdist.errors import DataError


def touch(path: Path) -> Path:
    """A file with the name of a picture: names alone are looked at here."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    return path


def stems(data: Data) -> list[str]:
    return [pair.stem for pair in sources.find(data).pairs]


def kinds(data: Data) -> list[tuple[str, str, int | None]]:
    return [(problem.kind, problem.file.name, problem.line) for problem in sources.survey(data).problems]


# Which source


@pytest.mark.parametrize(
    "keys, message",
    [
        ((), "no data are given"),
        (("images",), "data.maps is not set"),
        (("maps",), "data.images is not set"),
        (("images", "maps", "csv"), "data.images, data.maps, data.csv are given together"),
        (("maps", "csv"), "data.maps, data.csv are given together"),
        (("side_by_side", "csv"), "data.side_by_side, data.csv are given together"),
        (("images", "side_by_side"), "data.images, data.side_by_side are given together"),
    ],
)
def test_exactly_one_source_is_given(keys, message, tmp_path):
    with pytest.raises(DataError, match=message) as error:
        sources.find(Data(**{key: tmp_path for key in keys}))
    for choice in ("data.images=DIR data.maps=DIR", "data.side_by_side=DIR", "data.csv=FILE"):
        assert choice in str(error.value)


def test_a_direction_is_for_halves_only(tmp_path):
    with pytest.raises(DataError, match="data.direction = BtoA is for data.side_by_side"):
        sources.find(Data(images=tmp_path, maps=tmp_path, direction="BtoA"))


def test_what_is_said_of_a_source(tmp_path):
    assert sources.given(Data()) == [] and sources.place(Data()) == {}
    assert sources.said(Data(csv="/a.csv", groups="/g.csv")) == "data.csv = /a.csv"
    assert sources.place(Data(images="/a", maps="/b", groups="/g")) == {"images": "/a", "maps": "/b", "groups": "/g"}


# Two folders


@pytest.fixture
def folders(tmp_path):
    for name in ("b.JPG", "a.JPG", "only.JPG", "notes.txt", "._a.jpg"):
        touch(tmp_path / "images" / name)
    for name in ("a.png", "b.webp", "else.png", "more.png"):
        touch(tmp_path / "maps" / name)
    return tmp_path / "images", tmp_path / "maps"


def test_pairs_are_found_by_stem_and_sorted(folders):
    data = Data(images=folders[0], maps=folders[1])
    found = sources.find(data)
    assert found.pairs == [
        PairFile("a", folders[0] / "a.JPG", folders[1] / "a.png"),
        PairFile("b", folders[0] / "b.JPG", folders[1] / "b.webp"),
    ]
    assert found.unpaired == ["else", "more", "only"]
    problems = sources.survey(data).problems
    assert {(p.kind, p.file.name, p.fatal) for p in problems} == {
        ("partner", name, False) for name in ("else.png", "more.png", "only.JPG")
    }
    assert "only.JPG has no map in" in next(p.sentence for p in problems if p.file.name == "only.JPG")


def test_folders_that_cannot_be_used(folders, tmp_path):
    images, maps = folders

    def refused(message, images=images, maps=maps):
        with pytest.raises(DataError, match=message):
            sources.find(Data(images=images, maps=maps))

    refused(r"data.maps = .*nowhere does not exist", maps=tmp_path / "nowhere")
    refused(r"data.images = .*notes.txt is not a folder", images=images / "notes.txt")
    touch(tmp_path / "empty" / "notes.txt")
    refused(r"data.maps = .*empty holds no pictures", maps=tmp_path / "empty")
    touch(tmp_path / "other" / "z.png")
    refused(r"no picture in .*a\.JPG.* a map in .*z\.png", maps=tmp_path / "other")
    touch(maps / "a.bmp")
    touch(maps / "b.bmp")
    refused(r"the stem 'a': a\.bmp and a\.png; .* \(1 more such fault\)")
    assert ("stem", "a.png", None) in kinds(Data(images=images, maps=maps))


def test_names_that_cannot_be_listed(folders):
    images, maps = folders
    for folder in folders:
        touch(folder / "line\nbreak.png")
    with open(os.fsencode(images) + b"/\xff.png", "wb"):
        pass
    data = Data(images=images, maps=maps)
    assert sum(kind == "name" for kind, _, _ in kinds(data)) == 3
    assert [pair.stem for pair in sources.survey(data).pairs] == ["a", "b"]
    with pytest.raises(DataError, match=r"whose name (is not UTF-8|has a line break)"):
        sources.find(data)


def test_what_is_named_as_a_picture_and_is_none(folders):
    images, maps = folders
    (images / "folder.png").mkdir()
    os.mkfifo(images / "pipe.png")  # opening it would wait for ever
    (images / "else.png").symlink_to("gone.png")
    assert stems(Data(images=images, maps=maps)) == ["a", "b", "else"]


def test_sub_folders_are_splits(tmp_path):
    for kind in ("images", "maps"):
        for name in ("train/1", "train/2", "test/1"):
            touch(tmp_path / kind / f"{name}.png")
    touch(tmp_path / "images" / "test" / "9.png")
    data = Data(images=tmp_path / "images", maps=tmp_path / "maps")
    found = sources.find(data)
    assert [(p.stem, p.split) for p in found.pairs] == [("test/1", "test"), ("train/1", "train"), ("train/2", "train")]
    assert found.pairs[0].map == tmp_path / "maps" / "test" / "1.png" and found.unpaired == ["test/9"]
    (tmp_path / "maps" / "val").mkdir()
    with pytest.raises(DataError, match=r"train, test and data.maps = .* has the sub-folders train, val, test"):
        sources.find(data)
    (tmp_path / "images" / "val").mkdir()
    with pytest.raises(DataError, match=r"val holds no pictures"):
        sources.find(data)


def test_sub_folders_that_are_not_clear(tmp_path):
    images, maps = tmp_path / "images", tmp_path / "maps"
    for folder in (images, maps):
        touch(folder / "test" / "1.png")
    with pytest.raises(DataError, match="has the sub-folders test and no train"):
        sources.find(Data(images=images, maps=maps))
    for folder in (images, maps):
        touch(folder / "2.png")
    assert stems(Data(images=images, maps=maps)) == ["2"]  # flat, and what lies deeper is no matter
    touch(images / "train" / "1.png")
    with pytest.raises(DataError, match="both pictures and a sub-folder train"):
        sources.find(Data(images=images, maps=maps))


# Side by side


@pytest.mark.parametrize("direction, halves", [("AtoB", ("left", "right")), ("BtoA", ("right", "left"))])
def test_side_by_side(direction, halves, tmp_path):
    for name in ("train/1.jpg", "val/1.jpg"):
        touch(tmp_path / name)
    found = sources.find(Data(side_by_side=tmp_path, direction=direction)).pairs
    assert [(p.stem, p.split, p.image == p.map) for p in found] == [
        ("train/1", "train", True),
        ("val/1", "val", True),
    ]
    assert {(p.image_half, p.map_half) for p in found} == {halves}
    assert stems(Data(side_by_side=tmp_path / "val")) == ["1"]


# CSV


def written(path: Path, text: str | bytes) -> Data:
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return Data(csv=path)


@pytest.fixture
def place(tmp_path):
    for name in ("x/a.png", "x/y/b.png", "x/b.png", "m/1.png", "m/2.png", "m/3.png"):
        touch(tmp_path / name)
    return tmp_path


def test_a_csv_file_names_pairs(place):
    text = '\ufeffnote,map, image ,group\r\nhello,m/1.png,x/a.png,\r\n\r\n"a, b",m/2.png,x/y/b.png,burst 7\r\n'
    found = sources.find(written(place / "p.csv", text)).pairs
    assert found == [
        PairFile("x/a", place / "x/a.png", place / "m/1.png"),
        PairFile("x/y/b", place / "x/y/b.png", place / "m/2.png", None, "burst 7"),
    ]


def test_names_do_not_depend_on_where_the_data_lie(place):
    relative = "image,map\nx/a.png,m/1.png\n./x/y/../y/b.png,m/2.png\n"
    absolute = f"image,map\n{place}/x/a.png,m/1.png\n{place}/x/y/b.png,m/2.png\n"
    assert stems(written(place / "p.csv", relative)) == stems(written(place / "q.csv", absolute)) == ["x/a", "x/y/b"]
    (place / "deep").mkdir()
    upwards = relative.replace("x/", "../x/").replace("m/", "../m/")
    assert stems(written(place / "deep/p.csv", upwards)) == ["../x/a", "../x/y/b"]
    # No line gives another pair another name.
    assert stems(written(place / "p.csv", "image,map\nx/y/b.png,m/1.png\n")) == ["x/y/b"]


def test_endings_stay_where_stems_would_be_one(place):
    touch(place / "x/a.jpg")
    assert stems(written(place / "p.csv", "image,map\nx/a.png,m/1.png\nx/a.jpg,m/1.png\nx/b.png,m/2.png\n")) == [
        "x/a.jpg",
        "x/a.png",
        "x/b",
    ]


def test_splits_of_a_csv_file(place):
    text = "image,map,split\nx/a.png,m/1.png,train\nx/b.png,m/2.png,test\n"
    assert [p.split for p in sources.find(written(place / "p.csv", text)).pairs] == ["train", "test"]
    text = "image,map,split\nx/a.png,m/1.png,\nx/b.png,m/2.png,\n"
    assert [p.split for p in sources.find(written(place / "p.csv", text)).pairs] == [None, None]


GOOD = "image,map,split\nx/a.png,m/1.png,train\n"


@pytest.mark.parametrize(
    "text, kind, line, message",
    [
        (GOOD + "x/b.png,m/2.png\n", "line", 3, "line 3 of .* has 2 fields where the header has 3"),
        (GOOD + '\n"x\n/b.png",m/2.png,test,more\n', "line", 4, "line 4 of .* has 4 fields"),
        (GOOD + 'x/b.png,"m/2.png\n', "line", 3, "line 3 of .* is no CSV: unexpected end of data"),
        (GOOD + f"x/{'b' * 200_000}.png,m/2.png,test\n", "line", 3, "field larger than field limit"),
        (GOOD + ",m/2.png,test\n", "line", 3, "has no image"),
        (GOOD + "x/b.png, ,test\n", "line", 3, "has no map"),
        (GOOD + "x/gone.png,m/2.png,test\n", "absent", 3, r"the image 'x/gone\.png', which is not there"),
        (GOOD + f"x/{'b' * 300}.png,m/2.png,test\n", "absent", 3, "which is not there"),
        (GOOD + "x/b.png,m,test\n", "absent", 3, "the map 'm', which is a folder"),
        (GOOD + "x/b.png,m/2.png,Test\n", "split", 3, "the split 'Test': it should be train, val or test"),
        (GOOD + "x/b.png,m/2.png,\n", "split", 3, "line 3 of .* has no split, and other lines have"),
        (GOOD + "./x/a.png,m/2.png,test\n", "again", 3, r"names the image './x/a\.png' again \(line 2 did\)"),
        ("image,map,split\nx/a.png,m/1.png,test\n", "split", None, "no line of .* has the split train"),
        ("image,map,split\n", "empty", None, "has a header and no pairs"),
    ],
)
def test_lines_that_are_wrong_are_told_by_number(text, kind, line, message, place):
    data = written(place / "p.csv", text)
    with pytest.raises(DataError, match=message) as error:
        sources.find(data)
    assert len(str(error.value)) < 700
    (problem,) = sources.survey(data).problems
    assert (problem.kind, problem.line, problem.fatal) == (kind, line, True)


def test_all_that_is_wrong_is_listed(place):
    text = GOOD + "x/b.png,m/gone.png,test\nbad\nx/y/b.png,m/2.png,test\nx/gone.png,m/gone.png,nowhere\n"
    text += "x/b.png,m/1.png,test\n"
    found = sources.survey(written(place / "p.csv", text))
    assert [pair.stem for pair in found.pairs] == ["x/a", "x/y/b"]
    assert [(p.kind, p.line) for p in found.problems] == [
        ("absent", 3),
        ("line", 4),
        ("absent", 6),
        ("absent", 6),
        ("split", 6),
        ("again", 7),
    ]


@pytest.mark.parametrize(
    "text, message",
    [
        (b"", "is empty: its first line should name the columns image,map"),
        (b"\n\n", "is empty"),
        (b"picture,map\n", "has no column image: .*image,map with commas between them, and holds 'picture', 'map'"),
        (b"image;map\n", "has no column image and no column map"),
        (b"image,map,image\n", "has 2 columns image: keep one"),
        (b"image,map,Split\n", "has a column 'Split', which would be passed over: call it split"),
        (b"image,map,group, GROUP \n", "has a column 'GROUP', which would be passed over: call it group"),
        (b"image,map,sp lit\n", "has a column 'sp lit'"),
        (b"Image,map\n", "has a column 'Image', which would be passed over: call it image"),
        (b'image,"map\n', "line 1 of .* is no CSV"),
        (b"image,map\n1,2\nx\0y,z\n", "line 3 of .* holds a NUL character"),
        (b"image,map\n\xff,y\n", "line 2 of .* is not UTF-8 text"),
        ("image,map\n".encode("utf-16"), "holds a NUL character"),
    ],
)
def test_files_that_are_no_csv_of_pairs(text, message, tmp_path):
    with pytest.raises(DataError, match=message):
        sources.survey(written(tmp_path / "p.csv", text))


def test_csv_files_that_cannot_be_read(tmp_path, monkeypatch):
    for path, message in (
        (tmp_path / "gone.csv", "does not exist: give a CSV file"),
        (tmp_path, "is not a file"),
        (Path("/dev/zero"), "is not a file"),
    ):
        with pytest.raises(DataError, match=message):
            sources.survey(Data(csv=path))
    monkeypatch.setattr(sheet, "LARGEST", 10)
    with pytest.raises(DataError, match="is larger than"):
        sources.survey(written(tmp_path / "p.csv", "image,map\n1,2\n"))


def test_random_text_gives_pairs_or_a_sentence(place):
    """Nothing but a DataError comes out of a file of odds and ends."""
    rng = random.Random(0)
    words = [
        "image",
        "map",
        "split",
        "group",
        "x/a.png",
        "m/1.png",
        "train",
        '"',
        ",",
        ",",
        "\n",
        "\r",
        "\n",
        "\\",
        "é",
    ]
    words += ["/", "..", "\x7f", "\u2028", " ", "~"]
    for _ in range(500):
        text = "image,map\n" * rng.randrange(2) + "".join(rng.choices(words, k=rng.randrange(30)))
        try:
            found = sources.find(written(place / "p.csv", text))
        except DataError as error:
            assert "p.csv" in str(error)
        else:
            assert all(pair.image.is_file() and pair.map.is_file() for pair in found.pairs)


# Groups


def paired(**by_stem: str | None) -> list[PairFile]:
    return [PairFile(stem, Path("/x"), Path("/y"), None, group) for stem, group in by_stem.items()]


def test_groups_of_the_source_and_of_a_file_are_merged_where_they_meet(tmp_path):
    pairs = paired(a="1", b="1", c=None, d=None, e="2", f=None, g="3", h=None)
    # c joins 1 by way of b; e joins d; f and h stand in a group of the file that is called as one of the source.
    text = "stem,group\nb,x\nc,x\nd,y\ne,y\nf,3\nh,3\n"
    (tmp_path / "g.csv").write_text(text)
    found, notes = groups.merged(pairs, Data(groups=tmp_path / "g.csv"))
    assert found == {
        "a": "1 + x",
        "b": "1 + x",
        "c": "1 + x",
        "d": "2 + y",
        "e": "2 + y",
        "g": "3",
        "f": "3 of data.groups",
        "h": "3 of data.groups",
    }
    assert notes == [] and groups.merged(pairs, Data())[0] == {"a": "1", "b": "1", "e": "2", "g": "3"}


def test_groups_still_hold_after_pairs_were_taken_out(tmp_path):
    (tmp_path / "g.csv").write_text("stem,group\na,x\nb,x\ngone,x\nc,\n")
    found, (note,) = groups.merged(paired(a=None, b=None, c=None), Data(groups=tmp_path / "g.csv"))
    assert found == {"a": "x", "b": "x"}
    assert "no pair has 1 stem of data.groups = " in note and "'gone'" in note


@pytest.mark.parametrize(
    "text, message",
    [
        ("stem,group\nz,x\n", "names none of the pairs .*'z'.*belongs to these data"),
        ("stem,group\na,x\na,y\n", r"line 3 of .* names the stem 'a' again \(line 2 did\)"),
        ("stem,group\na\n", "line 2 of .* has 1 field where"),
        ("stem\na\n", "has no column group"),
    ],
)
def test_files_that_are_no_groups(text, message, tmp_path):
    (tmp_path / "g.csv").write_text(text)
    with pytest.raises(DataError, match=message):
        groups.merged(paired(a=None), Data(groups=tmp_path / "g.csv"))


def test_pictures_of_a_folder(tmp_path):
    Image.fromarray(np.zeros((4, 4), dtype=np.uint8)).save(tmp_path / "a.png")
    assert sources.pictures(tmp_path, "IMAGE_OR_FOLDER") == {"a": tmp_path / "a.png"}
    touch(tmp_path / "a.jpg")
    with pytest.raises(DataError, match="IMAGE_OR_FOLDER = .* two pictures with the stem 'a'"):
        sources.pictures(tmp_path, "IMAGE_OR_FOLDER")
