"""Sheets to look at: a line for each picture, a column for each of its map, its samples and its error."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from memdist.data import cache, loader
from memdist.distributed.strategy import Strategy
from memdist.train.recipe import Recipe
from memdist.train.score import Rows
from memdist.train.validate import first, to_bytes

LINES = 16
"""Pictures on a sheet."""
SHOWN = 8
"""Samples of a picture that are shown, at most."""
TILE = 96
"""Height and width in pixels below which tiles are made larger, by a whole factor."""
_TOP, _LEFT, _GAP = 16, 84, 2


class Lines:
    """Lines of some pictures of a split, kept while it goes by."""

    def __init__(self, pixels: cache.Pixels, rows: Rows, count: int) -> None:
        """Keep the first `count` of the rows by a hash of the pictures' contents, which neither order nor names change."""
        self.rows: list[int] = sorted(first(pixels, rows, count, "grid").tolist())
        self._pixels = pixels
        self._mine: dict[int, Tensor] = {}

    def see(self, part: loader.Part, samples: Tensor, maps: Tensor) -> None:
        """Take samples [N, k, C, H, W] and maps [N, C, H, W] of a batch."""
        wanted = set(self.rows)
        for at, row in enumerate(part.rows.tolist()):
            if row in wanted and row not in self._mine:
                self._mine[row] = torch.cat((samples[at, :SHOWN], maps[at : at + 1])).cpu()

    def sheets(self, made: Recipe, strategy: Strategy) -> dict[str, Tensor]:
        """Sheets by the name of their file, uint8 [3, H, W]; every rank calls it, and all have the same."""
        shown = min(made.samples, SHOWN)
        lines: list[tuple[str, list[Tensor]]] = []
        shape = self._pixels.maps.shape[1:]
        for row in self.rows:
            have = strategy.gather(torch.tensor([row in self._mine], device=strategy.device).int())
            mine = self._mine.get(row, torch.zeros(shown + 1, *shape))
            drawn = strategy.gather(mine[None].to(strategy.device))[int(have.argmax())].cpu()
            image, truth = (torch.from_numpy(np.array(a[row])) for a in (self._pixels.images, self._pixels.maps))
            error = (drawn[-1] - loader.floats(truth)).abs().mean(0, keepdim=True)
            samples = [to_bytes(one) for one in drawn[:-1]] if made.samples > 1 else []
            lines.append((self._pixels.stems[row], [image, truth, *samples, to_bytes(drawn[-1]), to_bytes(error - 1)]))
        return pages(["image", "map", *columns(made), "error"], lines)


def columns(made: Recipe) -> list[str]:
    """Titles of the columns of what is predicted: the samples, if there are several, and what is made of them."""
    if made.samples == 1:
        return ["predicted"]
    return [*(f"sample {i}" for i in range(1, min(made.samples, SHOWN) + 1)), f"{made.combine} of {made.samples}"]


def pages(titles: Sequence[str], lines: Sequence[tuple[str, Sequence[Tensor]]]) -> dict[str, Tensor]:
    """Sheets of LINES lines by the name of their file; tiles are uint8 [1 or 3, S, S], all of one size."""
    count = -(-len(lines) // LINES)
    digits = max(2, len(str(count)))
    return {
        f"sheet-{number + 1:0{digits}d}.png": sheet(titles, lines[number * LINES : (number + 1) * LINES])
        for number in range(count)
    }


def sheet(titles: Sequence[str], lines: Sequence[tuple[str, Sequence[Tensor]]]) -> Tensor:
    """One sheet, uint8 [3, H, W]: titles above, names on the left."""
    from PIL import Image, ImageDraw

    height, width = lines[0][1][0].shape[1:]
    factor = max(1, -(-TILE // max(height, width)))
    high, wide = height * factor + _GAP, width * factor + _GAP
    page = Image.new("RGB", (_LEFT + len(titles) * wide, _TOP + len(lines) * high), "white")
    pen = ImageDraw.Draw(page)
    for column, title in enumerate(titles):
        pen.text((_LEFT + column * wide, 2), title[: max(4, wide // 6)], fill="black")
    for line, (name, tiles) in enumerate(lines):
        label = name if len(name) <= 13 else f"...{name[-10:]}"
        pen.text((2, _TOP + line * high), label.encode("latin-1", "replace").decode("latin-1"), fill="black")
        for column, tile in enumerate(tiles):
            whole = tile.expand(3, -1, -1).permute(1, 2, 0).numpy()
            picture = Image.fromarray(np.ascontiguousarray(whole))
            picture = picture.resize((width * factor, height * factor), Image.Resampling.NEAREST)
            page.paste(picture, (_LEFT + column * wide, _TOP + line * high))
    return torch.from_numpy(np.array(page)).permute(2, 0, 1)
