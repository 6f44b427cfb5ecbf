"""A search folder: what is searched, what was decided, and the runs.

SEARCH/
    search.json          what is searched and how: another search is refused here
    pack.json            of search.pack=auto: how many trials share a device, and what was measured
    ledger.jsonl         every decision and every result, in order (`memdist.search.ledger`)
    trials/<cell>/       an ordinary run folder each
    state.json           how it stands
    workers/             what trials print, a file for each process that trains them
    leaderboard.csv ...  what came of it (`memdist.search.summary`)
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from memdist import rundir
from memdist.errors import SearchError, printable

SEARCH = "search.json"
PACK = "pack.json"
LEDGER = "ledger.jsonl"
TRIALS = "trials"
WORKERS = "workers"

FORMAT = 1
"""Raised where folders of before cannot be gone on with."""


def settings(folder: Path) -> dict[str, Any]:
    """What a search folder says of itself; raises SearchError where it is none."""
    found = rundir.read_json(folder / SEARCH)
    if not found:
        what = "has no search.json" if folder.is_dir() else "does not exist"
        raise SearchError(
            f"{printable(folder)} is no search folder: it {what}; give one that `memdist search run` made"
        )
    if found.get("format") != FORMAT:
        raise SearchError(
            f"{printable(folder)} was made by another version of memdist (format {found.get('format')!r}, not {FORMAT}): search "
            "in another folder"
        )
    return found


def check(folder: Path, mine: Mapping[str, Any]) -> bool:
    """Whether a search is begun there already; raises SearchError where that is another one, or where other things lie."""
    with rundir.naming(folder):
        others = [path.name for path in folder.iterdir()] if folder.is_dir() else []
    strange = [name for name in others if not name.startswith(".") and name not in (WORKERS, rundir.JOBS)]
    if not strange:
        return False
    if SEARCH not in others:
        raise SearchError(
            f"{printable(folder)} holds other files and is no search folder; choose another folder with --out"
        )
    theirs = settings(folder)
    for key, value in mine.items():
        if theirs.get(key) != value:
            raise SearchError(
                f"{printable(folder)} was begun with {key} = {printable(theirs.get(key))}, and now has {printable(value)}: go on "
                "as it was begun, or search in another folder with --out"
            )
    return True


def begin(folder: Path, mine: Mapping[str, Any]) -> None:
    """Write down what is searched."""
    rundir.make_folder(folder / TRIALS)
    rundir.make_folder(folder / WORKERS)
    rundir.write_json(folder / SEARCH, mine)
