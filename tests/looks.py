"""Fixations of tiny pictures, and a feature network that needs no weights."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from memdist.train.distribution import Extractor


class Quarters(nn.Module):
    """Means of the quarters of the first channel, in 0..1: uint8 [N, 3, H, W] -> float32 [N, 4]."""

    def forward(self, pictures: Tensor) -> Tensor:
        """Look."""
        assert pictures.dtype == torch.uint8 and pictures.shape[1] == 3
        return nn.functional.adaptive_avg_pool2d(pictures[:, 0].double() / 255, 2).flatten(1).float()


EXTRACTOR = Extractor(Quarters(), 4, "quarters (4)", "0" * 64)


def fixations(images: Path, out: Path, without: Sequence[str] = ()) -> Path:
    """Twelve places of each picture, somewhat left of the middle, at its own size."""
    arrays = {}
    for number, path in enumerate(sorted(images.iterdir())):
        with Image.open(path) as picture:
            width, height = picture.size
        random = np.random.default_rng(number)
        x, y = random.beta(2, 3, 12) * width, random.beta(2, 2, 12) * height
        if path.stem not in without:
            arrays[path.stem] = np.stack([x, y, random.integers(0, 15, 12)], axis=1)
    np.savez(out, **arrays)  # type: ignore[arg-type]
    return out
