"""The command of a job, started: on every rank through srun where that is needed, with a file of its own for what each prints."""

from __future__ import annotations

import argparse
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from memdist import rundir
from memdist.cluster import book
from memdist.cluster.slurm import Here, inside, step
from memdist.cluster.task import Task
from memdist.errors import ClusterError
from memdist.launch.forward import bound
from memdist.launch.local import memdist


def start(options: argparse.Namespace, here: Here, task: Task, environment: dict[str, str]) -> subprocess.Popen[bytes]:
    """Start the ranks of a task's command, in a session of their own."""
    ranks, nodes = options.ranks, here.count
    rundir.make_folder(book.logs(task.home))
    log = book.rank_log(task.home, here.id, here.restart, 0)
    command = memdist(task.words)
    alone = here.local or shutil.which("srun") is None
    if alone and nodes > 1:
        raise ClusterError(
            f"this job has {nodes} nodes, and no srun to start ranks there: bind Slurm's programs into the container, or ask "
            "for one node"
        )
    if alone and ranks > 1 and task.trains:
        command += ["--gpus", str(ranks)]
    elif not alone and (ranks > 1 or nodes > 1 or task.trains):
        # At pre-emption a cluster may send TERM to what srun has started, and nothing to the batch script.
        output, command = _into(log, [*inside(options.container), *command])
        return subprocess.Popen(
            [*step(nodes, ranks), *output, *command],
            env=environment,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
            preexec_fn=bound(),
        )
    with open(log, "ab") as file:
        return subprocess.Popen(
            command,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=file,
            start_new_session=True,
            preexec_fn=bound(),
        )


def _into(log: Path, command: Sequence[str]) -> tuple[list[str], list[str]]:
    """Options of srun, and the command, with which each rank prints into the file that is `log` for rank 0."""
    before = str(log).removesuffix("0")
    if "\\" in before:
        # With one in a name, Slurm leaves %t as it is, and there is no way to write it twice: all ranks would share a file.
        return [], ["bash", "-c", 'exec >>"$0$SLURM_PROCID" 2>&1; exec "$@"', before, *command]
    return [f"--output={before.replace('%', '%%')}%t", "--open-mode=append"], list(command)
