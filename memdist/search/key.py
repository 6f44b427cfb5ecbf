"""What a training is, in 16 characters: two runs of one key have the same curves, wherever they were trained."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from memdist import config, models, rundir
from memdist.errors import MemdistError
from memdist.search import cells
from memdist.search.cells import Cell, Space

FORMAT = 1
"""Raised with a memdist that trains the same settings to other curves."""

_DEEPEST = 6
"""Folders below one another that are searched for runs."""


def of(identity: str, epochs: int, split: str, patience: int | None = None) -> str:
    """The key of a run.

    `identity`: hash of its identity settings (64 digits); `epochs`: its last, towards which learning rates decay; `split`:
    fingerprint of its data and split; `patience`: validations after which it may end before its last epoch.
    """
    early = {} if patience is None else {"patience": patience}
    return config.fingerprint({"identity": identity, "epochs": epochs, "split": split, "format": FORMAT, **early}, 16)


class Keys:
    """The keys of a space's cells. Data that cells share are read and decoded once."""

    def __init__(self, space: Space) -> None:
        """Nothing is read yet."""
        self._space = space
        self._splits: dict[str, str] = {}

    def __call__(self, cell: Cell) -> str:
        """The key of a cell; raises DataError and ConfigError."""
        run = cells.resolve(self._space, cell)
        identity = config.fingerprint(config.identity(run), 64)
        return of(identity, run.epochs, self.split(run), run.select.patience)

    def split(self, run: Any) -> str:
        """Fingerprint of the pictures, maps and split of a run."""
        fixed = {name: value for name, value in config.identity(run).items() if name.startswith("data.")}
        mine = config.fingerprint(fixed, 16)
        if mine not in self._splits:
            from memdist.data import split
            from memdist.train import dataset

            self._splits[mine] = split.fingerprint(dataset.load(run).table)
        return self._splits[mine]


def trained(folders: Sequence[Path]) -> dict[str, Path]:
    """Runs that have come to their end in these folders or below, by key; raises ConfigError where one is no folder."""
    found: dict[str, Path] = {}
    for folder in folders:
        if not os.path.isdir(folder) or not os.access(folder, os.R_OK | os.X_OK):
            from memdist.errors import ConfigError

            what = "cannot be read" if os.path.isdir(folder) else "is no folder"
            raise ConfigError(f"search.reuse names {folder}, which {what}: give folders of runs, or leave it out")
        for root, below, files in os.walk(folder):
            depth = len(Path(root).relative_to(folder).parts)
            if rundir.CONFIG in files and rundir.PROVENANCE in files:
                below.clear()
                if (key := _of_run(Path(root))) is not None:
                    found.setdefault(key, Path(root))
            elif depth >= _DEEPEST:
                below.clear()
            below.sort()
    return found


def _of_run(run: Path) -> str | None:
    """The key of a run that has come to its end; None of any other."""
    try:
        if rundir.read_json(run / rundir.STATE).get("state") != "finished":
            return None
        facts = rundir.read_json(run / rundir.PROVENANCE)
        if facts.get("format", FORMAT) != FORMAT:
            return None
        settings = models.resolve(config.read(run / rundir.CONFIG))
        return of(str(facts["identity"]), settings.epochs, str(facts["split_sha256"]), settings.select.patience)
    except (MemdistError, KeyError):
        return None
