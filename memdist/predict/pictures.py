"""Maps of pictures that are no part of any split."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from memdist import metrics, rundir
from memdist.data import loader, pairs, sources
from memdist.distributed import strategy as strategy_
from memdist.distributed.single import Single
from memdist.errors import CheckpointError, DataError
from memdist.model import Sampling
from memdist.train import evaluate, restore, validate


def predict(
    folder: Path,
    inputs: Sequence[Path],
    out: Path,
    *,
    choice: str = "best",
    ema: bool = True,
    overrides: Sequence[str] = (),
) -> int:
    """Write out/<stem>.png, at the picture's own size, for pictures and folders of them; gives how many.

    Where the run crops, that size is of the picture's centred square. A map depends on the run, its weights, the content
    of the picture and the sampler alone. Everything is checked before the first map is written. Raises
    DataError for what is no picture.
    """
    run = evaluate.settings_for_reading(folder, overrides)
    files = find(inputs)
    sizes = [_size(path, run.data.crop) for path in files]
    device = strategy_.device_of(run.device)
    strategy_.check_precision(run.precision, device)
    strategy = Single(device, run.precision)
    found = restore.restore(folder, choice, ema=ema, device=device)
    sampling = Sampling(sampler=run.eval.sampler, steps=run.eval.steps)
    found.model.check(sampling)
    if out.exists() and not out.is_dir():
        raise CheckpointError(f"--out {out} is a file; name a folder for the maps")
    own = {path.resolve() for path in files}
    over = [path for path in files if (out / f"{rundir.file_name(path.stem)}.png").resolve() in own]
    if over:
        raise CheckpointError(
            f"the map of {over[0]} would be written over a picture in --out {out}: name another folder"
        )
    rundir.make_folder(out)
    view = pairs.View.of(run.data, run.data.size)
    for start in range(0, len(files), run.eval.batch):
        part = files[start : start + run.eval.batch]
        images = np.stack([view.decode((path, None, "image")) for path in part])
        seeds = [loader.picture_seed(run.seed, pairs.content_hash(path)) for path in part]
        with torch.no_grad():
            image = loader.floats(torch.from_numpy(images).to(device))
            with strategy.autocast():
                maps = found.model.predict(found.nets, image, torch.tensor(seeds, device=device), sampling)
            lost = (~maps.isfinite()).flatten(1).any(dim=1).nonzero()
            if len(lost):
                raise CheckpointError(
                    f"the map of {part[int(lost[0])]} has values that are no finite numbers: the weights of step {found.step} of "
                    f"{folder} are not sound{'' if run.precision == 'fp32' else f', or {run.precision} is too narrow for them'}; "
                    "choose others with --checkpoint"
                )
            maps = maps.float().clamp(-1, 1)
            for at, path in enumerate(part):
                map_ = metrics.resize(maps[at : at + 1], sizes[start + at])[0]
                validate.write_png(out / f"{rundir.file_name(path.stem)}.png", validate.to_bytes(map_))
    return len(files)


def find(inputs: Sequence[Path]) -> list[Path]:
    """Pictures named, and those in folders named; raises DataError for what is none, and for two with one stem."""
    files: list[Path] = []
    for path in inputs:
        if path.is_dir():
            files += sources.pictures(path, "IMAGE_OR_FOLDER").values()
        elif path.is_file():
            files.append(path)
        elif path.exists():
            raise DataError(f"{path} is neither a file nor a folder: give pictures or folders of pictures")
        else:
            raise DataError(f"{path} does not exist: give pictures or folders of pictures")
    seen: dict[str, Path] = {}
    for path in files:
        if path.stem in seen and seen[path.stem] != path:
            raise DataError(
                f"{seen[path.stem]} and {path} would both become {path.stem}.png: predict them into two folders"
            )
        seen[path.stem] = path
    return list(seen.values())


def _size(path: Path, crop: bool) -> tuple[int, int]:
    """Height and width as shown; a DataError for what is no picture, so that nothing is written before."""
    _, height, width = pairs.decode(path, None, 1, crop=crop).shape
    return height, width
