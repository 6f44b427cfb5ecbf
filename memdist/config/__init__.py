"""Settings: YAML and dotted overrides into frozen, strict pydantic models, and back.

Every key is either *identity*, which says what is trained and is fixed for the life of a run folder, or *runtime*, which
says how and for how long, and may change each time the run is taken up again.
"""

from __future__ import annotations

import contextlib
import difflib
import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

import pydantic
from pydantic import ValidationError

from memdist.config.kinds import Count, Dropout, Folder, Fraction, Positive, Settings, Widths, runtime
from memdist.config.schema import (
    Augment,
    Batch,
    Checkpoint,
    Data,
    Deepspeed,
    Divergence,
    Ema,
    Eval,
    Fsdp,
    Init,
    Log,
    Optim,
    Run,
    Schedule,
    Select,
    Study,
    Validate,
)
from memdist.config.text import DEEPEST, line, parse, written
from memdist.errors import ConfigError

__all__ = [
    "Augment",
    "Batch",
    "Checkpoint",
    "Count",
    "Data",
    "Deepspeed",
    "Divergence",
    "Dropout",
    "Ema",
    "Eval",
    "Folder",
    "Fraction",
    "Fsdp",
    "Init",
    "Log",
    "Optim",
    "Positive",
    "Run",
    "Schedule",
    "Select",
    "Settings",
    "Study",
    "Validate",
    "Widths",
    "check",
    "dump",
    "fields",
    "find",
    "fingerprint",
    "flat",
    "identity",
    "line",
    "override",
    "parse",
    "plain",
    "read",
    "resolve",
    "runtime",
    "shipped",
    "space",
    "spaces",
    "written",
]


def shipped() -> dict[str, Path]:
    """Configurations that come with memdist, by the name that `memdist train` takes (`unet`, `quick/unet`)."""
    folder = _configs()
    return {name: path for name, path in _named(folder).items() if (folder / "search") not in path.parents}


def spaces() -> dict[str, Path]:
    """Spaces to search that come with memdist, by name: the files of `configs/search/`, which are no configurations."""
    return _named(_configs() / "search")


def space(name: str) -> str | None:
    """The space that is meant where a configuration could be too, None where that is meant.

    A file with `parameters` is a space; of a name that both have the configuration comes first, and search/NAME is the space.
    """
    path = Path(name)
    with contextlib.suppress(OSError, ValueError):  # a name that no file can have
        if path.is_file():
            return name if "parameters" in read(path) else None
    inner = name.removeprefix("search/")
    return inner if inner in spaces() and name not in shipped() else None


def _configs() -> Path:
    here = Path(__file__).parent.parent
    folder = next((f for f in (here / "configs", here.parent / "configs") if f.is_dir()), None)
    assert folder is not None, "the package was built without its configs"
    return folder


def _named(folder: Path) -> dict[str, Path]:
    return {str(f.relative_to(folder).with_suffix("")): f for f in sorted(folder.rglob("*.yaml"))}


def find(name: str, known: Mapping[str, Path] | None = None, what: str = "configuration") -> Path:
    """Path of CONFIG: a file, or the name of a shipped configuration; or of what else is known by name."""
    path = Path(name)
    try:
        if path.is_file():
            return path
    except (OSError, ValueError):  # a name that no file can have
        pass
    known = shipped() if known is None else known
    if name in known:
        return known[name]
    near = difflib.get_close_matches(name, known, n=3)
    hint = f"did you mean {' or '.join(near)}?" if near else f"shipped ones are {', '.join(known)}"
    raise ConfigError(f"there is no {what} {_short(name)}: give a YAML file or the name of a shipped one; {hint}")


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
        *groups, last = name.split(".")
        if not equals or not re.fullmatch(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*", name) or len(groups) >= DEEPEST:
            raise ConfigError(f"{_short(text)} is no setting: write key=value, for example optim.generator.lr=1e-4")
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
    return check(kind, raw)


def check(kind: type[Settings], raw: Mapping[str, Any]) -> Any:
    """Raw settings as settings of a kind, with defaults; raises one ConfigError that lists every mistake."""
    try:
        # As JSON, in which lists may be tuples and text may be a path, but true is no number and text is none.
        return kind.model_validate_json(json.dumps(raw, default=str), strict=True)
    except ValidationError as error:
        known = [name for name, _, _ in fields(kind)]
        known += sorted({name.rpartition(".")[0] for name in known} - {""})
        raise ConfigError("\n".join(_sentence(e, known) for e in _distinct(error, kind).items())) from error


def _distinct(error: ValidationError, kind: type[Settings]) -> dict[str, list[Any]]:
    """The complaints of each field, by dotted name: a union has one of each of its members."""
    found: dict[str, list[Any]] = {}
    for entry in error.errors():
        found.setdefault(_dotted(entry["loc"], kind), []).append(entry)
    # A list with a value that cannot be is also said to be too short, as that one is not counted.
    return {
        name: entries
        for name, entries in found.items()
        if entries[0]["type"] != "too_short" or not any(other.startswith(f"{name}.") for other in found)
    }


def _dotted(loc: Sequence[int | str], kind: type[Settings]) -> str:
    """Dotted name of a place in settings: within a group all parts are keys; within a value words name kinds of it."""
    parts: list[str] = []
    level: type[Settings] | None = kind
    for part in loc:
        if level is not None or isinstance(part, int):
            parts.append(str(part))
        if level is not None:
            known = (info for name, info in level.model_fields.items() if part == (info.alias or name))
            level = next(map(_group_of, known), None)
    return ".".join(parts)


def _short(value: Any) -> str:
    said = repr(value)
    return said if len(said) <= 200 else f"{said[:197]}..."


def _sentence(complaint: tuple[str, Sequence[Mapping[str, Any]]], known: Sequence[str]) -> str:
    name, entries = complaint
    entry = entries[0]
    if entry["type"] == "extra_forbidden":
        last = name.rsplit(".", 1)[-1]
        near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
        near += [k for k in known if k.rsplit(".", 1)[-1] == last and k not in near][:3]
        hint = f"did you mean {' or '.join(near[:3])}?" if near else "`memdist models show NAME` lists all keys"
        return f"there is no setting {_short(name)}; {hint}"
    allowed = " or ".join(dict.fromkeys(map(_allowed, entries)))
    return f"{name} = {_short(entry.get('input'))} cannot be: it should be {allowed}"


def _allowed(entry: Mapping[str, Any]) -> str:
    """What a value should be, in words that follow 'it should be'."""
    kind, context = entry["type"], entry.get("ctx", {})
    if kind == "missing":
        return "given: as many values as there are by default"
    if kind in ("model_type", "model_attributes_type", "dict_type"):
        return "a group of settings"
    if kind == "string_pattern_mismatch":
        return "auto, cpu, mps, cuda or cuda:N" if "cuda" in context["pattern"] else f"text like {context['pattern']}"
    if kind in ("too_short", "too_long"):
        how, count = ("least", "min_length") if kind == "too_short" else ("most", "max_length")
        return f"a list of at {how} {context[count]}"
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
        inner = _group_of(info)
        if inner is not None:
            yield from fields(inner, dotted + ".", moves)
        else:
            yield dotted, info, moves


def _group_of(info: Any) -> type[Settings] | None:
    """The group that a field is, if it is one and no single value."""
    kinds = (info.annotation, *get_args(info.annotation))
    return next((kind for kind in kinds if isinstance(kind, type) and issubclass(kind, Settings)), None)


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
    return written(plain(run))
