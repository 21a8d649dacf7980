"""YAML files as plain data that remember where each key stands.

The dialect is OmegaConf's: YAML 1.1 with ``1e-4`` a number, dates left as text, ``${...}`` an
interpolation, ``???`` a mandatory value; and a key that stands twice is refused.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from nemotron_style.runtime.errors import ConfigError, Problem, raise_all
from nemotron_style.runtime.paths import show_path

FLOAT = re.compile(
    r"""^(?:
        [-+]?[0-9][0-9_]*\.[0-9_]*(?:[eE][-+]?[0-9]+)?
      | [-+]?[0-9][0-9_]*[eE][-+]?[0-9]+
      | [-+]?\.[0-9][0-9_]*(?:[eE][-+]?[0-9]+)?
      | [-+]?\.(?:inf|Inf|INF)
      | \.(?:nan|NaN|NAN)
    )$""",
    re.VERBOSE,
)


class Loader(yaml.SafeLoader):
    """A safe loader in which ``1e-4`` is a number and a date is text."""


Loader.yaml_implicit_resolvers = {
    first: [pair for pair in pairs if not pair[0].endswith((":timestamp", ":float"))]
    for first, pairs in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
Loader.add_implicit_resolver("tag:yaml.org,2002:float", FLOAT, list("-+0123456789."))


@dataclass(frozen=True)
class YamlFile:
    """What a YAML file says, and the place (``file:line``) of each dotted key."""

    values: dict[str, Any]
    places: Mapping[str, str] = field(default_factory=dict)


def read_yaml_file(path: Path) -> YamlFile:
    """Read one YAML file whose top level is a table of keys.

    Raises:
        ConfigError: the file cannot be read or parsed, or has keys that stand twice or are no text.
    """
    where = show_path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise ConfigError(Problem(where=where, what="is not UTF-8 text")) from None
    except OSError as error:
        raise ConfigError(Problem(where=where, what=f"cannot be read: {error.strerror}")) from None
    return parse_yaml(text, where=where)


def parse_yaml(text: str, *, where: str) -> YamlFile:
    """Like :func:`read_document`, for text that is called ``where``."""
    loader = Loader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return YamlFile({})
        if not isinstance(node, yaml.MappingNode):
            what = "must be a table of keys at the top level"
            raise ConfigError(Problem(where=where, what=what))
        places: dict[str, str] = {}
        raise_all(ConfigError, list(_walk(node, where, places)))
        return YamlFile(loader.construct_document(node), places)
    except yaml.YAMLError as error:
        raise ConfigError(_syntax_problem(error, where)) from None
    finally:
        loader.dispose()


def parse_value(text: str) -> Any:
    """The value that ``text`` has by YAML rules, as on the right of an override.

    Raises:
        ValueError: it is no YAML, or YAML would silently drop a part of it as a comment.
    """
    loader = Loader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            raise ValueError("YAML takes it for a comment")
        if isinstance(node, yaml.MappingNode | yaml.SequenceNode):
            if problems := list(_walk(node, "", {})):
                raise ValueError(problems[0].what)
        elif isinstance(node, yaml.ScalarNode) and not node.style and node.value != text.strip():
            raise ValueError("YAML takes a part of it for a comment")
        return loader.construct_document(node)
    except yaml.YAMLError as error:
        raise ValueError(_syntax_problem(error, "").what) from None
    finally:
        loader.dispose()


def _syntax_problem(error: yaml.YAMLError, where: str) -> Problem:
    mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
    place = f"{where}:{mark.line + 1}:{mark.column + 1}" if mark else where
    reason = getattr(error, "problem", None) or getattr(error, "reason", None) or "cannot be read"
    fix = "inside braces put it in quotes: '???'" if "found '?'" in reason else ""
    return Problem(where=place, what=f"is not valid YAML: {reason}", fix=fix)


def _walk(
    node: yaml.Node,
    where: str,
    places: dict[str, str],
    prefix: str = "",
    above: tuple[int, ...] = (),
) -> Iterator[Problem]:
    """Note the place of every key below ``node``; yield what is wrong with the keys."""
    if id(node) in above:
        yield Problem(where=f"{where}:{node.start_mark.line + 1}", what="an alias contains itself")
        return
    above = (*above, id(node))
    if isinstance(node, yaml.SequenceNode):
        for index, item in enumerate(node.value):
            key = f"{prefix}[{index}]"
            places.setdefault(key, f"{where}:{item.start_mark.line + 1}")
            yield from _walk(item, where, places, key, above)
    if isinstance(node, yaml.MappingNode):
        yield from _walk_mapping(node, where, places, prefix, above)


def _walk_mapping(
    node: yaml.MappingNode, where: str, places: dict[str, str], prefix: str, above: tuple[int, ...]
) -> Iterator[Problem]:
    own: dict[str, int] = {}
    for name, item in node.value:
        line = name.start_mark.line + 1
        if name.tag.endswith(":merge"):
            continue
        if name.tag != "tag:yaml.org,2002:str":
            what, fix = "a key must be text", f"put it in quotes: '{name.value}'"
            yield Problem(where=f"{where}:{line}", key=prefix, what=what, fix=fix)
            continue
        key = f"{prefix}.{name.value}" if prefix else name.value
        if name.value in own:
            what = f"stands twice (before in line {own[name.value]})"
            yield Problem(where=f"{where}:{line}", key=key, what=what)
        own[name.value] = line
        places[key] = f"{where}:{line}"
        yield from _walk(item, where, places, key, above)
