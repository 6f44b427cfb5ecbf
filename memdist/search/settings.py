"""How a space is searched: the settings below `search`, in its file or on the command line."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import Field

from memdist import config
from memdist.config.kinds import Count, Folder, Positive, Seed, Settings
from memdist.errors import ConfigError, SearchError
from memdist.search import candidates
from memdist.search.cells import Space
from memdist.search.methods.asha import Asha
from memdist.search.methods.descent import Descent
from memdist.search.methods.grid import Grid
from memdist.search.methods.method import Method
from memdist.search.methods.random import Random
from memdist.search.objective import Mode, Scope

PREFIX = "search."


class Search(Settings):
    """How a space is searched."""

    method: Literal["grid", "asha", "random", "descent"] = "grid"
    """grid: every cell; asha: many cells for a few epochs, few for all; random: some cells; descent: one parameter after the
    other (coordinate descent)."""
    metric: str = "val/l1"
    """What trials are compared by, as metrics.jsonl has it; of val alone."""
    mode: Literal["auto", "min", "max"] = "auto"
    """Whether smaller or larger values are better; auto: as is known of the metric."""
    scope: Scope = "last-5-mean"
    """Which of a trial's values count: that of its last epoch, the best of all, or the mean of the last five."""
    order: Literal["auto", "grid", "random"] = "auto"
    """Of asha: whether cells are begun in the order of the space or by chance; auto: by chance."""
    samples: Count | None = None
    """Of asha and random: how many cells are begun at most; null: all, where they can be counted."""
    seed: Seed = 0
    """Of what is done by chance: the order of cells, and values that are drawn."""
    min_epochs: Count = 1
    """Of asha: epochs of the first rung."""
    eta: Annotated[int, Field(ge=2, le=1000)] = 4
    """Of asha: one in so many goes on from a rung to the next, which has so many times its epochs."""
    rounds: Count = 1
    """Of descent: how often all parameters are gone through, at most; a round that changes nothing is the last."""
    parameters: tuple[str, ...] | None = None
    """Of descent: names of the parameters in the order in which they are gone through; null: as in the space."""
    cpus: Positive = 1.0
    """CPUs of a trial; below 1 some share one."""
    gpus: Annotated[float, Field(ge=0)] | None = None
    """GPUs of a trial: a part of one, or a whole number; null: one divided by `pack`, where the cluster has any."""
    pack: Annotated[int, Field(ge=1, le=64)] | Literal["auto"] = 1
    """Trials that share a GPU, unless `gpus` says; auto: as many as fit and pay, by measuring a few steps of them."""
    failures: Annotated[int, Field(ge=0, le=100)] = 1
    """How often a trial that fails is begun again from its checkpoint before it counts as failed."""
    keep: Annotated[int, Field(ge=1)] = 5
    """Best trials whose weights are kept; of all others the curves are."""
    reuse: tuple[Folder, ...] = ()
    """Folders of runs, or of other searches, from which trainings of the same cell are taken over."""

    def better(self) -> Mode:
        """Whether smaller or larger values of the metric are better."""
        if self.mode != "auto":
            return self.mode
        from memdist.train import select

        return "max" if select.higher(self.metric) else "min"

    def way(self, space: Space, epochs: int) -> Method:
        """The method that these settings name, new; raises ConfigError or SearchError where it cannot be."""
        mode = self.better()
        if self.method == "grid":
            return Grid(space, epochs, mode)
        if self.method == "random":
            return Random(space, epochs, mode, self.seed, self.samples)
        if self.method == "descent":
            if space.drawn:
                raise SearchError(
                    f"search.method = descent cannot be with {space.source}, whose values are drawn at random: list them, or "
                    "use random or asha"
                )
            return Descent(space, epochs, mode, self.rounds, self.parameters)
        order = "random" if self.order == "auto" or space.drawn else self.order
        found = candidates.of(space, order, self.seed)
        return Asha(found, epochs, mode, self.samples, self.min_epochs, self.eta)


class _Whole(Settings):
    """For the names in what is said of mistakes."""

    search: Search = Search()


def read(raw: Mapping[str, Any], words: Sequence[str] = ()) -> Search:
    """The settings of a space's `search`, with those of the command line over them; raises ConfigError."""
    if not isinstance(raw, Mapping):
        raise ConfigError("search should be a group of settings, such as search: {method: asha}")
    found = config.check(_Whole, config.override({"search": dict(raw)}, words))
    assert isinstance(found, _Whole)
    return found.search


def parted(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """Settings of the search, and those of all its runs."""
    mine = [word for word in words if word.startswith(PREFIX)]
    return mine, [word for word in words if not word.startswith(PREFIX)]
