"""Searches as a person starts them, and kill -9 of any of their processes at random moments."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from memdist import rundir
from memdist.search import folder
from tests.faults.asking import ROOT

VICTIMS = ("driver", "worker", "actor", "raylet")


def command(space: Path | str, out: Path, *words: str) -> list[str]:
    """The command line of a search."""
    return [sys.executable, "-P", "-m", "memdist", "search", "run", str(space), *words, "--out", str(out)]


def started(space: Path | str, out: Path, *words: str) -> subprocess.Popen[str]:
    """A search that has begun."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        command(space, out, *words),
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def searched(space: Path | str, out: Path, *words: str, timeout: float = 600) -> tuple[int, str, float]:
    """Exit code, output, and seconds of all its processes' CPU time."""
    before = os.times()
    process = started(space, out, *words)
    try:
        said, _ = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        raise
    after = os.times()
    spent = after.children_user + after.children_system - before.children_user - before.children_system
    return process.returncode, said, spent


def ledger(out: Path) -> list[dict[str, Any]]:
    """Lines of a search's ledger."""
    return rundir.read_lines(out / folder.LEDGER)


def values(out: Path) -> dict[tuple[int, int], Any]:
    """What was told, by cell and epoch."""
    cells = {line["ask"][1]: line["ask"][2] for line in ledger(out) if "ask" in line}
    told = [line for line in ledger(out) if "tell" in line]
    found = {(cells[line["tell"][0]], line["tell"][1]): (line["state"], line["value"]) for line in told}
    assert len(found) == len(told), "something was told twice"
    return found


def epochs(out: Path) -> int:
    """Epochs that a search has trained."""
    reached: dict[str, int] = {}
    for line in ledger(out):
        if "ask" in line and line["ask"][0] == "start":
            reached[line["ask"][1]] = 0
        elif "tell" in line:
            reached[line["tell"][0]] = max(reached[line["tell"][0]], line["epoch"])
    return sum(reached.values())


def processes(driver: int) -> dict[str, list[int]]:
    """Processes of a search, by what they are."""
    parents: dict[int, int] = {}
    names: dict[int, str] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
                names[int(entry.name)] = (entry / "cmdline").read_text().replace("\0", " ")
            except (OSError, ValueError):
                continue
    found: dict[str, list[int]] = {kind: [] for kind in VICTIMS}
    for pid, name in names.items():
        above = pid
        while above in parents and above != driver:
            above = parents[above]
        if above != driver:
            continue
        if pid == driver:
            found["driver"].append(pid)
        elif "memdist.search.worker" in name:
            found["worker"].append(pid)
        elif name.startswith(("ray::ResourceTrainable", "ray::Trial")):
            found["actor"].append(pid)
        elif "/raylet/raylet" in name.split(" ")[0]:
            found["raylet"].append(pid)
    return found


@dataclass
class Killed:
    """What killing a search again and again came to."""

    kills: list[str] = field(default_factory=list)
    starts: int = 0
    said: list[str] = field(default_factory=list)
    codes: list[int] = field(default_factory=list)


def kill(space: Path | str, out: Path, victims: Sequence[str], seed: int, *words: str, longest: float = 300) -> Killed:
    """Start a search again and again until it is done, while one process after the other is killed."""
    chance, found, left = random.Random(seed), Killed(), list(victims)
    while True:
        found.starts += 1
        assert found.starts <= len(victims) + 3, (found.kills, found.codes, found.said[-1][-3000:])
        process, began = started(space, out, *words), time.monotonic()
        while left and process.poll() is None and time.monotonic() - began < longest:
            time.sleep(0.1)
            there = processes(process.pid)
            if not there["worker"] or not there[left[0]]:
                continue
            time.sleep(chance.uniform(0.0, 8.0))
            there = processes(process.pid)
            if there[left[0]]:
                os.kill(chance.choice(there[left[0]]), signal.SIGKILL)
                found.kills.append(left.pop(0))
        try:
            said, _ = process.communicate(timeout=longest)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            said, _ = process.communicate()
            raise AssertionError(f"it hangs after {found.kills}: {said[-3000:]}") from None
        found.said.append(said)
        found.codes.append(process.returncode)
        if process.returncode == 0:
            return found


def curves(out: Path) -> dict[str, bytes]:
    """metrics.jsonl of all trials."""
    runs = (path for path in (out / folder.TRIALS).iterdir() if not path.name.startswith("."))
    return {run.name: (run / rundir.METRICS).read_bytes() for run in runs}


def legs(out: Path) -> dict[str, int]:
    """How often each trial was begun or gone on with."""
    runs = (path for path in (out / folder.TRIALS).iterdir() if not path.name.startswith("."))
    return {run.name: len(json.loads((run / rundir.PROVENANCE).read_text())["legs"]) for run in runs}
