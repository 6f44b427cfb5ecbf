"""What works on this machine, what will not, and why; nothing is trained, started or written."""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from rich.table import Table

GIB = 2**30

# What is lost without a package; without any other requirement nothing can be trained.
_WITHOUT = {
    "deepspeed": "DeepSpeed's ZeRO will not work",
    "ray": "searches with Ray will not work",
    "submitit": "submitting to Slurm will not work",
    "tensorboard": "training needs log.tensorboard=false",
}


class Finding(NamedTuple):
    """One line of the report: what was looked at, what was found, and what will not work because of it."""

    topic: str
    found: str
    trouble: str = ""
    fatal: bool = False
    """Whether nothing can be trained before this is mended."""


def report() -> tuple[Table, bool]:
    """Give a table of the findings, and whether training can work at all."""
    from rich.table import Table
    from rich.text import Text

    findings = list(examine())
    table = Table("", "found", "what will not work", title="memdist doctor", title_justify="left")
    topic = ""
    for finding in findings:
        style = "red" if finding.fatal else "yellow" if finding.trouble else "green"
        shown = "" if finding.topic == topic else finding.topic
        table.add_row(shown, Text(finding.found), Text(finding.trouble or "–", style=style))
        topic = finding.topic
    return table, not any(finding.fatal for finding in findings)


def examine() -> Iterator[Finding]:
    """Look at packages, devices, distributed back ends, Slurm, disk and shared memory, in that order."""
    yield from _packages()
    yield from _devices()
    yield from _distributed()
    yield from _slurm()
    yield from _disk()
    yield from _shared_memory()


def _packages() -> Iterator[Finding]:
    from memdist import __version__

    python = f"Python {platform.python_version()}"
    yield Finding("versions", f"memdist {__version__}, {python}, {platform.system()} {platform.machine()}")
    try:
        lines = importlib.metadata.requires("memdist") or []
    except importlib.metadata.PackageNotFoundError:
        yield Finding("versions", "run from its sources", "versions are not checked: memdist is not installed with pip")
        return
    from packaging.requirements import Requirement

    for line in sorted(lines):
        wanted = Requirement(line)
        if wanted.marker and not wanted.marker.evaluate({"extra": ""}):
            continue
        loss = _WITHOUT.get(wanted.name.lower())
        try:
            version = importlib.metadata.version(wanted.name)
        except importlib.metadata.PackageNotFoundError:
            wanted.marker = None
            advice = f"pip install '{wanted}'"
            yield Finding(
                "versions", f"{wanted.name} is missing", f"{loss or 'training'}: {advice}", fatal=loss is None
            )
            continue
        # A build of torch carries its device in its version (2.13.0+cpu), and a nightly is a prerelease.
        fits = wanted.specifier.contains(version, prereleases=True)
        trouble = "" if fits else f"not tested with this version: memdist is made for {wanted.name} {wanted.specifier}"
        yield Finding("versions", f"{wanted.name} {version}", trouble)


def _devices() -> Iterator[Finding]:
    try:
        import torch
    except (ImportError, OSError) as error:
        yield Finding("devices", "torch cannot be imported", f"training: {error}", fatal=True)
        return
    cpu = f"cpu: {os.cpu_count()} cores, {torch.get_num_threads()} threads, {torch.backends.cpu.get_cpu_capability()}"
    yield Finding("devices", cpu)
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            card = torch.cuda.get_device_properties(index)
            slow = "" if torch.cuda.is_bf16_supported(including_emulation=False) else "precision=bf16"
            yield Finding("devices", f"cuda:{index}: {card.name}, {card.total_memory / GIB:.0f} GiB", slow)
    else:
        why = (
            "this torch is built without CUDA"
            if torch.version.cuda is None
            else f"no device for CUDA {torch.version.cuda}"
        )
        yield Finding("devices", "cuda: none", f"device=cuda, precision=fp16: {why}")
    if platform.system() == "Darwin" and not torch.backends.mps.is_available():
        yield Finding("devices", "mps: none", "device=mps: this Mac or its torch has no Metal")
    elif torch.backends.mps.is_available():
        yield Finding("devices", "mps: available")
    compiler = next((c for c in (os.environ.get("CXX", ""), "c++", "g++", "clang++") if c and shutil.which(c)), None)
    yield Finding(
        "devices", f"C++ compiler: {compiler or 'none'}", "" if compiler else "compile=true: torch.compile needs one"
    )


def _distributed() -> Iterator[Finding]:
    if sys.modules.get("torch") is None:  # the devices have said why
        return
    import torch
    from torch import distributed

    if not distributed.is_available():
        yield Finding("several processes", "none", "several ranks: this torch is built without torch.distributed")
        return
    gloo = distributed.is_gloo_available()
    yield Finding("several processes", f"gloo: {_yes(gloo)}", "" if gloo else "several ranks on CPUs")
    nccl = distributed.is_nccl_available()
    needed = torch.cuda.device_count() > 1 and not nccl
    yield Finding(
        "several processes", f"nccl: {_yes(nccl)}", "several GPUs: this torch is built without NCCL" if needed else ""
    )


def _slurm() -> Iterator[Finding]:
    if not shutil.which("sinfo") or not shutil.which("sbatch"):
        yield Finding(
            "Slurm", "no sinfo and sbatch on PATH", "submitting from this machine: log in to one of the cluster's"
        )
        return
    try:
        done = subprocess.run(
            ["sinfo", "--noheader", "--format=%P %a %D %G"], capture_output=True, text=True, timeout=10
        )
    except subprocess.TimeoutExpired:
        yield Finding("Slurm", "sinfo does not answer", "submitting: the controller cannot be reached from here")
        return
    if done.returncode:
        yield Finding("Slurm", "sinfo fails", f"submitting: {' '.join(done.stderr.split())}")
        return
    for line in done.stdout.splitlines():
        name, state, nodes, resources = (line.split(maxsplit=3) + ["", "", "", ""])[:4]
        down = "" if state == "up" else f"jobs in {name.rstrip('*')}: the partition is {state}"
        yield Finding("Slurm", f"partition {name} {nodes} nodes {resources}".rstrip(), down)


def _disk() -> Iterator[Finding]:
    places = {"this folder": Path.cwd(), "temporary files": Path(tempfile.gettempdir())}
    with contextlib.suppress(ImportError):  # what is missing stands among the versions
        from memdist.data import cache

        places["cache"] = cache.default_folder()
    for name, path in places.items():
        # A folder that does not exist yet will be made on the disk of its nearest parent.
        there = next(p for p in (path.absolute(), *path.absolute().parents) if p.exists())
        free = shutil.disk_usage(there).free / GIB
        if not os.access(there, os.W_OK):
            trouble = "writing there: it cannot be written"
        else:
            trouble = "" if free >= 2 else "keeping checkpoints and decoded pictures: less than 2 GiB are free"
        yield Finding("disk", f"{name} {path}: {free:.1f} GiB free", trouble)


def _shared_memory() -> Iterator[Finding]:
    path = Path("/dev/shm")
    if not path.is_dir():
        return
    total = shutil.disk_usage(path).total / GIB
    small = (
        "" if total >= 1 else "several ranks and Ray may stop with a bus error: start the container with --shm-size=8g"
    )
    yield Finding("shared memory", f"{path}: {total:.1f} GiB", small)


def _yes(available: bool) -> str:
    return "available" if available else "none"
