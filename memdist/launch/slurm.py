"""The tasks of a Slurm job step as ranks, from the environment alone: `scontrol` may be missing on compute nodes."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Mapping

from memdist.errors import ConfigError

_SPECIAL = 0xFFFFFFF0
"""Steps from this number on are Slurm's own: the batch script, the shell of salloc, what an administrator attaches."""

_FIRST_PORT, _PORTS = 10000, 20000
"""Below the ports that Linux hands out by itself (32768 on)."""


def variables(environment: Mapping[str, str]) -> dict[str, str]:
    """RANK, WORLD_SIZE, ... of a task that srun started beside others; nothing for any other process.

    A batch script or the shell of salloc has some of srun's variables as well, but is no step of several tasks.
    """
    step, tasks = environment.get("SLURM_STEP_ID", ""), environment.get("SLURM_STEP_NUM_TASKS", "")
    if not (step.isdecimal() and int(step) < _SPECIAL and tasks.isdecimal() and int(tasks) > 1):
        return {}
    for key in ("SLURM_PROCID", "SLURM_LOCALID"):
        if not environment.get(key, "").isdecimal():
            raise ConfigError(
                f"this is a Slurm step of {tasks} tasks and {key}={environment.get(key, '(not set)')} says not which one this "
                "is: start with srun, or set RANK and WORLD_SIZE"
            )
    nodes = environment.get("SLURM_STEP_NODELIST") or environment.get("SLURM_JOB_NODELIST", "")
    names = list(itertools.islice(hosts(nodes), 2))
    found = {
        "RANK": environment["SLURM_PROCID"],
        "WORLD_SIZE": tasks,
        "LOCAL_RANK": environment["SLURM_LOCALID"],
        # On one machine no name need be resolved.
        "MASTER_ADDR": names[0] if len(names) > 1 else "127.0.0.1",
        "MASTER_PORT": str(_port(environment)),
    }
    counts = _tasks(environment.get("SLURM_STEP_TASKS_PER_NODE", ""))
    node = environment.get("SLURM_NODEID", "")
    if node.isdecimal() and int(node) < len(counts):
        found["LOCAL_WORLD_SIZE"] = str(counts[int(node)])
    if _own_gpu(environment):
        # Slurm shows each task its own GPU only, which is number 0 to it.
        found |= {"LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}
    # What a person has set for all tasks comes first.
    return found | {key: environment[key] for key in ("MASTER_ADDR", "MASTER_PORT") if environment.get(key)}


def _own_gpu(environment: Mapping[str, str]) -> bool:
    bound = "SLURM_GPUS_PER_TASK" in environment or "gpu" in environment.get("SLURM_TRES_PER_TASK", "")
    visible = environment.get("CUDA_VISIBLE_DEVICES", "")
    return bound and bool(visible) and "," not in visible


def _port(environment: Mapping[str, str]) -> int:
    # All tasks find the same one, steps that share a node others; so does a job that was started again, whose former
    # connections may linger.
    numbers = [environment.get(key, "") for key in ("SLURM_JOB_ID", "SLURM_STEP_ID", "SLURM_RESTART_COUNT")]
    job, step, restarts = (int(text) if text.isdecimal() else 0 for text in numbers)
    return _FIRST_PORT + (job * 131 + step * 17 + restarts * 7) % _PORTS


def _tasks(text: str) -> list[int]:
    """Tasks of each node, from such as `2(x3),1`."""
    counts: list[int] = []
    for part in text.split(","):
        found = re.fullmatch(r"([0-9]+)(?:\(x([0-9]+)\))?", part)
        if found is None:
            return []
        counts += [int(found[1])] * min(int(found[2] or 1), 1_000_000)
    return counts


def hosts(text: str) -> Iterator[str]:
    """Names of the nodes in Slurm's short form, in order: `a[01-03,7],b` is a01, a02, a03, a7, b."""
    # Commas between brackets part ranges, others part names.
    if not re.fullmatch(r"(?!,)(?:[^][,\s]|\[[0-9]+(?:-[0-9]+)?(?:,[0-9]+(?:-[0-9]+)?)*\]|,(?=[^,\s]))+", text):
        raise ConfigError(
            f"SLURM_STEP_NODELIST={text!r} names no nodes: it should be such as node[01-03,7]; set MASTER_ADDR to the "
            "first node's name"
        )
    for name in re.findall(r"(?:[^][,]|\[[^]]*\])+", text):
        parts = re.split(r"\[([^]]*)\]", name)
        choices = [[part] if at % 2 == 0 else _numbers(part) for at, part in enumerate(parts)]
        yield from ("".join(chosen) for chosen in itertools.product(*choices))


def _numbers(text: str) -> list[str]:
    found: list[str] = []
    for part in text.split(","):
        first, _, last = part.partition("-")
        last = last or first
        # As many digits as the first is written with.
        found += [str(number).zfill(len(first)) for number in range(int(first), min(int(last), int(first) + 65536) + 1)]
    return found
