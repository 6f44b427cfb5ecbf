"""How the shares of a folder of maps stand, read from its manifests and from what is written down of their jobs."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from memdist import process
from memdist.cluster import book, standing, tails
from memdist.cluster.standing import FRESH, Life, Row, Slurm
from memdist.errors import MemdistError, printable

RECORD = "predict.json"
MANIFEST = "manifest"
"""As `predict.record` and `predict.folder` name them, which load torch."""

_FILE = re.compile(r"([0-9]+)-of-([0-9]+)-([0-9a-f]{8})-([0-9]+)-([0-9]+)-[0-9a-f]+\.jsonl")
_WHOLE = "1-of-1"
SINGLE, PROOF = "predict", "verify"
"""Names of what has no number: all maps by one job, and the proof that they are there."""


@dataclass
class _Share:
    """What manifests say of a share."""

    maps: int = 0
    lives: set[Life] = field(default_factory=set)
    newest: float | None = None
    """Seconds since its last map."""
    speed: float | None = None

    @property
    def life(self) -> Life:
        """Of any of its processes."""
        if "alive" in self.lives or (self.newest is not None and "unknown" in self.lives and self.newest < FRESH):
            return "alive"
        return "unknown" if "unknown" in self.lives else "dead"


def rows(path: str, slurm: Slurm, *, name: str) -> list[Row]:
    """Rows of the shares of a folder of maps, in order, and of the proof that all are there; at least one."""
    place = Path(path)
    made = _manifests(f"{path}/{MANIFEST}")
    elements: dict[str, str] = {}
    names: dict[str, str] = {}
    sizes: dict[str, int | None] = {}
    for one in book.submitted(place):
        if one.kind in ("predict", "verify"):
            names[one.id] = one.name
            words = {f"{number}-of-{one.total}": number for number in one.numbers} or {one.kind: 0}
            sizes |= {share: one.share(number) for share, number in words.items() if number}
            elements |= {share: one.element(number) for share, number in words.items()}
    attempted = _attempted(book.folder(place) / book.ATTEMPTS)
    if made.keys() == {_WHOLE} and SINGLE in elements.keys() | attempted:
        made = {SINGLE: made[_WHOLE]}
    found = [
        _row(Row(name=_shown(share), group=name, place=path, state="ended", maps=share != PROOF, steps=sizes.get(share)),
             share, share in attempted, made.get(share), elements.get(share, ""), names, slurm)
        for share in sorted({*made, *elements, *attempted}, key=_order)
    ]  # fmt: skip
    found = found or [Row(name=name, group="", place=path, state="ended", maps=True, step=0)]
    return found if len(found) > 1 else [replace(found[0], name=name, group="")]


def _row(
    row: Row,
    share: str,
    attempted: bool,
    made: _Share | None,
    element: str,
    names: Mapping[str, str],
    slurm: Slurm,
) -> Row:
    try:
        attempts = book.attempts(book.attempts_file(Path(row.place), share)) if attempted else []
    except (MemdistError, OSError, TypeError, ValueError) as error:
        return replace(row, state="unreadable", why=printable(error))
    said = standing.end_of(attempts)
    life = made.life if made is not None else "unknown"
    # Shares hold no lock: an attempt that has no end yet may have come to no map so far.
    life = "unknown" if attempts and life == "dead" else life
    ids = {one for one in (attempts[-1].job if attempts else "", element) if one}
    job, gone = (
        slurm.find(ids, names=names, begun=said == "running") if said != "finished" and life != "alive" else (None, "")
    )
    state = standing.judge(said, life, job, gone=bool(gone), begun=bool(attempts))
    state = standing.cancelled(state, gone, row.place)
    if not ids:
        state = "running" if life == "alive" else "ended"
    why = standing.last_failure(attempts)
    if job is not None and job.waits:
        why = "; ".join(filter(None, (standing.pending(job), why)))
    elif state == "queued?":
        why = standing.unseen(ids)
    elif state == "lost" and not why:
        why = standing.missing(gone, begun=bool(attempts))
    node = (job.nodes if job is not None and job.runs else "") or (attempts[-1].nodes if attempts else "")
    return replace(
        row,
        state=state,
        step=made.maps if made is not None else 0 if row.maps and attempts else None,
        speed=made.speed if made is not None and state in ("running", "running?") else None,
        node=printable(node),
        attempt=len(attempts),
        why=printable(why),
        gone=gone if state == "lost" else "",
    )


def _manifests(folder: str) -> dict[str, _Share]:
    """What manifests say, share by share."""
    found: dict[str, _Share] = {}
    me = process.this()
    with contextlib.suppress(FileNotFoundError, NotADirectoryError), os.scandir(folder) as entries:
        for entry in entries:
            name = _FILE.fullmatch(entry.name)
            if name is None or not entry.is_file():
                continue
            share = found.setdefault(f"{name[1]}-of-{name[2]}", _Share())
            here = me.boot != "" and name[3] == me.place
            share.lives.add(process.life(int(name[4]), int(name[5])) if here else "unknown")
            share.maps += _maps(entry.path)
            silence = standing.silence(entry.path)
            if silence is not None and (share.newest is None or silence < share.newest):
                share.newest, share.speed = silence, _speed(entry.path)
    return found


def _maps(path: str) -> int:
    """Lines of maps, not of the samples that they are made of: names are quoted, so that nothing else looks like a key."""
    count = 0
    with open(path, "rb") as file:
        rest = b""
        while block := file.read(2**20):
            block = rest + block
            end = block.rfind(b"\n") + 1
            rest = block[end:]
            count += block.count(b"\n", 0, end) - block.count(b',"replicate":', 0, end)
    return count


def _speed(path: str) -> float | None:
    """Maps a second, of the last ones."""
    times = [
        seconds
        for record in tails.records(tails.tail(path))
        if "replicate" not in record and (seconds := tails.number(record.get("seconds"))) is not None
    ]
    return len(times) / sum(times) if sum(times) > 0 else None


def _attempted(folder: Path) -> set[str]:
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        return {name.removesuffix(".jsonl") for name in os.listdir(folder) if name.endswith(".jsonl")}
    return set()


def _shown(share: str) -> str:
    found = re.fullmatch(r"([0-9]+)-of-([0-9]+)", share)
    return f"{found[1]}/{found[2]}" if found else printable(share)


def _order(share: str) -> tuple[bool, int, int, str]:
    """Shares by number, and the proof behind them."""
    found = re.fullmatch(r"([0-9]+)-of-([0-9]+)", share)
    return (False, int(found[2]), int(found[1]), "") if found else (True, 0, 0, share)
