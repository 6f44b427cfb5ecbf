"""A folder of maps: where each output lies, and which are there.

DIR/
    predict.json          the weights and settings of all maps here (`record`)
    NAME.png              the map of the picture NAME; above FLAT outputs in numbered folders, DIR/007/NAME.png
    samples/NAME.R.png    the R-th sample of it, with --each; numbered folders within, likewise
    manifest/*.jsonl      a line for each output, in a file of the process that made it
    sheets/*.png          with --grid

No process ever waits for another. Each writes a file of lines of its own, a line once the output stands whole under its name.
What counts is what all the lines say together: an output is done if a line names the hash of its picture and the one of the
file that is there now. Two processes that predict the same picture write the same map twice, and both lines are true.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import uuid
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, NamedTuple

from memdist import draws, process, rundir
from memdist.errors import CheckpointError
from memdist.predict.inputs import Picture, Shard
from memdist.predict.record import Record

FLAT = 10_000
"""Outputs that lie in one folder at most."""
FILLED = 1_000
"""Outputs of a numbered folder, about, where there are more."""
SAMPLES = "samples"
MANIFEST = "manifest"
SHEETS = "sheets"


class Line(NamedTuple):
    """What a manifest says of an output."""

    name: str
    """Where it is, within the folder."""
    input: str
    """SHA-256 of its picture's file."""
    sha256: str
    """Of its own bytes."""


@dataclass(frozen=True)
class Layout:
    """Where outputs lie."""

    folders: int
    """Numbered folders; 0: none."""
    samples: int
    """Samples of a picture that are kept, 0 without --each."""

    @classmethod
    def of(cls, pictures: int, samples: int) -> Layout:
        """For so many pictures."""
        outputs = pictures * (1 + samples)
        return cls(-(-outputs // FILLED) if outputs > FLAT else 0, samples)

    def map(self, picture: Picture) -> str:
        """The map of a picture, within the folder."""
        return f"{self._number(picture)}{picture.name}.png"

    def outputs(self, picture: Picture) -> list[str]:
        """All outputs of a picture, the map last."""
        # A folder of their own: else the first sample of "a" would be the map of "a.1".
        where = f"{SAMPLES}/{self._number(picture)}{picture.name}"
        return [*(f"{where}.{replicate}.png" for replicate in range(1, self.samples + 1)), self.map(picture)]

    def within(self) -> list[str]:
        """Folders that hold outputs."""
        numbers = [self._digits(number) for number in range(self.folders)] or ["."]
        return [*numbers, *(f"{SAMPLES}/{number}" for number in numbers if self.samples)]

    def _number(self, picture: Picture) -> str:
        # By the name alone: it stays where it is when other pictures come.
        return f"{self._digits(draws.key('folder', picture.name) % self.folders)}/" if self.folders else ""

    def _digits(self, number: int) -> str:
        return f"{number:0{max(3, len(str(self.folders - 1)))}d}"


class Manifests:
    """The lines that all processes have written, read as they grow."""

    def __init__(self, out: Path, fingerprint: str) -> None:
        """Lines of outputs by these settings; others are passed over, and so is what is no line."""
        self._folder, self._fingerprint = out / MANIFEST, fingerprint
        self._read: dict[str, int] = {}

    def news(self) -> Iterator[tuple[str, Line]]:
        """Lines that came since the last time, each with the share (`3-of-8`) whose process wrote it."""
        names = []
        if self._folder.is_dir():
            with os.scandir(self._folder) as entries:
                names = [entry.name for entry in entries if entry.is_file()]  # who opened a pipe would wait for ever
        for name in sorted(names):
            if name.endswith(".jsonl"):
                with contextlib.suppress(FileNotFoundError), open(self._folder / name, "rb") as file:
                    for text in self._whole(name, file):
                        if (line := self._line(text)) is not None:
                            yield "-".join(name.split("-")[:3]), line

    def _whole(self, name: str, file: BinaryIO) -> list[bytes]:
        """Whole lines behind what was read of a file; one that is being written is left for the next time."""
        start = self._read.get(name, 0)
        file.seek(start)
        data = file.read()
        end = data.rfind(b"\n") + 1
        self._read[name] = start + end
        return data[:end].split(b"\n")

    def _line(self, text: bytes) -> Line | None:
        try:
            raw = json.loads(text)
            line = Line(raw["name"], raw["input"], raw["sha256"])
            mine = raw["settings"] == self._fingerprint
        except (ValueError, TypeError, KeyError, RecursionError):
            return None
        return line if mine and all(isinstance(field, str) for field in line) else None


class Manifest:
    """The lines of this process; their file is made with the first."""

    def __init__(self, out: Path, fingerprint: str, shard: Shard) -> None:
        """Outputs of a share, by settings of this fingerprint."""
        words = f"{shard.number}-of-{shard.total}-{process.this().tag}-{uuid.uuid4().hex[:8]}"
        self._path, self._fingerprint = out / MANIFEST / f"{words}.jsonl", fingerprint
        self._lines: rundir.Lines | None = None

    def write(self, line: Line, seconds: float, replicate: int | None) -> None:
        """Note an output that stands whole under its name; `seconds` are its picture's share of the time of sampling."""
        if self._lines is None:
            self._lines = rundir.Lines(self._path)
        beside = {} if replicate is None else {"replicate": replicate}
        said = {"settings": self._fingerprint, "seconds": round(seconds, 6)}
        self._lines.write({**line._asdict(), **said, **beside})

    def close(self) -> None:
        """Close the file."""
        if self._lines is not None:
            self._lines.close()


class Folder:
    """A folder of maps, as one process sees it that makes some of them."""

    def __init__(self, out: Path, record: Record, layout: Layout, own: Iterable[Picture]) -> None:
        """Read what is said of the outputs of `own` pictures."""
        self.out, self.layout = out, layout
        self.manifests = Manifests(out, record.fingerprint)
        self.said: set[str] = set()
        """Outputs of which there was a line, of all pictures."""
        mine = {name for picture in own for name in layout.outputs(picture)}
        self._known: dict[str, set[tuple[str, str]]] = {}
        for _, line in self.manifests.news():
            self.said.add(line.name)
            if line.name in mine:
                self._known.setdefault(line.name, set()).add((line.input, line.sha256))

    def make(self) -> None:
        """Make the folders, and remove what killed processes left half-written there."""
        for name in (".", *self.layout.within(), MANIFEST):
            rundir.sweep(rundir.make_folder(self.out / name))

    def done(self, picture: Picture, digest: str) -> bool:
        """Whether all outputs of a picture are there, made of a file with this SHA-256."""
        return all(self.harm(name, digest) is None for name in self.layout.outputs(picture))

    def harm(self, name: str, digest: str) -> str | None:
        """What keeps an output from being the one of a picture with this SHA-256: missing, damaged, changed; None: nothing."""
        lines = self._known.get(name, set())
        there = hash_of(self.out / name)
        if there is None:
            return "missing"
        if (digest, there) in lines:
            return None
        return "changed" if any(there == sha256 for _, sha256 in lines) else "damaged"


def hash_of(path: Path) -> str | None:
    """SHA-256 of a file; None where there is none."""

    def opened(name: str, flags: int) -> int:
        return os.open(name, flags | os.O_NONBLOCK)  # a pipe that nobody writes into is empty, and not waited for

    try:
        with open(path, "rb", opener=opened) as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
        return None
    except OSError as error:
        why = (error.strerror or str(error)).lower()
        raise CheckpointError(f"{path} cannot be read: {why}; make it readable, or remove it") from error
