"""The finalists of a search, trained again from other seeds: ranked by their mean on val, reported on test with its spread.

The best of many trials is partly the luckiest: what chose it overstates it (the winner's curse). Other seeds have no part in
that choice, and test none in any.
"""

from __future__ import annotations

import csv
import io
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from memdist import config, metrics, rundir
from memdist.errors import SearchError, printable
from memdist.search import folder, found
from memdist.search.candidates import Candidates
from memdist.search.cells import Cell, Space
from memdist.search.methods.grid import Grid
from memdist.search.objective import Mode

FOLDER = "confirm"
"""Search folder of the finalists, within that of the search."""
TABLE = "confirm.csv"
REPORTED = "test"


class Finalists(Candidates):
    """Each finalist with each seed."""

    def __init__(self, search: Path, runs: Sequence[found.Found], seeds: int) -> None:
        """Seeds count on from that of the search's trials, which chose."""
        super().__init__(Space(str(search), "", {}, {}, ()))
        self._cells: list[Cell] = []
        for run in runs:
            raw = found.plain(run.folder)
            for one in range(1, seeds + 1):
                settings = raw | {"seed": int(raw.get("seed", 0)) + one}
                words = tuple(f"{key}={config.line(value)}" for key, value in settings.items())
                name = rundir.file_name(f"{run.number},seed={settings['seed']},{run.folder.name}")
                at = {"finalist": run.number, "seed": settings["seed"]}
                self._cells.append(Cell(len(self._cells), at, words, name))
        self.count = len(self._cells)

    def at(self, place: int) -> int | None:
        """The place itself."""
        return place if place < len(self._cells) else None

    def cell(self, number: int) -> Cell:
        """The settings of a finalist, whole, with a seed."""
        return self._cells[number]

    def settings(self) -> dict[str, Any]:
        """Which finalists, and which seeds."""
        return {"finalists": [list(cell.values.values()) for cell in self._cells]}


class Again(Grid):
    """Every finalist from every seed, up to the last epoch."""

    name = "confirm"

    def __init__(self, finalists: Finalists, epochs: int, mode: Mode) -> None:
        super(Grid, self).__init__(finalists, epochs, mode)


def finalists(search: Path, top: int, seeds: int) -> tuple[Finalists, list[found.Found]]:
    """The best trials of a search that have come to its last epoch; raises SearchError where there are none."""
    about = folder.settings(search)
    there = [one for one in found.ranked(search) if one.furthest == about["epochs"]]
    one_each: dict[Path, found.Found] = {}
    for one in there:  # cells that train the same share a folder
        one_each.setdefault(one.folder, one)
    there = list(one_each.values())
    if not there:
        raise SearchError(
            f"no trial of {printable(search)} has come to epoch {about['epochs']} yet: go on with the search first"
        )
    return Finalists(search, there[:top], seeds), there[:top]


def check(search: Path, mine: Finalists) -> None:
    """Raise a SearchError where other finalists were begun to be trained again."""
    theirs = rundir.read_json(search / FOLDER / folder.SEARCH).get("finalists")
    if theirs is not None and theirs != mine.settings()["finalists"]:
        raise SearchError(
            f"{printable(search / FOLDER)} was begun with other finalists or seeds: give --top and --seeds as then, or move that "
            "folder away"
        )


def reported(run: Any) -> None:
    """Raise a SearchError where a run's data have no pictures to report on, before anything is trained for them."""
    from memdist.data import sources, split

    if not split.deal(sources.find(run.data).pairs, run.data)[0][REPORTED]:
        raise SearchError(
            f"these data have no {REPORTED} split, on which finalists are reported: search with data.{REPORTED} above 0"
        )


class Line(NamedTuple):
    """What seeds have made of a finalist."""

    trial: int
    searched: float
    """The objective that chose it."""
    val: list[float]
    """The objective of each seed."""
    test: dict[str, list[float]]
    """Mean over the pictures of test, of each seed, by metric."""
    trivial: dict[str, float]
    """That of the best trivial predictor, by metric."""
    name: str


def lines(chosen: Sequence[found.Found], again: Sequence[found.Found], seeds: int, mode: Mode) -> list[Line]:
    """Finalists by their mean on val; of one all of whose seeds failed nothing is said."""
    rows = []
    for at, one in enumerate(chosen):
        mine = [run for run in again[at * seeds : (at + 1) * seeds] if run.values]
        records = [rundir.read_json(run.folder / rundir.SCORES).get(REPORTED) or {} for run in mine]
        test: dict[str, list[float]] = {}
        trivial: dict[str, float] = {}
        for record in records:
            for name in metrics.METRICS if record else ():
                if (mean := record["metrics"][name]["mean"]) is not None:
                    test.setdefault(name, []).append(mean)
                known = [t[name]["mean"] for t in record["trivial"].values() if t[name]["mean"] is not None]
                if known:
                    trivial[name] = (max if metrics.METRICS[name].better == "higher" else min)(known)
        if mine:
            values = [run.values[run.furthest] for run in mine]
            rows.append(Line(one.number, one.values[one.furthest], values, test, trivial, one.folder.name))
    sign = -1 if mode == "max" else 1
    return sorted(rows, key=lambda row: (sign * statistics.fmean(row.val), row.trial))


def spread(values: Sequence[float]) -> str:
    """Mean and standard deviation (of the sample) of a few values."""
    if not values:
        return "-"
    return f"{statistics.fmean(values):.4f} ± {statistics.stdev(values):.4f}" if len(values) > 1 else f"{values[0]:.4f}"


def write(place: Path, rows: Sequence[Line]) -> None:
    """confirm.csv: a line for each finalist and seed."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    names = list(metrics.METRICS)
    writer.writerow(["rank", "trial", "searched", "seed", "val", *(f"test/{name}" for name in names), "cell"])
    for rank, row in enumerate(rows, 1):
        for at, value in enumerate(row.val):
            test = [row.test.get(name, [])[at : at + 1] for name in names]
            shown = [f"{figures[0]:.6g}" if figures else "" for figures in test]
            writer.writerow([rank, row.trial, f"{row.searched:.6g}", at + 1, f"{value:.6g}", *shown, row.name])
    rundir.write_text(place / TABLE, text.getvalue())


def table(rows: Sequence[Line], about: dict[str, Any], seeds: int) -> Any:
    """Finalists side by side: what chose them, their mean on val, and test with its spread beside the trivial predictors."""
    from rich.console import Group
    from rich.table import Table

    shown = Table(
        title=f"{len(rows)} finalists, {seeds} seeds each: mean ± standard deviation over seeds", title_justify="left"
    )
    names = [name for name in metrics.METRICS if any(row.test.get(name) for row in rows)]
    for name in (
        "trial",
        f"{about['metric']} in the search",
        f"{about['metric']} of the seeds",
        *(f"test/{n}" for n in names),
    ):
        shown.add_column(name, justify="right")
    for row in rows:
        tests = (spread(row.test.get(name, [])) for name in names)
        shown.add_row(str(row.trial), f"{row.searched:.4f}", spread(row.val), *tests)
    if rows and rows[0].trivial:
        trivial = rows[0].trivial
        shown.add_row("trivial", "", "", *(f"{trivial[name]:.4f}" if name in trivial else "-" for name in names))
    words = [f"trial {row.trial}: {row.name}" for row in rows]
    words.append(
        "ranked by the mean on val; the value in the search chose them and is optimistic; test was not looked at before"
    )
    return Group(shown, *words)
