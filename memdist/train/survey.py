"""`memdist data check`: findings file by file, statistics of the maps, and what predictors that know no picture reach."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from memdist import metrics
from memdist.config import Run
from memdist.data import cache, check, groupfile, leaks, loader
from memdist.data import split as split_
from memdist.data.examine import Facts, Looks
from memdist.data.findings import Finding, Kind, Level
from memdist.data.pairs import PairFile, Part
from memdist.errors import DataError, printable
from memdist.train import trivial

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderResult
    from rich.segment import Segment
    from rich.table import Table

SIDE = 64
"""Largest height and width at which the trivial predictors are scored."""
MEMORY = 2**31
"""Bytes of small pictures and maps that are kept at most; more pairs are kept at a smaller size."""
MANY = 200
"""Findings above which a terminal shows a few of each kind; a file or a pipe gets all."""
FEW = 5


@dataclass
class Report:
    """What `memdist data check` found; rich shows it."""

    run: Run
    pairs: int
    read: int
    """Pairs of which both files could be decoded."""
    findings: list[Finding]
    facts: Mapping[Part, Facts]
    splits: Mapping[str, int]
    lines: list[str]
    """Statistics, as sentences."""
    scores: Mapping[str, Mapping[str, float | None]]
    """Trivial predictor -> metric -> mean."""
    scored: str
    """On what."""

    @property
    def clean(self) -> bool:
        """Whether nothing was found."""
        return not self.findings

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Tables and sentences; a terminal gets a selection of many findings."""
        from rich.text import Text

        counts = Counter(f.kind.level for f in self.findings)
        files = len(self.facts)
        if self.clean:
            yield Text(f"{files} files of {self.pairs} pairs were examined: nothing was found")
        else:
            yield self._kinds()
            if console.is_terminal:
                yield self._table(len(self.findings) > MANY)
            else:
                yield from self._all(options.max_width)
            faults, warned = (f"{counts[level]} {level}{'' if counts[level] == 1 else 's'}" for level in Level)
            yield Text(f"{files} files of {self.pairs} pairs were examined: {faults}, {warned}")
        for line in self.lines:
            yield Text(line)
        if self.scores:
            yield self._scores()

    def _kinds(self) -> Table:
        from rich.table import Table

        table = Table(title="what was found", title_justify="left")
        for name in ("level", "kind", "times", "what to do"):
            table.add_column(name, justify="right" if name == "times" else "left")
        for kind, times in Counter(f.kind for f in self.findings).items():
            table.add_row(kind.level, kind.title, str(times), kind.advice)
        return table

    def _all(self, width: int) -> Iterator[Segment]:
        """A line for each finding; a table of ten thousand rows would take longer than finding them."""
        from rich.cells import chop_cells
        from rich.segment import Segment

        columns = max(len(f.kind.title) for f in self.findings)
        for kind, file, detail in self.findings:
            place = printable(check.relative(file, self.run.data))
            line = f"{kind.level:<7}  {kind.title:<{columns}}  {place}" + (f": {printable(detail)}" if detail else "")
            for part in [line] if len(line) < width / 2 else chop_cells(line, width):
                yield Segment(part + "\n")

    def _table(self, few: bool) -> Table:
        from rich.table import Table
        from rich.text import Text

        table = Table(title="file by file", title_justify="left")
        for name in ("level", "kind", "file", "detail"):
            table.add_column(name, overflow="fold")
        seen: Counter[Kind] = Counter()
        totals = Counter(f.kind for f in self.findings)
        for at, (kind, file, detail) in enumerate(self.findings):
            seen[kind] += 1
            if not few or seen[kind] <= FEW:
                place = printable(check.relative(file, self.run.data))
                table.add_row(kind.level, kind.title, Text(place), Text(printable(detail)))
            last = at + 1 == len(self.findings) or self.findings[at + 1].kind is not kind
            if few and last and totals[kind] > FEW:
                table.add_row(kind.level, kind.title, f"... {totals[kind] - FEW} more", "pipe the output to see all")
        return table

    def _scores(self) -> Table:
        from rich.table import Table

        table = Table(title=f"trivial predictors, {self.scored}", title_justify="left")
        table.add_column("predictor")
        for name in _SHOWN:
            better = metrics.METRICS[name].better
            table.add_column(f"{name} ({better} is better)", justify="right")
        for who, means in self.scores.items():
            table.add_row(who, *("undefined" if (v := means[m]) is None else f"{v:.4f}" for m in _SHOWN))
        return table


_SHOWN = ("l1", "cc")


def survey(run: Run, groups_file: Path | None = None) -> Report:
    """Examine all data of a run; `groups_file` is where groups of near duplicates are written. Nothing else is written."""
    former = groupfile.check(groups_file) if groups_file is not None else {}
    listed = check.listing(run.data)
    pairs = listed.pairs
    channels = run.data.map_channels
    side = min(run.data.size, SIDE)
    while side > 8 and len(pairs) * (3 + channels) * side * side > MEMORY:
        side //= 2
    files = [part for pair in pairs for part in (pair.image_part, pair.map_part)]
    facts = check.examine([*files, *listed.others], side, run.data, run.workers)
    # Both halves of a side-by-side file have the faults of their file.
    found = list(dict.fromkeys(listed.findings + [finding for fact in facts.values() for finding in fact.findings]))
    found += check.compare(listed, facts, run.data)
    given = {pair.stem: pair.split for pair in pairs if pair.split is not None}
    lists: dict[str, list[str]] = {}
    # Without pairs, or without one to train on where the data name the splits, what is said of the source says why.
    if pairs and (not given or "train" in given.values()):
        try:
            lists = split_.deal(pairs, run.data).stems
        except DataError as error:
            found += [Finding(Kind.NO_SPLIT, listed.place, line) for line in str(error).splitlines()]
    splits = {stem: name for name, stems in lists.items() for stem in stems} or given
    near = leaks.near_pairs(pairs, facts)
    found += leaks.find(pairs, facts, near, splits, listed.groups)
    lines = []
    if lists:
        lines.append("splits: " + ", ".join(f"{name} {len(stems)}" for name, stems in lists.items()))
    if groups_file is not None:
        grouped = leaks.group(pairs, facts, near, listed.groups)
        saved = groupfile.save(groups_file, former, grouped, listed, run.data)
        if isinstance(saved, Finding):
            found.append(saved)
        else:
            lines.append(saved)
    order = {kind: at for at, kind in enumerate(Kind)}
    found.sort(key=lambda f: (f.kind.level is not Level.FAULT, order[f.kind], str(f.file)))
    whole = [p for p in pairs if facts[p.image_part].looks is not None and facts[p.map_part].looks is not None]
    if len(whole) < len(pairs):
        lines.append(f"{len(pairs) - len(whole)} of {len(pairs)} pairs cannot be decoded: what follows is without them")
    pixels = _pixels(whole, facts) if whole else None
    if pixels is not None:
        lines += statistics(whole, facts, pixels)
    scored, scores = _score(pixels, lists, side) if pixels is not None and lists else ("", {})
    return Report(
        run, len(pairs), len(whole), found, facts, {n: len(s) for n, s in lists.items()}, lines, scores, scored
    )


def _pixels(pairs: Sequence[PairFile], facts: Mapping[Part, Facts]) -> cache.Pixels:
    images = np.stack([_looks(facts[p.image_part]).thumbnail for p in pairs])
    maps = np.stack([_looks(facts[p.map_part]).thumbnail for p in pairs])
    parts = zip(*((p.image_part, p.map_part) for p in pairs), strict=True)
    hashes = [[facts[part].sha256 for part in of_role] for of_role in parts]
    return cache.Pixels(images, maps, [p.stem for p in pairs], hashes[0], hashes[1])


def statistics(pairs: Sequence[PairFile], facts: Mapping[Part, Facts], pixels: cache.Pixels) -> list[str]:
    """Sentences on the maps: their values, where their mean has its peak, and the sizes of files."""
    values = [s for p in pairs if (s := _looks(facts[p.map_part]).statistics) is not None]
    mean, spread, low, high, black = (np.array(column) for column in zip(*values, strict=True))
    lines = [
        f"maps, luminance in 0..1: mean {mean.mean():.3f} (from {mean.min():.3f} to {mean.max():.3f} a map), standard "
        f"deviation within a map {spread.mean():.3f}, least {low.min():.3f}, greatest {high.max():.3f}, "
        f"{black.mean():.1%} of pixels black"
    ]
    centre = trivial.mean_map(pixels, np.arange(len(pairs))).double().add(1).div(2).mean(dim=0).numpy()
    height, width = centre.shape
    y, x = np.unravel_index(int(centre.argmax()), centre.shape)
    inner = centre[height // 4 : height - height // 4, width // 4 : width - width // 4]
    if centre.sum() > 0 and height >= 4:
        share = inner.sum() / centre.sum()
        lines.append(
            f"mean map: brightest at {(x + 0.5) / width:.0%} from the left and {(y + 0.5) / height:.0%} from the top; its "
            f"middle, {inner.size / centre.size:.0%} of the area, holds {share:.0%} of its light"
        )
    for name, parts in (("pictures", [p.image_part for p in pairs]), ("maps", [p.map_part for p in pairs])):
        sizes = Counter(facts[part].size or (0, 0) for part in parts).most_common(4)
        shown = ", ".join(f"{width} x {height} ({times})" for (width, height), times in sizes[:3])
        lines.append(f"sizes of {name}: {shown}{' and others' if len(sizes) > 3 else ''}")
    coloured = sum(_looks(facts[p.map_part]).coloured for p in pairs)
    lines.append(
        "no map has colour: data.map_channels=1 would do"
        if not coloured and pixels.maps.shape[1] == 3
        else f"{coloured} of {len(pairs)} maps have colour"
    )
    return lines


def _score(
    pixels: cache.Pixels, lists: Mapping[str, Sequence[str]], side: int
) -> tuple[str, dict[str, dict[str, float | None]]]:
    """Fit on train, score on test, else val; L1 and CC at thumbnail size."""
    known = set(pixels.stems)
    rows = {name: pixels.rows(s for s in stems if s in known) for name, stems in lists.items()}
    target = "test" if len(rows["test"]) else "val"
    if not len(rows["train"]) or not len(rows[target]):
        return "", {}
    values: dict[str, dict[str, list[torch.Tensor]]] = {}
    with torch.no_grad():
        predictors = trivial.fit(pixels, rows["train"], torch.device("cpu"))
        for part in loader.batches(pixels, rows[target], seed=0, batch=64):
            for who, predict in predictors.items():
                maps = predict(part.pair, part.rows)[: part.valid]
                for name in _SHOWN:
                    value = metrics.METRICS[name].function(maps, part.pair.map[: part.valid])
                    values.setdefault(who, {}).setdefault(name, []).append(value)
    means = {
        who: {name: metrics.summarise(torch.cat(pieces).numpy()).mean for name, pieces in by.items()}
        for who, by in values.items()
    }
    words = f"fitted on {len(rows['train'])} of train, scored on {len(rows[target])} of {target} at {side} x {side}"
    return words, means


def _looks(facts: Facts) -> Looks:
    assert facts.looks is not None
    return facts.looks
