"""Whatever stands in a space: cells that are read back as they are, or a ConfigError of whole sentences."""

import copy
from pathlib import Path
from typing import Any

from hypothesis import example, given
from hypothesis import strategies as st

from memdist import config
from memdist.errors import ConfigError
from memdist.search import space
from memdist.search.cells import lookup
from memdist.search.parameter import ABSENT
from tests.fuzz.damage import Change, changes, damaged

GOOD: dict[str, list[Any]] = {
    "model.norm": ["batch", "none", "instance"],
    "model.channels": [4, 8, 16],
    "optim.unet": [
        {"name": "sgd"},
        {"name": "adam", "betas": [0.5, 0.9]},
        {"lr": 0.1, "schedule": {"name": "linear"}},
        {},
    ],
    "optim.unet.name": ["adam", "sgd", "adamw"],
    "optim.unet.betas": [[0.9, 0.999], [0.5, 0.999]],
    "seed": [0, 1, 2],
    "augment.flip": [0.0, 0.5, 1.0],
    "augment.cutout": [0.0, 0.5, 1.0],
}
ODD: list[Any] = ["adam", 8, -1, True, None, [0.9], {"name": "sgd"}, {}, [], "x" * 300, "epochs", "model"]

keys = st.sampled_from(sorted(GOOD))
odd = st.sampled_from(ODD)
ends = st.sampled_from([[0, 3], [0, 1.0, 0.25], [0.1, 1.0], [3, 1], [1], [0, 1e9, 1e-9], ["x", 1], [1, True], []])


def _sometimes(good: st.SearchStrategy[Any], bad: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.integers(0, 19).flatmap(lambda which: bad if which == 7 else good)


def _pairs(most: int) -> st.SearchStrategy[Any]:
    """Keys with a value or a list of them."""

    def value(key: str) -> st.SearchStrategy[Any]:
        good = st.sampled_from(GOOD[key])
        return st.tuples(st.just(key), _sometimes(good | st.lists(good, min_size=1, max_size=2), odd))

    return st.lists(keys.flatmap(value), min_size=1, max_size=most).map(dict)


def _entry(key: str) -> st.SearchStrategy[Any]:
    choices = st.lists(_sometimes(st.sampled_from(GOOD[key]), odd), min_size=1, max_size=3, unique_by=repr)
    more = {"when": _pairs(1), "keys": st.lists(keys, min_size=1, max_size=2)}
    whole = st.fixed_dictionaries({"choices": choices}, optional=more)
    drawn = st.sampled_from(["range", "uniform", "loguniform"]).flatmap(
        lambda form: st.fixed_dictionaries({form: ends})
    )
    return st.tuples(st.just(key), _sometimes(choices | whole, odd | drawn))


constraint = (
    st.fixed_dictionaries({"forbid": _pairs(2)})
    | st.fixed_dictionaries({"equal": st.lists(keys, min_size=2, max_size=3)})
    | st.fixed_dictionaries({"less": st.permutations(["augment.flip", "augment.cutout"])})
)
files = st.fixed_dictionaries(
    {
        "base": _sometimes(st.just("quick/unet"), odd),
        "parameters": _sometimes(st.lists(keys.flatmap(_entry), min_size=1, max_size=4).map(dict), odd),
    },
    optional={
        "constraints": _sometimes(st.lists(constraint, max_size=1), odd),
        "settings": _sometimes(st.just({"optim.unet.schedule.warmup": 3}), odd | _pairs(1)),
        "defaults": _sometimes(st.just({}), odd | _pairs(1)),
    },
)


def _read(path: Path) -> None:
    try:
        found = space.read(str(path))
    except ConfigError as error:
        assert str(error).strip() and "Traceback" not in str(error) and "pydantic.dev" not in str(error)
        return
    cells = [space.draw(found, 0, number) for number in range(3)] if found.drawn else None
    if cells is None:
        count = space.count(found)
        assert count > 0
        cells = [space.cell(found, number) for number in {0, count // 2, count - 1}]
        assert len({cell.name for cell in cells}) == len({cell.overrides for cell in cells}) == len(cells)
    for cell in cells:
        raw = config.override(copy.deepcopy(dict(found.bare)), cell.overrides)
        for parameter in found.parameters:
            if parameter.name in cell.values:
                option = parameter.option(cell.values[parameter.name])
                assert all(lookup(raw, key) == one for key, one in option.sets.items())
            elif not any(
                key in other.owned for other in found.parameters if other is not parameter for key in parameter.owned
            ):
                assert all(lookup(raw, key) is ABSENT for key in parameter.owned)


@given(files)
@example({"base": "quick/unet", "parameters": {"optim.unet": [{}, {"name": "sgd"}]}})
@example({"base": "quick/unet", "parameters": {"seed": {"range": [0, 1e9, 1e-9]}}})
def test_any_space_is_read_or_refused(tmp_path: Path, raw: dict[str, Any]) -> None:
    path = tmp_path / "space.yaml"
    path.write_text(config.written(raw))
    _read(path)


@given(st.sampled_from(["quick", "palette"]), changes)
def test_a_damaged_space_is_read_or_refused(tmp_path: Path, name: str, how: list[Change]) -> None:
    path = tmp_path / "damaged.yaml"
    path.write_bytes(damaged(config.spaces()[name].read_bytes(), how))
    _read(path)
