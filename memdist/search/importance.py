"""How much each parameter mattered: permutation importance (Breiman 2001, "Random Forests", section 10).

A forest of regression trees learns the objective from the parameters. R^2 is that of its out-of-bag predictions, in which a
trial is predicted only by trees that have not seen it; a parameter's importance is by how much R^2 falls when its values are
dealt out among the trials anew. All columns that stand for a parameter move together.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from memdist.search import levels
from memdist.search.cells import Space
from memdist.search.parameter import Parameter
from memdist.search.rows import Row, by_epochs

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Table = NDArray[np.float64]

FEWEST = 12
"""Trials of equal epochs, at least."""
_TREES = 100
_REPEATS = 5
_SEEN = 2000
"""Trials that each tree learns from, at most."""
_JUDGED = 4000
"""Trials over which R^2 is taken, at most: more would tell the same, for many seconds."""


class Importance(NamedTuple):
    """One parameter."""

    parameter: str
    drop: float
    """By how much R^2 falls, the mean of five times; about 0 of one that does not matter, negative by chance alone."""
    spread: float
    """Standard deviation of the five."""


class Importances(NamedTuple):
    """All parameters, the most important first; none, and the reason, where it cannot be said."""

    lines: tuple[Importance, ...] = ()
    r2: float | None = None
    """1 is all that the objective did, 0 and less is nothing: importances mean nothing then."""
    epochs: int = 0
    """At which trials were compared."""
    used: int = 0
    """How many they were."""
    why: str = ""


def importances(space: Space, rows: Sequence[Row], seed: int = 0) -> Importances:
    """Importances among the trials of most epochs; where those are too few, among the largest group of equal epochs."""
    groups = by_epochs(rows)
    most = max(groups.values(), key=len, default=[])
    used = next(iter(groups.values()), [])
    used = used if len(used) >= FEWEST else most
    epochs = used[0].epochs if used else 0
    if len(used) < FEWEST:
        why = (
            f"it takes {FEWEST} trials with a value at the same epochs to tell what mattered, and there are {len(used)}"
        )
        return Importances((), None, epochs, len(used), why)
    if len({row.value for row in used}) == 1:
        return Importances((), None, epochs, len(used), f"all {len(used)} trials have the same value: nothing mattered")
    import numpy as np
    from sklearn.ensemble import RandomForestRegressor
    from sklearn.inspection import permutation_importance

    # One column for each parameter, which is what is dealt out anew; the trees see what `_encoded` makes of it.
    codes = np.column_stack([_codes(parameter, used) for parameter in space.parameters])
    truth = np.array([row.value for row in used])
    several = [0 if levels.numeric(parameter) else len(parameter.options) for parameter in space.parameters]
    forest = RandomForestRegressor(_TREES, random_state=seed, max_samples=min(1.0, _SEEN / len(used)))
    forest.fit(_encoded(codes, several), truth)
    judged = np.sort(np.random.default_rng(seed).permutation(len(used))[:_JUDGED])
    unseen = np.ones((len(forest.estimators_), len(used)), bool)
    for mask, seen in zip(unseen, forest.estimators_samples_, strict=True):
        mask[seen] = False
    unseen = unseen[:, judged]

    def r2(fitted: Any, permuted: Table, values: Table) -> float:
        return _r2(fitted.estimators_, unseen, _encoded(permuted[judged], several), values[judged])

    found = permutation_importance(forest, codes, truth, scoring=r2, n_repeats=_REPEATS, random_state=seed)
    names = [parameter.name for parameter in space.parameters]
    figures = zip(names, found.importances_mean, found.importances_std, strict=True)
    lines = [Importance(name, float(mean), float(spread)) for name, mean, spread in figures]
    lines.sort(key=lambda line: -line.drop)
    return Importances(tuple(lines), r2(forest, codes, truth), epochs, len(used))


def text(found: Importances) -> str:
    """importance.csv; R^2, the epochs and the number of trials are the same in all lines."""
    lines = io.StringIO()
    writer = csv.writer(lines, lineterminator="\n")
    writer.writerow(["parameter", "importance", "spread", "out_of_bag_r2", "epochs", "trials"])
    for line in found.lines:
        writer.writerow([line.parameter, f"{line.drop:.6f}", f"{line.spread:.6f}", f"{found.r2:.6f}", *found[2:4]])
    return lines.getvalue()


def _codes(parameter: Parameter, rows: Sequence[Row]) -> list[float]:
    """Numbers by their rank, as trees only ask which is larger; other values by their place; -1 where there is none."""
    if parameter.span is None and not levels.numeric(parameter):
        return [float(place) for place in levels.listed(parameter, rows)]
    numbers = [row.cell.values.get(parameter.name) for row in rows]
    ranks = {number: rank for rank, number in enumerate(sorted({one for one in numbers if one is not None}))}
    return [float(levels.NOWHERE if one is None else ranks[one]) for one in numbers]


def _encoded(codes: Table, several: Sequence[int]) -> NDArray[np.float32]:
    """Columns for the trees: one for numbers, one for each value of what has no order."""
    import numpy as np

    parts = []
    for column, many in zip(codes.T, several, strict=True):
        parts.append(column[:, None] if many == 0 else column[:, None] == np.arange(levels.NOWHERE, many))
    return np.concatenate(parts, axis=1).astype(np.float32)


def _r2(trees: Sequence[Any], unseen: NDArray[np.bool_], columns: NDArray[np.float32], truth: Table) -> float:
    """R^2 of out-of-bag predictions, over the trials that some tree has not seen."""
    import numpy as np

    total = np.zeros(len(truth))
    for tree, mask in zip(trees, unseen, strict=True):
        total += mask * tree.tree_.predict(columns)[:, 0]
    votes = unseen.sum(axis=0)
    there = votes > 0
    wrong = truth[there] - total[there] / votes[there]
    return 1 - float(wrong @ wrong) / float(np.square(truth[there] - truth[there].mean()).sum())
