"""The plan's memory against that of real steps: within 15 % of the peak that the system, or the device, sees."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from memdist import models
from memdist.data import example
from memdist.train import describe, start

ROOT = Path(__file__).parents[2]
UNET = {"channels": 48, "multipliers": [1, 2, 4, 8, 8], "norm": "instance"}
# A few hundred MiB each, of which weights are the most (unet, pix2pix) or activations (palette).
RUNS: dict[str, dict[str, Any]] = {
    "unet": {"model": {"name": "unet", **UNET}, "ema": {"decay": 0.99}},
    "pix2pix": {"model": {"name": "pix2pix", "generator": UNET, "discriminator": UNET}},
    "palette": {
        "model": {
            **{"name": "palette", "channels": 32, "multipliers": [1, 2, 4], "blocks": 1, "attention": [16]},
            "schedule": {"name": "cosine", "steps": 50},
        },
        "ema": {"decay": 0.99},
    },
}
CASES = [
    *((name, "ddp", ranks) for name in RUNS for ranks in (1, 2)),
    *(("unet", strategy, 2) for strategy in ("fsdp", "deepspeed 1", "deepspeed 2", "deepspeed 3")),
    # Two networks, each with an engine and its buckets.
    ("pix2pix", "deepspeed 3", 2),
]
"""Those beyond ddp hold the same of every model: weights are most of unet's and pix2pix's, so that they would show."""
LARGER = {"data.size": 128, "batch.size": 32}
"""On a GPU, where what kernels take for themselves would hide a small net."""

pytestmark = [pytest.mark.distributed, pytest.mark.slow]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    example.make(folder, 60, 64, 0, 1)
    return folder


def raw(name: str, data: Path, device: str, **more: Any) -> dict[str, Any]:
    from memdist import config

    basic = {
        "data": {"images": str(data / "images"), "maps": str(data / "maps"), "cache": str(data), "size": 64},
        "batch": {"size": 8},
        "log": {"tensorboard": False},
        "device": device,
        "workers": 1,
    }
    return config.override(basic | RUNS[name], [f"{key}={value}" for key, value in more.items()])


def measured(settings: dict[str, Any], ranks: int, folder: Path) -> int:
    (folder / "settings.json").write_text(json.dumps(settings))
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "1"}
    environment |= {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    command = [sys.executable]
    if ranks > 1:
        command += ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
    command += ["-m", "tests.distributed.peak", str(folder / "settings.json"), str(folder / "peak.json")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=500, cwd=ROOT)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    told = json.loads((folder / "peak.json").read_text())
    assert told["steps"] == 3
    return int(told["peak"])


def planned(settings: dict[str, Any], ranks: int) -> float:
    run = models.resolve(settings)
    micro = start.micro_batch(run, ranks, run.batch.size)
    return describe.memory(run, start.build(run), ranks, micro).total


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs Linux")
@pytest.mark.parametrize(("name", "strategy", "ranks"), CASES)
def test_cpu_ranks_need_what_the_plan_says(name: str, strategy: str, ranks: int, data: Path, tmp_path: Path) -> None:
    kind, _, stage = strategy.partition(" ")
    settings = raw(name, data, "cpu", strategy=kind, **({"deepspeed.stage": stage} if stage else {}))
    peak, plan = measured(settings, ranks, tmp_path), planned(settings, ranks)
    print(
        f"{name}, {strategy}, {ranks} ranks: {peak / 2**20:.1f} MiB measured, {plan / 2**20:.1f} planned ({plan / peak - 1:+.1%})"
    )
    assert abs(plan / peak - 1) < 0.15


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("name", RUNS)
def test_a_gpu_needs_what_the_plan_says(name: str, precision: str, data: Path, tmp_path: Path) -> None:
    settings = raw(name, data, "cuda", **LARGER, precision=precision)
    peak, plan = measured(settings, 1, tmp_path), planned(settings, 1)
    print(f"{name}, {precision}: {peak / 2**20:.1f} MiB measured, {plan / 2**20:.1f} planned ({plan / peak - 1:+.1%})")
    assert abs(plan / peak - 1) < 0.15
