"""What a trial leaves on the disk: the weights of the best, one checkpoint of those that may go on, curves of all.

Only folders within the search's own are touched: what was trained elsewhere is somebody else's.
"""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Sequence
from pathlib import Path

from memdist import rundir
from memdist.search.methods.asha import Asha
from memdist.search.methods.method import Method, Trial

_SHED = (rundir.CHECKPOINTS, rundir.SAMPLES, rundir.TENSORBOARD)


def after(trials: Path, method: Method, folders: Sequence[str], told: int, keep: int) -> None:
    """Make room once a trial was told of: its own, and that of whom it has driven from the best `keep` or out of its rung."""
    held = {folders[trial.number] for trial in kept(method, keep)}
    finished = [trial for trial in method.trials if not trial.running and trial.until >= method.epochs]
    last = sorted(finished, key=lambda trial: (method.score(trial, method.epochs), trial.number))[: keep + 1]
    for trial in {told, *(trial.number for trial in last)}:
        run = trials / folders[trial]
        if run.parent == trials:
            thin(run) if folders[trial] in held else shed(run)
    for number in method.outdone() if isinstance(method, Asha) else ():
        if folders[number] not in held and (trials / folders[number]).parent == trials:
            shed(trials / folders[number])
    share(trials / folders[told], trials)


def end(trials: Path, method: Method, folders: Sequence[str], keep: int) -> None:
    """Make room once a search is done: nobody goes on any more, and the weights of the best `keep` are left."""
    held = {folders[trial.number] for trial in best(method, keep)}
    for name in set(folders) - held:
        if (trials / name).parent == trials:
            shed(trials / name)


def best(method: Method, keep: int) -> list[Trial]:
    """The best of those that have come to the last epoch."""
    there = [trial for trial in method.trials if method.score(trial, method.epochs) < math.inf]
    return sorted(there, key=lambda trial: (method.score(trial, method.epochs), trial.number))[:keep]


def kept(method: Method, keep: int) -> list[Trial]:
    """Trials whose checkpoints stay: those that run or may be promoted, and the best `keep` that have come to the end."""
    on = [trial for trial in method.trials if trial.running or (isinstance(method, Asha) and method.hopeful(trial))]
    return [*best(method, keep), *on]


def thin(run: Path) -> None:
    """Leave a run the checkpoint that it goes on from, its best one, and the one that a rollback would lead to."""
    steps = {int(path.name): path for path in (run / rundir.CHECKPOINTS).glob("[0-9]" * 10)}
    if not steps:
        return
    state = rundir.read_json(steps[max(steps)] / rundir.STATE)
    needed = {max(steps), (state.get("selection") or {}).get("step"), *(state.get("anchor") or ())}
    for step, path in steps.items():
        if step not in needed:
            rundir.remove_folder(path)


def shed(run: Path) -> None:
    """Take the weights and pictures from a run folder; its settings, curves and scores stay."""
    for name in _SHED:
        if (run / name).exists():
            rundir.remove_folder(run / name)


def afresh(run: Path, trials: Path, until: int) -> None:
    """Let a trial begin anew that has left itself nothing to go on from: it goes on as all others came to nothing."""
    stands = rundir.read_json(run / rundir.STATE)
    there = stands.get("state") != "stopped" or float(stands.get("epoch") or 0.0) >= until
    if run.parent == trials and not there and not any((run / rundir.CHECKPOINTS).glob("[0-9]" * 10)):
        rundir.remove_folder(run)


def share(run: Path, trials: Path) -> None:
    """Let the split of all trials that have the same one be one file."""
    mine, common = run / rundir.SPLIT, trials / f".{rundir.SPLIT}"
    if run.parent != trials or not mine.is_file():
        return
    with contextlib.suppress(OSError):  # a file system without links: each keeps its own
        if not common.exists():
            os.link(mine, common)
        elif not common.samefile(mine) and common.read_bytes() == mine.read_bytes():
            beside = rundir.temporary(mine)
            os.link(common, beside)
            os.replace(beside, mine)
