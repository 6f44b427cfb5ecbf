"""`memdist train --gpus N`: how many ranks this machine can hold, and what a person should know before they start.

`python -m memdist.launch.gpus` prints how many ranks a machine holds by default: one a GPU, or one without.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from memdist import errors, output
from memdist.errors import ConfigError
from memdist.launch import local


def start(words: Sequence[str], ranks: int, restarts: int, device: str) -> int | None:
    """Run `memdist WORDS` in so many ranks of this machine; `device` is the setting. Gives the exit code of the whole.

    None where one rank is wanted, and nobody need be there to start it again: that can be this process. Raises ConfigError,
    before anything starts, where the machine cannot hold them.
    """
    check(ranks, device, os.environ)
    if ranks > 1 and device == "cpu":
        output.show(_on_cpu(ranks))
    elif ranks > 1:
        there = count()
        if there == 0 and device == "auto":
            output.show(f"there is no GPU here: {_on_cpu(ranks)}")
        elif there < ranks:
            raise too_many(ranks, there)
    if ranks == 1 and not restarts:
        return None
    return local.run(local.memdist(words), ranks, restarts=restarts)


def too_many(ranks: int, there: int) -> ConfigError:
    """What to say where more ranks are asked for than the machine has GPUs."""
    have = f"{there} GPU{'s' if there != 1 else ''}" if there else "no GPU that torch can use"
    return ConfigError(
        f"--gpus {ranks} cannot be: this machine has {have} (CUDA_VISIBLE_DEVICES counts); give at most as many, or device=cpu"
    )


def check(ranks: int, device: str, environment: Mapping[str, str]) -> None:
    """Raise a ConfigError where ranks cannot be started from here at all, or not for this device."""
    if "WORLD_SIZE" in environment or "RANK" in environment:
        error = ConfigError(
            "--gpus and --max-restarts start the ranks of a job, and this process is one already (WORLD_SIZE or RANK is set): "
            "leave them out under a launcher, or unset those variables"
        )
        errors.shared(error)
        raise error
    if ranks > 1 and (device.startswith(("mps", "cuda:")) or (device == "auto" and sys.platform == "darwin")):
        raise ConfigError(
            f"--gpus {ranks} cannot be with device = {device!r}, which is one device; use device=cuda or device=cpu"
        )


def _on_cpu(ranks: int) -> str:
    threads = os.environ.get("OMP_NUM_THREADS") or max(1, local.cores() // ranks)
    return f"{ranks} ranks share the CPU, {threads} thread{'s' if str(threads) != '1' else ''} each"


def count() -> int:
    """GPUs that torch will find here. It is asked in a process of its own, and only where there is a driver."""
    if not any(Path("/dev").glob("nvidia*")) and not Path("/dev/kfd").exists() and not shutil.which("nvidia-smi"):
        return 0
    code = "import torch; print(torch.cuda.device_count() if torch.cuda.is_available() else 0)"
    asked = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True)
    return int(asked.stdout.split()[-1]) if asked.returncode == 0 and asked.stdout.split() else 0


if __name__ == "__main__":
    print(max(1, count()))
