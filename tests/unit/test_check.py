"""`memdist data check`: every planted fault is found at its file, and good files are left alone."""

import contextlib
import csv
import io
import itertools
import os
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from memdist import cli, config
from memdist.data import cache, check, header, leaks, pairs, sources, split
from memdist.data import examine as examine_
from memdist.data.findings import Finding, Kind, Level
from memdist.data.pairs import PairFile, View
from memdist.data.split import Row
from memdist.errors import DataError, MemdistError, printable
from memdist.train import loop, survey
from tests import bad_pictures, tiny
from tests.bad_pictures import Folder, blob, encoded, scene

CONFIG = """
model: {name: unet, channels: 4, multipliers: [1, 2, 2], norm: instance}
data: {size: 16, val: 0.2, test: 0.2}
workers: 1
"""


def settings(folder, **data):
    """A run on planted files, with their lists of stems."""
    place = folder.images.parent
    for name, stems in folder.splits.items():
        (place / f"{name}.txt").write_text("\n".join(stems))
        data.setdefault(name, str(place / f"{name}.txt"))
    whole = {"images": str(folder.images), "maps": str(folder.maps), "size": 16, "map_channels": 1, **data}
    return tiny.run("unet", place, **{f"data.{key}": value for key, value in whole.items()})


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    folder, expected = bad_pictures.plant(tmp_path_factory.mktemp("planted"))
    return folder, expected, survey.survey(settings(folder), folder.images.parent / "groups.csv")


def few(place: Path, count: int = 10) -> Folder:
    """Good pairs alone."""
    folder = Folder(place)
    for number in range(count):
        folder.with_map(f"p{number}.png")
    folder.splits = {}
    return folder


def kinds(report) -> Counter[Kind]:
    return Counter(f.kind for f in report.findings)


def listed(count: int) -> list[PairFile]:
    return [PairFile(f"s{i}", Path(f"images/s{i}.png"), Path(f"maps/s{i}.png")) for i in range(count)]


def looks(report, path: Path) -> examine_.Looks:
    found = (report.facts.get((path, None, "image")) or report.facts[path, None, "map"]).looks
    assert found is not None
    return found


def known(hashes) -> examine_.Facts:
    return examine_.Facts([], hashes, (4, 4))


# What is found


def test_every_planted_fault_is_found_where_it_is_and_nothing_else(planted):
    _, expected, report = planted
    found = Counter((f.kind.name, printable(f.file.name)) for f in report.findings)
    wanted = Counter((kind.name, printable(path.name)) for kind, path in expected)
    assert (found - wanted, wanted - found) == (Counter(), Counter())
    assert {(f.kind, f.file) for f in report.findings} == expected
    assert len({path for _, path in expected}) >= 40
    assert not [f for f in report.findings if f.file.name.startswith("good")]


def test_every_kind_is_planted_or_has_a_test_of_its_own(planted):
    elsewhere = {Kind.NO_SPLIT, Kind.GROUP_STRADDLES, Kind.SOURCE, Kind.GROUPS_KEPT}
    assert {kind for kind, _ in planted[1]} | elsewhere == set(Kind)
    assert len({kind.title for kind in Kind}) == len(Kind)


def test_what_cannot_be_trained_on_is_a_fault_and_training_refuses_it(planted):
    folder, _, report = planted
    decoded = {Kind.TORN, Kind.NO_PICTURE, Kind.BOMB, Kind.EMPTY, Kind.DEPTH_32, Kind.UNREAD, Kind.BROKEN_LINK}
    for finding in report.findings:
        if finding.kind in decoded:
            of_file = [facts for part, facts in report.facts.items() if part[0] == finding.file]
            assert finding.kind.level is Level.FAULT and of_file and all(facts.looks is None for facts in of_file)
        if finding.kind in decoded - {Kind.TORN, Kind.NO_PICTURE}:  # a bit more than what a decoder happens to mind
            with pytest.raises(DataError):
                pairs.decode(finding.file, (8, 8), 3)


def test_the_split_and_the_pairs_that_are_left(planted):
    _, _, report = planted
    assert report.splits["val"] == 11 and report.splits["test"] == 22
    assert report.read < report.pairs
    assert any(
        f"{report.pairs - report.read} of {report.pairs} pairs cannot be decoded" in line for line in report.lines
    )


def test_near_duplicates_are_written_as_groups(planted):
    folder, _, _ = planted
    lines = list(csv.reader((folder.images.parent / "groups.csv").read_text().splitlines()))
    assert lines[0] == ["stem", "group"]
    members = {stem: group for stem, group in lines[1:]}
    assert lines[1:] == sorted(lines[1:]) and len(members) == len(lines) - 1
    copies = ("same within", "same across", "recompressed within", "recompressed across", "brighter", "mirrored")
    assert members == {f"{c}, {which}": f"{c}, first" for c in copies for which in ("first", "then")}


def test_small_pictures_are_those_of_the_cache_and_scores_follow_from_them(tmp_path):
    folder = few(tmp_path, 12)
    run = settings(folder, val=0.25, test=0.25, map_channels=3)
    report = survey.survey(run)
    assert report.clean, report.findings
    found = sources.find(run.data).pairs
    opened = cache.open_or_build(found, View(16), tmp_path / "cache", 1, lambda *_: None)
    for row, pair in enumerate(found):
        np.testing.assert_array_equal(looks(report, pair.image).thumbnail, opened.images[row])
        np.testing.assert_array_equal(looks(report, pair.map).thumbnail, opened.maps[row])
    rows = opened.rows(split.make([p.stem for p in found], run.data)["test"])
    assert report.scores["black"]["l1"] == pytest.approx(2 * opened.maps[rows].mean() / 255, rel=1e-5)
    assert report.scores["black"]["cc"] is None and (report.scores["mean"]["cc"] or 0) > 0
    assert "fitted on 6 of train, scored on 3 of test at 16 x 16" in report.scored
    assert "no map has colour: data.map_channels=1 would do" in report.lines


def test_statistics_of_a_map_are_closed_forms(tmp_path):
    folder = few(tmp_path, 9)
    pixels = np.zeros((40, 48), np.uint8)
    pixels[:, :12] = 255
    for number in range(9):
        folder.map(f"p{number}.png", encoded(Image.fromarray(pixels), "PNG"))
    report = survey.survey(settings(folder, val=0.25, test=0.25))
    facts = looks(report, folder.maps / "p3.png").statistics
    assert facts == pytest.approx((0.25, np.sqrt(0.25 * 0.75), 0, 1, 0.75))
    assert any("brightest at 3% from the left" in line and "holds 0% of its light" in line for line in report.lines)
    assert kinds(report) == {Kind.SAME_MAP: 8}


def test_what_most_files_have_is_one_line(tmp_path):
    folder = Folder(tmp_path)
    folder.splits = {}
    for number in range(12):
        folder.picture(f"p{number}.png", encoded(scene(number, 12, 10), "PNG"))
        folder.map(f"p{number}.png", encoded(blob(number, 48, 40), "PNG"))
    report = survey.survey(settings(folder, val=0.25, test=0.25))
    assert [(f.kind, f.file) for f in report.findings] == [
        (Kind.SMALL, folder.images),
        (Kind.OTHER_SIZE, folder.maps),
    ]
    assert report.findings[0].detail == "12 of 12, such as p0.png: 12 x 10"


def test_pairs_without_a_split(tmp_path):
    report = survey.survey(settings(few(tmp_path, 2), val=0.01, test=0.01))
    assert kinds(report) == {Kind.NO_SPLIT: 1} and not report.scores
    assert "the val split would be empty" in report.findings[0].detail


def test_folders_beside_the_splits_are_told(tmp_path):
    folder = few(tmp_path, 12)
    for place in (folder.images, folder.maps):
        for number, part in ((0, "valid"), (1, "test"), *((n, "train") for n in range(2, 12))):
            (place / part).mkdir(exist_ok=True)
            (place / f"p{number}.png").rename(place / part / f"p{number}.png")
        (place / ".DS_Store").touch()
    run = settings(folder, val=0.2)
    report = survey.survey(run)
    found = {(f.kind, f.file, f.detail) for f in report.findings}
    assert found == {(Kind.PASSED_OVER, f / "valid", "a folder") for f in (folder.images, folder.maps)}
    (note,) = (n for n in split.deal(sources.find(run.data).pairs, run.data).notes if "passed over" in n)
    assert f"{str(folder.images / 'valid')!r}, {str(folder.maps / 'valid')!r}" in note and ".DS_Store" not in note


def test_a_table_without_train_is_told_once(tmp_path):
    few(tmp_path, 8)
    lines = [f"images/p{n}.png,maps/p{n}.png,{'val' if n < 4 else 'test'}" for n in range(8)]
    (tmp_path / "pairs.csv").write_text("\n".join(["image,map,split", *lines]))
    run = tiny.run(
        "unet", tmp_path, **{"data.images": "null", "data.maps": "null", "data.csv": f"{tmp_path}/pairs.csv"}
    )
    report = survey.survey(run)
    assert [f.kind for f in report.findings] == [Kind.SOURCE] and "the split train" in report.findings[0].detail


def test_files_that_may_not_be_read(tmp_path, monkeypatch):
    path = tmp_path / "a.png"
    path.write_bytes(encoded(scene(1), "PNG"))

    def refused(self):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "read_bytes", refused)  # root may read anything
    assert examine_.examine(View(8, 3, 1), [(path, None, "image")])[0].findings == [
        Finding(Kind.UNREADABLE, path, "permission denied")
    ]


def test_a_file_too_large_to_be_read_is_not_read(tmp_path):
    path = tmp_path / "sparse.png"
    with open(path, "wb") as file:
        file.truncate(header.LARGEST + 1)
    facts = examine_.examine(View(8, 3, 1), [(path, None, "image")])[0]
    assert [f.kind for f in facts.findings] == [Kind.BOMB] and facts.sha256 == ""


@pytest.mark.parametrize("format_", ["PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF", "PPM"])
def test_files_that_are_bent_at_random_raise_nothing(format_, tmp_path):
    rng = np.random.default_rng(0)
    whole = encoded(scene(1), format_)
    path = tmp_path / "a.png"
    for _ in range(60):
        data = bytearray(whole[: int(rng.integers(1, len(whole) + 1))])
        for place in rng.integers(0, len(data), 4):
            data[place] = int(rng.integers(256))
        path.write_bytes(data)
        for facts in examine_.examine(View(8, 3, 1), [(path, None, "image"), (path, None, "map")]):
            assert facts.looks is not None or facts.findings


# Splits and groups


def test_groups_that_straddle_and_near_duplicates_that_are_grouped():
    files = listed(4)
    parts = [part for pair in files for part in (pair.image_part, pair.map_part)]
    facts = {part: known(part[0].name + part[0].parent.name) for part in parts}
    splits = {"s0": "train", "s1": "test", "s2": "train", "s3": "train"}
    found = leaks.find(files, facts, [(0, 1), (0, 2), (1, 2)], splits, {})
    assert [(f.kind, f.file.stem) for f in found] == [(Kind.NEAR_ACROSS, "s1"), (Kind.NEAR_ACROSS, "s2")]
    found = leaks.find(files, facts, [(0, 2)], splits, {"s0": "a", "s2": "a"})
    assert found == []
    found = leaks.find(files, facts, [(0, 1)], splits, {"s0": "a", "s1": "a", "s2": "b", "s3": "b"})
    assert [(f.kind, f.file.stem) for f in found] == [(Kind.GROUP_STRADDLES, "s1")]
    # Groups that a person gave are kept, and joined by what is nearly the same.
    assert leaks.group(files, facts, [(1, 2)], {"s0": "a", "s1": "a"}) == {"s0": "s0", "s1": "s0", "s2": "s0"}


def test_pictures_that_are_nearly_one_may_share_their_map():
    files = listed(4)
    facts = {pair.image_part: known(pair.image.name) for pair in files}
    facts |= {pair.map_part: known("one map") for pair in files}
    found = leaks.find(files, facts, [(0, 1), (0, 2)], {}, {})
    assert [(f.kind, f.file.stem) for f in found if f.kind is Kind.SAME_MAP] == [(Kind.SAME_MAP, "s3")]
    assert [f.detail for f in found] == ["in no split, as s0 in no split"] * 2 + ["as that of s0"]


def test_a_sentence_on_pictures_in_two_splits():
    rows = [Row("a", "train", "x", "1"), Row("b", "train", "x", "2"), Row("c", "test", "y", "3")]
    assert leaks.repeated(rows) == []
    (sentence,) = leaks.repeated([*rows, Row("d", "val", "y", "4")])
    assert sentence.startswith("1 picture stands in more than one split, such as 'c' in test and 'd' in val")
    assert "take one of each out, or, where fractions cut the splits, group them" in sentence


# Other sources


def test_side_by_side_pictures_are_looked_at_half_by_half(tmp_path):
    folder = tmp_path / "both"
    folder.mkdir()
    for number in range(10):
        both = Image.new("RGB", (96, 40))
        both.paste(scene(number, 48, 40), (48, 0))
        both.paste(blob(number, 48, 40) if number != 3 else Image.new("L", (48, 40)), (0, 0))
        both.save(folder / f"p{number}.png")
    (folder / "cut.png").write_bytes((folder / "p0.png").read_bytes()[:900])
    Image.new("RGB", (95, 40), "red").save(folder / "odd.png")
    shutil.copy(folder / "p4.png", folder / "twin.png")
    given = {
        "images": "null",
        "maps": "null",
        "side_by_side": str(folder),
        "direction": "BtoA",
        "val": 0.3,
        "test": 0.3,
    }
    run = tiny.run("unet", tmp_path, **{f"data.{key}": value for key, value in given.items()})
    report = survey.survey(run)
    assert {(f.kind, f.file.name) for f in report.findings} >= {
        (Kind.BLACK_MAP, "p3.png"),
        (Kind.TORN, "cut.png"),
        (Kind.SOURCE, "odd.png"),
    }
    same = {Kind.SAME_ACROSS, Kind.SAME_WITHIN}
    assert [f.file.name for f in report.findings if f.kind in same] == ["twin.png"]
    assert Kind.MAP_IS_PICTURE not in kinds(report) and report.scores["mean"]["l1"] is not None
    facts = report.facts[folder / "p1.png", "right", "image"]
    assert facts.size == (48, 40) and facts.looks is not None and facts.looks.coloured
    opened = cache.open_or_build(
        [p for p in sources.find(run.data).pairs if p.stem == "p1"], View(16), tmp_path / "c", 1
    )
    np.testing.assert_array_equal(facts.looks.thumbnail, opened.images[0])


def test_a_table_of_paths_is_looked_at_line_by_line(tmp_path):
    folder = few(tmp_path, 8)
    lines = ["image,map,split,group"]
    for number in range(8):
        split_ = "test" if number < 2 else "val" if number < 4 else "train"
        lines.append(f"images/p{number}.png,maps/p{number}.png,{split_},{'burst' if number in (0, 7) else ''}")
    lines.append("images/gone.png,maps/p1.png,train,")
    (tmp_path / "pairs.csv").write_text("\n".join(lines) + "\n")
    folder.picture("p5.png", b"no picture")
    given = {"images": "null", "maps": "null", "csv": str(tmp_path / "pairs.csv"), "image_channels": 1}
    report = survey.survey(tiny.run("unet", tmp_path, **{f"data.{key}": value for key, value in given.items()}))
    found = {(f.kind, f.file.name) for f in report.findings}
    assert {(Kind.SOURCE, "gone.png"), (Kind.NO_PICTURE, "p5.png"), (Kind.GROUP_STRADDLES, "p7.png")} <= found
    assert any(f.kind is Kind.NO_SPLIT and "burst" in f.detail for f in report.findings)


def test_pairs_that_share_files_are_looked_at(tmp_path):
    folder = few(tmp_path, 8)
    lines = ["image,map", *(f"images/p{n}.png,maps/p{n}.png" for n in range(6)), "images/p6.png,maps/p1.png"]
    (tmp_path / "pairs.csv").write_text("\n".join([*lines, "images/p7.png,images/p7.png"]) + "\n")
    given = {"images": "null", "maps": "null", "csv": str(tmp_path / "pairs.csv"), "val": 0.3, "test": 0.3}
    report = survey.survey(tiny.run("unet", tmp_path, **{f"data.{key}": value for key, value in given.items()}))
    assert [(f.kind, f.file) for f in report.findings] == [
        (Kind.MAP_IS_PICTURE, folder.images / "p7.png"),
        (Kind.SAME_MAP, folder.maps / "p1.png"),
    ]
    folder.splits = {}


@pytest.mark.parametrize("channels", [1, 3])
def test_halves_that_are_one_picture(channels, tmp_path):
    folder = tmp_path / "both"
    folder.mkdir()
    for number in range(8):
        both = Image.new("RGB", (96, 40))
        both.paste(scene(number), (0, 0))
        right = {1: scene(1), 2: scene(2).convert("L"), 3: Image.new("L", (48, 40))}.get(number, blob(number))
        both.paste(right, (48, 0))
        both.save(folder / f"p{number}.png")
    blank = Image.new("RGB", (96, 40))
    blank.save(folder / "blank.png")
    given = {"side_by_side": str(folder), "images": "null", "maps": "null", "map_channels": channels}
    report = survey.survey(tiny.run("unet", tmp_path, **{f"data.{key}": value for key, value in given.items()}))
    assert [f.file.name for f in report.findings if f.kind is Kind.MAP_IS_PICTURE] == ["p1.png"]


# Files of groups


def test_groups_that_a_person_wrote_are_never_lost(tmp_path):
    folder = few(tmp_path, 8)
    folder.with_map("p3 again.jpg", encoded(Image.open(folder.images / "p3.png"), "JPEG", quality=60))
    mine = tmp_path / "mine.csv"
    for text in ("stem,group\np1,mine\np2,mine\n", "stem,group\ngone,gone\nlost,gone\n", "stem,group\np1,x\np3,p3\n"):
        mine.write_text(text)
        report = survey.survey(settings(folder, val=0.3, test=0.3), mine)
        (finding,) = (f for f in report.findings if f.kind is Kind.GROUPS_KEPT)
        assert mine.read_text() == text and finding.file == mine and "would be lost" in finding.detail
        assert not any("data.groups=" in line for line in report.lines)
    # What was written from copies may be written again, and so may what is read, with what no pair has now.
    mine.write_text("stem,group\np3,p3\np3 again,p3\n")
    survey.survey(settings(folder, val=0.3, test=0.3), mine)
    assert mine.read_text() == "stem,group\np3,p3\np3 again,p3\n"
    mine.write_text("stem,group\np1,mine\np2,mine\nabsent,mine\np5,alone\n")
    report = survey.survey(settings(folder, val=0.3, test=0.3, groups=str(mine)), mine)
    assert Kind.GROUPS_KEPT not in kinds(report)
    assert mine.read_text() == "stem,group\nabsent,p1\np1,p1\np2,p1\np3,p3\np3 again,p3\np5,alone\n"


def test_a_file_of_groups_with_a_fault_is_not_written_over(tmp_path):
    folder = few(tmp_path, 8)
    mine, text = tmp_path / "mine.csv", "stem,group\np1,x\np2,x\np1,x\n"
    mine.write_text(text)
    for groups in ("null", str(mine)):
        with pytest.raises(DataError, match="names a stem twice: keep one line, or name a new file"):
            survey.survey(settings(folder, val=0.3, test=0.3, groups=groups), mine)
    report = survey.survey(settings(folder, val=0.3, test=0.3, groups=str(mine)), tmp_path / "other.csv")
    assert kinds(report) == {Kind.NO_SPLIT: 1, Kind.GROUPS_KEPT: 1}
    assert mine.read_text() == text and not (tmp_path / "other.csv").exists()


@pytest.mark.parametrize("given", [True, False])
def test_groups_are_no_advice_where_the_splits_are_given(given, tmp_path):
    folder = few(tmp_path, 8)
    folder.with_map("p3 again.png", (folder.images / "p3.png").read_bytes())
    lists = {"val": ["p1"], "test": ["p3 again"]} if given else {}
    folder.splits = lists
    fractions = {} if given else {"val": 0.3, "test": 0.3}
    report = survey.survey(settings(folder, **fractions), tmp_path / "groups.csv")
    (line,) = (line for line in report.lines if "groups.csv" in line)
    assert line.startswith("1 group of 2 near duplicates in ")
    refused = "training would refuse data.groups=" in line and "take copies out (the group 'p3' stands in" in line
    assert (refused, "train with data.groups=" in line) == (given, not given)
    with pytest.raises(DataError) if given else contextlib.nullcontext():
        split.deal(
            sources.find(report.run.data).pairs, settings(folder, **fractions, groups=f"{tmp_path}/groups.csv").data
        )


def test_nothing_but_a_file_of_groups_is_written_over(tmp_path):
    folder = few(tmp_path, 8)
    mine = tmp_path / "mine.csv"
    mine.write_text("image,map\n")
    os.mkfifo(tmp_path / "pipe")
    for path in (mine, next(folder.images.iterdir()), tmp_path / "pipe", Path("/dev/null"), tmp_path):
        before = path.stat()
        with pytest.raises(MemdistError, match="name a new file|is a directory"):
            survey.survey(settings(folder, val=0.3, test=0.3), path)
        assert (path.stat().st_mode, path.stat().st_size) == (before.st_mode, before.st_size)
    for _ in range(2):
        survey.survey(settings(folder, val=0.3, test=0.3), tmp_path / "groups.csv")


def test_names_with_odd_spaces_are_grouped_as_well(tmp_path):
    folder = few(tmp_path, 8)
    shutil.copy(folder.images / "p1.png", folder.images / "a\u202fshot.png")
    shutil.copy(folder.maps / "p1.png", folder.maps / "a\u202fshot.png")
    survey.survey(settings(folder, val=0.3, test=0.3), tmp_path / "groups.csv")
    assert (tmp_path / "groups.csv").read_text() == "stem,group\na\u202fshot,a\u202fshot\np1,a\u202fshot\n"


# The cheap part


def test_training_is_refused_what_its_files_headers_rule_out(planted):
    _, expected, report = planted
    cheap = {Kind.EMPTY, Kind.BOMB, Kind.NO_PICTURE, Kind.UNREAD, Kind.DEPTH_32}
    cheap |= {Kind.BROKEN_LINK, Kind.FOLDER, Kind.SPECIAL}
    for kind, path in expected:
        if kind in cheap:
            with pytest.raises(DataError, match=rf"1 file cannot be trained on: .* \({kind.title}\)") as error:
                check.cheap([PairFile(path.stem, path, path.with_name("good 000.png"))][:1])
            assert repr(str(path)) in str(error.value) and "memdist data check" in str(error.value)
    with pytest.raises(DataError, match="and 1 more") as error:
        bad = sorted(path for kind, path in expected if kind is Kind.NO_PICTURE)[:4]
        check.cheap([PairFile(path.stem, path, path.with_name("good 000.png")) for path in bad])
    assert len(str(error.value).splitlines()) == 1


def test_notes_before_training_are_one_for_a_kind(planted):
    folder, expected, _ = planted
    seen = {Kind.ALPHA, Kind.COLOURS, Kind.ROTATED, Kind.PALETTE, Kind.FRAMES, Kind.ENDING, Kind.ASPECT}
    stems = {path.stem for kind, path in expected if kind in seen}
    found = [PairFile(s, *(next(f.glob(f"{s}.*")) for f in (folder.images, folder.maps))) for s in sorted(stems)]
    notes = check.cheap(found)
    assert len(notes) == len(seen) + 1
    for kind in seen:
        (note,) = (n for n in notes if n.startswith(f"{kind.title}: "))
        assert " file, such as " in note or " files, such as " in note
    good = [PairFile(f"good {n:03}", *(f / f"good {n:03}.png" for f in (folder.images, folder.maps))) for n in range(9)]
    assert check.cheap(good) == []


def test_a_new_run_says_so_and_a_resumed_one_does_not(tmp_path, capsys):
    data = tiny.data(tmp_path / "data")
    first, second = sorted((data / "images").iterdir())[:2]
    Image.open(first).convert("CMYK").save(first)
    shutil.copy(first, second)
    found = [path.stem for path in (data / "images").iterdir()]
    for seed in itertools.count():
        run = tiny.run("unet", data, epochs=1, **{"data.split_seed": seed})
        if (
            len({name for name, part in split.make(found, run.data).items() if {first.stem, second.stem} & set(part)})
            > 1
        ):
            break
    assert loop.train(run, tmp_path / "run") == 0
    told = capsys.readouterr().out
    assert (
        f"CMYK or other colours: 2 files, such as '{first.name}'" in told
        and "1 picture stands in more than one split" in told
    )
    assert loop.train(run, tmp_path / "run") == 0
    assert "CMYK" not in capsys.readouterr().out


# The command


def command(capfd, *arguments) -> tuple[object, str, str]:
    with pytest.raises(SystemExit) as ended:
        cli.main(["data", "check", *map(str, arguments)])
    captured = capfd.readouterr()
    return ended.value.code, captured.out, captured.err


@pytest.fixture
def line(tmp_path):
    (tmp_path / "config.yaml").write_text(CONFIG)
    return [tmp_path / "config.yaml", f"data.images={tmp_path}/images", f"data.maps={tmp_path}/maps"]


def test_clean_data_end_well_and_nothing_is_written(tmp_path, line, capfd):
    few(tmp_path, 12)
    before = {str(p) for p in tmp_path.rglob("*")}
    code, out, _ = command(capfd, *line)
    assert code == 0 and "24 files of 12 pairs were examined: nothing was found" in out
    assert "splits: train 8, val 2, test 2" in out and "median" in out
    assert {str(p) for p in tmp_path.rglob("*")} == before


def test_findings_end_with_1_and_hostile_names_are_spelled_out(tmp_path, line, capfd):
    folder = few(tmp_path)
    for name in ("[red]evil[bold]", "esc \x1b[31m\x07", "two\nlines", "bidi \u202egnp", "not \udcff"):
        folder.with_map(f"{name}.png", b"")
    code, out, _ = command(capfd, *line, "data.map_channels=1")
    assert code == 1
    assert "images/[red]evil[bold].png" in out
    for spelled in (r"esc \x1b[31m\x07.png", r"two\nlines.png", r"bidi \u202egnp.png", r"not \udcff.png"):
        assert f"images/{spelled}" in out
    assert not {"\x1b", "\x07", "\u202e"} & set(out)
    assert out.count("empty file") == 5 + 1  # and once among the kinds


def test_groups_are_written_by_the_command(tmp_path, line, capfd):
    folder = few(tmp_path)
    folder.with_map("p3 again.jpg", encoded(Image.open(folder.images / "p3.png"), "JPEG", quality=60))
    target = tmp_path / "groups.csv"
    code, out, _ = command(capfd, *line, "data.map_channels=1", "--group-duplicates", target)
    assert code == 1 and "1 group of 2 near duplicates" in out
    assert target.read_text() == "stem,group\np3,p3\np3 again,p3\n"
    (folder.images / "p3 again.jpg").unlink()
    (folder.maps / "p3 again.png").unlink()
    code, out, _ = command(capfd, *line, "data.map_channels=1", "--group-duplicates", target)
    assert code == 1 and "groups not written" in out and "the group 'p3' of 'p3' in it would be lost" in out
    assert target.read_text() == "stem,group\np3,p3\np3 again,p3\n"
    code, out, _ = command(capfd, *line, "data.map_channels=1", "--group-duplicates", tmp_path / "new.csv")
    assert code == 0 and "no near duplicates" in out and (tmp_path / "new.csv").read_text() == "stem,group\n"


@pytest.mark.parametrize("where", ["nowhere/groups.csv", "images", "/proc/groups.csv"])
def test_groups_that_cannot_be_written(where, tmp_path, line, capfd):
    few(tmp_path)
    before = {str(p) for p in tmp_path.rglob("*")}
    code, out, err = command(capfd, *line, "--group-duplicates", tmp_path / where)
    assert code == 2 and out == ""
    assert err.startswith("memdist: cannot write ") and err.count("\n") == 1
    assert {str(p) for p in tmp_path.rglob("*")} == before


@pytest.mark.parametrize(
    "given, says",
    [
        (["data.images=null"], "data.images is not set"),
        (["data.maps=/nowhere"], "data.maps = /nowhere does not exist"),
        (["data.maps={tmp}/config.yaml"], "is not a folder"),
        (["data.size=0"], "data.size = 0 cannot be"),
    ],
)
def test_bad_commands(given, says, tmp_path, line, capfd):
    few(tmp_path)
    code, out, err = command(capfd, *line, *(g.format(tmp=tmp_path) for g in given))
    assert code == 2 and out == "" and says in err and err.count("\n") == 1


def test_folders_without_pictures(tmp_path, line, capfd):
    (tmp_path / "images").mkdir()
    (tmp_path / "maps").mkdir()
    code, _, err = command(capfd, *line)
    assert code == 2 and "holds no pictures" in err
    (tmp_path / "images" / "a.png").write_bytes(encoded(scene(1), "PNG"))
    code, out, err = command(capfd, *line)
    assert code == 2 and out == "" and "data.maps = " in err and "holds no pictures" in err
    (tmp_path / "maps" / "b.png").write_bytes(encoded(blob(1), "PNG"))
    code, out, _ = command(capfd, *line)
    assert code == 1 and "picture without map" in out and "has the stem of a map" in out and "no split" not in out


def shown(report, **options) -> str:
    text = io.StringIO()
    Console(file=text, width=120, **options).print(report, markup=False)
    return text.getvalue()


def test_a_terminal_gets_a_few_of_many_and_a_pipe_all_of_them(tmp_path):
    run = settings(few(tmp_path, 5), val=0.25, test=0.25)
    findings = [Finding(Kind.EMPTY, Path(f"{i:03}.png")) for i in range(survey.MANY)] + [
        Finding(Kind.GREY, Path("g.png"))
    ]
    report = survey.Report(run, 5, 5, findings, {}, {}, [], {}, "")
    terminal, pipe = shown(report, force_terminal=True), shown(report, force_terminal=False)
    assert f"... {survey.MANY - survey.FEW} more" in terminal and "004.png" in terminal and "005.png" not in terminal
    assert all(f"{i:03}.png" in pipe for i in range(survey.MANY)) and "g.png" in pipe and "more" not in pipe
    report.findings = findings[1:]
    assert "199.png" in shown(report, force_terminal=True)


def test_long_names_are_not_cut_off(tmp_path):
    run = settings(few(tmp_path, 5), val=0.25, test=0.25)
    name = "x" * 200 + "end.png"
    report = survey.Report(run, 5, 5, [Finding(Kind.EMPTY, Path(name))], {}, {}, [], {}, "")
    for terminal in (False, True):
        assert "end.png" in shown(report, force_terminal=terminal).replace("\n", "")


def test_places_are_told_from_the_folder_that_holds_both():
    data = config.Data(images=Path("/a/b/images"), maps=Path("/a/maps"))
    assert check.relative(Path("/a/b/images/x.png"), data) == Path("b/images/x.png")
    assert check.relative(Path("/a/maps/x.png"), data) == Path("maps/x.png")
    data = config.Data(images=Path("/a/both"), maps=Path("/a/both"))
    assert check.relative(Path("/a/both/x.png"), data) == Path("both/x.png")
