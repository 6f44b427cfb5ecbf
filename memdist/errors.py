"""Errors that a person can act upon.

    MemdistError              anything below; the command prints its sentence and exits with code 2
    ├── ConfigError           a key, value, flag or device that cannot be
    ├── DataError             pictures, maps, splits, caches
    ├── CheckpointError       run folders and weights
    ├── ClusterError          Slurm
    ├── SearchError           search spaces and searchers
    └── DivergedError         a training that has gone wrong and does not go on

A message is one sentence that names what was given, what is allowed and what to do about it. Whatever else is raised is a
fault of memdist, and shows its traceback.
"""


class MemdistError(Exception):
    """Base of every error that is the fault of what memdist was given; the text is written for its user."""


class ConfigError(MemdistError):
    """A setting, a command-line argument or a device that cannot be used as asked."""


class DataError(MemdistError):
    """Pictures, maps, splits or caches that cannot be used."""


class CheckpointError(MemdistError):
    """A run folder or weights that cannot be used."""


class ClusterError(MemdistError):
    """A cluster that refuses, or a job that cannot be submitted."""


class SearchError(MemdistError):
    """A search space or a searcher that cannot be used."""


class DivergedError(MemdistError):
    """A training whose loss, gradient or output has gone wrong; its checkpoints are from before."""


def shared(error: BaseException) -> None:
    """Mark an error as one that every rank of a job raises, so that one of them tells it for all."""
    vars(error)["shared"] = True


def is_shared(error: BaseException) -> bool:
    """Whether every rank raises this error: it was marked, or is found by all ranks alike."""
    return isinstance(error, DivergedError) or bool(vars(error).get("shared"))


def printable(text: object) -> str:
    """Text with whatever a terminal could obey or misread (escapes, line ends, marks of direction) spelled out."""
    said = str(text)
    return (
        said
        if said.isprintable()
        else "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in said)
    )
