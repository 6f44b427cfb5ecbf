"""A space to search, as a YAML file: a base configuration, what is fixed over it, and what is searched.

    base: unet                                   # a shipped configuration or a file
    settings: {epochs: 100}                      # fixed over it, by dotted key
    parameters:                                  # in order; the last one changes fastest
      model.norm: [batch, instance]              # its values
      optim.unet.name: [adam, sgd]
      optim.unet.betas: {choices: [[0.9, 0.999], [0.5, 0.999]], when: {optim.unet.name: adam}}   # exists for adam alone
      batch.size: {range: [8, 33, 8]}            # counts from 8 to below 33
      optim.unet.lr: {loguniform: [1e-4, 1e-2]}  # drawn: search.method=random or asha
      shift: {keys: [augment.translation, augment.cutout], choices: [0.0, 0.9]}   # keys that move together
    constraints:                                 # equal, less: a list of keys; forbid: keys with a value or a list of them
      - forbid: {model.norm: instance, batch.size: [8, 16]}
    defaults: {model.norm: batch}                # where coordinate descent starts, else at the base's value or the first
    search: {method: asha, min_epochs: 4}        # how (memdist.search.settings); what the command line says comes first

A condition's list is several values, one of which is enough; a value that is itself a list stands in such a list, as in
[[0.9, 0.999]]. A value may be a group, as {name: sgd, lr: 0.01} for optim.unet, and is laid over the base's group. A key that
is searched and that a cell does not set stands at the model's default, whatever the base says.
"""

from __future__ import annotations

import dataclasses
import difflib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from memdist import config
from memdist.errors import ConfigError, printable
from memdist.search import constraint, parameter
from memdist.search.cells import Cell, Space, cell, cells, count, draw, identity_key, lookup, made, options, resolve
from memdist.search.constraint import Constraint
from memdist.search.parameter import ABSENT, KEY, Parameter, flat, same
from memdist.search.tree import Tree

__all__ = ["Cell", "Space", "cell", "cells", "count", "draw", "identity_key", "read", "resolve"]

MOST = 64
"""Parameters of a space, at most."""
_TRIED = 32
"""Values of a parameter, at most, of which one cell each is resolved when a space is read."""
_KEYS = ("base", "settings", "parameters", "constraints", "defaults", "search")


def read(name: str, overrides: Sequence[str] = ()) -> Space:
    """Read a space: a file, or the name of a shipped one; `key=value` overrides are fixed beside its settings.

    A cell with each value is resolved. Raises ConfigError.
    """
    path = config.find(config.space(name) or name, config.spaces(), "space")
    raw = config.read(path)
    try:
        space = _space(raw, path, overrides)
        _check(space)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error
    return space


def _space(raw: Mapping[str, Any], path: Path, overrides: Sequence[str]) -> Space:
    for word in raw:
        if word not in _KEYS:
            raise ConfigError(f"a space has no {printable(word)!r}{_near(word, _KEYS)}; it has {', '.join(_KEYS)}")
    base = raw.get("base")
    if not isinstance(base, str):
        raise ConfigError(
            "it names no base, the configuration that is searched: write base: unet, or the path of a file"
        )
    beside = path.parent / base
    bare = config.read(beside if os.path.isfile(beside) else config.find(base))  # false of a name that no file can have
    if isinstance(bare.get("model"), str):
        bare["model"] = {"name": bare["model"]}
    entries = raw.get("parameters")
    if not isinstance(entries, Mapping) or not 0 < len(entries) <= MOST:
        raise ConfigError(f"it has nothing to search: write parameters, 1 to {MOST} keys with their values")
    parameters = tuple(parameter.parse(key, entry) for key, entry in entries.items())
    lines = raw.get("constraints", [])
    if not isinstance(lines, list):
        raise ConfigError("constraints should be a list, such as - forbid: {key: value}")
    constraints = tuple(map(constraint.parse, lines))
    settings = _group(raw, "settings") | dict(flat(config.override({}, overrides)))
    for key in settings:
        if not KEY.fullmatch(key):
            raise ConfigError(f"{printable(key)!r} under settings is no key: write it as in optim.unet.lr: 0.001")
    _check_owners(parameters, settings)
    _check_references(parameters, constraints)
    space = Space(str(path), base, bare, settings, parameters, constraints, search=_named(raw, "search"))
    return dataclasses.replace(space, defaults=_defaults(space, _named(raw, "defaults")))


def _named(raw: Mapping[str, Any], word: str) -> Mapping[str, Any]:
    found = raw.get(word, {})
    if not isinstance(found, Mapping):
        raise ConfigError(f"{word} should be a group of keys and values, not {printable(found)}")
    return found


def _group(raw: Mapping[str, Any], word: str) -> dict[str, Any]:
    return dict(flat(_named(raw, word)))


def _near(word: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(word, known, n=1)
    return f" (did you mean {near[0]}?)" if near else ""


def _check_owners(parameters: Sequence[Parameter], settings: Mapping[str, Any]) -> None:
    """Each key is set by one parameter, or by several of which never two exist in a cell, and is not fixed as well."""
    owners: dict[str, list[Parameter]] = {}
    for one in parameters:
        other_keys = {key for other in parameters if other is not one for key in (other.name, *other.owned)}
        if one.name in other_keys and one.name not in one.keys:
            raise ConfigError(f"{one.name} is the name of a parameter and a key of another: give it a name of its own")
        for key in one.owned:
            for inner, others in owners.items():
                if inner != key and (inner.startswith(f"{key}.") or key.startswith(f"{inner}.")):
                    raise ConfigError(
                        f"{inner} ({others[0].name}) and {key} ({one.name}) lie within each other: search one"
                    )
            for other in owners.setdefault(key, []):
                apart = [k for k in one.when if k in other.when and not _meet(one.when[k], other.when[k])]
                if not apart:
                    raise ConfigError(
                        f"{key} is set by {other.name} and by {one.name}: keep one, or give them a `when` that only one can meet"
                    )
            owners[key].append(one)
        for key in settings:
            for own in one.owned:
                if key == own or key.startswith(f"{own}.") or own.startswith(f"{key}."):
                    raise ConfigError(f"{key} is both fixed and searched (by {one.name}): keep one")


def _meet(some: Sequence[Any], others: Sequence[Any]) -> bool:
    return any(same(one, other) for one in some for other in others)


def _check_references(parameters: Sequence[Parameter], constraints: Sequence[Constraint]) -> None:
    """Conditions look at listed values of parameters above; constraints at parameters, `less` at numbers."""
    above: dict[str, list[Any]] = {}
    drawn = {key for one in parameters if one.span for key in (one.name, *one.owned)}
    below = {key for one in parameters for key in (one.name, *one.owned)}
    for one in parameters:
        for key, values in one.when.items():
            who = f"{one.name} depends on {printable(key)}"
            if key not in above:
                why = "stands below it: move it up" if key in below else f"no parameter sets{_near(key, list(above))}"
                raise ConfigError(f"{who}, which {why}")
            _check_values(who, key, values, above[key], key in drawn)
        for key in (one.name, *one.owned):
            found = (one.find(option, key) for option in one.options)
            above.setdefault(key, []).extend(value for value in found if value is not ABSENT)
    for line in constraints:
        for at, key in enumerate(line.keys):
            who = f"the constraint {line.kind} on {printable(key)}"
            if key not in above:
                raise ConfigError(f"{who} cannot be: no parameter sets it{_near(key, list(above))}")
            if line.kind == "forbid":
                _check_values(who, key, line.values[at], above[key], key in drawn)
            elif line.kind == "less" and not all(type(value) in (int, float) for value in above[key]):
                raise ConfigError(f"{who} cannot be: not all its values are numbers")
            elif line.kind == "equal" and key in drawn:
                raise ConfigError(
                    f"{who} cannot be: drawn numbers are never equal; write one parameter with several keys"
                )


def _check_values(who: str, key: str, wanted: Sequence[Any], there: Sequence[Any], drawn: bool) -> None:
    if drawn:
        raise ConfigError(f"{who} cannot be: it is drawn at random, and only listed values can be asked for")
    for value in wanted:
        if not any(same(value, one) for one in there):
            near = _near(str(value), [str(one) for one in there])
            raise ConfigError(f"{who} cannot be: it is never {printable(value)}{near}")


def _defaults(space: Space, given: Mapping[str, Any]) -> tuple[int, ...]:
    names = [one.name for one in space.parameters]
    for name in given:
        if name not in names:
            raise ConfigError(f"defaults name {printable(name)}, which is no parameter{_near(name, names)}")
    found = []
    for one in space.parameters:
        if one.name in given:
            here = [at for at, option in enumerate(one.options) if same(option.value, given[one.name])]
            if not here and not one.span:
                raise ConfigError(f"the default of {one.name}, {printable(given[one.name])}, is none of its values")
        else:
            here = [at for at, option in enumerate(one.options) if _is_base(space, one, option.sets)]
        found.append(here[0] if here else 0)
    return tuple(found)


def _is_base(space: Space, one: Parameter, sets: Mapping[str, Any]) -> bool:
    return all(same(sets.get(key, ABSENT), lookup(space.raw, key)) for key in one.owned)


def _check(space: Space) -> None:
    """Every key is a setting of the model that says what is trained; there are cells, and each value makes one."""
    from memdist import models

    model = lookup(space.raw, "model.name")
    kind = models.resolve({"model": {"name": None if model is ABSENT else model}})
    known = {dotted: moves for dotted, _, moves in config.fields(type(kind))}
    for one in space.parameters:
        for key in one.owned:
            _check_key(one, key, known)
            above = key.rpartition(".")[0]
            if not above and one.when and lookup(space.raw, key) is not ABSENT:
                raise ConfigError(f"{key} has a `when`, but the base sets it for all cells: take it out of there")
    left = {
        (at, option)
        for at, one in enumerate(space.parameters)
        for option in range(len(one.options))
        if option < _TRIED // 2 or option >= len(one.options) - _TRIED // 2
    }
    if Tree(space.parameters, space.constraints, ends=space.drawn).first() is None:
        raise ConfigError("its constraints contradict each other: no cell keeps to all of them")
    while left:
        at, option = min(left)
        one = space.parameters[at]
        found = Tree(space.parameters, space.constraints, ends=True, only={at: option}).first(left)
        if found is None and not one.span:
            said = printable(one.options[option].value)
            raise ConfigError(f"no cell has {one.name} = {said}: conditions or constraints refuse it; take it out")
        left -= {(at, option), *enumerate(found or ())}
        if found is not None:
            _try(space, found)


def _try(space: Space, found: tuple[int, ...]) -> None:
    one = made(space, 0, options(space, found))
    try:
        resolve(space, one)
    except ConfigError as error:
        raise ConfigError(f"the cell {one.name} cannot be: {error}") from error


def _check_key(one: Parameter, key: str, known: Mapping[str, bool]) -> None:
    if key == "model.name":
        raise ConfigError("model.name cannot be searched, as other models have other settings: write a space for each")
    inner = [name for name in known if name.startswith(f"{key}.")]
    if inner:
        raise ConfigError(
            f"{key} is a group of settings: search its keys, such as {inner[0]}, or give it groups of them"
        )
    if key not in known:
        near = difflib.get_close_matches(key, known, n=3, cutoff=0.5)
        hint = f"did you mean {' or '.join(near)}?" if near else "`memdist models show NAME` lists all keys"
        raise ConfigError(f"there is no setting {printable(key)!r}, which {one.name} sets; {hint}")
    if known[key]:
        raise ConfigError(
            f"{key} cannot be searched, as it does not say what is trained: it may change within a run; write it under settings"
        )
