"""The name of every file in a run folder, and the only ways in which they are written.

A file is written to a temporary name beside it, flushed to the disk and renamed, so that it is whole or absent whatever
happens meanwhile; line files are appended to a line at a time and cut back to a known length when a run resumes.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import math
import os
import re
import shutil
import unicodedata
import uuid
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from memdist import process
from memdist.errors import CheckpointError

CONFIG = "config.yaml"
PROVENANCE = "provenance.json"
SPLIT = "split.csv"
METRICS = "metrics.jsonl"
TIMING = "timing.jsonl"
STATE = "state.json"
SCORES = "scores.json"
SCORES_CSV = "scores.csv"
STUDY = "study.json"
STUDY_CSV = "study.csv"
STUDY_FIGURE = "study.svg"
BATCHES = "batches.json"
CHECKPOINTS = "checkpoints"
SAMPLES = "samples"
TENSORBOARD = "tensorboard"
JOBS = "jobs"
LOCK = ".lock"
SCORING_LOCK = ".scoring"

_REMEDIES = {
    errno.EROFS: "mount it writable, or choose another place",
    errno.EACCES: "ask for the right to write there, or choose another place",
    errno.EPERM: "ask for the right to write there, or choose another place",
    **dict.fromkeys(
        (errno.ENOENT, errno.ENOTDIR, errno.EEXIST, errno.EISDIR, errno.ENAMETOOLONG), "choose another place"
    ),
}

_TEMPORARY = re.compile(r"\.([0-9a-f]{8})-(\d+)-(\d+)-[0-9a-f]{8}\.tmp$")

_LONGEST_NAME = 200
"""Bytes of a name that `file_name` gives; what stands before and after it must fit into the usual 255."""


def file_name(stem: str) -> str:
    """File name, without an ending, for a stem that may be any text: other stems have other names.

    Ordinary stems are their own names. Separators, control characters, a dot at the front and what is no text are written
    as %XX of their UTF-8 bytes (so is a % that such a sequence would else be read into); what is longer than 200 bytes is
    cut and ends in a hash. %FF, which is no byte of UTF-8, marks what was cut and the empty stem.
    """
    name = "".join(_escaped(stem[at : at + 3], first=at == 0) for at in range(len(stem))) or "%FF"
    whole = name.encode()
    if len(whole) <= _LONGEST_NAME:
        return name
    digest = hashlib.sha256(stem.encode("utf-8", "surrogatepass")).hexdigest()[:32]
    return whole[: _LONGEST_NAME - 35].decode(errors="ignore") + "%FF" + digest


def _escaped(ahead: str, *, first: bool) -> str:
    """The first of a few characters, as a file name may hold it."""
    one = ahead[0]
    odd = one in "/\\" or unicodedata.category(one) in ("Cc", "Cs", "Zl", "Zp") or (first and one == ".")
    if odd or re.match("%[0-9A-Fa-f]{2}", ahead):
        return "".join(f"%{byte:02X}" for byte in one.encode("utf-8", "surrogatepass"))
    return one


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """Turn what the file system refuses while `path` is written into a sentence."""
    try:
        yield
    except OSError as error:
        why = (error.strerror or str(error)).lower()
        # Room is no remedy where nobody may write.
        remedy = _REMEDIES.get(error.errno or 0, "make room, or choose another place")
        raise CheckpointError(f"cannot write {path}: {why}; what was written before is untouched: {remedy}") from error


def make_folder(path: Path) -> Path:
    """Make a folder with its parents; a CheckpointError says why it cannot be made."""
    with naming(path):
        path.mkdir(parents=True, exist_ok=True)
    return path


def samples(run: Path) -> Path:
    """Folder of a run's pictures, made if need be; a CheckpointError where a link stands there, which might lead anywhere."""
    path = run / SAMPLES
    if path.is_symlink():
        raise CheckpointError(f"{path} is a link, and pictures are written into the run folder alone: remove the link")
    return make_folder(path)


def temporary(path: Path) -> Path:
    """A new name beside `path`; it tells which process writes there (`sweep`)."""
    # Names of files have an end, and that of `path` may have reached it.
    name = os.fsencode(path.name)[:80].decode(errors="ignore")
    return path.with_name(f".{name}.{process.this().tag}-{uuid.uuid4().hex[:8]}.tmp")


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file whole or not at all."""
    beside = temporary(path)
    with naming(path):
        try:
            with open(beside, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(beside, path)
        finally:
            beside.unlink(missing_ok=True)
        sync_folder(path.parent)


def write_text(path: Path, text: str) -> None:
    """Write a UTF-8 file whole or not at all."""
    write_bytes(path, text.encode())


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write JSON whole or not at all; NaN and infinity are refused, as they are no JSON."""
    write_text(path, json.dumps(value, indent=1, allow_nan=False) + "\n")


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object; an absent file gives an empty one, a broken one a CheckpointError."""
    try:
        value = json.loads(path.read_text(), parse_constant=_finite, parse_float=_finite)
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} cannot be read as JSON: {error}; restore it or delete it") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} holds no JSON object; restore it or delete it")
    return value


def _finite(text: str) -> float:
    """A number of JSON; a ValueError for what `write_json` never writes and could not write again."""
    if not math.isfinite(number := float(text)):
        raise ValueError(f"{text} is no finite number")
    return number


@contextlib.contextmanager
def new_folder(path: Path, *, only_ours: bool = False) -> Iterator[Path]:
    """Fill a folder under a temporary name; it appears at `path` whole, or not at all.

    A folder that someone else put there meanwhile stays, and ours goes: callers name folders by their content, or have
    removed (`remove_folder`) what stood there. With `only_ours` that is a CheckpointError.
    """
    make_folder(path.parent)
    beside = temporary(path)
    with naming(path):
        beside.mkdir()
    try:
        with naming(path):
            yield beside
            for file in beside.iterdir():
                if file.is_dir():  # filled by its own `new_folder`
                    continue
                with open(file, "rb") as handle:
                    os.fsync(handle.fileno())
            sync_folder(beside)
            try:
                os.rename(beside, path)
            except OSError:
                if not path.is_dir():
                    raise
                if only_ours:
                    raise CheckpointError(
                        f"{path} has come to be while it was written: nothing there was changed; name another folder"
                    ) from None
            sync_folder(path.parent)
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def remove_folder(path: Path) -> None:
    """Remove a folder; it leaves its name at once, so that nobody ever finds a part of it there."""
    aside = temporary(path)
    with naming(path):
        try:
            path.rename(aside)
        except FileNotFoundError:
            return
    shutil.rmtree(aside, ignore_errors=True)


def sweep(folder: Path, *, ended: Collection[str] = (), alone: bool = False) -> None:
    """Remove what killed processes left half-written in a folder.

    Others may be writing there: what goes is of processes that are known to be gone, because they ran in this place
    (`process.Process.place`) and no longer do, or because the caller knows it (`ended`, their tags); with `alone`, in a
    folder that nobody else writes into, everything. What a process of another machine left stays otherwise, as nobody can
    tell here whether it still writes: a small file, as large ones stand where the caller is alone.
    """
    me = process.this()
    for path in folder.glob(".*.tmp"):
        found = _TEMPORARY.search(path.name)
        if found and not alone:
            place, pid, start = found[1], int(found[2]), int(found[3])
            gone = me.boot != "" and place == me.place and process.life(pid, start) == "dead"
            if not gone and f"{place}-{pid}-{start}" not in ended:
                continue
        shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)


def sync_folder(path: Path) -> None:
    """Flush a folder's entries to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


class Lines:
    """A file of JSON lines that grows at its end and can be cut back to a length it had."""

    def __init__(self, path: Path, length: int | None = None) -> None:
        """Open for appending; `length` in bytes cuts off what an interrupted run wrote after its checkpoint.

        A line that ends in the middle there goes as well: the file was damaged, and the next one would be joined to it.
        """
        with naming(path):
            self.path = path
            # Unbuffered: what finds no room is not tried again when the file is closed.
            self._file = open(path, "ab", buffering=0)
            end = self._file.seek(0, os.SEEK_END)
            whole = _whole_lines(path, end if length is None else min(length, end))
            if whole < end:
                self._file.truncate(whole)
                self._file.seek(0, os.SEEK_END)

    def write(self, record: Mapping[str, Any]) -> None:
        """Append one record; it has left this process when the call returns.

        A disk that fills up takes a part of a line: `read_lines` passes over it, and who resumes cuts it off.
        """
        left = memoryview(json.dumps(record, separators=(",", ":")).encode() + b"\n")
        with naming(self.path):
            while left:
                left = left[self._file.write(left) :]

    def length(self) -> int:
        """Bytes so far, flushed to the disk."""
        with naming(self.path):
            os.fsync(self._file.fileno())
            return self._file.tell()

    def close(self) -> None:
        """Close the file."""
        with naming(self.path):
            self._file.close()


def _whole_lines(path: Path, length: int) -> int:
    """Bytes of the whole lines among the first `length` bytes of a file."""
    if length == 0:
        return 0
    with open(path, "rb") as file:
        file.seek(length - 1)
        if file.read(1) == b"\n":
            return length
        file.seek(0)
        return file.read(length).rfind(b"\n") + 1


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Read the whole records of a line file; a torn last line, which a kill can leave, is passed over.

    A CheckpointError names the line that is no record.
    """
    if not path.is_file():
        return []
    records: list[dict[str, Any]] = []
    for number, line in enumerate(path.read_bytes().split(b"\n")[:-1], 1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            why = "too deeply nested" if isinstance(error, RecursionError) else str(error)
            raise CheckpointError(
                f"line {number} of {path} is no JSON ({why}); restore the file or delete it"
            ) from error
        if not isinstance(record, dict):
            raise CheckpointError(f"line {number} of {path} is no JSON object; restore the file or delete it")
        records.append(record)
    return records
