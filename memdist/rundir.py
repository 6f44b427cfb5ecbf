"""The name of every file in a run folder, and the only ways in which they are written.

A file is written to a temporary name beside it, flushed to the disk and renamed, so that it is whole or absent whatever
happens meanwhile; line files are appended to a line at a time and cut back to a known length when a run resumes.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from memdist.errors import CheckpointError

CONFIG = "config.yaml"
PROVENANCE = "provenance.json"
SPLIT = "split.csv"
METRICS = "metrics.jsonl"
TIMING = "timing.jsonl"
STATE = "state.json"
SCORES = "scores.json"
SCORES_CSV = "scores.csv"
CHECKPOINTS = "checkpoints"
SAMPLES = "samples"
TENSORBOARD = "tensorboard"
LOCK = ".lock"


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """Turn what the file system refuses while `path` is written into a sentence."""
    try:
        yield
    except OSError as error:
        why = (error.strerror or str(error)).lower()
        raise CheckpointError(
            f"cannot write {path}: {why}; what was written before is untouched: make room, or choose another place"
        ) from error


def make_folder(path: Path) -> Path:
    """Make a folder with its parents; a CheckpointError says why it cannot be made."""
    with naming(path):
        path.mkdir(parents=True, exist_ok=True)
    return path


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file whole or not at all."""
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    with naming(path):
        try:
            with open(temporary, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
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
        value = json.loads(path.read_text())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read as JSON: {error}; restore it or delete it") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} holds no JSON object; restore it or delete it")
    return value


@contextlib.contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Fill a folder under a temporary name; it appears at `path` whole, or not at all.

    A folder that someone else put there meanwhile stays, and ours goes: callers name folders by their content, or have
    removed (`remove_folder`) what stood there.
    """
    make_folder(path.parent)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    with naming(path):
        temporary.mkdir()
    try:
        with naming(path):
            yield temporary
            for file in temporary.iterdir():
                with open(file, "rb") as handle:
                    os.fsync(handle.fileno())
            sync_folder(temporary)
            try:
                os.rename(temporary, path)
            except OSError:
                if not path.is_dir():
                    raise
            sync_folder(path.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def remove_folder(path: Path) -> None:
    """Remove a folder; it leaves its name at once, so that nobody ever finds a part of it there."""
    aside = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    with naming(path):
        try:
            path.rename(aside)
        except FileNotFoundError:
            return
    shutil.rmtree(aside, ignore_errors=True)


def sweep(folder: Path) -> None:
    """Remove what a killed process left half-written in a folder that no other process writes into."""
    for path in folder.glob(".*.tmp"):
        shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold a run folder for this process; a CheckpointError when another process of this machine does.

    The system lets go of the lock when the process ends, however it ends.
    """
    import fcntl

    path = folder / LOCK
    with naming(path):
        file = open(path, "w")
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise CheckpointError(
                f"{folder} is being trained by another process; wait for its end, or choose another folder with --out"
            ) from None
        yield


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
        """Open for appending; `length` in bytes cuts off what an interrupted run wrote after its checkpoint."""
        with naming(path):
            self.path = path
            self._file = open(path, "ab")
            if length is not None and length < self._file.seek(0, os.SEEK_END):
                self._file.truncate(length)
                self._file.seek(0, os.SEEK_END)

    def write(self, record: Mapping[str, Any]) -> None:
        """Append one record; it has left this process when the call returns."""
        with naming(self.path):
            self._file.write(json.dumps(record, separators=(",", ":")).encode() + b"\n")
            self._file.flush()

    def length(self) -> int:
        """Bytes so far, flushed to the disk."""
        with naming(self.path):
            os.fsync(self._file.fileno())
            return self._file.tell()

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Read the whole records of a line file; a torn last line, which a kill can leave, is passed over."""
    if not path.is_file():
        return []
    lines = path.read_bytes().split(b"\n")[:-1]
    return [json.loads(line) for line in lines if line.strip()]
