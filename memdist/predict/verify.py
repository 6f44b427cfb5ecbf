"""`memdist predict --verify`: proof that a folder holds every output once, whole, and nothing else."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from memdist import rundir
from memdist.data import pairs
from memdist.errors import DataError
from memdist.predict import folder, inputs, record
from memdist.predict.ahead import ahead
from memdist.predict.inputs import Picture
from memdist.predict.report import Report, several

_TOLD = {
    "missing": "missing",
    "damaged": "damaged, or not made here",
    "changed": "made of pictures that have changed since",
}


def verify(there: folder.Folder, pictures: Sequence[Picture], threads: int) -> Report:
    """Compare every output with its picture and its line by their hashes, and look for what is no output; writes nothing."""
    problems: dict[str, list[str]] = {told: [] for told in _TOLD.values()}
    unread = problems.setdefault("unreadable", [])
    whole = 0

    def look(picture: Picture) -> list[str | None] | str:
        try:
            digest = pairs.content_hash(picture.path)
        except DataError as error:
            return str(error)
        return [there.harm(name, digest) for name in there.layout.outputs(picture)]

    with contextlib.closing(ahead(look, pictures, threads, 16 * threads)) as found:
        for picture, harms in zip(pictures, found, strict=True):
            if isinstance(harms, str):
                unread.append(harms)
                continue
            for name, harm in zip(there.layout.outputs(picture), harms, strict=True):
                if harm is None:
                    whole += 1
                else:
                    problems[_TOLD[harm]].append(f"{there.out / name} (of {picture.path})")
    extra = problems.setdefault("extra, no output of these pictures", [])
    extra += [str(path) for path in _extra(there, pictures)]
    of = f"of {several(len(pictures), 'picture')}"
    if not any(problems.values()):
        return Report(f"{several(whole, 'output')} {of} in {there.out}: each is there once, whole, and nothing else is")
    return Report(
        f"{several(whole, 'output')} {of} in {there.out} are what they should be; to mend the others, predict again without "
        "--verify, and remove what is no output",
        problems,
    )


def _extra(there: folder.Folder, pictures: Sequence[Picture]) -> Iterator[Path]:
    """Files within the folder that are neither an output, nor a record of them, nor a picture that was given."""
    expected = {name for picture in pictures for name in there.layout.outputs(picture)} | {record.FILE}
    given = inputs.places(pictures)
    real = there.out.resolve()
    for place, below, files in os.walk(there.out):
        within = os.path.relpath(place, there.out)
        if within == ".":
            below[:] = [name for name in below if name != rundir.JOBS]  # what their cluster wrote down of them
        kept = {folder.MANIFEST: ".jsonl", folder.SHEETS: ".png"}.get(within)
        links = [name for name in below if os.path.islink(os.path.join(place, name))]
        for name in sorted([*files, *links]):
            path = os.path.normpath(os.path.join(within, name))
            ours = kept is not None and name.endswith(kept) and not name.startswith(".")
            if path not in expected and not ours and real / path not in given:
                yield there.out / path
