"""Settings: YAML and dotted overrides into frozen, strict pydantic models, and back.

Every key is either *identity*, which says what is trained and is fixed for the life of a run folder, or *runtime*, which
says how and for how long, and may change each time the run is taken up again.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

import pydantic
import yaml
from pydantic import ValidationError

from memdist.config.schema import (
    Augment,
    Batch,
    Checkpoint,
    Count,
    Data,
    Divergence,
    Dropout,
    Ema,
    Eval,
    Folder,
    Fraction,
    Init,
    Log,
    Optim,
    Positive,
    Run,
    Schedule,
    Select,
    Settings,
    Validate,
    Widths,
    runtime,
)
from memdist.errors import ConfigError

__all__ = [
    "Augment",
    "Batch",
    "Checkpoint",
    "Count",
    "Data",
    "Divergence",
    "Dropout",
    "Ema",
    "Eval",
    "Folder",
    "Fraction",
    "Init",
    "Log",
    "Optim",
    "Positive",
    "Run",
    "Schedule",
    "Select",
    "Settings",
    "Validate",
    "Widths",
    "dump",
    "fields",
    "find",
    "fingerprint",
    "flat",
    "identity",
    "override",
    "parse",
    "plain",
    "read",
    "resolve",
    "runtime",
    "shipped",
]


class _Loader(yaml.SafeLoader):
    """YAML as people write it: 1e-4 is a number, and a key that stands twice is a mistake."""


class _Dumper(yaml.SafeDumper):
    """Quotes what the loader would read as a number."""


for _kind in (_Loader, _Dumper):
    _kind.add_implicit_resolver(
        "tag:yaml.org,2002:float", re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
    )


def _mapping(loader: _Loader, node: yaml.MappingNode) -> dict[Any, Any]:
    made: dict[Any, Any] = {}
    for key_node, value_node in node.value:
        key = loader.construct_object(key_node, deep=True)
        line = key_node.start_mark.line + 1
        if not isinstance(key, str):
            raise ConfigError(
                f"line {line}: {str(key)!r} cannot be a key: a key is a word, quoted if it looks like a number"
            )
        if key in made:
            raise ConfigError(f"line {line}: the key {key!r} stands twice; keep one")
        made[key] = loader.construct_object(value_node, deep=True)
    return made


_Loader.add_constructor("tag:yaml.org,2002:map", _mapping)


def parse(text: str, source: str) -> Any:
    """Parse YAML; a ConfigError names `source` and the place of the mistake."""
    try:
        return yaml.load(text, _Loader)  # a SafeLoader: nothing is executed
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f" (line {mark.line + 1}, column {mark.column + 1})" if mark else ""
        why = getattr(error, "problem", None) or getattr(error, "reason", None) or "not YAML"
        raise ConfigError(f"{source} is not valid YAML{place}: {why}") from error
    except ConfigError as error:
        raise ConfigError(f"{source}, {error}") from None
    except (ValueError, RecursionError) as error:  # a date that is none, or groups within groups without end
        why = "too deeply nested" if isinstance(error, RecursionError) else str(error)
        raise ConfigError(f"{source} is not valid YAML: {why}") from error


def shipped() -> dict[str, Path]:
    """Configurations that come with memdist, by the name that `memdist train` takes (`unet`, `quick/unet`)."""
    here = Path(__file__).parent.parent
    folder = next((f for f in (here / "configs", here.parent / "configs") if f.is_dir()), None)
    assert folder is not None, "the package was built without its configs"
    return {str(f.relative_to(folder).with_suffix("")): f for f in sorted(folder.rglob("*.yaml"))}


def find(name: str) -> Path:
    """Path of CONFIG: a file, or the name of a shipped configuration."""
    path = Path(name)
    try:
        if path.is_file():
            return path
    except (OSError, ValueError):  # a name that no file can have
        pass
    known = shipped()
    if name in known:
        return known[name]
    near = difflib.get_close_matches(name, known, n=3)
    hint = f"did you mean {' or '.join(near)}?" if near else f"shipped ones are {', '.join(known)}"
    raise ConfigError(f"there is no configuration {name!r}: give a YAML file or the name of a shipped one; {hint}")


def read(path: Path, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Read a YAML file and lay `key.sub=value` overrides over it; nothing is checked yet but the form."""
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not a text file: a configuration is YAML in UTF-8") from error
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {(error.strerror or str(error)).lower()}") from error
    raw = parse(text, str(path))
    if not isinstance(raw, dict) or not raw:
        raise ConfigError(f"{path} holds no settings: a configuration is YAML with keys such as model, data and epochs")
    return override(raw, overrides)


def override(raw: dict[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """Lay `key.sub=value` settings, their values read as YAML, over raw settings."""
    for text in overrides:
        name, equals, value = text.partition("=")
        if not equals or not re.fullmatch(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*", name):
            raise ConfigError(f"{text!r} is no setting: write key=value, for example optim.generator.lr=1e-4")
        *groups, last = name.split(".")
        level = raw
        if groups[:1] == ["model"] and isinstance(raw.get("model"), str):
            raw["model"] = {"name": raw["model"]}
        for group in groups:
            if not isinstance(level.get(group), dict):
                level[group] = {}
            level = level[group]
        level[last] = parse(value, f"the value of {name}")
    return raw


def resolve(raw: Mapping[str, Any], model: type[Settings], networks: Sequence[str]) -> Any:
    """Check raw settings and fill in defaults; the result has `model` and `optim.<network>` beside the fields of `Run`.

    Raises one ConfigError that lists every mistake.
    """
    optims = pydantic.create_model("Optims", __base__=Settings, **{n: (Optim, Optim()) for n in networks})  # type: ignore[call-overload]
    kind = pydantic.create_model(
        "Run", __base__=Run, model=(model, model()), optim=(optims, optims()), __doc__="One run."
    )
    try:
        # As JSON, in which lists may be tuples and text may be a path, but true is no number and text is none.
        return kind.model_validate_json(json.dumps(raw, default=str), strict=True)
    except ValidationError as error:
        known = [name for name, _, _ in fields(kind)]
        known += sorted({name.rpartition(".")[0] for name in known} - {""})
        raise ConfigError("\n".join(_sentence(e, known) for e in _distinct(error))) from error


def _distinct(error: ValidationError) -> list[list[Any]]:
    """The complaints of each field: a union has one of each of its members."""
    found: dict[str, list[Any]] = {}
    for entry in error.errors():
        found.setdefault(_dotted(entry["loc"]), []).append(entry)
    return list(found.values())


def _dotted(loc: Sequence[int | str]) -> str:
    return ".".join(str(p) for p in loc if not re.search(r"[\[\]()-]|^(float|int|str|bool)$", str(p)))


def _sentence(entries: Sequence[Mapping[str, Any]], known: Sequence[str]) -> str:
    entry = entries[0]
    name, given = _dotted(entry["loc"]), entry.get("input")
    if entry["type"] == "extra_forbidden":
        last = name.rsplit(".", 1)[-1]
        near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
        near += [k for k in known if k.rsplit(".", 1)[-1] == last and k not in near][:3]
        hint = f"did you mean {' or '.join(near[:3])}?" if near else "`memdist models show NAME` lists all keys"
        return f"there is no setting {name!r}; {hint}"
    return f"{name} = {given!r} cannot be: it should be {' or '.join(dict.fromkeys(map(_allowed, entries)))}"


def _allowed(entry: Mapping[str, Any]) -> str:
    """What a value should be, in words that follow 'it should be'."""
    kind, context = entry["type"], entry.get("ctx", {})
    if kind == "missing":
        return "given: as many values as there are by default"
    if kind in ("model_type", "model_attributes_type", "dict_type"):
        return "a group of settings"
    if kind == "string_pattern_mismatch":
        return "auto, cpu, mps, cuda or cuda:N" if "cuda" in context["pattern"] else f"text like {context['pattern']}"
    if kind in ("path_type", "string_type"):
        return "a path" if kind == "path_type" else "a valid string (quoted, if it looks like a number)"
    text = str(entry["msg"]).removeprefix("Input should be ").removeprefix("Value error, ")
    return text[0].lower() + text[1:] if text[:1].isupper() else text


def fields(kind: type[Settings], prefix: str = "", changes: bool = False) -> Iterator[tuple[str, Any, bool]]:
    """Every leaf of a settings class: dotted name, pydantic's field, and whether it is runtime."""
    for name, info in kind.model_fields.items():
        extra = info.json_schema_extra
        moves = changes or (isinstance(extra, dict) and bool(extra.get("runtime")))
        dotted = prefix + (info.alias or name)
        inner = next((t for t in (info.annotation, *get_args(info.annotation)) if _is_group(t)), None)
        if inner is not None:
            yield from fields(inner, dotted + ".", moves)
        else:
            yield dotted, info, moves


def _is_group(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, Settings)


def plain(run: Settings) -> dict[str, Any]:
    """Settings as nested dictionaries of YAML's own types, aliases as users write them, the model first."""
    whole = run.model_dump(mode="json", by_alias=True)
    return {name: whole[name] for name in ("model", "optim") if name in whole} | whole


def flat(run: Settings) -> dict[str, Any]:
    """Settings by dotted name."""
    whole = plain(run)

    def value(name: str) -> Any:
        level: Any = whole
        for part in name.split("."):
            level = level[part]
        return level

    return {name: value(name) for name, _, _ in fields(type(run))}


def identity(run: Settings) -> dict[str, Any]:
    """The identity keys and their values, by dotted name."""
    fixed = {name for name, _, moves in fields(type(run)) if not moves}
    return {name: value for name, value in flat(run).items() if name in fixed}


def fingerprint(values: Mapping[str, Any], digits: int = 8) -> str:
    """Short stable hash of settings."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:digits]


def dump(run: Settings) -> str:
    """Settings as YAML that is itself a valid configuration."""
    return yaml.dump(plain(run), Dumper=_Dumper, sort_keys=False, allow_unicode=True)
