"""`memdist predict --grid`: sheets of picture, samples and map."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from memdist import draws, rundir
from memdist.predict.folder import SHEETS
from memdist.predict.inputs import Picture, Shard
from memdist.train import sheets, validate
from memdist.train.recipe import Recipe


class Sheets:
    """Lines of some pictures of a share, kept while it goes by; there is no true map, and so no error.

    Outputs that are there already are sampled once more for their line: files hold neither all samples nor the model's size.
    """

    def __init__(self, made: Recipe, pictures: Sequence[Picture], count: int) -> None:
        """Show `count` of the pictures, chosen by a hash of their names."""
        ranked = sorted(pictures, key=lambda picture: draws.key("grid", picture.name))
        self.wanted = set(ranked[:count])
        self._made = made
        self._lines: dict[str, list[Tensor]] = {}

    def see(self, picture: Picture, pixels: npt.NDArray[np.uint8] | None, samples: Tensor, map_: Tensor) -> None:
        """Take a picture uint8 [C, S, S], its samples [k, C, S, S] and its map [C, S, S]."""
        if picture not in self.wanted or pixels is None:
            return
        several = samples[: sheets.SHOWN] if self._made.samples > 1 else ()
        self._lines[picture.name] = [torch.from_numpy(pixels), *(validate.to_bytes(one) for one in (*several, map_))]

    def write(self, out: Path, shard: Shard) -> None:
        """Write them in place of former ones of this share."""
        here = rundir.make_folder(out / SHEETS)
        rundir.sweep(here)
        start = "" if shard.total == 1 else f"{shard.number}-of-{shard.total}-"
        made = sheets.pages(["image", *sheets.columns(self._made)], sorted(self._lines.items()))
        for path in here.glob(f"{start}sheet-*.png"):
            if path.name.removeprefix(start) not in made:
                path.unlink(missing_ok=True)
        for name, page in made.items():
            validate.write_png(here / f"{start}{name}", page)
