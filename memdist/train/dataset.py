"""The pairs of a run: found, split and decoded, before anything is built."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from memdist.config import Run
from memdist.data import cache as cache_
from memdist.data import sources, split
from memdist.data.pairs import PairFile, View
from memdist.distributed.strategy import Strategy
from memdist.launch import place
from memdist.train.score import Rows


@dataclass
class Dataset:
    """Decoded pairs and their split."""

    pixels: cache_.Pixels
    table: list[split.Row]
    rows: dict[str, Rows]
    """Rows of the cache by split."""
    pairs: list[PairFile]
    notes: list[str]


def load(
    run: Run,
    strategy: Strategy | None = None,
    check: Callable[[dict[str, list[str]]], object] | None = None,
    look: Callable[[list[PairFile]], list[str]] = lambda _: [],
) -> Dataset:
    """Find, split and decode (once, by the main process) the pairs.

    `check` sees the split, and `look` (in the main process) the files, before anything is decoded; `look` gives notes.
    """
    with place.alike():
        found = sources.find(run.data)
        stems, notes = split.deal(found.pairs, run.data)
        if check is not None:
            check(stems)
    used = {stem for part in stems.values() for stem in part}
    pairs = [pair for pair in found.pairs if pair.stem in used]
    opened: list[cache_.Pixels] = []

    def decode() -> None:
        view = View.of(run.data, run.data.size)
        opened.append(cache_.open_or_build(pairs, view, run.data.cache, run.workers))

    if strategy is not None:
        strategy.first(lambda: notes.extend(look(pairs)))
        strategy.first(decode)
    if not opened:
        decode()
    pixels = opened[0]
    images = dict(zip(pixels.stems, pixels.image_hashes, strict=True))
    maps = dict(zip(pixels.stems, pixels.map_hashes, strict=True))
    if found.unpaired:
        notes.append(f"{len(found.unpaired)} files without a partner are left out, such as {found.unpaired[0]!r}")
    rows = {name: pixels.rows(part) for name, part in stems.items()}
    return Dataset(pixels, split.rows(stems, images, maps), rows, pairs, notes)


def cache(run: Run) -> str:
    """Decode the pictures of a configuration; gives a sentence on them."""
    data = load(run)
    counts = ", ".join(f"{name} {len(rows)}" for name, rows in data.rows.items())
    size = (data.pixels.images.nbytes + data.pixels.maps.nbytes) / 2**20
    return f"{len(data.pairs)} pairs decoded at {run.data.size} x {run.data.size} ({size:.0f} MiB): {counts}"
