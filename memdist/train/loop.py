"""The loop: the same for every model and every strategy."""

from __future__ import annotations

import contextlib
import math
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from memdist import output, rundir
from memdist.augment import augment
from memdist.data import loader as loader_
from memdist.distributed import hang
from memdist.distributed import strategy as strategy_
from memdist.errors import CheckpointError, MemdistError
from memdist.launch import place
from memdist.train import checkpoint, rollback, start, step, validate, watch
from memdist.train.ledger import Ledger
from memdist.train.ours import Ours
from memdist.train.report import Report
from memdist.train.saving import Saver
from memdist.train.signals import RESUME_ME, SAVE, STOP, Signals


def train(
    run: Any,
    out: Path,
    *,
    extend: bool = False,
    look: Callable[[Any, torch.device], str | None] = lambda run, device: None,
) -> int:
    """Train a run to its end, or until a signal; the exit code is 0 or RESUME_ME (75).

    The main process asks `look` for a sentence to say before pictures are decoded. Raises MemdistError before anything is
    written for what cannot be trained.
    """
    with place.alike():
        model = start.build(run)
    strategy = strategy_.make(run)
    try:
        with Signals() as signals, Ours(out, lambda: signals.wishes) as ours:
            strategy.first(ours.claim)
            strategy.first(lambda: _tell(look(run, strategy.device)))
            session = start.open_session(run, out, strategy, model, extend=extend, hold=ours.hold)
            session.still_ours = ours.check
            code = go_on(session, signals)
            # Many a launcher ends all others once one has left: nobody leaves before the main process has written all.
            strategy.first(lambda: None)
            return code
    finally:
        strategy.close()


def _tell(sentence: str | None) -> None:
    if sentence is not None:
        # What cannot be printed is no reason not to train.
        output.console(needed=False).print(sentence, soft_wrap=True)


def go_on(session: start.Session, signals: Signals) -> int:
    """Train from where a session stands, through its rollbacks; gives the exit code."""
    words = start.introduction(session)
    session.strategy.first(lambda: words.extend(rollback.remembered(session)))
    while True:
        with contextlib.closing(Leg(session, signals)) as leg:
            answer = leg.run(words)
        if isinstance(answer, int):
            return answer
        try:
            words = rollback.go_back(session, answer)
        except MemdistError as error:
            with contextlib.suppress(MemdistError):
                leg.note("failed", str(error))
            raise


class Leg:
    """One process's part of a run, from where the run folder stands to its end, a stop or a rollback."""

    def __init__(self, session: start.Session, signals: Signals) -> None:
        """Open the line files where the checkpoint left them, and the report."""
        self.session, self.signals = session, signals
        run, self.strategy = session.run, session.strategy
        self.pairs = len(session.data.rows["train"])
        self.saved = time.monotonic()
        self.asked, self.waited = False, 0.0
        self.micro = start.micro_batch(run, self.strategy.world, self.pairs)
        self.sums = step.Sums(run.batch.size // (self.micro * self.strategy.world))
        self.ledger = Ledger(session)
        self.saver = Saver(self.strategy.device)
        self.strategy.first(self.ledger.open)
        if session.state:
            self.sums.load(session.state["sums"], self.strategy)
        rows = session.data.rows
        self.subsets = validate.subsets(run, session.data.pixels, rows["train"], rows["val"])
        self.report = Report(
            session.out,
            run.log,
            speaks=self.strategy.main,
            step=session.step,
            steps=session.total,
            pairs=self.pairs,
            batch=run.batch.size,
            resume_id=start.identity_of(session),
            device=self.strategy.device,
        )

    def run(self, words: Sequence[str]) -> int | watch.Verdict:
        """Say some words and train to the end or a stop; gives the exit code, or why to go back."""
        session, strategy = self.session, self.strategy
        for sentence in words:
            self.report.say(sentence)
        if session.step and strategy.main:
            self.ledger.prune()  # a kill may have come before it did
        if session.step >= session.total or session.selection.exhausted(session.run.select):
            return self._finish("this run is finished already" if session.step else "there is nothing to do")
        if session.step >= session.pause:
            return self._leave(f"until={session.run.until}")
        self.note("running", "")
        try:
            with self.loader() as loader:
                hang.begin("step", session.step)
                while session.step < session.total:
                    code = self.advance(loader)
                    if code is not None:
                        return code
                return self._finish("")
        except watch.Diverged as error:
            strategy.settle()
            self.saver.wait()
            if not rollback.due(session):
                with contextlib.suppress(MemdistError):  # a disk that is full must not hide it
                    self.note("diverged", error.verdict.what)
                raise rollback.refusal(session, error.verdict) from None
            session.seconds = self.ledger.seconds()
            return error.verdict
        except BaseException as error:
            # What cannot be written any more must not hide what went wrong first.
            with contextlib.suppress(MemdistError):
                self.note("failed", f"{type(error).__name__}: {error}".split("\n")[0])
            if isinstance(error, CheckpointError) and isinstance(error.__cause__, OSError):
                raise CheckpointError(f"{error}; {checkpoint.safe(session.out)}") from error.__cause__
            raise

    def loader(self) -> loader_.Loader:
        """What gives this rank its pictures."""
        session, strategy, settings = self.session, self.strategy, self.session.run
        return loader_.Loader(
            session.data.pixels,
            session.data.rows["train"],
            seed=settings.seed,
            batch_size=settings.batch.size,
            micro=self.micro,
            rank=strategy.rank,
            world=strategy.world,
            device=strategy.device,
            resident=settings.data.resident,
        )

    def close(self) -> None:
        """Let a checkpoint that is under way end; end the report, and close the line files."""
        hang.rest()
        flying = sys.exc_info()[1]
        try:
            self.saver.wait()
        except MemdistError:
            if flying is None:  # else it must not hide what went wrong first
                raise
        finally:
            self.report.close()
            self.ledger.close()

    def advance(self, loader: loader_.Loader) -> int | None:
        """Take one step and whatever follows it; an exit code ends the run before its last step."""
        session, strategy, settings = self.session, self.strategy, self.session.run
        before = time.perf_counter()
        micros = loader.micro_batches(session.step)
        self.waited += time.perf_counter() - before
        step.take_step(session, [augment(micro, settings.augment) for micro in micros], self.sums)
        hang.touch("step", session.step)
        self.report.step(session.step)
        if session.step % settings.log.every == 0:
            self._log()
        elif session.watch.full:
            session.watch.fold(strategy)
        due = self._epoch() if session.step == self._epoch_end() else False
        agreed = strategy.agree(self.signals.wishes | (SAVE if self._overdue() else 0))
        exhausted = session.selection.exhausted(settings.select)
        there = session.step == session.pause
        if due or agreed or exhausted or there:
            self.save(due)
        if exhausted or agreed & STOP or there:
            strategy.settle()
            self.saver.wait()
        if exhausted:
            since = session.selection.since
            return self._finish(f"stopped early: no better {settings.select.metric} for {since} validations")
        if session.step < session.total and (there or agreed & STOP):
            return self._leave(
                f"until={settings.until}" if there else self.signals.caught or "a signal at another rank"
            )
        return None

    def note(self, state: str, why: str) -> None:
        """Say in state.json how the run stands."""
        if self.strategy.main:
            self.ledger.note(state, why)

    def _epoch_end(self) -> int:
        """Step at which the last epoch that was begun before this step's batch ended, if it ends here."""
        number = self.session.epoch
        return loader_.epoch_end(number, self.pairs, self.session.run.batch.size) if number else -1

    def _overdue(self) -> bool:
        """Whether to wish for a checkpoint by the clock; once, as the answer may come a step late."""
        late = time.monotonic() - self.saved > 60 * self.session.run.checkpoint.every_minutes
        if not self.strategy.main or not late or self.asked:
            return False
        self.asked = True
        return True

    def _log(self) -> None:
        session = self.session
        norms = session.watch.look(session.stage.nets, self.strategy, session.step)
        values = {f"train/{name}": value for name, value in self.sums.fetch(self.strategy).items()}
        values |= session.watch.norms() | {f"weight_norm/{name}": norm for name, norm in norms.items()}
        for name, optimiser in self.strategy.optimisers.items():
            values[f"lr/{name}"] = float(optimiser.param_groups[0]["lr"])
        speed = self.report.losses(session.step, values)
        if self.strategy.main:
            self.ledger.write(values, speed | {"data_wait_seconds": self.waited})
        self.waited = 0.0

    def _epoch(self) -> bool:
        """Validate at the end of an epoch; whether a checkpoint is due."""
        session, settings = self.session, self.session.run
        session.watch.look(session.stage.nets, self.strategy, session.step)
        epoch = session.epoch
        before = time.perf_counter()
        maps = epoch % settings.validate_.every == 0 or session.step == session.total
        with session.averages.whole(session.model.averaged(), self.strategy) as nets:
            values, grid, ranges = validate.validate(
                settings, session.model, nets, session.data.pixels, self.subsets, self.strategy, maps=maps
            )
        if ranges is not None:
            session.watch.validated(*ranges, session.step)
        best = False
        chosen = values.get(settings.select.metric)
        if settings.select.metric in values:
            best = session.selection.update(settings.select, math.nan if chosen is None else chosen, session.step)
        if values:
            if self.strategy.main:
                self.ledger.write(values, {"validation_seconds": time.perf_counter() - before})
            self.report.validation(session.step, values, best)
        if grid is not None and self.strategy.main:
            session.still_ours()
            validate.write_png(rundir.samples(session.out) / f"epoch-{epoch:05d}.png", grid)
            self.report.grid(session.step, grid)
        return best or epoch % settings.checkpoint.every == 0

    def save(self, due: bool = False) -> None:
        """Write a checkpoint of what is sound, then let go of those that are not to be kept; `due`: by an epoch's end."""
        session = self.session
        if not session.watch.sound(session.stage.nets, self.strategy):
            return  # The next step shows it; to say so now would depend on when a checkpoint was asked for.
        if due and session.watch.calm:
            session.anchor = (session.step, session.selection.step)
        first = not session.saved
        sums = self.sums.state(self.strategy)
        # One may still wait for the checkpoint before to be written.
        with hang.alone("writes a checkpoint"):
            self.ledger.save(sums, self.saver)
            if first:
                self.saver.wait()
        if first:
            session.saved = True
            self.note("running", "")  # a run that has lost its checkpoints is told from one that had none yet
        self.saved, self.asked = time.monotonic(), False

    def _leave(self, why: str) -> int:
        """Say that the run goes on another time."""
        session = self.session
        self.note("stopped", why)
        how = "a later one, or none, goes on" if why.startswith("until=") else "the same command goes on"
        self.report.say(f"stopped at step {session.step} of {session.total} by {why}; {how} from there")
        return RESUME_ME

    def _finish(self, why: str) -> int:
        session = self.session
        if session.step and self.strategy.main:
            # A run that was finished before stays as it was.
            if rundir.read_json(session.out / rundir.STATE).get("state") != "finished":
                self.note("finished", why)
        best = session.selection
        chosen = (
            f"; best {session.run.select.metric} {best.value:.4f} at step {best.step}" if best.value is not None else ""
        )
        self.report.say(
            f"{why or 'finished'}: step {session.step} of {session.total}{chosen}; run folder {session.out}"
        )
        return 0
