"""What a job finds on its nodes' own disks: decoded pictures and compiled code, brought there once a node.

What compiling gave is kept in the user's own folder of caches between jobs, and copied back when a job has ended by itself.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from memdist.cluster.slurm import Here, inside
from memdist.errors import ClusterError, printable
from memdist.launch.forward import bound
from memdist.launch.local import memdist

COMPILED = "inductor"
"""Folder of compiled code among caches."""

_PATIENCE = 3600
_GRACE = 5.0
"""Seconds that srun has to end its tasks."""
_TICK = 0.1


def prepare(
    options: argparse.Namespace, here: Here, words: Sequence[str], told: Callable[[], bool] = lambda: False
) -> dict[str, str]:
    """Environment of the command; where the cluster has fast folders on its nodes, they are filled first.

    That ends half done once the job is `told` to leave: it may take longer than what is left of its time.
    Raises ClusterError where such a folder cannot be used.
    """
    environment = dict(os.environ)
    if not options.scratch:
        return environment
    scratch = _folder(options.scratch)
    environment["MEMDIST_CACHE"] = str(scratch)
    shared = _caches()
    _copy(shared / COMPILED, scratch / COMPILED, told)
    if here.count > 1 and words[0] == "train" and not told():
        _spread(here, words, environment, options.container, told)
    return environment


def keep(options: argparse.Namespace, environment: dict[str, str]) -> None:
    """Copy what was compiled on this node back to the user's caches; a disk that refuses is no reason to fail."""
    if options.scratch:
        _copy(Path(environment["MEMDIST_CACHE"]) / COMPILED, _caches() / COMPILED)


def _folder(text: str) -> Path:
    filled = os.path.expandvars(text)
    if missing := re.search(r"\$\{?\w+\}?", filled):
        raise ClusterError(
            f"scratch = {printable(text)!r} of the cluster's file cannot be used on this node: {missing[0]} is not set in a job; "
            "name another folder, or null"
        )
    folder = Path(filled) / f"memdist-{os.getuid()}"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        owner = folder.stat().st_uid
    except OSError as error:
        raise ClusterError(
            f"scratch = {printable(text)!r} of the cluster's file cannot be used on this node: {(error.strerror or '').lower()}; "
            "name another folder, or null"
        ) from error
    if owner != os.getuid():  # where all may write, someone may have been there first
        raise ClusterError(f"{folder} belongs to another user: name another folder for scratch in the cluster's file")
    return folder


def _caches() -> Path:
    """The user's own folder of caches."""
    from memdist.data import cache  # with numpy, which most jobs can do without here

    return cache.default_folder()


def _copy(source: Path, target: Path, told: Callable[[], bool] = lambda: False) -> None:
    """Copy the files of a folder that are not in another one yet, each whole or not at all."""
    if not source.is_dir():
        return
    for at, _, names in os.walk(source):
        into = target / os.path.relpath(at, source)
        for name in names:
            if told():
                return
            if (into / name).exists():
                continue
            try:
                into.mkdir(mode=0o700, parents=True, exist_ok=True)
                with tempfile.NamedTemporaryFile(dir=into, prefix=".", delete=False) as beside:
                    pass
                shutil.copy2(Path(at, name), beside.name)
                os.replace(beside.name, into / name)
            except OSError:
                return  # caches only: what is not there is made again


def _spread(
    here: Here,
    words: Sequence[str],
    environment: dict[str, str],
    container: str | None,
    told: Callable[[], bool],
) -> None:
    """Decode the pictures once on each node; a failure is left to the command, which meets and tells it as well."""
    settings = [word for word in words[1:] if not word.startswith("--")]
    out = words.index("--out") if "--out" in words else None
    if out is not None:
        settings.remove(words[out + 1])
    step = ["srun", f"--nodes={here.count}", f"--ntasks={here.count}", "--ntasks-per-node=1", "--disable-status"]
    command = [*step, *inside(container), *memdist(["data", "cache", *settings])]
    try:
        child = subprocess.Popen(
            command, env=environment, stdin=subprocess.DEVNULL, start_new_session=True, preexec_fn=bound()
        )
    except OSError:
        return
    end = time.monotonic() + _PATIENCE
    while child.poll() is None:
        if told() or time.monotonic() > end:
            child.terminate()  # by which srun ends its tasks
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.wait(_GRACE)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)
            child.wait()
            return
        time.sleep(_TICK)
