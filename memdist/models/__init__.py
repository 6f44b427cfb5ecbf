"""The models there are, by name: each is one file, imported when it is used.

To add one: write `models/NAME.py` with its `Model` and `Config`, add its line below and a `configs/NAME.yaml`.
"""

from __future__ import annotations

import difflib
import importlib
import textwrap
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from memdist import config
from memdist.errors import ConfigError

if TYPE_CHECKING:
    from memdist.model import Model

REGISTRY = {
    "unet": "memdist.models.unet:UNetModel",
    "pix2pix": "memdist.models.pix2pix:Pix2Pix",
    "palette": "memdist.models.palette:Palette",
}


def load(name: Any) -> type[Model]:
    """Import a model's class by its name; a ConfigError names the nearest ones."""
    if not isinstance(name, str) or name not in REGISTRY:
        near = difflib.get_close_matches(str(name), REGISTRY, n=1)
        hint = f"did you mean {near[0]!r}?" if near else "choose one of them"
        raise ConfigError(f"there is no model {name!r}; there are {', '.join(REGISTRY)}: {hint}")
    module, _, attribute = REGISTRY[name].partition(":")
    kind: type[Model] = getattr(importlib.import_module(module), attribute)
    return kind


def resolve(raw: Mapping[str, Any]) -> Any:
    """Check raw settings against the model that they name, and fill in defaults; raises ConfigError."""
    section = raw.get("model")
    if isinstance(section, str):
        section = {"name": section}
    name = section.get("name") if isinstance(section, Mapping) else None
    if name is None:
        raise ConfigError(f"model.name is not set; choose one of {', '.join(REGISTRY)}")
    kind = load(name)
    return config.resolve({**raw, "model": section}, kind.Config, kind.networks)


def listing() -> Any:
    """Table of the models and the shipped configurations that train them."""
    from rich.table import Table

    table = Table("model", "what it is", "networks", "shipped configurations", title="memdist train CONFIG")
    by_model: dict[str, list[str]] = {}
    for name, path in config.shipped().items():
        by_model.setdefault(config.read(path)["model"]["name"], []).append(name)
    for name in REGISTRY:
        kind = load(name)
        table.add_row(
            name, (kind.__doc__ or "").split("\n")[0], ", ".join(kind.networks), ", ".join(by_model.get(name, []))
        )
    return table


def show(name: str) -> str:
    """All settings of a model as YAML that is a valid configuration, each with its meaning as a comment.

    `name` is a model or a shipped configuration, whose values then stand there.
    """
    import yaml

    shipped = config.shipped()
    run = (
        resolve(config.read(shipped[name]))
        if name in shipped
        else resolve({"model": {"name": load(name).Config().name}})
    )
    explained = {dotted: (info.description, moves) for dotted, info, moves in config.fields(type(run))}
    lines = [f"# memdist train THIS_FILE data.images=DIR data.maps=DIR   ({name})"]

    def write(level: Mapping[str, Any], prefix: str, indent: str) -> None:
        for key, value in level.items():
            dotted = prefix + key
            if dotted in explained:
                text, moves = explained[dotted]
                comment = f"{text} [{'runtime' if moves else 'identity'}]"
                lines.extend(textwrap.wrap(comment, 110, initial_indent=f"{indent}# ", subsequent_indent=f"{indent}# "))
                shown = yaml.safe_dump(value, default_flow_style=True, width=1000).removesuffix("...\n").strip()
                lines.append(f"{indent}{key}: {shown}")
            else:
                lines.append(f"{indent}{key}:")
                write(value, dotted + ".", indent + "  ")

    write(config.plain(run), "", "")
    return "\n".join(lines) + "\n"
