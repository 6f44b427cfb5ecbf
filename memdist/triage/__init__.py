"""What an attempt at a job ended of, from its exit code, Slurm's state and the last lines of its logs; pure.

One failure drags others behind it: a rank that is out of memory makes its peers report lost connections, a node that fails
makes srun say much, and srun ends the ranks that are left, which looks like a cancelled job. So no line is judged alone; all
lines are searched for one class after the other, and what cannot be the consequence of anything else comes first:

    want of memory, broken hardware, full disks, divergence, bad data; a sentence of memdist about what it was given
    what Slurm did to the job: node failure, pre-emption, time limit, cancellation
    a rank's own traceback or crash
    a process that was killed without a word
    no progress; lost connections; the exit code alone
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from memdist.triage import messages
from memdist.triage.logs import Line as Line
from memdist.triage.logs import Said, clean, first_raised, said, streams
from memdist.triage.logs import tail as tail
from memdist.triage.messages import Kind as Kind

MOST = 5
"""Lines that a finding shows."""

SLURM, NOTED = "Slurm", "state.json"
"""`Line.where` of what stands in no log: Slurm's state, and what the run has noted."""

_ADVICE: dict[Kind, str] = {
    "finished": "nothing is left to do",
    "stopped": "give the same command again: it goes on from the last checkpoint",
    "gpu-memory": "take a smaller batch.micro, activation_checkpointing=true or larger GPUs: `memdist plan` says what fits",
    "host-memory": "ask for more memory a node (--mem), or put fewer ranks on one",
    "time-limit": "submit it again, and it goes on from the last checkpoint; ask for more --time if it never comes to one",
    "pre-empted": "let it start again: it goes on from the last checkpoint",
    "node-failure": "start it again on other nodes, where it goes on from the last checkpoint, and tell who runs the cluster",
    "communication": "look at the network between the nodes; the same command goes on from the last checkpoint",
    "disk-full": "make room, or choose another place; the same command goes on from the last checkpoint",
    "bad-data": "mend the data that are named (`memdist data check` looks at every file), then give the same command again",
    "diverged": "train at lower learning rates, or go on from an earlier checkpoint with on_divergence=rollback",
    "wrong-input": "do what the sentence says, then give the same command again",
    "cancelled": "give the same command again if that was not meant: it goes on from the last checkpoint",
    "no-progress": "see what the process that is named and its machine are at; the same command goes on from the last checkpoint",
    "bug": "report these lines: memdist should not end like this",
}
_SILENT = (
    "start it again: it was killed and nothing says why, so its memory was too small or its machine failed; ask for more memory "
    "(--mem) if it ends like this again"
)
_MUTE = "see the whole logs: it failed, and their last lines do not say why"

_RETRY = frozenset[Kind]({"stopped", "time-limit", "pre-empted", "node-failure"})

_RESUME_ME = 75
_INTERRUPTED = (130, -2)


@dataclass(frozen=True, kw_only=True)
class Finding:
    """What an attempt ended of, and what follows from it."""

    kind: Kind
    lines: tuple[Line, ...] = ()
    """Lines that show it, at most MOST."""
    advice: str
    """What to do, in a sentence."""
    retry: bool
    """Whether the same job is worth starting again as it is."""
    elsewhere: bool
    """Whether it should then keep away from nodes of this attempt."""
    nodes: tuple[str, ...] = ()
    """Which ones, by Slurm's names, as far as the lines say; those of the ranks that `lines` names otherwise."""


def judge(
    code: int | None,
    logs: Mapping[str, Sequence[str]],
    *,
    slurm: str | None = None,
    noted: Mapping[str, object] | None = None,
) -> Finding:
    """What an attempt ended of.

    `code`: exit code, or the negative number of a signal; 128 and more are signals, as a shell gives them; None: unknown.
    `logs`: the last lines of each log of this attempt, and of no other, by a name for a person (`rank 3`, `batch`).
    `slurm`: the job's state in Slurm's words (`TIMEOUT`, `CANCELLED by 1000`); None: unknown.
    `noted`: what this attempt has left in state.json; of it `state` and `why` are looked at.
    """
    code = 128 - code if code is not None and 128 < code <= 192 and code != 130 else code
    state, why = (str((noted or {}).get(key) or "") for key in ("state", "why"))
    lines = said(logs)
    if (state == "finished" and code in (0, None)) or (code is None and _is(slurm, "COMPLETED")):
        return _finding("finished")
    if code == 0 and not _is(slurm, "FAILED"):
        return _by_slurm(slurm, ()) or _finding("finished")
    if code == _RESUME_ME or (code is None and state == "stopped"):
        return _by_slurm(slurm, lines) or _finding("stopped")
    # What was noted before an exit code that memdist did not give may be of another attempt.
    told = why if state == "failed" else f"{state}: {why}" if state == "diverged" else ""
    if told and code in (None, 1, 2):
        lines += said({NOTED: [told]})
    tasks = [(one.line, task[2]) for one in lines if (task := messages.TASK.search(one.bare))]
    refused = code == 2 or (bool(tasks) and tasks[0][1].startswith("Exited with exit code 2"))
    return (
        _cause(lines, slurm)
        or (_sentence(lines, all_of_them=True) if refused else None)
        or _by_slurm(slurm, lines)
        or (_finding("cancelled") if code in _INTERRUPTED else None)
        or _own(lines)
        or _killed(code, lines, tasks)
        or _first([("no-progress", messages.NO_PROGRESS)], lines)
        or _sentence(lines, all_of_them=False)
        or _first(messages.WEAK, lines)
        or _by_code(1 if code is None and _is(slurm, "FAILED") else code, lines)
    )


def _finding(
    kind: Kind,
    lines: Iterable[Line] = (),
    *,
    advice: str | None = None,
    retry: bool | None = None,
    elsewhere: bool | None = None,
) -> Finding:
    shown = tuple(lines)[:MOST]
    found = (messages.NODE.search(line.text) for line in shown)
    return Finding(
        kind=kind,
        lines=shown,
        advice=_ADVICE[kind] if advice is None else advice,
        retry=kind in _RETRY if retry is None else retry,
        elsewhere=kind == "node-failure" if elsewhere is None else elsewhere,
        nodes=tuple(dict.fromkeys(next(filter(None, name.groups())) for name in found if name)),
    )


def _matches(lines: Iterable[Said], pattern: re.Pattern[str]) -> list[Line]:
    """The first line of each process that holds a pattern; remarks on what a program goes on after are passed over."""
    found: dict[tuple[str, str], Line] = {}
    for one in lines:
        if (one.line.where, one.who) not in found and pattern.search(one.bare):
            if not messages.REMARK.search(one.bare):
                found[one.line.where, one.who] = one.line
    return list(found.values())


def _is(slurm: str | None, name: str) -> bool:
    """Whether a state is of that name, which columns of sacct may have cut (`OUT_OF_ME+`)."""
    given = (slurm or "").upper().split()
    return bool(given) and (
        given[0] == name or bool(re.fullmatch(r"\w{4,}\+", given[0]) and name.startswith(given[0][:-1]))
    )


def _cause(lines: Sequence[Said], slurm: str | None) -> Finding | None:
    for at, (kind, pattern) in enumerate(messages.CAUSES):
        shown = _matches(lines, pattern)
        if at == 0 and _is(slurm, "OUT_OF_MEMORY"):
            shown.append(Line(SLURM, clean(str(slurm))))
        if shown:
            return _finding(kind, shown)
    return None


def _sentence(lines: Sequence[Said], *, all_of_them: bool) -> Finding | None:
    """What memdist has said about what it was given: the last word of a process, or (`all_of_them`) anywhere."""
    shown = []
    for stream in streams([one for one in lines if not messages.SCHEDULER.search(one.bare)]):
        own = [one for one in (stream if all_of_them else stream[-1:]) if messages.SENTENCE.search(one.bare)]
        shown += [one.line for one in own if not messages.OTHER.search(one.bare)][-1:]
    return _finding("wrong-input", shown) if shown else None


def _by_slurm(slurm: str | None, lines: Sequence[Said]) -> Finding | None:
    for state, kind in messages.STATES.items():
        if _is(slurm, state):
            pattern = next((pattern for name, pattern in messages.VERDICTS if name == kind), None)
            shown = _matches(lines, pattern) if pattern else []
            return _finding(kind, [*shown[: MOST - 1], Line(SLURM, clean(str(slurm)))])
    if _is(slurm, "OUT_OF_MEMORY"):
        return _finding("host-memory", [Line(SLURM, clean(str(slurm)))])
    return _first(messages.VERDICTS, lines)


def _first(rules: Sequence[tuple[Kind, re.Pattern[str]]], lines: Sequence[Said]) -> Finding | None:
    return next((_finding(kind, shown) for kind, pattern in rules if (shown := _matches(lines, pattern))), None)


def _own(lines: Sequence[Said]) -> Finding | None:
    """A traceback that no other process's end explains, or a crash."""
    for stream in streams(lines):
        raised = first_raised(stream)
        if raised and not messages.FOLLOWS.search(raised.said.bare):
            kind: Kind = "wrong-input" if messages.SETTING.search(raised.said.bare) else "bug"
            return _finding(kind, [*raised.trace[-2:], raised.said.line])
        # state.json has the exception alone.
        if stream[0].line.where == NOTED and not messages.FOLLOWS.search(stream[0].bare):
            kind = "wrong-input" if messages.MISTAKE.search(stream[0].bare) else "bug"
            return _finding(kind, [stream[0].line])
    return _first([("bug", messages.CRASH)], lines)


def _killed(code: int | None, lines: Sequence[Said], tasks: Sequence[tuple[Line, str]]) -> Finding | None:
    """A process that was killed without a word; srun does it to those that are left when one has failed."""
    first = [line for line, how in tasks[:1] if how.startswith("Killed")]
    shown = first or _matches(lines, messages.KILLED)
    if not shown and (code != -9 or tasks):
        return None
    if hint := _matches(lines, messages.HINT):
        return _finding("host-memory", [*hint, *shown])
    return _finding("node-failure" if first else "host-memory", shown, advice=_SILENT, retry=True)


def _by_code(code: int | None, lines: Sequence[Said]) -> Finding:
    last = [one.line for one in lines[-3:]]
    if code is None:
        return _finding("node-failure", last, advice=_SILENT, elsewhere=False)
    if code in messages.BY_CODE:
        return _finding(messages.BY_CODE[code], last)
    return _finding("bug", last, advice=_MUTE)
