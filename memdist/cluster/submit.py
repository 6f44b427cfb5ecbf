"""Jobs on their way to Slurm, through submitit: the one file that imports it.

submitit writes a script, gives it to sbatch and reads the job's number. The script is memdist's own
text (`memdist.cluster.text`), the very one that a dry run shows, in place of submitit's, which would start Python on a
pickled function: what a job does stands in its script, and nothing is unpickled.
"""

from __future__ import annotations

import contextlib
import io
import os
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

from memdist import rundir
from memdist.cluster import book, facts
from memdist.cluster.profile import Cluster
from memdist.cluster.text import Job, render
from memdist.errors import ClusterError

PATIENCE = 300
"""Seconds that sbatch may take: with a busy controller it tries again by itself for some minutes."""


_OVERRULED = (
    *(
        "ARRAY_INX",
        "BATCH",
        "CPUS_PER_GPU",
        "CLUSTERS",
        "ERROR",
        "GPUS",
        "GPUS_PER_NODE",
        "GPUS_PER_TASK",
        "GRES",
        "INPUT",
    ),
    *("JOB_NAME", "NO_REQUEUE", "OPEN_MODE", "OUTPUT", "PARTITION", "REQUEUE", "SIGNAL", "TIMELIMIT", "WAIT"),
)
"""Variables `SBATCH_...` that would overrule what a script says, or what its limits were looked up for."""

_LEFT_OPEN = {"ACCOUNT": "account", "QOS": "qos", "CONSTRAINT": "constraint"}
_LEFT_OPEN |= dict.fromkeys(("MEM_PER_CPU", "MEM_PER_GPU", "MEM_PER_NODE"), "memory_per_rank")
"""Those that may say what a profile does not, each with the profile's own key."""


def overruled(cluster: Cluster) -> list[str]:
    """Variables of this environment that sbatch is not to see: to it they count more than the lines of a script."""
    names = [*_OVERRULED, *(name for name, key in _LEFT_OPEN.items() if getattr(cluster, key) is not None)]
    for option in cluster.options:
        names.append(option.partition("=")[0].partition(" ")[0].strip("-").replace("-", "_").upper())
    return sorted({f"SBATCH_{name}" for name in names} & os.environ.keys())


def to_slurm(job: Job, cluster: Cluster) -> str:
    """Submit a job or an array; gives its number. Raises ClusterError with sbatch's own words where it refuses."""
    text = render(job, cluster)
    with private():
        rundir.make_folder(book.logs(job.place))
        number = _sbatch(text, overruled(cluster))
        rundir.write_text(script(job.place, number), text)
    return number


def script(place: Path, number: str) -> Path:
    """File of what sbatch was given."""
    return book.folder(place) / f"{number}.sbatch"


def cancel(jobs: Sequence[str]) -> None:
    """Cancel jobs, arrays or elements of arrays of Slurm; those that have ended are passed over."""
    facts.call(["scancel", "--quiet", *jobs])


def _sbatch(text: str, without: Sequence[str]) -> str:
    if not facts.there():
        facts.call(["sbatch", "--version"])  # which says so
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import submitit
        from submitit.core.utils import FailedJobError, FailedSubmissionError

    class Executor(submitit.SlurmExecutor):
        """submitit's, with a text of ours."""

        def _make_submission_file_text(self, command: str, uid: str) -> str:
            return text

        def _make_submission_command(self, submission_file_path: Path) -> list[str]:
            clean = ["env", *(f"--unset={name}" for name in without)]
            return [*clean, "timeout", "-k", "5", str(PATIENCE), "sbatch", str(submission_file_path)]

    # Of a name with % submitit would make another; sbatch takes a copy of what lies there.
    with tempfile.TemporaryDirectory(prefix="memdist-submit-") as folder:
        try:
            with contextlib.redirect_stderr(io.StringIO()):  # sbatch's words come once
                return str(Executor(folder)._submit_command("").job_id)
        except FailedJobError as error:
            if getattr(error.__cause__, "returncode", None) in (124, -9, 137):
                raise ClusterError(
                    f"Slurm does not answer: sbatch said nothing for {PATIENCE} s; see with `squeue --me` whether it has taken "
                    "the job nevertheless, and try again"
                ) from error
            raise ClusterError(f"{facts.refusal('sbatch', str(error))}; nothing was submitted") from error
        except FailedSubmissionError as error:
            raise ClusterError(f"sbatch answered what is no number of a job: {error}") from error


@contextlib.contextmanager
def private() -> Iterator[None]:
    """What is written is for its user alone."""
    before = os.umask(0o077)
    try:
        yield
    finally:
        os.umask(before)
