"""Files of a run folder: whole or absent, cut back to a length, and sentences when the file system refuses."""

import errno
import hashlib
import itertools
import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from memdist import rundir
from memdist.errors import CheckpointError, MemdistError


def _names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def _refuse(monkeypatch: pytest.MonkeyPatch, function: str, code: int = errno.ENOSPC) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, function, refuse)


def test_a_file_is_written_and_replaced(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    rundir.write_bytes(path, b"one")
    rundir.write_bytes(path, b"two")
    assert path.read_bytes() == b"two"
    rundir.write_text(tmp_path / "b.txt", "Größe\n")
    assert (tmp_path / "b.txt").read_bytes() == "Größe\n".encode()
    assert _names(tmp_path) == ["a.bin", "b.txt"]


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_failed_write_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    path = tmp_path / "a.txt"
    rundir.write_text(path, "one")
    _refuse(monkeypatch, step)
    with pytest.raises(CheckpointError, match="cannot write .*a.txt: no space left on device; .* choose another place"):
        rundir.write_text(path, "two")
    assert path.read_text() == "one"
    assert _names(tmp_path) == ["a.txt"]


def test_a_write_reaches_the_disk_before_it_gets_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []

    def noting(name: str) -> None:
        function = getattr(os, name)

        def noted(*arguments: object) -> object:
            order.append(name)
            return function(*arguments)

        monkeypatch.setattr(os, name, noted)

    noting("fsync")
    noting("replace")
    rundir.write_text(tmp_path / "a.txt", "one")
    assert order == ["fsync", "replace", "fsync"]


def test_a_killed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    rundir.write_json(path, {"step": 1})
    code = f"""
        import os
        from pathlib import Path
        from memdist import rundir
        os.replace = lambda a, b: os._exit(9)
        rundir.write_json(Path({str(path)!r}), {{"step": 2}})
    """
    assert subprocess.run([sys.executable, "-c", textwrap.dedent(code)]).returncode == 9
    assert rundir.read_json(path) == {"step": 1}


def test_json_goes_there_and_back(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    value = {"a": 1, "b": [0.1, None, "é"], "c": {"d": True}}
    rundir.write_json(path, value)
    assert rundir.read_json(path) == value == json.loads(path.read_text())
    assert rundir.read_json(tmp_path / "absent.json") == {}


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_no_json_is_not_written(tmp_path: Path, value: float) -> None:
    with pytest.raises(ValueError):
        rundir.write_json(tmp_path / "a.json", {"loss": value})
    assert _names(tmp_path) == []


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (b"{", "cannot be read as JSON"),
        (b"\xff\xfe", "cannot be read as JSON"),
        (b"[1]", "holds no JSON object"),
        # What `write_json` would not write again.
        (b'{"a": NaN}', "cannot be read as JSON: NaN is no finite number"),
        (b'{"a": [-Infinity]}', "cannot be read as JSON: -Infinity is no finite number"),
        (b'{"a": 1e999}', "cannot be read as JSON: 1e999 is no finite number"),
    ],
)
def test_a_broken_json_file_is_named(tmp_path: Path, text: bytes, says: str) -> None:
    path = tmp_path / "state.json"
    path.write_bytes(text)
    with pytest.raises(CheckpointError, match=f"state.json {says}.*; restore it or delete it"):
        rundir.read_json(path)


# Folders


def test_a_folder_is_made_with_its_parents(tmp_path: Path) -> None:
    assert rundir.make_folder(tmp_path / "a" / "b") == tmp_path / "a" / "b"
    rundir.make_folder(tmp_path / "a" / "b")
    assert (tmp_path / "a" / "b").is_dir()


def test_a_folder_that_cannot_be_made_gets_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for name, why in (("file", "file exists"), ("file/run", "not a directory"), ("x" * 300, "file name too long")):
        with pytest.raises(MemdistError, match=f"^cannot write .*: {why}; .* choose another place$"):
            rundir.make_folder(tmp_path / name)
    with pytest.raises(CheckpointError, match="no such file or directory"):
        rundir.write_text(tmp_path / "absent" / "a.txt", "")


@pytest.mark.parametrize(
    ("number", "remedy"),
    [
        (errno.ENOSPC, "make room, or choose another place"),
        (errno.EDQUOT, "make room, or choose another place"),
        (errno.EROFS, "mount it writable, or choose another place"),
        (errno.EACCES, "ask for the right to write there, or choose another place"),
        (errno.EPERM, "ask for the right to write there, or choose another place"),
        (errno.ENOTDIR, "choose another place"),
    ],
)
def test_a_refusal_names_what_helps(number: int, remedy: str) -> None:
    with pytest.raises(CheckpointError, match=f"; what was written before is untouched: {remedy}$"):
        with rundir.naming(Path("run")):
            raise OSError(number, os.strerror(number))


@pytest.mark.parametrize("refused", [errno.EACCES, errno.EROFS, errno.EDQUOT])
def test_an_unwritable_folder_gets_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refused: int) -> None:
    _refuse(monkeypatch, "mkdir", refused)
    with pytest.raises(CheckpointError, match=f"cannot write .*/run: {os.strerror(refused).lower()}; "):
        rundir.make_folder(tmp_path / "run")


def test_a_new_folder_appears_whole(tmp_path: Path) -> None:
    path = tmp_path / "checkpoints" / "0000000001"
    with rundir.new_folder(path) as temporary:
        (temporary / "a.txt").write_text("a")
        (temporary / "b.txt").write_text("b")
        assert not path.exists()
        assert temporary.parent == path.parent and temporary.name.startswith(".")
    assert {file.name: file.read_text() for file in path.iterdir()} == {"a.txt": "a", "b.txt": "b"}
    assert _names(path.parent) == ["0000000001"]


def test_a_failed_folder_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "0000000001"
    with pytest.raises(KeyError), rundir.new_folder(path) as temporary:
        (temporary / "a.txt").write_text("a")
        raise KeyError
    assert _names(tmp_path) == []
    with monkeypatch.context() as patch:
        _refuse(patch, "fsync")
        with pytest.raises(CheckpointError, match="no space left"), rundir.new_folder(path) as temporary:
            (temporary / "a.txt").write_text("a")
    assert _names(tmp_path) == []


def test_a_folder_that_another_process_made_meanwhile_stays(tmp_path: Path) -> None:
    path = tmp_path / "cache"
    with rundir.new_folder(path) as temporary:
        (temporary / "ours.txt").write_text("")
        path.mkdir()
        (path / "theirs.txt").write_text("")
    assert _names(path) == ["theirs.txt"]
    assert _names(tmp_path) == ["cache"]


# Line files


def test_lines_grow_and_are_read_back(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    lines = rundir.Lines(path)
    assert lines.length() == 0
    lines.write({"step": 1, "l1": 0.5})
    assert path.read_bytes() == b'{"step":1,"l1":0.5}\n'
    lines.write({"step": 2})
    assert lines.length() == path.stat().st_size
    lines.close()
    lines = rundir.Lines(path)
    lines.write({"step": 3})
    lines.close()
    assert [record["step"] for record in rundir.read_lines(path)] == [1, 2, 3]
    assert rundir.read_lines(tmp_path / "absent.jsonl") == []


def test_a_resumed_file_is_that_of_a_run_that_was_never_stopped(tmp_path: Path) -> None:
    straight, stopped = tmp_path / "a.jsonl", tmp_path / "b.jsonl"
    lines = rundir.Lines(straight)
    for step in range(5):
        lines.write({"step": step})
    lines.close()

    lines = rundir.Lines(stopped)
    for step in range(3):
        lines.write({"step": step})
    checkpoint = lines.length()
    lines.write({"step": 3})
    lines.close()
    with open(stopped, "ab") as file:
        file.write(b'{"ste')  # killed within a line

    lines = rundir.Lines(stopped, checkpoint)
    assert lines.length() == checkpoint
    for step in range(3, 5):
        lines.write({"step": step})
    lines.close()
    assert stopped.read_bytes() == straight.read_bytes()


def test_a_length_of_nothing_empties_the_file(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"a":1}\n')
    rundir.Lines(path, 0).close()
    assert path.read_bytes() == b""


WHOLE = b'{"a":1}\n{"a":2}\n{"a":3}\n'


@pytest.mark.parametrize("there", range(len(WHOLE) + 1))
@pytest.mark.parametrize("length", [None, 8, 13, len(WHOLE)])
def test_what_is_appended_is_never_joined_to_half_a_line(tmp_path: Path, there: int, length: int | None) -> None:
    """A file that has lost its end, or is not what it was when its length was taken, is cut back to whole lines."""
    path = tmp_path / "a.jsonl"
    path.write_bytes(WHOLE[:there])
    lines = rundir.Lines(path, length)
    kept = min(there, len(WHOLE) if length is None else length) // 8
    assert lines.length() == 8 * kept
    lines.write({"a": 4})
    lines.close()
    assert path.read_bytes() == WHOLE[: 8 * kept] + b'{"a":4}\n'


def test_a_file_that_is_gone_begins_anew(tmp_path: Path) -> None:
    lines = rundir.Lines(tmp_path / "a.jsonl", 24)
    lines.write({"a": 4})
    lines.close()
    assert rundir.read_lines(tmp_path / "a.jsonl") == [{"a": 4}]


@pytest.mark.parametrize("tail", [b'{"a":2', b'{"a":2}', b"\xff\xfe", b"{"])
def test_a_torn_last_line_is_passed_over(tmp_path: Path, tail: bytes) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"a":1}\n\n' + tail)
    assert rundir.read_lines(path) == [{"a": 1}]


@pytest.mark.parametrize(
    ("line", "says"),
    [
        (b"{", r"no JSON \(Expecting"),
        (b"[1]", "no JSON object"),
        (b"3", "no JSON object"),
        (b"null", "no JSON object"),
        (b"\xff\xfe", r"no JSON \("),
        (b"9" * 5000, r"no JSON \(Exceeds"),
        (b"[" * 100_000, r"no JSON \(too deeply nested\)"),
    ],
    ids=range(7),
)
def test_a_line_that_is_no_record_is_named(tmp_path: Path, line: bytes, says: str) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"a": 1}\n\n' + line + b'\n{"a": 2}\n')
    with pytest.raises(
        CheckpointError, match=f"^line 3 of .*metrics.jsonl is {says}.*; restore the file or delete it$"
    ):
        rundir.read_lines(path)


def test_a_line_file_that_cannot_be_opened_gets_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="cannot write .*metrics.jsonl: no such file or directory"):
        rundir.Lines(tmp_path / "absent" / "metrics.jsonl")
    with pytest.raises(CheckpointError, match="cannot write .*: is a directory"):
        rundir.Lines(tmp_path)


def test_a_full_disk_gets_a_sentence_in_line_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = rundir.Lines(tmp_path / "metrics.jsonl")
    _refuse(monkeypatch, "fsync")
    with pytest.raises(CheckpointError, match="metrics.jsonl: no space left on device"):
        lines.length()
    lines.close()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs Linux")
def test_a_line_that_finds_no_room_gets_a_sentence() -> None:
    lines = rundir.Lines(Path("/dev/full"))
    with pytest.raises(CheckpointError, match="/dev/full: no space left on device"):
        lines.write({"a": 1})
    lines.close()


@pytest.mark.parametrize("record", [{"loss": float("nan")}, {"loss": float("inf")}])
def test_a_line_that_is_no_json_can_be_read_back(tmp_path: Path, record: dict[str, float]) -> None:
    """A loss may diverge: that is what happened, and is written as Python's JSON writes it."""
    lines = rundir.Lines(tmp_path / "a.jsonl")
    lines.write(record)
    lines.close()
    (again,) = rundir.read_lines(tmp_path / "a.jsonl")
    assert str(again["loss"]) == str(record["loss"])


# File names of stems

HOSTILE = [
    "../../x",
    "a/b",
    "a\\b",
    "",
    ".",
    "..",
    "...",
    ".hidden",
    "con\n",
    "tab\t",
    "\0",
    "/",
    "//",
    "/etc/passwd",
    "x" * 300,
    "x" * 301,
    "é" * 150,
    "日" * 100,
    "/" * 300,
    "%" * 300,
    "." * 300,
    "\udcff",
    "\ud800",
    "\udced\udca0\udc80",
    "a\u2028b",
    "\x85",
    "%2F",
    "%2f",
    "%252F",
    "%FF",
    "%",
    "%/",
    "%4/",
    "%%2F",
    "100 %",
]


def test_ordinary_stems_are_their_own_file_names() -> None:
    for stem in (
        "0001",
        "A cat, a dog & 2 birds (3)",
        "Ünïcode 日本",
        "a.b.c",
        "100%",
        "50% off",
        "-x",
        "~x",
        "x" * 200,
    ):
        assert rundir.file_name(stem) == stem


def test_no_stem_leaves_the_folder(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    for stem in HOSTILE:
        name = rundir.file_name(stem)
        assert name and "/" not in name and "\\" not in name and not name.startswith(".")
        assert len(name.encode()) <= 200  # and so is text
        assert not any(ord(character) < 32 for character in name)
        path = tmp_path / "out" / f"best-01-{name}.png"
        rundir.write_bytes(path, stem.encode("utf-8", "surrogatepass"))
        assert path.resolve().parent == tmp_path / "out"
    assert len(list((tmp_path / "out").iterdir())) == len(HOSTILE)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_file_names_of_stems_are_told_apart() -> None:
    pieces = ["%", "2", "F", "5", "/", ".", "\\", "\n", "é", "\udcc3", "\udca9"]
    stems = {"".join(chosen) for length in range(5) for chosen in itertools.product(pieces, repeat=length)}
    stems |= {stem + "x" * 200 for stem in stems if len(stem) < 3} | {
        "x" * 200 + stem for stem in stems if len(stem) < 3
    }
    stems |= {rundir.file_name(stem) for stem in stems}
    names = {rundir.file_name(stem) for stem in stems}
    assert len(names) == len(stems)


def test_the_file_name_of_a_stem_is_the_same_everywhere() -> None:
    assert rundir.file_name("train/0001") == "train%2F0001"
    assert rundir.file_name("../x") == "%2E.%2Fx"
    assert rundir.file_name("a%2Fb") == "a%252Fb"
    digest = hashlib.sha256(b"y" * 201).hexdigest()[:32]
    assert rundir.file_name("y" * 201) == "y" * 165 + "%FF" + digest
