"""Pairs in a CSV file of paths: columns image and map and, if wanted, split and group."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from memdist.data import sheet
from memdist.data.pairs import PairFile
from memdist.data.split import NAMES
from memdist.data.survey import Problem, Survey, odd


class _Row(NamedTuple):
    """A line of the CSV file that names a pair."""

    number: int
    image: str
    map: str
    split: str | None
    group: str | None


def survey(path: Path) -> Survey:
    """Read a CSV file of paths; a DataError where none of its lines can be told."""
    table = sheet.read(path, "data.csv", ("image", "map"), ("split", "group"))
    where = f"of data.csv = {path}"
    problems = [Problem(path, "line", fault.sentence, fault.number) for fault in table.faults]
    rows: list[_Row] = []
    seen: dict[str, int] = {}
    splits = any(line.values.get("split") for line in table.lines)
    for number, values in table.lines:
        faults = list(_line_faults(path, number, values, splits))
        names = [os.path.normpath(os.path.join(path.parent, values[column])) for column in ("image", "map")]
        if names[0] in seen:
            sentence = (
                f"line {number} {where} names the image {values['image']!r} again (line {seen[names[0]]} did): keep one"
            )
            faults.append(Problem(Path(names[0]), "again", sentence, number))
        problems += faults
        # A file that is absent still counts for the names of the others, which are relative to where all of them lie.
        if all(fault.kind == "absent" for fault in faults):
            seen[names[0]] = number
            group = values.get("group", "").strip() or None
            rows.append(_Row(number, names[0], names[1], values.get("split") or None, group))
    stems = _stems([row.image for row in rows], path.parent)
    absent = {problem.line for problem in problems}
    for row, stem in zip(rows, stems, strict=True):
        if why := odd(stem):
            sentence = f"the image {stem!r} in line {row.number} {where} {why}: rename it"
            problems.append(Problem(Path(row.image), "name", sentence, row.number))
            absent.add(row.number)
    found = [
        PairFile(stem, Path(row.image), Path(row.map), row.split, row.group)
        for row, stem in zip(rows, stems, strict=True)
        if row.number not in absent
    ]
    if not rows and not problems:
        problems.append(
            Problem(path, "empty", f"data.csv = {path} has a header and no pairs: add a line for each pair")
        )
    if rows and splits and not any(row.split == "train" for row in rows):
        problems.append(Problem(path, "split", f"no line {where} has the split train: name what is trained on"))
    return Survey(sorted(found), sorted(problems, key=lambda problem: problem.line or 0))


def _line_faults(path: Path, number: int, values: dict[str, str], splits: bool) -> Iterator[Problem]:
    """What is wrong with a line as it stands; `splits`: some line names one."""
    where = f"line {number} of data.csv = {path}"
    for column in ("image", "map"):
        text = values[column]
        file = os.path.join(path.parent, text)
        if not text.strip():
            yield Problem(path, "line", f"{where} has no {column}: fill it in, or take the line out", number)
        elif not os.path.isfile(file):  # unlike Path's, this takes every name that no file can have
            shown = text if len(text) <= 200 else f"{text[:200]}..."
            what = "is a folder" if os.path.isdir(file) else "is not there"
            yield Problem(
                Path(file),
                "absent",
                f"{where} names the {column} {shown!r}, which {what} (relative to {path.parent}): mend the path, or take "
                "the line out",
                number,
            )
    split = values.get("split", "")
    if splits and not split:
        yield Problem(
            path, "split", f"{where} has no split, and other lines have: give every line one, or none", number
        )
    elif split and split not in NAMES:
        yield Problem(path, "split", f"{where} has the split {split[:40]!r}: it should be train, val or test", number)


def _stems(images: list[str], folder: Path) -> list[str]:
    """Names of pictures by their paths from a folder; without endings, but where two would be the same.

    A name depends on no other line but one that differs in its ending, so that no line moves another pair between splits.
    """
    whole = [os.path.relpath(image, folder) for image in images]
    short = [os.path.splitext(name)[0] for name in whole]
    times = Counter(short)
    return [name if times[stem] > 1 else stem for name, stem in zip(whole, short, strict=True)]
