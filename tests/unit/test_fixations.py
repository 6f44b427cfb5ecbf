"""Files of fixations: what is read, and what is refused with a sentence."""

import io
import os
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from memdist.data import fixations
from memdist.data.pairs import PairFile
from memdist.errors import DataError, MemdistError


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> dict[str, PairFile]:
    folder = tmp_path_factory.mktemp("pictures")
    Image.new("RGB", (40, 30)).save(folder / "a.png")
    Image.new("L", (20, 10)).save(folder / "b.png")
    side = Image.new("RGB", (16, 8))
    exif = side.getexif()
    exif[0x0112] = 6  # shown turned by a quarter
    side.save(folder / "turned.jpg", exif=exif)
    return {path.stem: PairFile(path.stem, path, path) for path in sorted(folder.iterdir())}


def _npz(path: Path, **arrays: Any) -> Path:
    np.savez_compressed(path, **arrays)
    return path


def test_arrays_by_stem(tmp_path: Path, pictures: dict[str, PairFile]) -> None:
    b = np.asfortranarray(np.array([[19, 9, 7], [0, 0, 7], [19, 9, 1]], np.uint8))
    given_ = {"a": np.array([[39.99, 29.5], [0.0, 0.99]]), "b": b, "turned": np.zeros((0, 3)), "zebra": np.ones((1, 2))}
    found = fixations.read(_npz(tmp_path / "f.npz", **given_), pictures)
    assert {stem: places.tolist() for stem, places in found.places.items()} == {
        "a": [[39, 29], [0, 0]],
        "b": [[19, 9], [0, 0], [19, 9]],
        "turned": [],
    }
    assert found.sizes == {"a": (30, 40), "b": (10, 20), "turned": (16, 8)}
    assert found.ignored == 1 and len(found.sha256) == 64


def test_lines_of_a_table(tmp_path: Path, pictures: dict[str, PairFile]) -> None:
    path = tmp_path / "f.CSV"
    path.write_text("\ufeffsubject,y,stem, x\n1,2,a,3.7\n\n2,9,b,0\n1,0,a,0\n1,0,zebra,0\n", encoding="utf-8")
    found = fixations.read(path, pictures)
    assert {stem: places.tolist() for stem, places in found.places.items()} == {"a": [[3, 2], [0, 0]], "b": [[0, 9]]}
    assert found.ignored == 1


def test_a_box_keeps_what_lies_in_it() -> None:
    places = np.array([[0, 0], [5, 5], [9, 5], [10, 5], [5, 15]], np.int32)
    assert fixations.inside(places, fixations.Box(5, 5, 5, 10)).tolist() == [[0, 0], [4, 0]]
    assert fixations.inside(places, fixations.Box(0, 0, 11, 16)).tolist() == places.tolist()


def test_of_a_cropped_picture_what_lies_in_the_square_is_kept(tmp_path: Path, pictures: dict[str, PairFile]) -> None:
    file = _npz(tmp_path / "f.npz", a=np.array([[4, 3], [5, 0], [34, 29], [35, 2]]))
    found = fixations.read(file, pictures, crop=True)
    assert found.sizes == {"a": (30, 30)}
    assert found.places["a"].tolist() == [[0, 0], [29, 29]]


def test_of_side_by_side_pictures_the_half_is_the_picture(tmp_path: Path, pictures: dict[str, PairFile]) -> None:
    halves = {"a": pictures["a"]._replace(image_half="right", map_half="left")}
    found = fixations.read(_npz(tmp_path / "f.npz", a=np.array([[0, 0], [19, 29]])), halves)
    assert found.sizes == {"a": (30, 20)} and found.places["a"].tolist() == [[0, 0], [19, 29]]
    with pytest.raises(DataError, match="outside its picture of 20 x 30 pixels"):
        fixations.read(_npz(tmp_path / "g.npz", a=np.array([[20, 0]])), halves)


def _torn(path: Path) -> Path:
    whole = _npz(path, a=np.ones((500, 2)))
    whole.write_bytes(whole.read_bytes()[:-40])
    return whole


def _member(path: Path, name: str, data: bytes) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(name, data)
    return path


def _header(shape: str) -> bytes:
    text = f"{{'descr': '<f8', 'fortran_order': False, 'shape': {shape}, }}"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text.encode()


def _bomb(path: Path) -> Path:
    return _member(path, "a.npy", _header("(16777216, 2)") + bytes(2**28))


def _twice(path: Path) -> Path:
    buffer = io.BytesIO()
    np.save(buffer, np.ones((1, 2)))
    with pytest.warns(UserWarning, match="Duplicate"), zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.npy", buffer.getvalue())
        archive.writestr("a.npy", buffer.getvalue())
    return path


def _pipe(path: Path) -> Path:
    os.mkfifo(path)
    return path


def _text(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


MISTAKES: dict[str, tuple[Any, str]] = {
    "absent": (lambda p: p / "f.npz", "does not exist"),
    "a folder": (lambda p: p, "is a folder"),
    "another ending": (lambda p: _text(p / "f.mat", "x"), "ends in neither .npz nor .csv"),
    "not an npz": (lambda p: _text(p / "f.npz", "words"), "cannot be read as an .npz"),
    "torn": (lambda p: _torn(p / "f.npz"), "cannot be read as an .npz"),
    "pickled": (lambda p: _npz(p / "f.npz", a=np.array([{}], object)), "would have to be unpickled"),
    "words": (lambda p: _npz(p / "f.npz", a=np.array([["x", "y"]])), "is <U1 of shape"),
    "one column": (lambda p: _npz(p / "f.npz", a=np.ones((3, 1))), "of shape \\[3, 1\\]"),
    "complex": (lambda p: _npz(p / "f.npz", a=np.ones((3, 2), complex)), "is complex128"),
    "no pictures": (lambda p: _npz(p / "f.npz", zebra=np.ones((1, 2))), "no stem of a picture .such as 'zebra'"),
    "nothing": (lambda p: _npz(p / "f.npz"), "no stem of a picture .it has none"),
    "not a number": (
        lambda p: _npz(p / "f.npz", a=np.array([[1, 2], [np.nan, 1]])),
        "fixation 1 of 'a' .* not a number",
    ),
    "infinite": (lambda p: _npz(p / "f.npz", a=np.array([[np.inf, 2]])), "fixation 0 of 'a' .* not a number"),
    "beside": (lambda p: _npz(p / "f.npz", a=np.array([[40, 2]])), "x = 40, y = 2 is outside its picture of 40 x 30"),
    "above": (lambda p: _npz(p / "f.npz", a=np.array([[1, -0.5]])), "y = -0.5 is outside"),
    "too many": (lambda p: _npz(p / "f.npz", a=np.zeros((10**5 + 1, 2), np.int8)), "100001 fixations of 'a'"),
    "no array": (lambda p: _member(p / "f.npz", "a.txt", b"x"), "'a.txt' in it is no array"),
    "twice": (lambda p: _twice(p / "f.npz"), "'a.npy' in it stands twice"),
    "a bomb": (lambda p: _bomb(p / "f.npz"), "unpacks to 2684[0-9]* bytes"),
    "a header that lies": (
        lambda p: _member(p / "f.npz", "a.npy", _header("(10**15, 2)")),
        "cannot be read as an .npz",
    ),
    "a huge shape": (lambda p: _member(p / "f.npz", "a.npy", _header(f"({10**15}, 2)")), "'a' is torn"),
    "missing columns": (lambda p: _text(p / "f.csv", "stem,x,z\na,1,2\n"), "has no column y"),
    "an empty table": (lambda p: _text(p / "f.csv", ""), "is empty: its first line should name the columns stem,x,y"),
    "a word for a number": (
        lambda p: _text(p / "f.csv", "stem,x,y\na,1,2\na,left,2\n"),
        "line 3 of .* is no stem, x and y",
    ),
    "a short line": (
        lambda p: _text(p / "f.csv", "stem,x,y\na,1\n"),
        "line 2 of .* has 2 fields where the header has 3",
    ),
    "a table that is nan": (lambda p: _text(p / "f.csv", "stem,x,y\na,nan,1\n"), "fixation 0 of 'a'"),
    "a binary table": (
        lambda p: (p / "f.csv").write_bytes(b"\xff\xfe\x00") and p / "f.csv",
        "line 1 of .* holds a NUL character",
    ),
    "another case": (lambda p: _text(p / "f.csv", "stem,X,y\na,1,2\n"), "has a column 'X', .*: call it x"),
    "a pipe": (lambda p: _pipe(p / "f.csv"), "is not a file"),
    "an open quote": (lambda p: _text(p / "f.csv", 'stem,x,y\na,1,"2\n'), "line 2 of .* is no CSV"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_each_mistake_has_its_sentence(name: str, tmp_path: Path, pictures: dict[str, PairFile]) -> None:
    make, says = MISTAKES[name]
    with pytest.raises(DataError, match=says) as told:
        fixations.read(make(tmp_path), pictures)
    assert "\n" not in str(told.value) and f"data.fixations = {tmp_path}" in str(told.value)


@settings(max_examples=150, deadline=None)
@given(data=st.data(), ending=st.sampled_from([".npz", ".csv"]))
def test_any_bytes_are_read_or_refused(
    data: st.DataObject, ending: str, pictures: dict[str, PairFile], tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("fuzz") / f"f{ending}"
    if ending == ".csv":
        path.write_bytes(b"stem,x,y\n" + data.draw(st.binary(max_size=60)))
    else:
        _npz(path, a=np.ones((5, 2)), b=np.zeros((2, 3)))
        whole = bytearray(path.read_bytes())
        for at in data.draw(st.lists(st.integers(0, len(whole) - 1), max_size=5)):
            whole[at] = data.draw(st.integers(0, 255))
        path.write_bytes(whole)
    try:
        fixations.read(path, pictures)
    except MemdistError as error:
        assert "\n" not in str(error)
