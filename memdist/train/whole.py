"""Which checkpoint a run goes on from: the newest that is whole. What is torn is set aside and told, never deleted unseen.

Checked are the files (size and SHA-256), then what they say: a state whose values cannot be, tensors that do not fit the
networks. Only when a whole one is found does anything move.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import torch

from memdist import rundir
from memdist.errors import CheckpointError
from memdist.train import checkpoint
from memdist.train.select import Selection
from memdist.train.watch import Usual

KEPT = 3
"""Torn checkpoints that stay where they were set aside, the latest ones."""

UNTRAINED: Mapping[str, Any] = {
    "epoch": 0.0,
    "lengths": {"metrics": 0, "timing": 0},
    "selection": {"value": None, "step": None, "since": 0},
    "scalers": {},
    "sums": {"names": [], "counts": [], "totals": [[]]},
    "watch": {"usual": {}, "since": {}},
    "anchor": [0, None],
    "rollbacks": [],
    "before": [],
    "seconds": 0.0,
}
"""State of weights that no step was taken with."""

_ASIDE = re.compile(r"\.corrupt-\d{10}-(\d+)$")


@dataclass
class Choice:
    """The checkpoint to go on from, and what was passed over on the way to it."""

    step: int = 0
    """0: there is none yet."""
    passed: list[dict[str, Any]] = field(default_factory=list)
    """Step, what is wrong with it, and the name it was set aside under (None: it was not there)."""
    lost: list[dict[str, Any]] = field(default_factory=list)
    """Line files that are shorter than they were at that checkpoint: name, bytes that are there, bytes that were."""

    def sentences(self) -> list[str]:
        """For a person."""
        return [str(entry["says"]) for entry in (*self.passed, *self.lost)]


def state(run: Path, step: int) -> dict[str, Any]:
    """State of a checkpoint; what an older memdist did not write yet is as if nothing had happened."""
    return {**UNTRAINED, **rundir.read_json(checkpoint.folder(run, step) / checkpoint.STATE)}


def choose(run: Path, fault: Callable[[int], str | None]) -> Choice:
    """Choose the newest whole checkpoint, and set aside the torn ones above it and a torn best one.

    `fault` says in words what is wrong with a step's. To be called by the one process that holds the run folder. Raises
    CheckpointError, with nothing moved, when there are checkpoints and none is whole, or when there were and are no more.
    """
    there = checkpoint.there(run)
    torn: list[tuple[int, str]] = []
    for step in reversed(there):
        wrong = fault(step)
        if wrong is None:
            choice = Choice(step)
            break
        torn.append((step, wrong))
    else:
        if torn:
            raise CheckpointError(
                f"none of the {len(torn)} checkpoints of {run} is whole (of step {torn[0][0]}: {torn[0][1]}); nothing was "
                "changed: restore one from a copy, or train anew with --out"
            )
        _refuse_loss(run)
        return Choice()
    for step, wrong in torn:
        aside = _set_aside(run, step)
        says = f"warning: the checkpoint of step {step} is passed over, as {wrong}; it is kept as {aside}"
        choice.passed.append({"step": step, "why": wrong, "aside": aside.name, "says": says})
    if torn:
        choice.passed[-1]["says"] += f"; training goes on from step {choice.step}"
    best = state(run, choice.step)["selection"]["step"]
    if best is not None and best != choice.step:
        _look_at_best(run, best, choice, lost=best not in there)
    _look_at_lines(run, choice)
    return choice


def _refuse_loss(run: Path) -> None:
    """Raise a CheckpointError for a run whose state tells of checkpoints: to begin again would wipe what is left of it."""
    stands = rundir.read_json(run / rundir.STATE)
    # What an older memdist wrote does not tell; that it was finished does: nothing ends without a checkpoint.
    if stands.get("saved") is True or (stands.get("state") == "finished" and stands.get("step")):
        raise CheckpointError(
            f"{run} has lost all its checkpoints: {rundir.STATE} says that there were some, and {run / rundir.CHECKPOINTS} "
            "holds none; nothing was changed: restore them from a copy, or start over in another folder (--out) or after "
            "removing this one"
        )


def _look_at_lines(run: Path, choice: Choice) -> None:
    """Take note of line files that have lost lines from before the checkpoint that is gone on from."""
    lengths = state(run, choice.step)["lengths"]
    for name, key in ((rundir.METRICS, "metrics"), (rundir.TIMING, "timing")):
        path = run / name
        with rundir.naming(path):
            found = path.stat().st_size if path.is_file() else None
        if (found or 0) < lengths[key]:
            wrong = "is not there" if found is None else f"has {found} bytes"
            says = (
                f"warning: {path} {wrong}, where it had {lengths[key]} at the checkpoint of step {choice.step}: lines of steps "
                "before that are lost, and training goes on without them"
            )
            choice.lost.append({"file": name, "bytes": found or 0, "had": lengths[key], "says": says})


def _look_at_best(run: Path, best: int, choice: Choice, *, lost: bool) -> None:
    wrong = "it is not there" if lost else checkpoint.harm(run, best)
    if wrong is None:
        return
    aside = None if lost else _set_aside(run, best)
    says = (
        f"warning: the best checkpoint, of step {best}, is lost, as {wrong}"
        f"{f'; it is kept as {aside}' if aside else ''}; training goes on, and a better one will take its place"
    )
    choice.passed.append({"step": best, "why": wrong, "aside": aside.name if aside else None, "says": says})


def _set_aside(run: Path, step: int) -> Path:
    """Take a checkpoint's name from it; of those set aside only the latest stay."""
    checkpoints = run / rundir.CHECKPOINTS
    aside = {int(found[1]): path for path in checkpoints.iterdir() for found in [_ASIDE.match(path.name)] if found}
    # Counted up over all of them: which is the latest is not asked of a clock.
    number = max(aside, default=0) + 1
    path = checkpoints / f".corrupt-{step:010d}-{number}"
    with rundir.naming(path):
        checkpoint.folder(run, step).rename(path)
    for old in sorted(aside)[: max(0, len(aside) + 1 - KEPT)]:
        rundir.remove_folder(aside[old])
    return path


def fault(run: Path, step: int, shapes: Mapping[str, checkpoint.Shapes], *, scaled: bool) -> str | None:
    """What keeps a run with networks of these shapes from going on from a checkpoint, in words.

    `shapes` are by file: those of the networks and of their averages; `scaled`: the run has loss scalers.
    """
    wrong = checkpoint.harm(run, step)
    if wrong is not None:
        return wrong
    path = checkpoint.folder(run, step)
    nets = shapes[checkpoint.NETS]
    scalers = {name: set(torch.amp.GradScaler("cpu").state_dict()) for name in nets} if scaled else {}
    wrong = state_fault(state(run, step), scalers)
    if wrong is not None:
        return f"{checkpoint.STATE} cannot be, as {wrong}"
    try:
        for name, wanted in shapes.items():
            wrong = checkpoint.misfit(checkpoint.shapes(path / name), wanted)
            if wrong is not None:
                return f"{name} does not fit: {wrong}"
        stored = checkpoint.shapes(path / checkpoint.OPTIM)
    except CheckpointError as error:
        return str(error).partition(";")[0]
    known = {f"{net}/{key}" for net, tensors in nets.items() for key in tensors}
    for key in stored:
        net, _, rest = key.partition("/")
        if f"{net}/{rest.partition('/')[2]}" not in known:
            return f"{checkpoint.OPTIM} does not fit: there is no weight for {key}"
    return None


def state_fault(found: Mapping[str, Any], scalers: Mapping[str, set[str]] | None = None) -> str | None:
    """What in the state of a checkpoint cannot be, in words; what it says beyond what is known here is not looked at."""
    lengths, selection, sums = found.get("lengths"), found.get("selection"), found.get("sums")
    if not isinstance(lengths, dict) or not all(_count(lengths.get(name)) for name in ("metrics", "timing")):
        return "the lengths of line files are no numbers of bytes"
    if not isinstance(selection, dict) or selection.keys() != {f.name for f in fields(Selection)}:
        return "it has no selection"
    best = selection.get("step")
    if not (best is None or _count(best)) or not (best is None or best <= found["step"]):
        return f"its best step is {best!r}"
    if not isinstance(found.get("before"), list) or not all(map(_count, found["before"])):
        return f"the steps that were kept for the checkpoint before are {found.get('before')!r}"
    if not (selection.get("value") is None or _number(selection["value"])) or not _count(selection.get("since", 0)):
        return "its selection has values that are no numbers"
    wrong = _trail(found)
    if wrong is not None:
        return wrong
    if not _number(found.get("seconds")):
        return f"it took {found.get('seconds')!r} seconds"
    if not _sums(sums):
        return "its sums of losses are no numbers"
    stored = found.get("scalers")
    if not isinstance(stored, dict) or any(
        not isinstance(stored.get(name), dict)
        or not keys <= stored[name].keys()
        or not all(_number(stored[name][key]) for key in keys)
        for name, keys in (scalers or {}).items()
    ):
        return "its loss scalers are incomplete"
    return None


def _trail(state: Mapping[str, Any]) -> str | None:
    """What cannot be in what the watch over the training keeps: what is usual, the way back, the rollbacks so far."""
    watch, anchor, rollbacks = state.get("watch"), state.get("anchor"), state.get("rollbacks")
    parts = watch if isinstance(watch, dict) else {}
    usual, since = parts.get("usual"), parts.get("since")
    if not isinstance(usual, dict) or not all(
        isinstance(u, dict) and u.keys() == {f.name for f in fields(Usual)} and all(map(_number, u.values()))
        for u in usual.values()
    ):
        return "what is usual for gradients is no numbers"
    silent = parts.get("silent", [])
    if not isinstance(silent, list) or not all(isinstance(name, str) for name in silent):
        return "the names of its losses are none"
    if not isinstance(since, dict) or not all(map(_count, since.values())):
        return "the steps of its low values are no steps"
    if (
        not isinstance(anchor, list)
        or len(anchor) != 2
        or not _count(anchor[0])
        or not (anchor[1] is None or _count(anchor[1]))
    ):
        return f"the step to go back to is {anchor!r}"
    if not isinstance(rollbacks, list) or not all(
        isinstance(r, dict) and _number(r.get("rate")) and r["rate"] > 0 and _count(r.get("step")) for r in rollbacks
    ):
        return "its rollbacks are none"
    return None


def _sums(sums: Any) -> bool:
    """Whether these are the sums of losses of one or more ranks."""
    if not isinstance(sums, dict) or not all(isinstance(sums.get(k), list) for k in ("names", "counts", "totals")):
        return False
    names, counts, totals = sums["names"], sums["counts"], sums["totals"]
    # A total may be infinite or no number: losses diverge.
    whole = all(
        isinstance(rank, list) and len(rank) == len(names) and all(isinstance(v, float | int) for v in rank)
        for rank in totals
    )
    words = all(isinstance(name, str) for name in names) and len(counts) == len(names)
    micros = sums.get("micros", 1)
    return bool(totals) and whole and words and all(map(_count, counts)) and _count(micros) and micros > 0


def _count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _number(value: Any) -> bool:
    # An integer may be larger than any float.
    return isinstance(value, float | int) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


def newest(run: Path, names: tuple[str, ...]) -> int | None:
    """Step of the newest checkpoint in which files `names` are whole, for who only reads; None when there is none.

    Those passed over are told on standard error and stay where they are.
    """
    for step in reversed(checkpoint.steps(run)):
        wrong = checkpoint.harm(run, step, names)
        if wrong is None and checkpoint.STATE in names:
            wrong = state_fault(state(run, step))
        if wrong is None:
            return step
        # A training process may have let go of it between two looks.
        if checkpoint.folder(run, step).is_dir():
            print(f"memdist: warning: the checkpoint of step {step} is passed over: {wrong}", file=sys.stderr)
    return None
