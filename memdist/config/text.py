"""Settings as text: YAML as people write it, and nothing that costs more to hold than to write.

What a few bytes can blow up is refused where it stands: words for other values (`*a`, `<<`), numbers of thousands of digits,
groups within groups without end.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import yaml

from memdist.errors import ConfigError

DEEPEST = 16
"""Groups and lists within each other, at most; settings need five."""
LONGEST_NUMBER = 100
"""Characters of a number, at most."""


class _Loader(yaml.SafeLoader):
    """YAML in which 1e-4 is a number, a key that stands twice is a mistake, and every value stands where it is used."""

    _depth = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        events: Any = self  # the parser's methods have no types
        event = events.peek_event()
        if isinstance(event, yaml.AliasEvent):
            raise _refused(
                event, f"*{event.anchor} stands for another value, which settings cannot: write that value out"
            )
        self._depth += 1
        if self._depth > DEEPEST and isinstance(event, yaml.CollectionStartEvent):
            raise _refused(event, f"more than {DEEPEST} groups or lists within each other: settings are never as deep")
        node: yaml.Node | None = super().compose_node(parent, index)
        self._depth -= 1
        return node


class _Dumper(yaml.SafeDumper):
    """Quotes what the loader would read as a number, and writes every value out."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


for _kind in (_Loader, _Dumper):
    _kind.add_implicit_resolver(
        "tag:yaml.org,2002:float", re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
    )


# To YAML 1.1 a time limit of 12:00:00 is the number 43200, to base 60; nobody writes numbers so.
for _digit in "0123456789":
    _Loader.yaml_implicit_resolvers[_digit].insert(
        0, ("tag:yaml.org,2002:str", re.compile(r"^[0-9]{1,7}(:[0-5]?[0-9]){1,2}$"))
    )


def _refused(where: Any, why: str) -> ConfigError:
    """The error that says on which line, of a node or an event, settings cannot go on."""
    return ConfigError(f"line {where.start_mark.line + 1}: {why}")


def _mapping(loader: _Loader, node: yaml.Node) -> dict[Any, Any]:
    if not isinstance(node, yaml.MappingNode):
        raise _refused(node, "what stands after !!map should be a group of settings")
    made: dict[Any, Any] = {}
    for key_node, value_node in node.value:
        if key_node.tag == "tag:yaml.org,2002:merge":
            raise _refused(key_node, "<< takes settings from another group, which settings cannot: write them out")
        key = loader.construct_object(key_node, deep=True)
        if not isinstance(key, str):
            raise _refused(key_node, f"{str(key)!r} cannot be a key: a key is a word, quoted if it looks like a number")
        if key in made:
            raise _refused(key_node, f"the key {key!r} stands twice; keep one")
        made[key] = loader.construct_object(value_node, deep=True)
    return made


def _text(loader: _Loader, node: yaml.ScalarNode) -> str:
    text = str(loader.construct_scalar(node))
    if re.search("[\ud800-\udfff]", text):
        raise _refused(node, f"{text!r} holds half of a character (\\ud800 to \\udfff): write the whole character")
    return text


def _scalar(kind: str, construct: Callable[[Any, Any], Any]) -> Callable[[_Loader, yaml.ScalarNode], Any]:
    def made(loader: _Loader, node: yaml.ScalarNode) -> Any:
        text = str(loader.construct_scalar(node))
        if len(text) > LONGEST_NUMBER:
            raise _refused(
                node, f"{text[:20]}... cannot be {kind}: it has {len(text)} characters, and may have {LONGEST_NUMBER}"
            )
        try:
            return construct(loader, node)
        except (ArithmeticError, AttributeError, LookupError, ValueError) as error:
            raise _refused(node, f"{text!r} cannot be {kind}; quote it, if it is text") from error

    return made


_Loader.add_constructor("tag:yaml.org,2002:map", _mapping)
_Loader.add_constructor("tag:yaml.org,2002:str", _text)
for _tag, _said in (("int", "a number"), ("float", "a number"), ("bool", "true or false"), ("timestamp", "a date")):
    _construct = getattr(yaml.SafeLoader, f"construct_yaml_{_tag}")
    _Loader.add_constructor(f"tag:yaml.org,2002:{_tag}", _scalar(_said, _construct))


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


def written(value: Any) -> str:
    """YAML that `parse` reads as the same value; groups keep their order."""
    return str(yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True))


def line(value: Any) -> str:
    """YAML of one line that `parse` reads as the same value: what may stand right of `key=`."""
    text = str(
        yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, default_flow_style=True, width=10**9)
    )
    return text.removesuffix("\n").removesuffix("\n...")
