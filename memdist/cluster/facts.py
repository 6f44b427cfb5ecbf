"""What Slurm tells of a cluster: partitions with their limits, and what it makes of arrays."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass

from memdist import times
from memdist.errors import ClusterError, printable

PATIENCE = 30.0
"""Seconds that a program of Slurm may take to answer."""

MAX_ARRAY = 1001
"""MaxArraySize where Slurm does not tell: its own default."""


@dataclass(frozen=True, kw_only=True)
class Partition:
    """Nodes that jobs may be sent to."""

    name: str
    default: bool = False
    seconds: int | None = None
    """Longest time limit; None: there is none."""
    nodes: int = 0
    gpus: int = 0
    """Of the node that has the most."""
    gpu_type: str | None = None
    """Of those, where they are all of one type and it has a name."""
    cpus: int = 0
    """Of the node that has the most."""
    megabytes: int = 0
    """Memory of the node that has the most."""


@dataclass(frozen=True)
class Facts:
    """A cluster, as Slurm tells of it."""

    partitions: tuple[Partition, ...]
    max_array: int = MAX_ARRAY
    """Indices of an array are below this."""

    def partition(self, name: str | None) -> Partition:
        """A partition, by default the cluster's default one; raises ClusterError where there is none.

        Of several, `gpu,long`, of which Slurm takes the first that has room: what the most generous of them allows.
        """
        if name is not None and "," in name and all(name.split(",")):
            several = [self.partition(one) for one in name.split(",")]
            limits = [one.seconds for one in several]
            types = {one.gpu_type for one in several if one.gpus}
            return Partition(
                name=name,
                seconds=None if None in limits else max(limit for limit in limits if limit is not None),
                nodes=max(one.nodes for one in several),
                gpus=max(one.gpus for one in several),
                gpu_type=types.pop() if len(types) == 1 else None,
                cpus=max(one.cpus for one in several),
                megabytes=max(one.megabytes for one in several),
            )
        for one in self.partitions:
            if one.name == name or (name is None and one.default):
                return one
        names = ", ".join(one.name for one in self.partitions)
        if name is None:
            raise ClusterError(
                f"this cluster has no default partition: name one in the cluster's file; there are {names}"
            )
        raise ClusterError(f"there is no partition {printable(name)!r} on this cluster: there are {names}")


def call(words: Sequence[str], patience: float = PATIENCE) -> str:
    """What a program of Slurm prints; raises ClusterError with its own words where it fails, is not there, or is silent."""
    try:
        done = subprocess.run(
            words, capture_output=True, text=True, errors="replace", timeout=patience, stdin=subprocess.DEVNULL
        )
    except FileNotFoundError:
        raise ClusterError(
            f"Slurm is not there: this machine has no {words[0]}; submit on a login node of the cluster, or queue runs on this "
            "machine with --cluster local"
        ) from None
    except OSError as error:
        raise ClusterError(
            f"Slurm is not there: {words[0]} cannot be run: {(error.strerror or str(error)).lower()}; mend PATH, or queue runs "
            "on this machine with --cluster local"
        ) from None
    except subprocess.TimeoutExpired:
        raise ClusterError(
            f"Slurm does not answer: {words[0]} said nothing for {patience:g} s; see whether the cluster's controller runs, and "
            "try again"
        ) from None
    if done.returncode:
        raise ClusterError(refusal(words[0], done.stderr or done.stdout or f"exit code {done.returncode}"))
    return done.stdout


def refusal(program: str, words: str) -> str:
    """A sentence with what a program of Slurm said."""
    lines = [line.strip() for line in words.splitlines() if line.strip()]
    said = "; ".join(printable(re.sub(rf"^{program}: (error: )?", "", line)) for line in lines)
    return f"{program} refuses: {said or 'it does not say why'}"


def there() -> bool:
    """Whether this machine has Slurm's programs."""
    return shutil.which("sbatch") is not None


def ask() -> Facts:
    """Ask sinfo and scontrol; raises ClusterError where Slurm is not there, does not answer, or shows no partition."""
    found = partitions(call(["sinfo", "-h", "-a", "-o", "%R|%l|%D|%G|%c|%m|%P"]))
    if not found:
        raise ClusterError("sinfo shows no partition that you may use: ask the cluster's administrators")
    try:
        config = call(["scontrol", "show", "config"])
    except ClusterError:
        config = ""  # sinfo has answered: the default does
    return Facts(found, max_array(config))


def partitions(text: str) -> tuple[Partition, ...]:
    """Partitions from lines `name|limit|nodes|gres|cpus|memory|name with * for the default one` of sinfo."""
    found: dict[str, Partition] = {}
    for line in text.splitlines():
        fields = line.split("|")
        if len(fields) != 7:
            continue
        name, limit, nodes, gres, cpus, memory, starred = fields
        before = found.get(name, Partition(name=name))
        gpus, gpu_type = gpus_of(gres)
        types = {gpu_type, before.gpu_type} if before.gpus and gpus else {gpu_type or before.gpu_type}
        found[name] = Partition(
            name=name,
            default=before.default or starred.endswith("*"),
            seconds=times.limit(limit),
            nodes=before.nodes + _number(nodes),
            gpus=max(gpus, before.gpus),
            gpu_type=types.pop() if len(types) == 1 else None,
            cpus=max(_number(cpus), before.cpus),
            megabytes=max(_number(memory), before.megabytes),
        )
    return tuple(found.values())


def gpus_of(gres: str) -> tuple[int, str | None]:
    """GPUs of a node, and their type where there is but one, from such as `gpu:a100:4(S:0-1),nvme:1`."""
    total, types = 0, set()
    for part in re.split(r",(?![^(]*\))", gres):
        found = re.fullmatch(r"gpu(?::([^:()]+?))?(?::([0-9]+))?(?:\(.*\))?", part.strip())
        if found is None:
            continue
        name, count = found.groups()
        if name is not None and count is None and name.isdecimal():
            name, count = None, name
        total += int(count or 1)
        types.add(name)
    return total, types.pop() if len(types) == 1 else None


def max_array(config: str) -> int:
    """MaxArraySize from what `scontrol show config` prints."""
    found = re.search(r"^MaxArraySize\s*=\s*([0-9]+)", config, re.M)
    return int(found[1]) if found else MAX_ARRAY


def _number(text: str) -> int:
    """The number that a field begins with: sinfo writes 64+ where nodes differ."""
    found = re.match("[0-9]+", text.strip())
    return int(found[0]) if found else 0
