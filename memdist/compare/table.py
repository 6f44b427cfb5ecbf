"""The comparison as figures: rows, footnotes, and a terminal's tables.

The trivial predictors of the data stand below the runs. A figure that is missing is a dash, and a footnote says what
gives it; one that was selected on has a star.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable
from dataclasses import dataclass

from rich import box
from rich.console import Group as Renderables
from rich.table import Table
from rich.text import Text

from memdist.compare import SPLITS, Comparison, Group, Run, collect, looks
from memdist.metrics import Summary

__all__ = ["Column", "Row", "collect", "columns", "footnotes", "render", "rows", "title"]

DASH = "–"
TRIVIAL = {
    "black": "black",
    "mean": "mean map",
    "median": "median map",
    "centre": "centre Gaussian",
    "nearest": "nearest training picture",
}
APART = (
    "Runs in different tables were split differently or scored at different sizes, so their figures are not comparable."
)


@dataclass(frozen=True)
class Row:
    """One line of the table; `cells` in the order of `columns`."""

    label: str
    model: str
    trivial: bool
    cells: tuple[str, ...]


@dataclass(frozen=True)
class Column:
    """One column: what it says of a run and of a trivial predictor; `page`: only the page has room for it."""

    title: str
    run: Callable[[Run], str]
    trivial: Callable[[Group, str], str] = lambda group, name: ""
    page: bool = False


def _figure(summary: Summary | None, digits: int, optimistic: bool = False) -> str:
    if summary is None:
        return DASH
    if summary.mean is None:
        return f"{DASH} ({summary.undefined} undefined)"
    undefined = f" ({summary.undefined} undefined)" if summary.undefined else ""
    return f"{summary.mean:.{digits}f}{'*' if optimistic else ''}{undefined}"


def _score_column(split: str, metric: str, digits: int, page: bool = False) -> Column:
    def of_run(run: Run) -> str:
        scored = run.splits.get(split)
        return _figure(scored.metrics.get(metric), digits, scored.optimistic) if scored else DASH

    def of_trivial(group: Group, name: str) -> str:
        return _figure(group.trivial.get(split, {}).get(name, {}).get(metric), digits)

    return Column(f"{split} {metric.upper()}", of_run, of_trivial, page)


def _skill(run: Run) -> str:
    test = run.splits.get("test")
    return DASH if test is None or test.skill is None else f"{test.skill:.3f}{'*' if test.optimistic else ''}"


def _trivial_skill(group: Group, name: str) -> str:
    best, own = group.best_trivial("test"), group.trivial.get("test", {}).get(name, {}).get("l1")
    return DASH if not best or not best[1] or own is None or own.mean is None else f"{1 - own.mean / best[1]:.3f}"


def _parameters(run: Run) -> str:
    total = sum(run.parameters.values())
    if not total:
        return DASH
    return f"{total / 1e6:.2f} M" if total >= 1e6 else f"{total / 1e3:.1f} k" if total >= 1e3 else str(total)


def _duration(run: Run) -> str:
    if run.train_seconds is None:
        return DASH
    minutes, seconds = divmod(round(run.train_seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h {minutes:02}m" if hours else f"{minutes}m {seconds:02}s" if minutes else f"{seconds}s"


def _per_picture(run: Run) -> str:
    if run.reported.seconds is None:
        return ""
    milliseconds = 1000 * run.reported.seconds / run.reported.n
    return f"{milliseconds:,.{0 if milliseconds >= 100 else 1 if milliseconds >= 10 else 2}f}"


def _weights(run: Run) -> str:
    return " · ".join(filter(None, (run.reported.weights, run.state)))


_COLUMNS = (
    _score_column("train", "l1", 4),
    _score_column("val", "l1", 4),
    _score_column("test", "l1", 4),
    _score_column("test", "cc", 3),
    _score_column("test", "sim", 3, page=True),
    _score_column("test", "kl", 3, page=True),
    Column("skill", _skill, _trivial_skill),
    Column("params", _parameters),
    Column("training", _duration),
    Column("sampling ms/picture", _per_picture),
    Column("weights", _weights, page=True),
)


_FIXATIONS = (
    _score_column("test", "nss", 3),
    _score_column("test", "auc-judd", 3, page=True),
    _score_column("test", "auc-borji", 3, page=True),
    _score_column("test", "sauc", 3),
)


def columns(page: bool, group: Group | None = None) -> tuple[Column, ...]:
    """The columns after the name, for the page or for a terminal; with those that only some groups have."""
    found = list(_COLUMNS)
    if group is not None:
        kind = looks.kind(group)
        more = list(_FIXATIONS) if looks.has_fixations(group) else []
        more += [Column(f"test {kind.upper()}", looks.of_run, looks.of_trivial)] if kind else []
        place = next(i for i, column in enumerate(found) if column.title == "skill")
        found[place:place] = more
    return tuple(column for column in found if page or not column.page)


def rows(group: Group, page: bool) -> list[Row]:
    """One row a run, then one a trivial predictor."""
    shown = columns(page, group)
    trivial = dict.fromkeys(name for predictors in group.trivial.values() for name in predictors)
    found = []
    for run in group.runs:
        found.append(Row(run.label, run.model, False, tuple(column.run(run) for column in shown)))
        if alone := run.alone():
            cells = tuple("" if column.title in ("params", "training") else column.run(alone) for column in shown)
            found.append(Row(f"{run.label}, one sample", run.model, False, cells))
    return found + [
        Row(TRIVIAL.get(name, name), "trivial", True, tuple(column.trivial(group, name) for column in shown))
        for name in trivial
    ]


def title(group: Group) -> str:
    """What all rows of the group have in common: the pictures and the size they were scored at."""
    run = group.runs[0]
    counts = ", ".join(f"{run.pictures[name]:,} {name}" for name in SPLITS if run.pictures.get(name))
    sizes = {split.size for split in run.splits.values()}
    size = " and ".join(sorted("the maps' own size" if size is None else f"{size[0]} x {size[1]}" for size in sizes))
    return f"{counts} pictures; scored at {size}; data {run.data[:8]}"


def footnotes(group: Group) -> list[str]:
    """The sentences without which a reader of the group's rows would be misled."""
    notes = ["Below the runs: trivial predictors, fitted on train."] if group.trivial else []
    best = group.best_trivial("test")
    if best:
        name = TRIVIAL.get(best[0], best[0])
        notes.append(f"skill = 1 - test L1 / test L1 of the best trivial predictor ({name}, {best[1]:.4f}).")
    figures = [cell for row in rows(group, page=True) for cell in row.cells]
    if any("*" in cell for cell in figures):
        notes.append("* selected on: optimistic. The run was chosen, or its training stopped, by these very pictures.")
    if any("undefined" in cell for cell in figures):
        notes.append(
            "undefined: pictures without a value (a constant map has no correlation) are left out of the mean."
        )
    notes += looks.notes(group)
    for run in group.runs:
        notes += _missing(run) + _other_trivial(group, run)
    return notes


def _missing(run: Run) -> list[str]:
    notes = []
    folder = shlex.quote(str(run.path))
    has = [name for name in SPLITS if run.pictures.get(name)]
    unscored = [
        name for name in has if name not in run.splits or not {"l1", "cc", "sim", "kl"} <= set(run.splits[name].metrics)
    ]
    bare = [name for name in has if name in run.splits and not run.splits[name].trivial]
    if unscored or bare:
        what = " and ".join(unscored or ["the trivial predictors"])
        notes.append(f"{DASH} {run.label}: {what} not scored yet; `memdist evaluate {folder} --split all` gives it.")
    for name in (name for name in SPLITS if name not in has):
        notes.append(f"{DASH} {run.label} has no {name} split.")
    if not run.parameters or run.train_seconds is None:
        notes.append(
            f"{DASH} {run.label}: parameters and time are recorded in training; `memdist train {folder}/config.yaml"
            f" --out {folder}` gives them."
        )
    test = run.splits.get("test")
    if test and test.trivial and test.skill is None:
        notes.append(f"{DASH} {run.label}: skill has no value where the best trivial predictor makes no error.")
    for name, split in run.splits.items():
        if split.n != run.pictures.get(name, 0):
            notes.append(f"{run.label}: {name} was scored on {split.n:,} of {run.pictures.get(name, 0):,} pictures.")
    weights = {split.weights for split in run.splits.values()}
    if len(weights) > 1:
        each = "; ".join(f"{name}: {split.weights}" for name, split in run.splits.items())
        notes.append(f"{run.label}: not all splits were scored with the same weights ({each}).")
    return notes


def _other_trivial(group: Group, run: Run) -> list[str]:
    """Trivial predictors are fitted at a run's training size; where the run's own differ from those shown, say so."""
    worst = 0.0
    for name, split in run.splits.items():
        for predictor, scores in split.trivial.items():
            shown, own = group.trivial[name][predictor].get("l1"), scores.get("l1")
            if shown and own:
                worst = max(worst, abs((shown.mean or 0.0) - (own.mean or 0.0)))
    if worst < 5e-5:
        return []
    return [
        f"{run.label}: fitted at its own training size, its trivial predictors differ from those shown by up to {worst:.4f} "
        "in L1; its skill is measured by its own."
    ]


def render(comparison: Comparison) -> Renderables:
    """Tables for a terminal, one a group, each with its weights and footnotes below; a rich renderable."""
    parts: list[Table | Text] = []
    for group in comparison.groups:
        lines = rows(group, page=False)
        table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=0)
        # Only names give way in a narrow terminal: no figure is ever cut.
        table.add_column("", overflow="fold", min_width=8)
        for column in columns(page=False, group=group):
            table.add_column("\n".join(column.title.rsplit(maxsplit=1)), justify="right", no_wrap=True)
        for line, after in zip(lines, [*lines[1:], None], strict=True):
            name = line.label if line.trivial or line.model in line.label else f"{line.label} ({line.model})"
            table.add_row(
                Text(name),
                *(Text(cell.replace(" undefined", "\nundefined")) for cell in line.cells),
                style="dim" if line.trivial else "",
                end_section=after is not None and after.trivial and not line.trivial,
            )
        notes = [f"{run.label}: {_weights(run)}." for run in group.runs] + footnotes(group)
        parts += [Text(title(group)), Text(), table, Text(), *(Text(note) for note in notes), Text()]
    if len(comparison.groups) > 1:
        parts.append(Text(APART))
    return Renderables(*parts)
