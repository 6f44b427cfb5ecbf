"""`memdist logs`: what the ranks of a run's attempts, or of a share of a folder of maps, have printed."""

from __future__ import annotations

import codecs
import os
import re
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from memdist import output
from memdist.cluster import book
from memdist.errors import ConfigError, printable

TICK = 0.5
"""Seconds between two looks at a log that is followed."""
AGAIN = 3.0
"""Seconds between two looks at whether its run goes on."""

_RANK = re.compile(r"(.+)\.([0-9]{1,9})\.rank([0-9]{1,9})")
_ESCAPE = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]")
"""Colours and movements of the cursor, of which nothing is lost to who reads."""


@dataclass(frozen=True)
class Log:
    """A file of logs."""

    path: Path
    job: str
    restart: int | None
    """None: of all attempts of the job, by its batch script."""
    rank: int | None

    def __str__(self) -> str:
        """As a sentence names it."""
        if self.restart is None:
            return f"batch script of job {self.job}"
        return f"rank {self.rank} of job {self.job}, start {self.restart + 1}"


@dataclass(frozen=True)
class Wanted:
    """Whose log is asked for."""

    place: Path
    rank: int | None = None
    """None: 0, or the batch script's where no rank has printed anything."""
    job: str | None = None
    share: int | None = None

    def check(self) -> None:
        """Raise a ConfigError where the folder cannot have logs."""
        if not self.place.is_dir():
            what = "is no folder" if self.place.exists() else "does not exist"
            raise ConfigError(f"{self.place} {what}: name the folder of a run or of maps")

    def attempts(self) -> list[tuple[str, int]]:
        """Job and restart of each attempt, in order."""
        files = [book.attempts_file(self.place)]
        folder = book.folder(self.place) / book.ATTEMPTS
        if self.share is not None:
            files = sorted(folder.glob(f"{self.share}-of-*.jsonl"), key=lambda path: path.stat().st_mtime)
        elif folder.is_dir() and not files[0].exists():
            files = [path for path in folder.glob("*.jsonl") if not path.name[:1].isdigit()]
        found = [attempt for path in files for attempt in book.attempts(path)]
        return [(one.job, one.restart) for one in sorted(found, key=lambda one: one.began)]

    def logs(self) -> list[Log]:
        """Logs that are there, the oldest attempt first, batch scripts before ranks."""
        attempts = self.attempts()
        jobs = list(dict.fromkeys(job for job, _ in attempts))
        for one in book.submitted(self.place):
            mine = one.numbers if self.share is None else [n for n in one.numbers if n == self.share]
            if one.kind != "evaluate" or one.id == self.job:
                jobs += [one.element(number) for number in mine] if one.numbers else [one.id]
        known = {job: at for at, job in reversed(list(enumerate(jobs)))}
        found = []
        for folder in self._folders():
            own = folder == book.logs(self.place) and self.share is None
            for path in folder.iterdir() if folder.is_dir() else ():
                if rank := _RANK.fullmatch(path.name):
                    log = Log(path, rank[1], int(rank[2]), int(rank[3]))
                elif path.name.endswith(".log"):
                    log = Log(path, path.name.removesuffix(".log"), None, None)
                else:
                    continue
                if (log.job in known or (own and not attempts)) and self.job in (None, log.job):
                    found.append(log)
        # Jobs in the order of their attempts; numbers of jobs alone say little, as they begin anew one day.
        return sorted(found, key=lambda log: (known.get(log.job, -1), -1 if log.restart is None else log.restart))

    def newest(self) -> Log | None:
        """The log of the newest attempt; None where there is none yet."""
        logs = self.logs()
        ranks = [log for log in logs if log.rank == (self.rank or 0)]
        if ranks and (self.rank is not None or ranks[-1].job == logs[-1].job):
            return ranks[-1]
        return logs[-1] if logs and self.rank is None else None

    def refusal(self) -> ConfigError:
        """What is there instead."""
        self_ = f"--rank {self.rank}" if self.rank is not None else ""
        self_ += f" --job {self.job}" if self.job is not None else ""
        self_ += f" --shard {self.share}" if self.share is not None else ""
        there = Wanted(self.place, share=self.share).logs() or Wanted(self.place).logs()
        which = f" for {self_.strip()}" if self_ else ""
        if not there:
            sharded = (book.folder(self.place) / book.ATTEMPTS).is_dir() and self.share is None
            hint = "name a share of it with --shard" if sharded else "`memdist status` says how it stands"
            return ConfigError(f"{self.place} has no log{which}: {hint}")
        said = []
        for job in dict.fromkeys(log.job for log in there):
            starts = sorted({log.restart for log in there if log.job == job and log.restart is not None})
            ranks = sorted({log.rank for log in there if log.job == job and log.rank is not None})
            parts = f"rank{'s' if len(ranks) > 1 else ''} {_span(ranks)}" if ranks else "its batch script"
            said.append(f"job {job} ({parts}" + (f", {len(starts)} starts)" if len(starts) > 1 else ")"))
        more = f" and {len(said) - 5} more" if len(said) > 5 else ""
        return ConfigError(f"{self.place} has no log{which}; there are those of {', '.join(said[-5:])}{more}")

    def _folders(self) -> Iterator[Path]:
        """Where logs may be: in the folder itself, or, of a batch script, in that of the runs which it is one of."""
        yield book.logs(self.place)
        place = Path(os.path.abspath(self.place))
        for above in list(place.parents)[:3]:
            if (book.folder(above) / book.SUBMITTED).is_file():
                yield book.logs(above)


def show(wanted: Wanted) -> None:
    """Print the newest log; a ConfigError says which there are where it is not one of them."""
    wanted.check()
    log = wanted.newest()
    if log is None:
        raise wanted.refusal()
    printer = Printer()
    printer.begin(log)
    printer.more()
    printer.end()


def follow(wanted: Wanted, live: Callable[[], bool], pause: Callable[[float], None] = time.sleep) -> None:
    """Print the newest log as it grows, and those of later attempts, until its run is over or Ctrl-C.

    `live` says whether the run may still go on.
    """
    wanted.check()
    printer = Printer()
    log = wanted.newest()
    if log is None and not live():
        raise wanted.refusal()
    try:
        looked = -AGAIN
        if log is not None:
            printer.begin(log)
        else:
            print(f"memdist: waiting for a log of {printable(wanted.place)}", file=sys.stderr)
        while True:
            ends = False
            if time.monotonic() - looked >= AGAIN:
                ends = not live()  # asked before the last words are read
                looked = time.monotonic()
            printer.more()
            newer = wanted.newest()
            if newer is not None and newer != log:
                printer.end()
                log = newer
                printer.begin(log)
                printer.more()
            elif ends:
                break
            pause(TICK)
    except KeyboardInterrupt:
        pass
    printer.end()


class Printer:
    """Copies files that grow to standard output: as they are, or as a terminal may be shown them."""

    def __init__(self) -> None:
        """Nothing is open yet."""
        self._terminal = sys.stdout is not None and sys.stdout.isatty()
        self._out = output.Output(needed=True)
        self._path: Path | None = None
        self._at = 0
        self._rest = ""
        self._decode = codecs.getincrementaldecoder("utf-8")("backslashreplace")

    def begin(self, log: Log) -> None:
        """Go on with a file, from its beginning."""
        self._path, self._at, self._rest = log.path, 0, ""
        self._decode.reset()
        # On standard error: what is piped is the log alone.
        print(f"memdist: {printable(log)}: {printable(log.path)}", file=sys.stderr)

    def more(self) -> None:
        """Print what has come since."""
        if self._path is None:
            return
        with open(self._path, "rb", opener=_opened) as file:
            if os.fstat(file.fileno()).st_size < self._at:
                self._at = 0  # it was begun anew
            file.seek(self._at)
            while block := file.read(2**18):
                self._at += len(block)
                self._print(block)
        self._out.flush()

    def end(self) -> None:
        """Print what is left of a file."""
        if self._terminal and self._rest:
            self._out.write(shown(self._rest) + "\n")
            self._rest = ""
        self._out.flush()

    def _print(self, block: bytes) -> None:
        if not self._terminal:
            sys.stdout.buffer.write(block)
            sys.stdout.buffer.flush()
            return
        whole, newline, self._rest = (self._rest + self._decode.decode(block)).rpartition("\n")
        self._out.write(shown(whole) + newline)


def shown(text: str) -> str:
    """Text as a terminal may be shown it: nothing that it would obey but ends of lines and tabs."""
    lines = _ESCAPE.sub("", text.replace("\r\n", "\n").replace("\r", "\n")).split("\n")
    return "\n".join("\t".join(printable(part) for part in line.split("\t")) for line in lines)


def _opened(name: str, flags: int) -> int:
    return os.open(name, flags | os.O_NONBLOCK)  # who opened a pipe would wait for ever


def _span(numbers: list[int]) -> str:
    """0 to 7, or 0, 2, 3."""
    if len(numbers) > 2 and numbers[-1] - numbers[0] == len(numbers) - 1:
        return f"{numbers[0]} to {numbers[-1]}"
    return ", ".join(map(str, numbers))
