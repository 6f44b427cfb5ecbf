"""Whether a scoring that is asked for was done by a job, as far as the run's folder tells."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from memdist import rundir
from memdist.cluster import book
from memdist.errors import MemdistError
from memdist.train import recipe, restore


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What is to be scored, and how."""

    run: Any
    """Settings of the run as it is read now; None: it is yet to be trained."""
    splits: tuple[str, ...]
    choice: str
    ema: bool


def done(place: Path, key: str, wanted: Wanted | None) -> bool:
    """Whether the last job of these very words has ended well, and its scores, of the checkpoint of now, are those there.

    Without `wanted`, of which nothing can be told, it is not.
    """
    if wanted is None or wanted.run is None:
        return False
    attempts = book.attempts(book.attempts_file(place, f"evaluate-{key}"))
    if not attempts or attempts[-1].kind != "finished":
        return False
    try:
        # Scores of other words, such as another sampler's, may have come in their place since.
        now = {
            "checkpoint": restore.chosen_step(place, wanted.choice),
            "choice": wanted.choice,
            "ema": wanted.ema and wanted.run.ema.decay is not None,
            "sampling": _sampling(wanted.run),
        }
        scores = rundir.read_json(place / rundir.SCORES)
        records = [scores[split] for split in wanted.splits if split in scores]
        return bool(records) and all(record.get(name) == now[name] for record in records for name in now)
    except (MemdistError, OSError, AttributeError, TypeError):
        return False  # the job meets it, and tells


def _sampling(run: Any) -> Any:
    model = restore.model_of(run)
    return recipe.Recipe.of(run.eval, model).record(model)
