"""The losses of the first steps of every model, as they were: a change that is no change leaves them alone.

`python -m tests.golden.test_losses` writes them anew; a commit that does so says why they moved.
"""

import json
from pathlib import Path

import pytest
import torch

from memdist import models
from memdist.augment import augment
from memdist.config import Augment
from memdist.distributed.single import Single
from memdist.model import Pair, Task
from memdist.train import optim
from memdist.train.step import due
from tests import tiny

GOLDEN = Path(__file__).parent / "losses.json"


def losses(variant: str) -> list[dict[str, float]]:
    run = tiny.run(variant, Path("nowhere"))
    kind = models.load(run.model.name)
    axis = torch.linspace(0, 6, tiny.SIZE)
    wave = torch.stack([torch.sin(k * axis[:, None] + axis[None] ** 1.5) for k in range(12)])
    image = wave.reshape(4, 3, tiny.SIZE, tiny.SIZE)
    map_ = (image.roll(3, dims=2) * 0.8 - 0.2).tanh()
    torch.manual_seed(0)
    model = kind(run.model, Task(size=tiny.SIZE, image_channels=3, map_channels=3, mean_map=map_.mean(0)))
    stage = model.stage()
    strategy = Single(torch.device("cpu"), "fp32")
    strategy.prepare(
        stage,
        lambda name, weights: optim.make(weights, getattr(run.optim, name)),
        {name: getattr(run.optim, name).clip for name in stage.nets},
    )
    told = []
    for step in range(4):
        torch.manual_seed(step)
        pair = Pair(image, map_, torch.arange(4) + 100 * step)
        pair = augment(pair, Augment(flip=0.5, translation=0.5, cutout=0.5, colour=0.5))
        scratch: dict[str, torch.Tensor] = {}
        logs: dict[str, float] = {}
        for update in due(stage.updates, step):
            with strategy.only(update.net) as nets, strategy.micro(update.net, True):
                loss = update.loss(nets, pair, scratch)
                strategy.backward(update.net, loss.value, 1)
            strategy.step(update)
            logs |= {name: value.item() for name, value in loss.logs.items()}
        told.append(logs)
    return told


@pytest.mark.parametrize("variant", tiny.VARIANTS)
def test_losses_are_what_they_were(variant: str) -> None:
    golden = json.loads(GOLDEN.read_text())[variant]
    for now, then in zip(losses(variant), golden, strict=True):
        assert now == pytest.approx(then, rel=2e-3, abs=1e-4)


if __name__ == "__main__":
    GOLDEN.write_text(json.dumps({variant: losses(variant) for variant in tiny.VARIANTS}, indent=1) + "\n")
