"""How the submitted scorings of a run stand that have not ended well: what is scored stands in the run's folder."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from memdist.cluster import book, standing
from memdist.cluster.standing import Row, Slurm
from memdist.errors import printable


def rows(run: Row, slurm: Slurm) -> Iterator[Row]:
    """A row for each of a run, the newest of those of the same words."""
    place = Path(run.place)
    newest = {one.key: one for one in book.submitted(place) if one.kind == "evaluate" and one.key}
    for key, one in newest.items():
        attempts = [each for each in book.attempts(book.attempts_file(place, f"evaluate-{key}")) if each.job == one.id]
        said = standing.end_of(attempts)
        if said == "finished":
            continue
        job, gone = slurm.find([one.id], names={one.id: one.name}, begun=said == "running")
        state = standing.judge(said, "unknown", job, gone=bool(gone), begun=bool(attempts))
        state = standing.cancelled(state, gone, run.place)
        why = standing.last_failure(attempts)
        if job is not None and job.waits:
            why = "; ".join(filter(None, (standing.pending(job), why)))
        elif state == "lost" and not why:
            why = standing.missing(gone, begun=bool(attempts))
        node = (job.nodes if job is not None and job.runs else "") or (attempts[-1].nodes if attempts else "")
        yield Row(
            name=f"{run.name} evaluate {one.id}",
            group=run.group,
            place=run.place,
            state=state,
            scoring=True,
            node=printable(node),
            attempt=len(attempts),
            why=printable(why),
            gone=gone if state == "lost" else "",
        )
