"""Run folders that were imported: no training led to them, and the data they are scored on are not theirs."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from memdist import rundir
from memdist.data import split as split_
from memdist.errors import CheckpointError

SPLIT_KEYS = ("data.train", "data.val", "data.test", "data.split_seed")
"""Part of what a trained run is; of an imported one they only say how to cut the data at hand."""


def is_imported(folder: Path) -> bool:
    """Whether the folder holds weights from elsewhere rather than a training."""
    return "imported" in rundir.read_json(folder / rundir.PROVENANCE)


def refuse_training(folder: Path) -> None:
    """Raise a CheckpointError for a folder in which there is no training to go on with."""
    if is_imported(folder):
        raise CheckpointError(
            f"{folder} was imported and has no training to go on with: start from it in another folder, "
            f"init.from={folder} --out NEW"
        )


def adopt(folder: Path, table: Sequence[split_.Row]) -> None:
    """Take these data's split as the one that the folder's scores are of; scores on other data go."""
    path = folder / rundir.SPLIT
    if path.is_file() and split_.fingerprint(split_.read(path)) == split_.fingerprint(table):
        return
    for name in (rundir.SCORES, rundir.SCORES_CSV):
        (folder / name).unlink(missing_ok=True)
    shutil.rmtree(folder / rundir.SAMPLES, ignore_errors=True)
    split_.write(path, table)


def said(folder: Path) -> str:
    """What a reader of its scores has to know."""
    return (
        f"{folder} was imported: scored on the split that the data given here make; whether its weights have seen these "
        "pictures is not known"
    )
