"""Trains trials one after the other in a process of its own, which stays; a fault there is a trial's, not the search's."""

from __future__ import annotations

import contextlib
import json
import math
import os
import platform
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from memdist import config, locks, process, rundir, triage
from memdist.errors import CheckpointError, MemdistError, SearchError
from memdist.launch.ends import RESUME_ME
from memdist.launch.forward import bound
from memdist.search import outcome
from memdist.search.allocation import alone
from memdist.search.objective import Mode, Scope
from memdist.search.outcome import Outcome

_LOOK = 0.5
"""Seconds between two looks whether to stop."""
_LATE = 5.0
"""Seconds within which a search is told what its trials were told."""
_HELD = 180.0
"""Seconds for which a run that somebody else trains is waited for: one on a machine that is cut off may still be at it."""
_LONGEST = 65536
"""Bytes of a log that are searched for what went wrong."""


@dataclass(frozen=True, kw_only=True)
class Task:
    """A trial to be trained up to an epoch; all of it can be pickled and written as JSON."""

    settings: Mapping[str, Any]
    """All settings of the run, as YAML's own types."""
    out: str
    """Its run folder."""
    until: int
    """Epoch."""
    metric: str
    scope: Scope
    mode: Mode
    failures: int = 1
    """How often it is begun again from its checkpoint."""
    ranks: int = 1
    """Processes that share it; more than one: each with a GPU of its own."""
    score: str = ""
    """Split on which it is scored once it has come to its end; empty: on none."""


class Hands:
    """One process that trains, on this machine, with the GPUs that the environment names."""

    def __init__(self, folder: Path, threads: int) -> None:
        """Nothing is started yet. `folder`: where it prints; `threads`: of each process."""
        self.log = folder / f"{rundir.file_name(platform.node())}-{os.getpid()}.log"
        self.threads = threads
        self._process: subprocess.Popen[str] | None = None
        self._answers: IO[str] | None = None

    def train(self, task: Task, stop: Callable[[], bool]) -> Outcome:
        """Train a trial, which goes on where its folder stands; `stop` is asked again and again whether to leave it."""
        began = time.monotonic()
        found = self._train(task, stop)
        return found._replace(seconds=time.monotonic() - began, where=platform.node())

    def _train(self, task: Task, stop: Callable[[], bool]) -> Outcome:
        out, failures = Path(task.out), 0
        me, held = process.this(), math.inf
        while True:
            _wait(out, stop)
            if stop():
                return Outcome("stopped")
            # A run that was trained elsewhere, or before, may be there already.
            if (found := _there(out, task)) is not None:
                return found
            start = self.log.stat().st_size if self.log.is_file() else 0
            answer = {"code": 0} if task.ranks == 1 else self._launch(task, stop)
            if answer["code"] == 0 and (task.ranks == 1 or task.score):
                answer = self._ask(task, stop)
            code, said = answer["code"], str(answer["error"])
            if code == RESUME_ME and _epoch(out) < task.until:
                # A signal may reach a training before the search: its value is not that of `until`, whoever sent it.
                time.sleep(_LATE)
                continue
            if code in (0, RESUME_ME):
                try:
                    return outcome.of_run(out, task.until, task.metric, task.scope, task.mode)
                except MemdistError as error:
                    return Outcome("failed", kind="wrong-input", why=str(error))
            if answer.get("diverged"):
                return Outcome("diverged", epoch=_epoch(out), kind="diverged", why=said)
            finding = triage.judge(code, {"worker": triage.tail(self.log, _LONGEST, start=start)}, noted=_noted(out))
            if finding.kind == "diverged":
                return Outcome("diverged", epoch=_epoch(out), kind="diverged", why=said or _line(finding))
            failed = Outcome("failed", epoch=_epoch(out), kind=finding.kind, why=said or _line(finding))
            if stop():  # it may have ended by that
                return Outcome("stopped")
            owner = locks.owner(out) if out.is_dir() else None
            if code == 2 and owner is not None and owner.life(me) != "dead":
                held = min(held, time.monotonic())
                if time.monotonic() - held < _HELD:
                    time.sleep(_LOOK)
                    continue
            failures += 1
            # A sentence about what was given stays true; not so, that somebody else holds the run.
            if (code == 2 and owner is None) or failures > task.failures:
                return failed

    def _ask(self, task: Task, stop: Callable[[], bool]) -> dict[str, Any]:
        """Have the process that stays train it."""
        process, answers = self._ready()
        assert process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # its end says why
            process.stdin.write(json.dumps({"settings": task.settings, "out": task.out, "score": task.score}) + "\n")
            process.stdin.flush()
        with selectors.DefaultSelector() as selector:
            selector.register(answers, selectors.EVENT_READ)
            while not selector.select(_LOOK):
                if process.poll() is not None and not selector.select(0):
                    # Somebody whom it has started holds the file open.
                    self.close()
                    return {"code": process.returncode, "error": ""}
                if stop():
                    process.send_signal(signal.SIGUSR2)  # until it answers: it may not have begun to listen
        line = answers.readline()
        if line:
            found: dict[str, Any] = json.loads(line)
            return found
        code = process.wait()
        self.close()
        return {"code": code, "error": ""}

    def _launch(self, task: Task, stop: Callable[[], bool]) -> dict[str, Any]:
        """Train it in ranks of their own."""
        self.close()
        out = Path(task.out)
        file = rundir.make_folder(out / rundir.JOBS) / "search.yaml"
        rundir.write_text(file, config.written(task.settings))
        command = [sys.executable, "-P", "-m", "memdist.launch.local", "train", str(file), "--out", task.out]
        with open(self.log, "ab") as log:
            process = subprocess.Popen(
                command,
                env={
                    **alone(os.environ),
                    **{"GPUS": str(task.ranks), "OMP_NUM_THREADS": str(self.threads), "NODES": "1", "NODE_RANK": "0"},
                },
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                preexec_fn=bound(),
            )
        told = False
        while (code := process.poll()) is None:
            if stop() and not told:
                told = True
                process.send_signal(signal.SIGUSR2)
            time.sleep(_LOOK / 5)
        return {"code": code, "error": "", "diverged": _noted(out).get("state") == "diverged"}

    def _ready(self) -> tuple[subprocess.Popen[str], IO[str]]:
        """The process, started if need be, and where it answers."""
        if self._process is None or self._answers is None or self._process.poll() is not None:
            self.close()
            rundir.make_folder(self.log.parent)
            read, write = os.pipe()
            with open(self.log, "ab") as log, open(write, "wb") as theirs:
                self._process = subprocess.Popen(
                    [sys.executable, "-P", "-m", "memdist.search.worker", str(write)],
                    env={**alone(os.environ), "OMP_NUM_THREADS": str(self.threads)},
                    stdin=subprocess.PIPE,
                    stdout=log,
                    stderr=log,
                    text=True,
                    pass_fds=(theirs.fileno(),),
                    start_new_session=True,
                    preexec_fn=bound(),
                )
            self._answers = open(read)
        return self._process, self._answers

    def close(self) -> None:
        """End the process; one that trains is killed."""
        if self._answers is not None:
            self._answers.close()
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            if self._process.stdin is not None:
                with contextlib.suppress(BrokenPipeError):
                    self._process.stdin.close()
        self._process = self._answers = None


def _wait(out: Path, stop: Callable[[], bool]) -> None:
    """Wait for whoever trains a run here still, as a part of a search that was killed may for a moment."""
    me, end = process.this(), time.monotonic() + locks.PATIENCE
    while out.is_dir() and not stop() and time.monotonic() < end:
        if (owner := locks.owner(out)) is None or owner.life(me) != "alive":
            return
        time.sleep(_LOOK)


def _there(out: Path, task: Task) -> Outcome | None:
    """What a run is worth that has come so far, or to its end, already."""
    try:
        stands = rundir.read_json(out / rundir.STATE)
        if stands.get("state") == "diverged":
            return Outcome("diverged", epoch=_epoch(out), kind="diverged", why=str(stands.get("why") or ""))
        if stands.get("state") not in ("finished", "stopped"):
            return None
        if task.score and task.score not in rundir.read_json(out / rundir.SCORES):
            return None
        found = outcome.of_run(out, task.until, task.metric, task.scope, task.mode)
    except (CheckpointError, SearchError):
        return None  # training meets it, and tells
    return found if found.epoch >= task.until or stands["state"] == "finished" else None


def _epoch(out: Path) -> int:
    return int(float(_noted(out).get("epoch") or 0.0))


def _noted(out: Path) -> dict[str, Any]:
    try:
        return rundir.read_json(out / rundir.STATE)
    except MemdistError:
        return {}


def _line(finding: triage.Finding) -> str:
    return finding.lines[0].text if finding.lines else finding.advice
