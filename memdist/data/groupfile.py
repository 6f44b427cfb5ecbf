"""The file that groups of near duplicates are written to; what a person has written there stays."""

from __future__ import annotations

import csv
import io
import itertools
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path

from memdist import config, rundir
from memdist.data import sheet, split
from memdist.data.check import Listing
from memdist.data.findings import Finding, Kind
from memdist.errors import CheckpointError, DataError, printable


def check(path: Path) -> dict[str, str]:
    """Raise a CheckpointError unless groups could be written to `path`: a new file, or one that holds groups.

    Gives the group of each stem that it holds now; a DataError says why it cannot be read.
    """
    with rundir.naming(path):
        if path.exists() and not path.is_dir() and not _holds_groups(path):
            raise CheckpointError(
                f"{path} is there and holds no groups: name a new file, or one that an earlier --group-duplicates wrote"
            )
        if path.is_dir():
            raise IsADirectoryError(21, "Is a directory")
        trial = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
        trial.touch(exist_ok=False)
        trial.unlink()
    if not path.exists():
        return {}
    name = "--group-duplicates"
    table = sheet.read(path, name, ("stem", "group"))
    found = {line.values["stem"]: line.values["group"].strip() for line in table.lines}
    if table.faults or len(found) < len(table.lines):
        why = table.faults[0].sentence if table.faults else f"{name} = {path} names a stem twice: keep one line"
        raise DataError(f"{why}, or name a new file")
    return {stem: group for stem, group in found.items() if group}


def save(
    path: Path, former: Mapping[str, str], grouped: Mapping[str, str], listed: Listing, data: config.Data
) -> Finding | str:
    """Write the groups of `leaks.group`; a sentence on them, or a finding on why the file was left as it was.

    `former` is what `check` gave. Groups in the file are kept: nothing is written where one would be lost.
    """
    if not listed.grouped:
        missing = f"data.groups = {data.groups} cannot be used, so that its groups would be missing"
        return Finding(Kind.GROUPS_KEPT, path, missing)
    read = data.groups is not None and path.exists() and path.samefile(data.groups)
    if not read and (stem := _lost(former, grouped)) is not None:
        return Finding(Kind.GROUPS_KEPT, path, f"the group {former[stem]!r} of {stem!r} in it would be lost")
    write(path, _added(former, grouped) if read else grouped)
    many = f"{split.counted(len(set(grouped.values())), 'group')} of {len(grouped)}" if grouped else "no"
    said, place = f"{many} near duplicates in {printable(path)}", f"data.groups={printable(path)}"
    why = _undealt(listed, data.model_copy(update={"groups": path})) if _undealt(listed, data) is None else None
    if why is None:
        return f"{said}: train with {place}"
    return f"{said}: training would refuse {place} with the splits that are given, so take copies out ({why})"


def _undealt(listed: Listing, data: config.Data) -> str | None:
    """Why pairs cannot be split; None where they can."""
    try:
        split.deal(listed.pairs, data)
    except DataError as error:
        return str(error)
    return None


def _added(former: Mapping[str, str], grouped: Mapping[str, str]) -> dict[str, str]:
    """Groups of a file with those that were found from them: what has a group in the file stays with its members."""
    renamed = {former[stem]: group for stem, group in grouped.items() if stem in former}
    # A group that is named after its first member must not take the name of another one.
    taken = {group for group in former.values() if group not in renamed}
    fresh = {group: next(n for n in _names(group) if n not in taken) for group in dict.fromkeys(grouped.values())}
    grouped = {stem: fresh[group] for stem, group in grouped.items()}
    renamed = {group: fresh[now] for group, now in renamed.items()}
    return {stem: renamed.get(group, group) for stem, group in former.items()} | dict(grouped)


def _names(group: str) -> Iterator[str]:
    yield group
    yield from (f"{group} ({number})" for number in itertools.count(2))


def _lost(former: Mapping[str, str], grouped: Mapping[str, str]) -> str | None:
    """A stem whose group in a file would be lost if `grouped` took its place; None for none.

    A group that has another name now is lost as well, unless its name was that of a member, as `leaks.group` names them.
    """
    now = {group: grouped.get(stem) for stem, group in former.items()}
    for stem, group in former.items():
        if grouped.get(stem) is None or grouped[stem] != now[group]:
            return stem
        if group != grouped[stem] and former.get(group) != group:
            return stem
    return None


def _holds_groups(path: Path) -> bool:
    if not path.is_file():
        return False
    with open(path, "rb") as file:
        return file.readline(20).strip() == b"stem,group"


def write(path: Path, grouped: Mapping[str, str]) -> None:
    """Write the group of each stem as CSV with the columns stem,group, sorted, whole or not at all."""
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("stem", "group"))
    writer.writerows(sorted(grouped.items()))
    rundir.write_text(path, text.getvalue())
