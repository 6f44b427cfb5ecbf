"""What a space stands for: its cells, each of them settings laid over one configuration."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

from memdist import config, draws, rundir
from memdist.errors import ConfigError
from memdist.search.constraint import Constraint
from memdist.search.parameter import ABSENT, Option, Parameter
from memdist.search.tree import Chosen, Tree

_TRIES = 10_000


class Cell(NamedTuple):
    """One point of a space."""

    number: int
    """Its number: in the order of the space, or of the draw."""
    values: Mapping[str, Any]
    """The values of the parameters that exist in it, by their names."""
    overrides: tuple[str, ...]
    """`key=value` settings that make its configuration of the space's base."""
    name: str
    """Name for its folder; other cells of the space have other names."""


@dataclass(frozen=True)
class Space:
    """A configuration, what is fixed over it, and what is searched."""

    source: str
    """The file."""
    base: str
    """The configuration, as the space names it."""
    bare: Mapping[str, Any] = field(repr=False)
    """The settings of that configuration."""
    settings: Mapping[str, Any]
    """What is fixed, by dotted key."""
    parameters: tuple[Parameter, ...]
    """What is searched, in order."""
    constraints: tuple[Constraint, ...] = ()
    """What every cell keeps to."""
    defaults: tuple[int, ...] = ()
    """Where coordinate descent starts: for each parameter the number of its option."""
    search: Mapping[str, Any] = field(default_factory=dict, repr=False)
    """How it is searched, unless the command line says otherwise (`memdist.search.settings`), not checked yet."""

    @property
    def drawn(self) -> bool:
        """Whether some values are drawn at random, so that cells cannot be counted."""
        return any(parameter.span for parameter in self.parameters)

    @cached_property
    def tree(self) -> Tree:
        """All choices of listed values."""
        return Tree(self.parameters, self.constraints)

    @cached_property
    def raw(self) -> dict[str, Any]:
        """The base with what is fixed."""
        return config.override(copy.deepcopy(dict(self.bare)), [f"{k}={_text(v)}" for k, v in self.settings.items()])

    @cached_property
    def owned(self) -> tuple[str, ...]:
        """All keys that are searched. Where a cell does not set one it stands at the model's default, whatever the base says."""
        return tuple(dict.fromkeys(key for parameter in self.parameters for key in parameter.owned))

    @cached_property
    def short(self) -> dict[str, str]:
        """Short names of parameters: the last two parts of their keys, or as many as tell them apart."""
        found = {}
        for name in (parameter.name for parameter in self.parameters):
            parts = name.split(".")
            others = [p.name for p in self.parameters if p.name != name]
            endings = [".".join(parts[-many:]) for many in range(min(2, len(parts)), len(parts) + 1)]
            found[name] = next((e for e in endings if not any(f".{o}".endswith(f".{e}") for o in others)), name)
        return found

    @cached_property
    def fingerprint(self) -> str:
        """Hash of what is searched over what; neither places of data nor what else may change between legs counts."""
        parts = {
            "base": identity_key(self, cell(self, 0) if not self.drawn else draw(self, 0, 0)),
            "parameters": [
                [p.name, p.keys, [option.value for option in p.options], p.span, list(p.when.items())]
                for p in self.parameters
            ],
            "constraints": [[c.kind, c.keys, c.values] for c in self.constraints],
        }
        return config.fingerprint(_plain(parts), 16)


def count(space: Space) -> int:
    """How many cells there are, exactly; raises ConfigError where values are drawn at random."""
    drawn = [parameter.name for parameter in space.parameters if parameter.span]
    if drawn:
        raise ConfigError(
            f"{space.source} has no number of cells, as {drawn[0]} is drawn at random: use search.method=random or asha, "
            "or list its values"
        )
    return space.tree.below()


def cell(space: Space, index: int) -> Cell:
    """The cell of an index, 0 <= index < count; the last parameter changes fastest."""
    assert 0 <= index < count(space), index
    return made(space, index, options(space, space.tree.at(index)))


def cells(space: Space) -> Iterator[Cell]:
    """All cells, in order, each exactly once."""
    return (cell(space, index) for index in range(count(space)))


def draw(space: Space, seed: int, number: int) -> Cell:
    """The cell of a draw, a pure function of seed and number; listed values are drawn as evenly as the cells they make.

    Draws of other numbers may be the same cell. Raises ConfigError where constraints leave next to nothing.
    """
    many = space.tree.below()
    for attempt in range(_TRIES):
        share = _Shares(seed, number, attempt)
        taken = options(space, space.tree.at(int(share("cell") * many)))
        for parameter in space.parameters:
            if parameter.span and parameter.name in taken:
                taken[parameter.name] = parameter.option(parameter.span.at(share(parameter.name)))
        sets = _sets(taken)
        names = {name: option.value for name, option in taken.items()}
        if all(c.holds(lambda key, s=sets, n=names: s.get(key, n.get(key, ABSENT))) for c in space.constraints):  # type: ignore[misc]
            return made(space, number, taken)
    raise ConfigError(f"the constraints of {space.source} refuse all of {_TRIES} cells drawn at random: loosen them")


def options(space: Space, chosen: Chosen) -> dict[str, Option]:
    """The options of a cell, by the names of those parameters that exist in it."""
    pairs = zip(space.parameters, chosen, strict=True)
    return {parameter.name: parameter.options[at] for parameter, at in pairs if at >= 0}


def identity_key(space: Space, one: Cell, overrides: Sequence[str] = ()) -> str:
    """What a cell trains, in 16 characters: cells that are spelt otherwise but are one configuration have one key."""
    return config.fingerprint(config.identity(resolve(space, one, overrides)), 16)


def resolve(space: Space, one: Cell, overrides: Sequence[str] = ()) -> Any:
    """The settings of a cell, checked against the model, `overrides` laid over last; raises ConfigError."""
    from memdist import models

    return models.resolve(config.override(copy.deepcopy(dict(space.bare)), (*one.overrides, *overrides)))


def name(space: Space, taken: Mapping[str, Option]) -> str:
    """Name for the folder of a cell."""
    return rundir.file_name(",".join(f"{space.short[n]}={option.label}" for n, option in taken.items()))


def made(space: Space, index: int, taken: Mapping[str, Option]) -> Cell:
    """A cell of the options that it takes."""
    values = {parameter: option.value for parameter, option in taken.items()}
    return Cell(index, values, _overrides(space, taken), name(space, taken))


def _sets(taken: Mapping[str, Option]) -> dict[str, Any]:
    return {key: value for option in taken.values() for key, value in option.sets.items()}


def _overrides(space: Space, taken: Mapping[str, Option]) -> tuple[str, ...]:
    """Settings of a cell: a group from which a key has to go, and one that is itself a value, are written whole."""
    sets = _sets(taken)
    gone = [key for key in space.owned if key not in sets and lookup(space.raw, key) is not ABSENT]
    groups = [group for parameter in space.parameters if parameter.name in taken for group in parameter.groups]
    groups = list(dict.fromkeys(groups + [key.rpartition(".")[0] for key in gone]))
    top = [g for g in groups if not any(_within(g, other) for other in groups if other != g)]
    texts = [f"{key}={_text(value)}" for key, value in space.settings.items()]
    for group in top:
        whole = lookup(space.raw, group)
        whole = copy.deepcopy(whole) if isinstance(whole, dict) else {}
        for key in gone:
            if _within(key, group):
                _level(whole, key.removeprefix(f"{group}.")).pop(key.rpartition(".")[2], None)
        for key, value in sets.items():
            if _within(key, group):
                _level(whole, key.removeprefix(f"{group}."))[key.rpartition(".")[2]] = value
        texts.append(f"{group}={_text(whole)}")
    texts += [f"{key}={_text(value)}" for key, value in sets.items() if not any(_within(key, g) for g in top)]
    return tuple(texts)


def lookup(raw: Mapping[str, Any], dotted: str) -> Any:
    """What raw settings have at a dotted key; ABSENT where nothing."""
    level: Any = raw
    for part in dotted.split("."):
        if not isinstance(level, Mapping) or part not in level:
            return ABSENT
        level = level[part]
    return level


def _within(key: str, group: str) -> bool:
    return key.startswith(f"{group}.")


def _level(whole: dict[str, Any], dotted: str) -> dict[str, Any]:
    """The group in which a dotted key lies, made where it is not there."""
    level = whole
    for part in dotted.split(".")[:-1]:
        if not isinstance(level.get(part), dict):
            level[part] = {}
        level = level[part]
    return level


_texts: dict[str, str] = {}


def _text(value: Any) -> str:
    """Value as right of `key=`; spaces have few values, and each is written thousands of times."""
    said = repr(value)
    if said not in _texts:
        if len(_texts) > 10_000:
            _texts.clear()
        _texts[said] = config.line(value)
    return _texts[said]


def _plain(value: Any) -> Any:
    """As JSON's own types."""
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    return value if value is None or isinstance(value, str | int | float) else str(value)


class _Shares:
    """Numbers in [0, 1), each a pure function of a draw and a name."""

    def __init__(self, *parts: int) -> None:
        self._parts = parts

    def __call__(self, name: str) -> float:
        return (draws.key("search", *self._parts, name) & (2**53 - 1)) / 2**53
