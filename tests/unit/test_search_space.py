"""Spaces: what a file stands for, counted, and what is refused."""

import copy
import itertools
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as some

from memdist import config, models
from memdist.errors import ConfigError
from memdist.search import space as spaces
from memdist.search import sweep
from memdist.search.constraint import Constraint
from memdist.search.parameter import ABSENT, Option, Parameter, Span
from memdist.search.space import Space, cell, cells, count, draw, identity_key, resolve
from memdist.search.tree import Tree

Make = Callable[..., Space]
OPTIMISERS = [{"name": "adam", "lr": 0.001}, {"name": "sgd", "lr": 0.01}]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """A space of parameters, from a file of its own."""

    def made(parameters: Any, base: str = "quick/unet", **more: Any) -> Space:
        path = tmp_path / "space.yaml"
        path.write_text(config.written({"base": base, "parameters": parameters, **more}))
        return spaces.read(str(path))

    return made


def raw(space: Space, overrides: tuple[str, ...]) -> dict[str, Any]:
    return config.override(copy.deepcopy(dict(space.bare)), overrides)


# Shipped spaces

COUNTS = {"pix2pix": 14_400, "pix2pix-shared-norm": 7_200, "unet": 120, "palette": 450, "quick": 48}


def test_the_dissertations_space_is_what_it_says() -> None:
    each = (3 + 3 * 3 + 3) * 4 * 2
    assert count(spaces.read("pix2pix")) == each * each == 14_400
    assert count(spaces.read("pix2pix-shared-norm")) == (15 * 4) ** 2 * 2 == 7_200
    assert (2 + 1 + 2 * 3 + 2 * 3) * 5 * 3 * 2 == COUNTS["palette"]


def test_every_shipped_space_is_known_and_is_no_configuration() -> None:
    assert set(config.spaces()) == set(COUNTS)
    assert not any("search" in name for name in config.shipped())
    with pytest.raises(ConfigError, match="^there is no configuration 'search/unet'"):
        config.find("search/unet")
    with pytest.raises(ConfigError, match="^there is no space 'unett'.*did you mean unet"):
        spaces.read("unett")


@pytest.mark.parametrize("name", COUNTS)
def test_a_shipped_space_resolves(name: str) -> None:
    space = spaces.read(name)
    assert count(space) == COUNTS[name]
    chosen = {0, count(space) - 1, *random.Random(name).sample(range(count(space)), k=min(50, count(space)))}
    keys = set()
    for number in chosen:
        one = cell(space, number)
        run = resolve(space, one)
        keys.add(identity_key(space, one))
        for key, value in one.values.items():
            if key in config.flat(run):
                assert config.flat(run)[key] == value
    assert len(keys) == len(chosen)


@pytest.mark.parametrize("name", [name for name in COUNTS if name != "pix2pix"])
def test_each_cell_stands_once(name: str) -> None:
    space = spaces.read(name)
    found = list(cells(space))
    assert [one.number for one in found] == list(range(COUNTS[name]))
    assert len({one.name for one in found}) == len({one.overrides for one in found}) == COUNTS[name]
    assert all(len(one.name.encode()) <= 200 and not set(one.name) & set("/ {}'\"") for one in found)


@pytest.mark.parametrize("name", COUNTS)
def test_a_shipped_space_says_what_it_is(name: str) -> None:
    text = config.spaces()[name].read_text()
    head = text.split("\nbase:")[0]
    assert all(word in head for word in (f"memdist search run {name} ", "Cells:", "Hardware:", "Time:", "Expected:"))
    assert f"{COUNTS[name]:,}" in head
    assert all(len(line) <= 135 for line in text.splitlines())


# What a file means


def test_the_last_parameter_changes_fastest_as_on_the_command_line(make: Make) -> None:
    space = make({"seed": {"range": [0, 3]}, "model.norm": ["none", "batch"], "optim.unet.lr": [1e-3, 1e-4]})
    texts = ["seed=range(0,3)", "model.norm=none,batch", "optim.unet.lr=0.001,0.0001"]
    assert [one.overrides for one in cells(space)] == [one.overrides for one in sweep.expand(texts)]
    assert cell(space, 0).name == "seed=0,model.norm=none,unet.lr=0.001"


@pytest.mark.parametrize(
    ("ends", "values"),
    [
        ([0, 3], [0, 1, 2]),
        ([8, 33, 8], [8, 16, 24, 32]),
        ([0.1, 0.5, 0.1], [0.1, 0.2, 0.3, 0.4]),
        ([3, 0, -1], [3, 2, 1]),
        ([0, 1, 0.25], [0.0, 0.25, 0.5, 0.75]),
    ],
)
def test_ranges_count_to_below_their_end(ends: list[Any], values: list[Any], make: Make) -> None:
    key = "augment.flip" if any(isinstance(v, float) for v in values) else "seed"
    found = [one.values[key] for one in cells(make({key: {"range": ends}}))]
    assert found == values and [type(v) for v in found] == [type(v) for v in values]


def test_a_condition_makes_a_parameter_exist(make: Make) -> None:
    betas = {"choices": [[0.9, 0.999], [0.5, 0.999], [0.0, 0.9]], "when": {"optim.unet.name": "adam"}}
    space = make({"optim.unet.name": ["sgd", "adam"], "optim.unet.betas": betas})
    assert [tuple(one.values.values()) for one in cells(space)] == [
        ("sgd",),
        ("adam", [0.9, 0.999]),
        ("adam", [0.5, 0.999]),
        ("adam", [0.0, 0.9]),
    ]


def test_what_a_cell_does_not_set_stands_at_the_models_default(make: Make) -> None:
    """The base's betas would be refused beside sgd; what nobody searches stays."""
    betas = {"choices": [[0.5, 0.999], [0.0, 0.9]], "when": {"optim.generator.name": "adam"}}
    space = make({"optim.generator.name": ["sgd", "adam"], "optim.generator.betas": betas}, base="quick/pix2pix")
    optims = [resolve(space, one).optim.generator for one in cells(space)]
    assert [(o.name, o.betas) for o in optims] == [
        ("sgd", (0.9, 0.999)),
        ("adam", (0.5, 0.999)),
        ("adam", (0.0, 0.9)),
    ]
    assert {(o.lr, o.schedule.name) for o in optims} == {(0.002, "cosine")}


def test_a_group_is_laid_over_the_bases(make: Make) -> None:
    space = make({"optim.unet": OPTIMISERS, "model.norm": ["none"]}, settings={"optim.unet.schedule.warmup": 7})
    first, second = cells(space)
    assert "optim.unet={name: sgd, lr: 0.01, schedule: {name: cosine, warmup: 7}}" in second.overrides
    assert first.values["optim.unet"] == OPTIMISERS[0]
    assert second.name == "optim.unet=sgd-0.01,model.norm=none"


def test_keys_that_move_together(make: Make) -> None:
    space = make({"shift": {"keys": ["augment.translation", "augment.cutout"], "choices": [0.0, 0.5]}})
    found = [resolve(space, one).augment for one in cells(space)]
    assert [(a.translation, a.cutout) for a in found] == [(0.0, 0.0), (0.5, 0.5)]


def test_a_key_may_belong_to_two_of_which_one_exists(make: Make) -> None:
    name, start = "model.schedule.name", "model.schedule.start"
    space = make(
        {
            name: ["cosine", "sigmoid", "linear"],
            "c": {"keys": [start], "choices": [0.0, 0.2], "when": {name: "cosine"}},
            "s": {"keys": [start], "choices": [-3.0, -2.0, 0.0], "when": {name: "sigmoid"}},
            "model.schedule.temperature": {"choices": [1.0, 2.0], "when": {start: [0.2, -2.0]}},
        },
        base="quick/palette",
    )
    assert count(space) == len(list(cells(space))) == (1 + 2) + (1 + 2 + 1) + 1


def test_constraints_leave_out_cells(make: Make) -> None:
    parameters = {"augment.flip": [0.0, 0.5], "augment.cutout": [0.0, 0.5], "augment.colour": [0.2, 0.5, 1.0]}
    equal = make(parameters, constraints=[{"equal": ["augment.flip", "augment.cutout"]}])
    assert [tuple(one.values.values())[:2] for one in cells(equal)] == [(0.0, 0.0)] * 3 + [(0.5, 0.5)] * 3
    less = make(parameters, constraints=[{"less": ["augment.flip", "augment.colour"]}])
    assert count(less) == (3 + 1) * 2
    forbid = make(parameters, constraints=[{"forbid": {"augment.flip": 0.5, "augment.colour": [0.5, 1.0]}}])
    assert count(forbid) == 12 - 4


def test_overrides_are_fixed_beside_the_settings(tmp_path: Path) -> None:
    space = spaces.read("quick", ["epochs=4", f"data.images={tmp_path}"])
    run = resolve(space, cell(space, 5))
    assert run.epochs == 4 and run.data.images == tmp_path
    assert space.fingerprint == spaces.read("quick").fingerprint != spaces.read("quick", ["seed=1"]).fingerprint
    with pytest.raises(ConfigError, match="model.norm is both fixed and searched"):
        spaces.read("quick", ["model.norm=none"])


def test_two_spellings_of_one_configuration_have_one_key(make: Make) -> None:
    space = make({"optim.unet": [*OPTIMISERS, {"name": "adam", "lr": 1e-3, "betas": [0.9, 0.999]}]})
    first, second, third = (identity_key(space, one) for one in cells(space))
    assert first == third != second
    assert (
        first == identity_key(space, cell(space, 0), ["workers=3"]) != identity_key(space, cell(space, 0), ["seed=3"])
    )


def test_defaults_are_given_or_the_bases_or_the_first(make: Make) -> None:
    space = make({"model.channels": [8, 16], "model.norm": ["batch", "none"], "optim.unet": OPTIMISERS})
    assert space.defaults == (1, 0, 0)
    assert spaces.read("pix2pix").defaults == (0, 1, 6, 0, 1, 6)


def test_a_base_stands_beside_its_space(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("model: unet\nseed: 9\n")
    (tmp_path / "space.yaml").write_text("base: mine.yaml\nparameters: {model.norm: [none, batch]}\n")
    space = spaces.read(str(tmp_path / "space.yaml"))
    assert resolve(space, cell(space, 0)).seed == 9


# Values that are drawn


def test_draws_are_a_pure_function_of_seed_and_number(make: Make) -> None:
    lr, when = {"loguniform": [1e-4, 1e-1]}, {"optim.unet.name": "sgd"}
    momentum = {"uniform": [0.0, 0.9], "when": when}
    space = make({"optim.unet.name": ["adam", "sgd"], "optim.unet.lr": lr, "optim.unet.momentum": momentum})
    with pytest.raises(ConfigError, match="no number of cells, as optim.unet.lr is drawn"):
        count(space)
    found = [draw(space, 3, number) for number in range(400)]
    assert found[7] == draw(space, 3, 7) != draw(space, 4, 7)
    rates = sorted(one.values["optim.unet.lr"] for one in found)
    assert 1e-4 <= rates[0] and rates[-1] <= 1e-1
    assert 100 < sum(rate < 10**-2.5 for rate in rates) < 300  # half of them, were they endless
    assert all(("optim.unet.momentum" in one.values) == (one.values["optim.unet.name"] == "sgd") for one in found)
    for one in found[:5]:
        assert config.flat(resolve(space, one))["optim.unet.lr"] == one.values["optim.unet.lr"]


def test_draws_keep_to_constraints(make: Make) -> None:
    ends = {"uniform": [0.0, 1.0]}
    space = make(
        {"augment.flip": ends, "augment.cutout": ends}, constraints=[{"less": ["augment.flip", "augment.cutout"]}]
    )
    found = [draw(space, 0, number).values for number in range(50)]
    assert all(one["augment.flip"] < one["augment.cutout"] for one in found)


@given(some.integers(-5, 5), some.integers(1, 9), some.floats(0, 1))
def test_whole_ends_give_whole_numbers(low: int, width: int, share: float) -> None:
    found = Span(low, low + width, log=False).at(share)
    assert isinstance(found, int) and low <= found <= low + width


# Mistakes

NORM = {"model.norm": ["batch", "none"]}


@pytest.mark.parametrize(
    ("parameters", "more", "says"),
    [
        ({}, {}, "it has nothing to search"),
        ([1], {}, "it has nothing to search"),
        (NORM, {"parameter": 1}, "a space has no 'parameter' .did you mean parameters"),
        (NORM, {"base": "unett"}, "there is no configuration 'unett'.*did you mean unet"),
        (NORM, {"base": 3}, "it names no base"),
        (NORM, {"settings": {"epoks": 3}}, "there is no setting 'epoks'; did you mean epochs"),
        (NORM, {"settings": [1]}, "settings should be a group"),
        (NORM, {"settings": {"a b": 1}}, "'a b' under settings is no key"),
        (NORM, {"settings": {"model": {"norm": "none"}}}, "model.norm is both fixed and searched"),
        ({"model.norm": []}, {}, r"model.norm = \[\] cannot be: it should be a list of at least one value"),
        ({"model.norm": "batch"}, {}, "it should be a list of values, or a group of choices"),
        ({"model.norm": {"choices": ["none"], "range": [1, 2]}}, {}, "it should be a list of values"),
        ({"model.norm": {"choices": ["none"], "if": 1}}, {}, "it should be a list of values"),
        ({"model.norm": ["none", "none"]}, {}, "model.norm has the value none twice"),
        ({"augment.flip": [0, 0.0]}, {}, "augment.flip has the value 0.0 twice"),
        ({"model.normm": ["none"]}, {}, "there is no setting 'model.normm'.*did you mean model.norm"),
        ({"model": ["unet"]}, {}, "model is a group of settings: search its keys"),
        ({"optim.unet.schedule": ["cosine"]}, {}, "optim.unet.schedule is a group of settings"),
        ({"model.name": ["unet", "pix2pix"]}, {}, "model.name cannot be searched"),
        ({"epochs": [1, 2]}, {}, "epochs cannot be searched, as it does not say what is trained"),
        ({"my norm": ["none"]}, {}, "'my norm' cannot be a parameter"),
        ({"norm": ["none"]}, {}, "there is no setting 'norm'"),
        (
            {"optim.unet": [{"nam": "sgd"}]},
            {},
            "there is no setting 'optim.unet.nam', which optim.unet sets; did you mean",
        ),
        ({"optim.unet": [{"a b": 1}]}, {}, "it should be a group whose keys are words"),
        (
            {"optim.unet": OPTIMISERS, "optim.unet.lr": [1]},
            {},
            "optim.unet.lr is set by optim.unet and by optim.unet.lr",
        ),
        (
            {"a": {"keys": ["optim.unet"], "choices": [1]}, "optim.unet.lr": [1]},
            {},
            r"optim.unet \(a\) and optim.unet.lr \(optim.unet.lr\) lie within each other",
        ),
        ({"optim.unet.lr": [0.1, -1]}, {}, "the cell unet.lr=-1 cannot be: optim.unet.lr = -1 cannot be"),
        (
            {"optim.unet.name": ["adam", "sgd"], "optim.unet.betas": [[0, 0.9]]},
            {},
            "the cell unet.name=sgd.*without betas",
        ),
        (
            NORM | {"seed": {"keys": ["epochs"], "choices": [1]}, "both": {"keys": ["seed"], "choices": [1]}},
            {},
            "seed is the name",
        ),
        ({"seed": {"range": [5, 0]}}, {}, "stands for 0 values"),
        ({"seed": {"range": [0, 5, 0]}}, {}, "stands for 0 values"),
        ({"seed": {"range": [0, 10**6]}}, {}, "from 1 to 1000 can be"),
        ({"seed": {"range": ["a", "b"]}}, {}, r"it should be \[start, end\]"),
        ({"seed": {"range": [0, 1, 2, 3]}}, {}, r"it should be \[start, end\]"),
        ({"augment.flip": {"uniform": [1, 0]}}, {}, "low < high"),
        ({"optim.unet.lr": {"loguniform": [0, 1.0]}}, {}, "0 < low < high"),
        ({"model.norm": {"choices": ["none"], "when": 1}}, {}, "keys of parameters above"),
        (
            {
                "optim.unet.betas": {"choices": [[0, 0.9]], "when": {"optim.unet.name": "adam"}},
                "optim.unet.name": ["adam"],
            },
            {},
            "optim.unet.betas depends on optim.unet.name, which stands below it",
        ),
        (
            NORM | {"seed": {"choices": [1], "when": {"model.nrm": "none"}}},
            {},
            "no parameter sets .did you mean model.norm",
        ),
        (
            NORM | {"seed": {"choices": [1], "when": {"model.norm": "nonne"}}},
            {},
            "it is never nonne .did you mean none",
        ),
        (
            {"augment.flip": {"uniform": [0.0, 1.0]}, "seed": {"choices": [1], "when": {"augment.flip": 0.0}}},
            {},
            "drawn",
        ),
        (NORM, {"constraints": {"equal": ["model.norm"]}}, "constraints should be a list"),
        (NORM, {"constraints": [{"equal": ["model.norm"]}]}, "the constraint .* cannot be"),
        (NORM, {"constraints": [{"python": "1"}]}, "the constraint .* cannot be"),
        (NORM, {"constraints": [{"forbid": {"seed": 1}}]}, "no parameter sets it"),
        (NORM, {"constraints": [{"forbid": {"model.norm": "x"}}]}, "it is never x"),
        (NORM | {"seed": [1]}, {"constraints": [{"less": ["seed", "model.norm"]}]}, "not all its values are numbers"),
        (NORM, {"constraints": [{"forbid": {"model.norm": ["batch", "none"]}}]}, "no cell keeps to all of them"),
        (NORM, {"constraints": [{"forbid": {"model.norm": "batch"}}]}, "no cell has model.norm = batch"),
        (
            {"augment.flip": [0.0, 0.5], "augment.cutout": [0.2, 0.7]},
            {"constraints": [{"equal": ["augment.flip", "augment.cutout"]}]},
            "no cell keeps to all of them",
        ),
        (NORM, {"defaults": {"model.norm": "instance"}}, "the default of model.norm, instance, is none of its values"),
        (
            NORM,
            {"defaults": {"model.nrm": "none"}},
            "defaults name model.nrm, which is no parameter .did you mean model.norm",
        ),
        (NORM, {"defaults": 3}, "defaults should be a group"),
    ],
)
def test_a_mistake_is_named(parameters: Any, more: dict[str, Any], says: str, make: Make) -> None:
    with pytest.raises(ConfigError, match=says) as raised:
        make(parameters, **more)
    assert len(str(raised.value)) < 1000


# Counting against walking

parameters = some.lists(some.tuples(some.integers(1, 4), some.none() | some.integers(0, 7)), min_size=1, max_size=6)
kinds = some.sampled_from(["equal", "less", "forbid"])
constraints = some.lists(some.tuples(kinds, some.integers(0, 5), some.integers(0, 5), some.integers(0, 3)), max_size=3)


def _tree(sizes: list[tuple[int, int | None]], lines: list[tuple[Any, int, int, int]]) -> tuple[list[Any], list[Any]]:
    found: list[Parameter] = []
    for at, (size, condition) in enumerate(sizes):
        when = {f"p{condition % at}": (0, 1)} if condition is not None and at else {}
        found.append(
            Parameter(f"p{at}", (f"p{at}",), tuple(Option(v, {f"p{at}": v}, str(v)) for v in range(size)), None, when)
        )
    rules = []
    for kind, one, other, value in lines:
        keys = (f"p{one % len(sizes)}", f"p{other % len(sizes)}")
        if keys[0] != keys[1]:
            rules.append(Constraint(kind, keys, ((value,), (value, 0)) if kind == "forbid" else ()))
    return found, rules


@settings(max_examples=200, derandomize=True, deadline=None, database=None)
@given(parameters, constraints)
def test_the_tree_has_exactly_the_cells_there_are(sizes: Any, lines: Any) -> None:
    """Against a product of everything, of which what conditions and constraints refuse is thrown away."""
    found, rules = _tree(sizes, lines)
    tree = Tree(found, rules)
    expected = []
    for values in itertools.product(*([-1, *range(len(p.options))] for p in found)):
        there = {f"p{at}": value for at, value in enumerate(values) if value >= 0}
        exist = all((p.name in there) == all(there.get(k) in v for k, v in p.when.items()) for p in found)
        if exist and all(rule.holds(lambda key, t=there: t.get(key, ABSENT)) for rule in rules):
            expected.append(values)
    expected.sort()
    assert tree.below() == len(expected)
    assert [tree.at(index) for index in range(tree.below())] == expected
    assert [tree.index(chosen) for chosen in expected] == list(range(len(expected)))
    assert tree.first() == (expected[0] if expected else None)
    with pytest.raises(IndexError):
        tree.at(len(expected))


def test_a_huge_space_is_counted_at_once() -> None:
    found, _ = _tree([(4, None)] * 60, [])
    rules = [Constraint("equal", ("p0", "p59")), Constraint("less", ("p1", "p2"))]
    tree = Tree(found, rules)
    assert tree.below() == 4**57 * 6 == 4**60 // 4 // 16 * 6
    last = tree.at(tree.below() - 1)
    assert last[0] == last[-1] == 3 and tree.index(last) == tree.below() - 1


def test_what_cannot_be_counted_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("memdist.search.tree.MOST", 1000)
    found, _ = _tree([(4, None)] * 20, [])
    with pytest.raises(ConfigError, match="tie too many parameters together"):
        Tree(found, [Constraint("equal", (f"p{at}", f"p{at + 10}")) for at in range(10)]).below()


# Text


@settings(max_examples=200, derandomize=True, deadline=None, database=None)
@given(
    some.recursive(
        some.none()
        | some.booleans()
        | some.integers(-(10**9), 10**9)
        | some.floats(allow_nan=False, allow_infinity=False)
        | some.text(some.characters(exclude_categories=["Cs"]), max_size=12)
        | some.sampled_from(["null", "1e-4", "12:00:00", "a,b", "{x}", "#", "", "- x", "...", "~"]),
        lambda inner: (
            some.lists(inner, max_size=3) | some.dictionaries(some.from_regex("[a-z]{1,3}", fullmatch=True), inner)
        ),
        max_leaves=6,
    )
)
def test_a_value_is_read_back_from_its_line(value: Any) -> None:
    text = config.line(value)
    assert "\n" not in text
    (back,) = config.override({}, [f"key={text}"]).values()
    assert json.dumps(back) == json.dumps(value)


def test_a_model_is_resolved_by_its_registry() -> None:
    assert all(spaces.read(name).bare["model"]["name"] in models.REGISTRY for name in COUNTS)
