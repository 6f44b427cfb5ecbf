"""Facts of a site, one YAML file a cluster: `~/.config/memdist/clusters/NAME.yaml`."""

from __future__ import annotations

import difflib
import os
import re
from pathlib import Path
from typing import Annotated, Literal

import pydantic
from pydantic import Field

from memdist import config, rundir, times
from memdist.config import Count, Settings
from memdist.errors import ClusterError, ConfigError, printable

LOCAL = "local"
"""The cluster that every machine has: itself."""

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}")


def _line(text: str) -> str:
    if not text.isprintable() or not text.strip():
        raise ValueError("one line of text")
    return text


def _word(text: str) -> str:
    if not re.fullmatch(r"[\w.,:@+/=&|*()\[\]-]+", text, re.A):
        raise ValueError("a word as Slurm has them: letters, digits and . , : @ + / = & | * ( ) [ ] - _")
    return text


def _length(text: str) -> str:
    try:
        times.seconds(text, "")
    except ConfigError as error:
        raise ValueError(f"a length of time: {str(error).partition(': ')[2]}") from None
    return text


Word = Annotated[str, pydantic.AfterValidator(_word)]
Line = Annotated[str, pydantic.AfterValidator(_line)]
Length = Annotated[str, pydantic.AfterValidator(_length)]
Variable = Annotated[str, Field(pattern="^[A-Za-z_][A-Za-z0-9_]*$")]


class Cluster(Settings):
    """What has to be known of a cluster to run memdist there; null: the site's default, or it has none."""

    partition: Word | None = None
    """Partition of jobs with GPUs, or several, `gpu,long`; null: the cluster's default one."""
    cpu_partition: Word | None = None
    """Partition of jobs without; null: as `partition`."""
    account: Word | None = None
    """Account that is charged."""
    qos: Word | None = None
    """Quality of service."""
    constraint: Word | None = None
    """Features that nodes must have, such as h100."""
    gpu_form: Literal["gpus-per-node", "gres"] = "gpus-per-node"
    """How GPUs are asked for: --gpus-per-node=N, or --gres=gpu:N."""
    gpu_type: Word | None = None
    """Type of GPU that is named with them, such as a100."""
    gpus_per_node: Annotated[int, Field(ge=0, le=1024)] | None = None
    """GPUs of a node; null: what sinfo says."""
    cpus_per_gpu: Count = 4
    """CPU cores of a rank."""
    memory_per_rank: Word | None = None
    """Host memory of a rank, such as 40G; null: the site's default."""
    time: Length = "1h"
    """Time limit where --time is not given."""
    max_time: Length | None = None
    """Longest time limit of a job; null: what sinfo says of the partition."""
    signal_lead: Annotated[int, Field(ge=0, le=3600)] = 120
    """Seconds before the end of its time at which a job is told to write a checkpoint and leave."""
    requeue: bool = True
    """Whether a job may put itself into the queue again with scontrol; false: it goes on in the next of --legs."""
    modules: tuple[Line, ...] = ()
    """Environment modules that are loaded, in order."""
    setup: tuple[Line, ...] = ()
    """Lines of shell that a job begins with, as they stand."""
    environment: dict[Variable, str] = {}
    """Environment variables of jobs. They are written into job scripts: put no secret here."""
    container: Line | None = None
    """Command before Python's, such as `apptainer exec --nv /images/memdist.sif`."""
    python: Line | None = None
    """Python that has memdist, on compute nodes; null: the one that submits."""
    scratch: Line | None = None
    """Fast folder on each node, such as $TMPDIR: decoded pictures and compiled code are kept there; variables are the job's."""
    shared: tuple[Path, ...] = ()
    """Folders that compute nodes see; what lies elsewhere is refused. Empty: only what is plainly this machine's own is."""
    options: tuple[Line, ...] = ()
    """Further options of sbatch, such as --hint=nomultithread."""
    max_failures: Annotated[int, Field(ge=0, le=1000)] = 3
    """Failures of a job after which it is not started again; time limits and pre-emption are none."""

    @property
    def python_words(self) -> str:
        """What starts Python on a compute node, as shell."""
        import shlex
        import sys

        python = shlex.quote(self.python or sys.executable)
        return f"{self.container} {python}" if self.container else python


def folder() -> Path:
    """Folder of profiles: memdist/clusters in $XDG_CONFIG_HOME, else in ~/.config."""
    return Path(os.environ.get("XDG_CONFIG_HOME") or Path("~/.config").expanduser()) / "memdist" / "clusters"


def path(name: str) -> Path:
    """File of a profile; a ConfigError for what cannot be the name of one."""
    if not _NAME.fullmatch(name) or name == LOCAL:
        reason = "that is this machine" if name == LOCAL else "a name has letters, digits, . _ and -"
        raise ConfigError(f"a cluster cannot be called {printable(name)!r}: {reason}; choose another name")
    return folder() / f"{name}.yaml"


def known() -> list[str]:
    """Names of all profiles, this machine's own last."""
    there = sorted(file.stem for file in folder().glob("*.yaml")) if folder().is_dir() else []
    return [*there, LOCAL]


def read(name: str) -> Cluster:
    """The profile of a cluster; raises ClusterError where there is none, ConfigError where it cannot be."""
    if name == LOCAL:
        return Cluster(requeue=False)
    file = folder() / f"{name}.yaml"
    if not _NAME.fullmatch(name) or not file.is_file():
        near = difflib.get_close_matches(name, known(), n=1)
        hint = f"did you mean {near[0]}? " if near else ""
        raise ClusterError(
            f"there is no cluster {printable(name)!r}: {hint}known are {', '.join(known())}; `memdist cluster init NAME` writes "
            f"{folder()}/NAME.yaml from what Slurm says"
        )
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file} cannot be read: {error}") from error
    raw = config.parse(text, str(file))
    if not isinstance(raw, dict):
        raise ConfigError(f"{file} holds no settings: write such as partition: gpu")
    try:
        return config.check(Cluster, raw)
    except ConfigError as error:
        raise ConfigError("\n".join(f"{file}: {line}" for line in str(error).split("\n"))) from error


def write(name: str, text: str) -> Path:
    """Write a new profile; raises ClusterError where there is one of that name."""
    file = path(name)
    if file.exists():
        raise ClusterError(f"{file} is there already: edit it, remove it, or choose another name")
    rundir.make_folder(file.parent)
    rundir.write_text(file, text)
    return file
