"""A job as the text that sbatch is given: pure, so that what is submitted can be read beforehand."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from memdist import times
from memdist.cluster import book
from memdist.cluster.profile import Cluster
from memdist.errors import printable


@dataclass(frozen=True, kw_only=True)
class Job:
    """One job, or one array of jobs that differ by a number."""

    kind: book.Kind
    name: str
    """Of letters, digits, dots, hyphens and underscores."""
    words: tuple[str, ...]
    """Command of memdist; an element of an array adds which share it does."""
    place: Path
    """Folder in whose `jobs` it is written down."""
    folder: Path
    """Current folder of the command."""
    seconds: int
    """Time limit."""
    nodes: int = 1
    ranks: int = 1
    """Of each node."""
    gpus: int = 0
    """Of each node; 0: the ranks run on CPUs."""
    cpus: int = 0
    """Of each rank; 0: as many as the cluster gives a GPU."""
    runs: Path | None = None
    """File with a line for each run of an array, in place of `words`."""
    numbers: tuple[int, ...] = ()
    """Of an array: numbers of its elements."""
    offset: int = 0
    """Number less index of each element: indices are limited, numbers are not."""
    total: int = 0
    """Shares or runs in all, of which `numbers` are some."""
    at_most: int | None = None
    """Elements that run at once."""
    after: tuple[str, ...] = ()
    """Jobs that must have succeeded."""
    behind: tuple[str, ...] = ()
    """Jobs that must have ended, whatever came of them."""
    chained: bool = False
    """It waits for the end of jobs of its name, and is not put into the queue again."""


def directives(job: Job, cluster: Cluster) -> list[str]:
    """Options of sbatch, each as one word."""
    partition = cluster.partition if job.gpus else cluster.cpu_partition or cluster.partition
    kind = f"{cluster.gpu_type}:" if cluster.gpu_type else ""
    gpus = {"gpus-per-node": f"--gpus-per-node={kind}{job.gpus}", "gres": f"--gres=gpu:{kind}{job.gpus}"}
    throttle = f"%{job.at_most}" if job.at_most else ""
    waits = [f"afterok:{':'.join(job.after)}"] if job.after else []
    waits += [f"afterany:{':'.join(job.behind)}"] if job.behind else []
    waits += ["singleton"] if job.chained else []
    shares = max(1, job.gpus) if job.kind == "search" else job.ranks  # one task of a search has all trials of its node
    log = str(book.batch_log(job.place, "%A_%a" if job.numbers else "%j")) if plain(job.place) else "/dev/null"
    found = [
        f"--job-name={job.name}",
        f"--partition={partition}" if partition else "",
        f"--account={cluster.account}" if cluster.account else "",
        f"--qos={cluster.qos}" if cluster.qos else "",
        f"--constraint={cluster.constraint}" if cluster.constraint else "",
        f"--nodes={job.nodes}",
        f"--ntasks-per-node={job.ranks}",
        gpus[cluster.gpu_form] if job.gpus else "",
        f"--cpus-per-task={job.cpus or cluster.cpus_per_gpu}",
        f"--mem={_times(cluster.memory_per_rank, shares)}" if cluster.memory_per_rank else "",
        f"--time={times.slurm(job.seconds)}",
        f"--array={indices([number - job.offset for number in job.numbers])}{throttle}" if job.numbers else "",
        f"--dependency={','.join(waits)}" if waits else "",
        "--kill-on-invalid-dep=yes" if job.after else "",
        # B: the signal goes to the script, which hands it on; without, it would pass by what no srun has started.
        f"--signal=B:USR2@{cluster.signal_lead}" if cluster.signal_lead else "",
        "--requeue" if cluster.requeue and not job.chained else "--no-requeue",
        "--open-mode=append",
        f"--output={log}",
        *cluster.options,
    ]
    return [option for option in found if option]


def render(job: Job, cluster: Cluster) -> str:
    """The whole text of a batch script."""
    lines = [
        "#!/bin/bash",
        f"# {_comment(('memdist', *job.words) if job.runs is None else ('memdist', 'train', '-m', job.name))}",
    ]
    lines += [f"#SBATCH {option}" for option in directives(job, cluster)]
    # No -u: what modules and a site's own lines run is full of variables that are not set.
    # Until Python is there to take note of them, they would end the job, which nobody would then start again.
    lines += ["", "set -eo pipefail", "umask 077", "trap '' TERM USR2"]
    if not plain(job.place):
        # sbatch cannot be given every name of a file; the shell can.
        log = quoted(str(book.logs(job.place)) + "/")
        number = "${SLURM_ARRAY_JOB_ID}_${SLURM_ARRAY_TASK_ID}" if job.numbers else "$SLURM_JOB_ID"
        lines += [f'exec >>{log}"{number}.log" 2>&1']
    lines += [f"cd -- {quoted(str(job.folder))}"]
    lines += [f"module load {quoted(module)}" for module in cluster.modules]
    lines += cluster.setup
    lines += [f"export {name}={quoted(value)}" for name, value in cluster.environment.items()]
    call = " \\\n    ".join(quoted(word) for word in options(job, cluster))
    return "\n".join([*lines, f"exec {cluster.python_words} -P -m memdist.cluster.leg \\\n    {call}", ""])


def options(job: Job, cluster: Cluster) -> list[str]:
    """What `memdist.cluster.leg` is called with, inside the job."""
    return [
        f"--place={job.place}",
        f"--ranks={job.ranks}",
        f"--lead={cluster.signal_lead}",
        f"--max-failures={cluster.max_failures}",
        f"--again={'chain' if job.chained or not cluster.requeue else 'requeue'}",
        *([f"--offset={job.offset}", f"--total={job.total}"] if job.numbers else []),
        *([f"--scratch={cluster.scratch}"] if cluster.scratch else []),
        *([f"--container={cluster.container}"] if cluster.container else []),
        *([f"--runs={job.runs}"] if job.runs is not None else []),
        "--",
        *job.words,
    ]


def name(words: Sequence[str]) -> str:
    """A job's name made of words: sbatch and singleton chains get plain ones."""
    return re.sub(r"[^A-Za-z0-9._-]+", "_", "-".join(words)).strip("_")[:100] or "memdist"


def quoted(word: str) -> str:
    """A word for bash that stays in one line and is read as it is: what has no sign of its own is spelled out in bytes.

    So nothing that a person typed begins a line of a script, and sbatch meets no line end of DOS, which it refuses.
    """
    if word.isprintable():
        return shlex.quote(word)
    signs = {"\\": "\\\\", "'": "\\'", "\n": "\\n", "\t": "\\t"}
    return "$'" + "".join(signs.get(c) or (c if c.isprintable() else _bytes(c)) for c in word) + "'"


def _bytes(one: str) -> str:
    return "".join(f"\\{byte:03o}" for byte in one.encode("utf-8", "surrogateescape"))


def plain(path: Path) -> bool:
    """Whether sbatch takes a path as it stands, without making something else of it."""
    return re.fullmatch(r"[A-Za-z0-9_./+=,@:-]+", os.fspath(path)) is not None


def indices(numbers: Sequence[int]) -> str:
    """Numbers as Slurm writes them: 1-4,7."""
    runs: list[list[int]] = []
    for number in sorted(numbers):
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ",".join(f"{first}" if first == last else f"{first}-{last}" for first, last in runs)


def cut(numbers: Sequence[int], max_array: int) -> list[tuple[int, tuple[int, ...]]]:
    """Numbers from 1 on as arrays whose indices stay below `max_array`: the offset of each, and its numbers."""
    # Indices are also bounded in number: an array of indices below a limit never has more of them.
    size = max(1, max_array - 1)
    pieces: dict[int, list[int]] = {}
    for number in sorted(numbers):
        pieces.setdefault((number - 1) // size * size, []).append(number)
    return [(offset, tuple(some)) for offset, some in pieces.items()]


def _times(memory: str, ranks: int) -> str:
    found = re.fullmatch(r"([0-9]+)([A-Za-z]*)", memory)
    return f"{int(found[1]) * ranks}{found[2]}" if found else memory


def _comment(words: Sequence[str]) -> str:
    """Words in one line of comment, whatever is in them."""
    return printable(shlex.join(words))[:2000]
