"""Shares, layout, records and manifests of folders of maps."""

import errno
import hashlib
import itertools
import json
import os
import threading
import time
import warnings
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from memdist import rundir
from memdist.data.quiet import quiet
from memdist.errors import CheckpointError, ConfigError, DataError
from memdist.predict import batch as batch_
from memdist.predict import folder, inputs, record, writer
from memdist.predict.ahead import ahead
from memdist.predict.folder import Folder, Layout, Line, Manifest, Manifests
from memdist.predict.inputs import Picture, Shard
from memdist.predict.progress import Progress
from memdist.predict.record import Record
from memdist.predict.report import Report

RECORD = Record({"weights": "abc", "seed": 3, "eval.steps": 10}, 5, True, 8, False, 0)


def some(count: int) -> list[Picture]:
    return [Picture(f"p{number:04}", Path(f"in/p{number:04}.png")) for number in range(count)]


# Shares


@given(st.integers(0, 60), st.integers(1, 9), st.integers(1, 4))
def test_each_picture_is_in_one_share_whatever_the_world(count: int, shards: int, world: int) -> None:
    whole = some(count)
    parts = []
    for number, rank in itertools.product(range(1, shards + 1), range(world)):
        share = inputs.shard(f"{number}/{shards}").within({"WORLD_SIZE": str(world), "RANK": str(rank)})
        parts.append(share.of(whole))
    assert sorted(picture for part in parts for picture in part) == whole
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_no_share_is_the_whole() -> None:
    assert (
        inputs.shard(None).within({}) == inputs.shard(None).within({"RANK": "3"}) == Shard(1, 1)
        and str(inputs.shard("03/8")) == "3/8"
    )


@pytest.mark.parametrize(("world", "rank"), [("4", None), ("4", "4"), ("4", "-1"), ("abc", "0"), ("0", "0"), ("", "0")])
def test_an_environment_that_says_no_share(world: str, rank: str | None) -> None:
    with pytest.raises(ConfigError, match=r"WORLD_SIZE=.* and RANK=.* say no share .* give --shard I/N"):
        Shard().within({"WORLD_SIZE": world} | ({} if rank is None else {"RANK": rank}))


@pytest.mark.parametrize(
    "text", ["0/3", "4/3", "1", "1/0", "-1/3", "a/b", "1/3/5", "", "1 / 3", "²/3", "1/" + "9" * 5000]
)
def test_no_share(text: str) -> None:
    with pytest.raises(ConfigError, match="I/N, the I-th of N shares, I from 1 to N"):
        inputs.shard(text)


# Inputs


def test_pictures_are_found_by_name(tmp_path: Path) -> None:
    for name in ("b.png", "a.1.jpg", ".hidden.png", "notes.txt"):
        (tmp_path / name).touch()
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "A b.png").touch()
    one = tmp_path / "one" / "A b.png"
    found = inputs.find([tmp_path, one, one, tmp_path / "notes.txt"])
    assert [picture.name for picture in found] == ["A b", "a.1", "b", "notes"]
    assert inputs.find([tmp_path, tmp_path / "one" / ".." / "b.png"]) == inputs.find([tmp_path])
    (tmp_path / "one" / "b.jpg").touch()
    with pytest.raises(DataError, match=r"b\.png and .*b\.jpg would both become b\.png"):
        inputs.find([tmp_path, tmp_path / "one"])


def test_maps_stay_apart_from_pictures(tmp_path: Path) -> None:
    here, out = tmp_path / "in", tmp_path / "out"
    for place in (here, out / "deep"):
        place.mkdir(parents=True)
    (here / "a.png").touch()
    (out / "x.png").touch()

    def apart(given: list[Path], layout: Layout = Layout(0, 0), to: Path = out) -> None:  # noqa: B008
        found = inputs.find(given)
        outputs = [to / name for picture in found for name in layout.outputs(picture)]
        inputs.keep_apart(given, inputs.places(found), to, outputs)

    apart([here])
    apart([here], to=tmp_path)
    with pytest.raises(CheckpointError, match="would be put among the pictures of"):
        apart([here], to=here)
    with pytest.raises(CheckpointError, match="would be written over a picture"):
        apart([out / "x.png"])
    (here / "x.png").symlink_to(out / "x.png")
    with pytest.raises(CheckpointError, match="would be written over a picture"):
        apart([here / "x.png"])
    (tmp_path / "alias").symlink_to(here)
    with pytest.raises(CheckpointError, match="would be put among the pictures of"):
        apart([here / "a.png", here], to=tmp_path / "alias")
    (out / folder.SAMPLES).symlink_to(here)
    with pytest.raises(CheckpointError, match="would be put among the pictures of"):
        apart([here], Layout(0, 2))


# Layout


@given(st.sets(st.text(min_size=1, max_size=8), min_size=1, max_size=8), st.integers(0, 3), st.integers(0, 12))
def test_no_two_outputs_share_a_name(stems: set[str], samples: int, folders: int) -> None:
    layout = Layout(folders, samples)
    hard = stems | {f"{stem}.1" for stem in stems}
    names = [name for s in hard for name in layout.outputs(Picture(rundir.file_name(s), Path("x")))]
    assert len(set(names)) == len(names) == len(hard) * (1 + samples)
    assert {os.path.normpath(os.path.dirname(name) or ".") for name in names} <= {
        os.path.normpath(name) for name in layout.within()
    }


def test_many_outputs_lie_in_numbered_folders() -> None:
    assert Layout.of(10_000, 0).folders == 0 and Layout.of(2_500, 3).folders == 0
    assert Layout.of(10_001, 0).folders == 11 and Layout.of(100_000, 0).folders == 100
    layout = Layout.of(20_000, 0)
    counts: dict[str, int] = {}
    for picture in some(20_000):
        number, _, name = layout.map(picture).partition("/")
        assert name == f"{picture.name}.png"
        counts[number] = counts.get(number, 0) + 1
    assert (
        len(counts) == 20 and set(map(len, counts)) == {3} and 800 < min(counts.values()) < max(counts.values()) < 1200
    )
    assert len(Layout(1001, 0).within()[0]) == 4


@given(st.integers(1, 600), st.integers(1, 50), st.integers(1, 5000))
def test_batches_are_filled_by_whole_pictures(batch: int, samples: int, count: int) -> None:
    found = batch_.filled(batch, samples, count)
    assert 1 <= found <= batch
    if samples <= batch:
        assert found % samples == 0
        turns = -(-count // (found // samples))
        assert turns == -(-count // (batch // samples)) and turns * found - count * samples < turns * samples + found
    else:
        assert -(-samples // found) == -(-samples // batch)


# The record


def test_the_first_record_stands(tmp_path: Path) -> None:
    assert record.read(tmp_path) is None
    assert record.begin(tmp_path, RECORD) == RECORD
    assert record.begin(tmp_path, replace(RECORD, batch=4, compiled=True)) == RECORD == record.read(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [record.FILE]


def test_one_of_many_records_stands_where_there_are_no_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def link(*_: object) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", link)
    told: list[Record] = []
    own = [replace(RECORD, batch=number) for number in range(1, 9)]
    threads = [threading.Thread(target=lambda r=r: told.append(record.begin(tmp_path, r))) for r in own]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(told) == 8 and len(set(map(str, told))) == 1 and told[0] in own
    assert [path.name for path in tmp_path.iterdir()] == [record.FILE]


def test_no_record_where_there_is_no_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(CheckpointError, match=r"cannot write .*predict\.json: no space left on device; .*make room"):
        record.begin(tmp_path, RECORD)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "text",
    [
        *("", "[]", "{", "{}", "{}x", json.dumps({"settings": {}})),
        *(json.dumps(asdict(RECORD) | change) for change in ({"batch": 0}, {"batch": 10**12}, {"folders": 10**9})),
        json.dumps(asdict(RECORD) | {"batch": True}),
    ],
)
def test_a_record_that_says_nothing(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("memdist.predict.record.time.sleep", lambda _: None)
    (tmp_path / record.FILE).write_text(text)
    with pytest.raises(CheckpointError, match=r"predict\.json .*restore it"):
        record.read(tmp_path)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (
            {"weights": "x"},
            r"holds maps by other weights \(step 5, averaged\) than those of runs/a \(step 9, not averaged\)",
        ),
        ({"seed": 4}, "holds maps with seed = 3, not 4: give the same, or another folder with --out"),
        ({"eval.steps": None}, "with eval.steps = 10, not None"),
        ({"new": 1}, "with new = None, not 1"),
    ],
)
def test_other_settings_are_refused(change: dict[str, Any], says: str) -> None:
    class Found:
        step, averaged = 9, False

    found: Any = Found()
    record.refuse(Path("out"), RECORD, dict(RECORD.settings), found, Path("runs/a"))
    with pytest.raises(CheckpointError, match=says):
        record.refuse(Path("out"), RECORD, RECORD.settings | change, found, Path("runs/a"))
    assert replace(RECORD, settings=RECORD.settings | change).fingerprint != RECORD.fingerprint


# Manifests


def written(out: Path, shard: Shard, *lines: Line) -> None:
    (out / folder.MANIFEST).mkdir(parents=True, exist_ok=True)
    manifest = Manifest(out, RECORD.fingerprint, shard)
    for line in lines:
        manifest.write(line, 0.25, None)
    manifest.close()


def test_lines_of_all_processes_are_read_as_they_come(tmp_path: Path) -> None:
    manifests = Manifests(tmp_path, RECORD.fingerprint)
    assert list(manifests.news()) == []
    first, second, third = (Line(f"{name}.png", "i", "s") for name in "abc")
    written(tmp_path, Shard(2, 3), first)
    assert list(manifests.news()) == [("2-of-3", first)]
    assert list(manifests.news()) == []
    written(tmp_path, Shard(1, 3), second)
    written(tmp_path, Shard(2, 3), third)
    assert sorted(manifests.news()) == [("1-of-3", second), ("2-of-3", third)]
    assert len(list((tmp_path / folder.MANIFEST).iterdir())) == 3


def test_a_process_without_outputs_leaves_no_file(tmp_path: Path) -> None:
    written(tmp_path, Shard(), *())
    assert list((tmp_path / folder.MANIFEST).iterdir()) == []


def test_what_is_no_line_is_passed_over_wherever_it_stands(tmp_path: Path) -> None:
    lines = [Line(f"{name}.png", "i", "s") for name in "abcd"]
    written(tmp_path, Shard(), *lines)
    (path,) = (tmp_path / folder.MANIFEST).iterdir()
    texts = path.read_bytes().splitlines()
    other = texts[0].replace(RECORD.fingerprint.encode(), b"0" * 16)
    damage = [b"\xff\0", b"{}", b"[" * 100_000, b"null", b'{"name": ["x"], "input": 1}', other, texts[1][:20], b""]
    whole = b"\n".join([*damage, texts[0], *damage, *texts[2:]])
    path.write_bytes(whole)  # the last line has no end: it is still being written
    manifests = Manifests(tmp_path, RECORD.fingerprint)
    assert [line for _, line in manifests.news()] == [lines[0], lines[2]]
    path.write_bytes(whole + b"\n")
    assert [line for _, line in manifests.news()] == [lines[3]]


def test_what_is_no_file_of_lines_is_passed_over(tmp_path: Path) -> None:
    written(tmp_path, Shard(), Line("a.png", "i", "s"))
    (tmp_path / folder.MANIFEST / "folder.jsonl").mkdir()
    os.mkfifo(tmp_path / folder.MANIFEST / "pipe.jsonl")
    assert [line.name for _, line in Manifests(tmp_path, RECORD.fingerprint).news()] == ["a.png"]


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.png")
    assert folder.hash_of(tmp_path / "a.png") == hashlib.sha256().hexdigest()


def test_what_waits_to_be_written_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = Folder(tmp_path, RECORD, Layout(0, 0), [])
    place.make()
    held, most, lock = 0, 0, threading.Lock()
    write = writer.Writer._write

    def slow(self: writer.Writer, name: str, digest: str, output: torch.Tensor) -> Line:
        time.sleep(0.01)
        line = write(self, name, digest, output)
        with lock:
            nonlocal held
            held -= 1
        return line

    monkeypatch.setattr(writer, "ROOM", 3 * 3 * 8 * 8)
    monkeypatch.setattr(writer.Writer, "_write", slow)
    with writer.Writer(place, RECORD, Shard(), threads=2, at_most=100) as one:
        for number in range(20):
            one.put(f"{number}.png", "i", torch.zeros(3, 8, 8, dtype=torch.uint8), 0.1, None)
            with lock:
                held += 1
                most = max(most, held)
        one.put("large.png", "i", torch.zeros(3, 64, 64, dtype=torch.uint8), 0.1, None)
        one.finish()
    assert most <= 3
    lines = [line.name for _, line in Manifests(tmp_path, RECORD.fingerprint).news()]
    assert lines == [*(f"{number}.png" for number in range(20)), "large.png"]
    assert all((tmp_path / name).is_file() for name in lines)


def test_what_is_there_is_told_by_hashes(tmp_path: Path) -> None:
    picture = Picture("a", tmp_path / "a.png")
    sha256 = {text: hashlib.sha256(text.encode()).hexdigest() for text in ("mine", "others")}
    written(tmp_path, Shard(), Line("a.png", "before", sha256["mine"]))

    def harm(digest: str) -> str | None:
        return Folder(tmp_path, RECORD, Layout(0, 0), [picture]).harm("a.png", digest)

    assert harm("before") == "missing"
    (tmp_path / "a.png").write_text("mine")
    assert harm("before") is None and harm("after") == "changed"
    (tmp_path / "a.png").write_text("others")
    assert harm("before") == "damaged"
    written(tmp_path, Shard(2, 2), Line("a.png", "before", sha256["others"]))
    assert harm("before") is None
    (tmp_path / "a.png").unlink()
    (tmp_path / "a.png").mkdir()
    assert harm("before") == "missing"


def test_progress_is_of_all_shards(tmp_path: Path) -> None:
    maps = {f"{name}.png" for name in "abcdef"}
    written(
        tmp_path, Shard(1, 2), Line("a.png", "i", "s"), Line("old.png", "i", "s"), Line("samples/a.1.png", "i", "s")
    )
    manifests = Manifests(tmp_path, RECORD.fingerprint)
    said = {line.name for _, line in manifests.news()}
    progress = Progress(manifests, maps, said, 2)
    assert (progress.done, progress.total) == (1, 6)
    progress.lost("a.png")
    assert progress.done == 0
    written(tmp_path, Shard(2, 2), *(Line(f"{name}.png", "i", "s") for name in "bbc"))
    progress.look()
    assert progress.done == 2
    assert "a second" in progress.said() and "left" in progress.said() and "1 of 2 shards at work" in progress.said()
    written(tmp_path, Shard(1, 2), *(Line(f"{name}.png", "i", "s") for name in "adef"))
    progress.look()
    assert progress.done == 6 and "left" not in progress.said() and "2 of 2 shards" in progress.said()


# Threads


def test_work_ahead_is_in_order_and_never_far() -> None:
    started: list[int] = []

    def work(item: int) -> int:
        started.append(item)
        return -item

    results = ahead(work, range(100), 3, 5)
    for expected in range(40):
        assert next(results) == -expected
        assert len(started) <= expected + 1 + 5
    results.close()
    assert not [t for t in threading.enumerate() if t.name.startswith("memdist read")]


def test_an_error_ahead_is_raised_in_its_place() -> None:
    def work(item: int) -> int:
        if item == 3:
            raise DataError("three")
        return item

    results = ahead(work, range(100), 2, 4)
    assert [next(results) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(DataError, match="three"):
        next(results)


def test_filters_of_warnings_hold_for_all_threads_and_are_restored() -> None:
    from PIL import Image

    before = list(warnings.filters)
    go = [threading.Event() for _ in range(2)]
    seen: list[bool] = []

    def hold(enter: threading.Event, leave: threading.Event) -> None:
        enter.wait(10)
        with quiet():
            go[1].set() if enter is go[0] else None
            leave.wait(10)
            warnings.warn("a remark", UserWarning, stacklevel=1)
            try:
                warnings.warn("a bomb", Image.DecompressionBombWarning, stacklevel=1)
            except Image.DecompressionBombWarning:
                seen.append(True)

    ends = [threading.Event() for _ in range(2)]
    threads = [threading.Thread(target=hold, args=pair) for pair in zip(go, ends, strict=True)]
    for thread in threads:
        thread.start()
    go[0].set()
    go[1].wait(10)
    ends[0].set()  # the first one in is the first one out
    threads[0].join()
    ends[1].set()
    threads[1].join()
    assert seen == [True, True] and list(warnings.filters) == before


# What is said


def test_a_report_shows_a_selection(capsys: pytest.CaptureFixture[str]) -> None:
    from memdist import output

    report = Report(
        "3 maps", {"pictures could not be read": [f"{'x' * 300}{n}\x1b[31m" for n in range(25)], "none": []}
    )
    assert not report.clean and Report("3 maps", {"none": []}).clean
    lines = report.lines()
    assert (
        lines[:2] == ["3 maps", "25 pictures could not be read:"] and lines[-1] == "  and 5 more" and len(lines) == 23
    )
    output.show(report)
    shown = capsys.readouterr().out
    assert "x" * 100 in shown and "\x1b" not in shown
