"""Which shares of a folder of maps are done, and whether they were verified, as far as that stands in its book."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from memdist.cluster import book, decide
from memdist.predict import folder as maps
from memdist.predict import inputs as inputs_


def done(place: Path, pictures: Sequence[inputs_.Picture], shards: int, layout: maps.Layout, key: str) -> Iterator[int]:
    """Shares that were finished, of these very pictures, and whose maps are there."""
    ours = [job for job in book.submitted(place) if job.key == key]
    for number in range(1, shards + 1):
        attempts = book.attempts(book.attempts_file(place, f"{number}-of-{shards}"))
        finished = attempts and attempts[-1].kind == "finished"
        if finished and any(attempts[-1].job == job.element(number) for job in ours if number in job.numbers):
            own = inputs_.Shard(number, shards).of(pictures)
            if all((place / name).is_file() for picture in own for name in layout.outputs(picture)):
                yield number


def found_wrong(place: Path) -> bool:
    """Whether the last verification has found something: then all shares look at their maps again."""
    attempts = book.attempts(book.attempts_file(place, "verify"))
    return bool(attempts) and attempts[-1].kind not in (None, *decide.NO_FAILURE)


def verified(place: Path, key: str) -> bool:
    """Whether a verification that was submitted with these shares has found all maps."""
    attempts = book.attempts(book.attempts_file(place, "verify"))
    ours = {job.id for job in book.submitted(place) if job.kind == "verify" and job.key == key}
    return any(attempt.kind == "finished" and attempt.job in ours for attempt in attempts)
