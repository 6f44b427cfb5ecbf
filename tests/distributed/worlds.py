"""Processes that train together in worlds of one to all of them, one world after the other, in one job.

Starting a process costs more than training a tiny run for twenty steps: so the few processes of a job join and leave
process groups of every size and strategy. What they have to tell lies in the job's folder, a JSON file a scenario and rank.
"""

import contextlib
import io
import json
import os
import socket
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from memdist.distributed import strategy as strategy_
from memdist.train import loop, start
from memdist.train.signals import Signals
from tests import tiny

ROOT = Path(__file__).parents[2]

Scenario = tuple[str, int]
"""A name, and the size of the world that plays it."""


def job(folder: Path, size: int, module: str, timeout: float = 1500) -> None:
    """Run `module` in `size` processes, which find what to do in its `scenarios`; an AssertionError shows what they said."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "MEMDIST_TEST_FP16_ON_CPU": "1"}
    processes = []
    for rank in range(size):
        said = open(folder / f"said-{rank}.txt", "w")
        command = [sys.executable, "-m", module, str(folder), str(rank), str(size)]
        processes.append(subprocess.Popen(command, env=environment, stdout=said, stderr=subprocess.STDOUT, cwd=ROOT))
        said.close()
    end = time.monotonic() + timeout
    try:
        # One that fails leaves the others waiting for it.
        while time.monotonic() < end and (left := [p.poll() for p in processes]).count(0) < size:
            if any(left):
                break
            time.sleep(0.05)
        codes = [process.poll() for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.wait()
    said_all = "\n".join((folder / f"said-{rank}.txt").read_text()[-4000:] for rank in range(size))
    assert codes == [0] * size, said_all


def play(folder: Path, rank: int, size: int, scenarios: Sequence[tuple[str, int, Callable[[Any], Any]]]) -> None:
    """Play scenarios in turn: those of a world that this rank belongs to; what they give is written."""
    for number, (name, world, act) in enumerate(scenarios):
        if rank < world:
            with member(folder, number, rank, world):
                try:
                    told = act(rank)
                except BaseException:
                    print(f"rank {rank} in {name}: {traceback.format_exc()}", flush=True)
                    os._exit(1)
                (folder / f"{name}-{rank}.json").write_text(json.dumps(told))
        _meet(folder, f"after-{number}", rank, size)


@contextlib.contextmanager
def member(folder: Path, number: int, rank: int, world: int) -> Iterator[None]:
    """The environment of a rank, as a launcher sets it; a world of one has none."""
    names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    if world > 1:
        path = folder / f"port-{number}"
        if rank == 0:
            with socket.socket() as free:
                free.bind(("127.0.0.1", 0))
                path.with_suffix(".tmp").write_text(str(free.getsockname()[1]))
            path.with_suffix(".tmp").rename(path)
        while not path.is_file():
            time.sleep(0.01)
        values = (rank, rank, world, world, "127.0.0.1", path.read_text())
        os.environ.update({name: str(value) for name, value in zip(names, values, strict=True)})
    if "deepspeed" in sys.modules:
        # What it counts up in a process differs between those that were in a world and those that were not.
        from deepspeed.runtime.zero.parameter_offload import DeepSpeedZeRoOffload
        from deepspeed.runtime.zero.partition_parameters import Init

        DeepSpeedZeRoOffload._register_deepspeed_module.__defaults__[0][0] = Init.param_id = 0
    try:
        yield
    finally:
        for name in names:
            os.environ.pop(name, None)


def _meet(folder: Path, name: str, rank: int, size: int) -> None:
    (folder / f"{name}-{rank}").touch()
    while not all((folder / f"{name}-{other}").exists() for other in range(size)):
        time.sleep(0.01)


def settings(variant: str, folder: Path, way: str, **more: Any) -> Any:
    """A tiny run shared in a way: ddp, fsdp, or zero1 to zero3."""
    if way.startswith("zero"):
        more = {"strategy": "deepspeed", "deepspeed.stage": way[-1], **more}
    else:
        more = {"strategy": way, **more}
    return tiny.run(variant, folder / "data", **{"epochs": 40, "checkpoint.every": 100, "log.images": 0, **more})


def train(run: Any, out: Path, last: int, saves: Sequence[int] = ()) -> dict[str, Any]:
    """Train to step `last` in this process's world, with checkpoints at some steps; what the ranks see of it."""
    strategy = strategy_.make(run)
    try:
        with Signals() as signals, contextlib.redirect_stdout(io.StringIO()):
            session = start.open_session(run, out, strategy, start.build(run), extend=False)
            leg = loop.Leg(session, signals)
            try:
                with leg.loader() as loader:
                    while session.step < last:
                        code = leg.advance(loader)
                        assert code is None
                        if session.step in saves:
                            leg.save()
                    strategy.settle()
            finally:
                leg.close()
        return {"step": session.step}
    finally:
        strategy.close()
