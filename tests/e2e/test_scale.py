"""`memdist bench scale` on the ranks of a CPU: every figure is there; how large it is depends on the machine."""

import os
import re
import subprocess
import sys

TINY = "model.channels=4 model.multipliers=[1,2,2] data.size=16 batch.size=8 device=cpu"


def _run(*words: str, launcher: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    environment = {key: value for key, value in os.environ.items() if key not in ("WORLD_SIZE", "RANK")}
    command = [*(launcher or (sys.executable,)), "-m", "memdist", "bench", "scale", *words]
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=900)


def _figures(pattern: str, text: str) -> list[float]:
    found = re.search(pattern, text)
    assert found, text
    return [float(figure) for figure in found.groups()]


def test_two_ranks_of_a_cpu() -> None:
    done = _run("quick/unet", *TINY.split(), "--gpus", "2", "--steps", "1")
    assert done.returncode == 0, done.stderr
    said = done.stdout
    assert "unet, 8 pictures of 16 x 16 a step over all ranks, on 2 CPU ranks (" in said and "1 thread each)" in said
    figures = _figures(r"ddp over a bare torch DDP loop: ([\d.]+) of its speed .*; ([\d.]+) ms and ([\d.]+) ms", said)
    for kind in ("strong scaling, 8 pictures over all ranks", "weak scaling, 4 pictures at each rank"):
        figures += _figures(
            rf"{kind}: 1 rank ([\d.]+) ms a step; 2 ranks ([\d.]+) ms a step, efficiency ([\d.]+)", said
        )
    for strategy in ("ddp", "fsdp", "deepspeed 1", "deepspeed 2", "deepspeed 3"):
        figures += _figures(rf"{strategy} +│ fp32 +│ +([\d.]+) │ +([\d.]+) │", said)
    assert all(figure > 0 for figure in figures)
    assert "Traceback" not in done.stderr and "Warning" not in done.stderr, done.stderr


def test_a_strategy_that_the_model_refuses_says_so_in_its_row_and_one_rank_compares_nothing() -> None:
    done = _run("quick/unet", *TINY.split(), "activation_checkpointing=true", "--gpus", "1", "--steps", "1")
    assert done.returncode == 0, done.stderr
    assert "one rank: ddp against a bare loop, and scaling, need two or more" in done.stdout
    assert "of its speed" not in done.stdout
    (refused,) = [line for line in done.stdout.splitlines() if "deepspeed 3" in line]
    assert "activation_checkpointing=true cannot be with deepspeed.stage = 3" in refused


def test_ranks_of_a_launcher_measure_together() -> None:
    launcher = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    words = ["quick/pix2pix", "data.size=16", "batch.size=4", "device=cpu", "model.generator.multipliers=[1,2]"]
    done = _run(*words, "model.discriminator.multipliers=[1,2]", "--steps", "1", launcher=launcher)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("pix2pix, 4 pictures of 16 x 16") == 1
    assert _figures(r"loop: ([\d.]+) of its speed", done.stdout)[0] > 0
    assert _figures(r"strategy=ddp, precision=fp32: ([\d.]+) ms a step, ([\d.]+) pictures/s", done.stdout)[0] > 0


def test_a_batch_that_the_ranks_cannot_share_is_said_once() -> None:
    done = _run("quick/unet", *TINY.split(), "--gpus", "3", "--steps", "1")
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.count("batch.size = 8 cannot be shared by 3 ranks") == 1 and "Traceback" not in done.stderr
