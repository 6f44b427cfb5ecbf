"""Peak memory of real training steps, as the system and the device see them: `python -m tests.distributed.peak SETTINGS OUT`.

SETTINGS is a JSON file of a run's raw settings, so any strategy; OUT gets {"peak": bytes, "steps": n} of rank 0's process.
On CPUs the figure is the growth of the process's peak resident memory (VmHWM) over what it had before networks were built;
freed memory goes back to the system at once, if MALLOC_MMAP_THRESHOLD_ and MALLOC_TRIM_THRESHOLD_ say so. On GPUs it is
`torch.cuda.max_memory_allocated`. Neither knows anything of how the plan counts.
"""

import gc
import json
import sys
from pathlib import Path
from typing import Any

import torch

from memdist import models
from memdist.data.loader import Loader
from memdist.distributed import strategy as strategy_
from memdist.train import start
from memdist.train import step as step_
from tests.tiny import VARIANTS

STEPS = 3


def resident(field: str) -> int:
    """Bytes of this process: VmRSS now, VmHWM at most."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


def steps(run: Any, out: Path, strategy: strategy_.Strategy) -> start.Session:
    """Take some steps of a run."""
    session = start.open_session(run, out, strategy, start.build(run), extend=False)
    rows = session.data.rows["train"]
    with Loader(
        session.data.pixels,
        rows,
        seed=run.seed,
        batch_size=run.batch.size,
        micro=start.micro_batch(run, strategy.world, len(rows)),
        rank=strategy.rank,
        world=strategy.world,
        device=strategy.device,
        resident="host",
    ) as loader:
        sums = step_.Sums()
        for number in range(STEPS):
            step_.take_step(session, loader.micro_batches(number), sums)
    return session


def measure(raw: dict[str, Any], out: Path) -> None:
    """Write the peak of a run's steps."""
    strategy = strategy_.make(models.resolve(raw))
    cuda = strategy.device.type == "cuda"
    # Imports, kernels and threads are no memory of a run's: a tiny one of the same model and strategy has them loaded.
    tiny = {
        **raw,
        "model": VARIANTS[raw["model"]["name"]]["model"],
        "batch": {"size": 2},
        "data": {**raw["data"], "size": 16},
    }
    steps(models.resolve(tiny), out.parent / "tiny", strategy)
    gc.collect()
    if cuda:
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
    else:
        Path("/proc/self/clear_refs").write_text("5")  # VmHWM begins anew
        before = resident("VmRSS")
    session = steps(models.resolve(raw), out.parent / "run", strategy)
    peak = (torch.cuda.max_memory_allocated() if cuda else resident("VmHWM")) - before
    if strategy.main:
        out.write_text(json.dumps({"peak": peak, "steps": session.step}))
    strategy.first(lambda: None)
    strategy.close()


if __name__ == "__main__":
    measure(json.loads(Path(sys.argv[1]).read_text()), Path(sys.argv[2]))
