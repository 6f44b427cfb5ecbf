"""How many maps at once, and whether compiled: the same for all processes that fill one folder, and so the same bits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from memdist.distributed.single import Single
from memdist.predict import record as record_
from memdist.predict.folder import Layout
from memdist.predict.record import Record
from memdist.train import mapper, restore
from memdist.train.recipe import Recipe


@dataclass(frozen=True)
class How:
    """How this process comes to its batch, and whether it compiles: as the first one did, unless it is told."""

    folder: Path
    run: Any
    made: Recipe
    strategy: Single
    choice: str
    ema: bool
    overrides: Sequence[str]
    pictures: int
    """Pictures that a share has, or one more."""

    def first(
        self, found: restore.Restored, out: Path, settings: dict[str, Any], layout: Layout
    ) -> tuple[mapper.Mapper, Record]:
        """Find them, and write them down for the others, unless another process was quicker."""
        ours = self._prepared(found, self.run)
        own = Record(settings, found.step, found.averaged, ours.batch, ours.compiled, layout.folders)
        record = record_.begin(out, own)
        if self._same(ours, record):
            return ours, record
        # Networks that were told to compile stay so: they are built again.
        again = restore.restore(self.folder, self.choice, ema=self.ema, device=self.strategy.device, step=found.step)
        return self.following(again, record), record

    def following(self, found: restore.Restored, there: Record) -> mapper.Mapper:
        """Take those of the record, but for what the command line says."""
        compiled = there.compiled and mapper.can_compile(self.strategy.device)
        settings = {"batch": there.batch, "compile": "always" if compiled else "never"}
        rest = {key: value for key, value in settings.items() if not self._told(key)}
        run = self.run.model_copy(update={"eval": self.run.eval.model_copy(update=rest)})
        ours = self._prepared(found, run)
        if "batch" in rest:
            ours.batch = there.batch
        return ours

    def _prepared(self, found: restore.Restored, run: Any) -> mapper.Mapper:
        maps = self.pictures * self.made.samples
        ours = mapper.prepare(self.folder, found, run, self.made, self.strategy, maps=maps)
        ours.batch = filled(ours.batch, self.made.samples, self.pictures)
        return ours

    def _same(self, ours: mapper.Mapper, record: Record) -> bool:
        return all(
            self._told(key) or there == own
            for key, there, own in (("batch", record.batch, ours.batch), ("compile", record.compiled, ours.compiled))
        )

    def _told(self, key: str) -> bool:
        return any(text.partition("=")[0] == f"eval.{key}" for text in self.overrides)


def filled(batch: int, samples: int, pictures: int) -> int:
    """The batch, at most this, that k samples of whole pictures fill; one picture may take several batches."""
    if samples >= batch:
        return -(-samples // -(-samples // batch))
    turns = -(-pictures // (batch // samples))
    return -(-pictures // turns) * samples
