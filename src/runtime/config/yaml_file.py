"""Config files: YAML as plain data that knows its lines, over the files it inherits from.

The dialect is YAML of which only the plain spellings count: a whole number is decimal or ``0x``
hex, a truth value is ``true`` or ``false``, ``1e-4`` is a number. What YAML 1.1 also takes for a
value (``010`` and ``0b11``, ``1_000``, ``1:30``, ``yes`` and ``off``, dates, ``=``) is text, which
a field of another type refuses. ``${...}`` is an interpolation, ``???`` a mandatory value. A key
that stands twice is refused.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from nemotron_style.runtime.config.model import MANDATORY
from nemotron_style.runtime.errors import ConfigError, Problem, raise_all, suggest
from nemotron_style.runtime.paths import show_path

PLAIN_VALUES = {
    "bool": re.compile(r"true|True|TRUE|false|False|FALSE"),
    "int": re.compile(r"[-+]?(?:0|[1-9][0-9]*|0x[0-9a-fA-F]+)"),
    "float": re.compile(
        r"""[-+]?(?:0|[1-9][0-9]*)?\.[0-9]+(?:[eE][-+]?[0-9]+)?
          | [-+]?(?:0|[1-9][0-9]*)(?:\.|\.?[eE][-+]?[0-9]+)
          | [-+]?\.(?:inf|Inf|INF)
          | \.(?:nan|NaN|NAN)""",
        re.VERBOSE,
    ),
    "null": re.compile(r"~|null|Null|NULL|"),
    "merge": re.compile("<<"),
}


class Loader(yaml.SafeLoader):
    """A safe loader that takes nothing for a number or a truth value but its plain spelling."""


Loader.yaml_implicit_resolvers = {}

for _kind, _pattern in PLAIN_VALUES.items():
    _whole = re.compile(f"(?:{_pattern.pattern})\\Z", _pattern.flags)
    Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_kind}", _whole, None)


@dataclass(frozen=True)
class YamlFile:
    """What YAML files say, and the location (``file:line``) of each dotted key."""

    values: dict[str, Any]
    locations: Mapping[str, str] = field(default_factory=dict)


def read_config_file(path: Path, *, home: Path, below: tuple[Path, ...] = ()) -> YamlFile:
    """Read ``path`` over the files it names in ``defaults:``, and those over their own.

    They lie beside the file, or else in ``home``, so that a config of one's own can inherit from
    those that come with the step. ``below`` are the files that inherit from this one.

    Raises ConfigError for a file that is missing or malformed, and for a circle.
    """
    chain = (*below, path.resolve())
    if path.resolve() in below:
        circle = " -> ".join(each.name for each in chain)
        raise ConfigError(Problem(where=show_path(path), key="defaults", what=f"circle: {circle}"))
    own = read_yaml_file(path)
    values: dict[str, Any] = {}
    locations: dict[str, str] = {}
    for parent in _find_parents(own, path, home):
        inherited = read_config_file(parent, home=home, below=chain)
        values = merge_files(values, inherited.values)
        locations |= inherited.locations
    own_values = {key: value for key, value in own.values.items() if key != "defaults"}
    return YamlFile(merge_files(values, own_values), {**locations, **own.locations})


def _find_parents(file: YamlFile, path: Path, home: Path) -> list[Path]:
    names = file.values.get("defaults", [])
    names = [names] if isinstance(names, str) else names
    problem = {"where": file.locations.get("defaults", show_path(path)), "key": "defaults"}
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ConfigError(Problem(**problem, what="must be a file name or a list of them"))
    parents = []
    for name in names:
        file_name = name if name.endswith((".yaml", ".yml")) else f"{name}.yaml"
        folders = [each for each in (path.parent, home) if (each / file_name).is_file()]
        if not folders:
            known = sorted(
                {each.name for folder in (path.parent, home) for each in folder.glob("*.yaml")}
            )
            what, fix = f"there is no file {name!r} beside this one", suggest(file_name, known)
            raise ConfigError(Problem(**problem, what=what, allowed=", ".join(known), fix=fix))
        parents.append(folders[0] / file_name)
    return parents


def merge_files(base: dict[str, Any], top: dict[str, Any]) -> dict[str, Any]:
    """Merge as OmegaConf does, except that a ``???`` on top makes a key mandatory again."""
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    if not base:
        return top
    try:
        merged: Any = OmegaConf.to_container(OmegaConf.merge(base, top), resolve=False)
    except OmegaConfBaseException:  # a malformed interpolation, which is reported later
        return merge_tables(base, top)
    _demand_again(merged, top)
    return {str(key): value for key, value in merged.items()}


def _demand_again(merged: Any, top: dict[str, Any]) -> None:
    for key, value in top.items():
        if value == MANDATORY:
            merged[key] = MANDATORY
        elif isinstance(value, dict) and isinstance(merged.get(key), dict):
            _demand_again(merged[key], value)


def merge_tables(base: dict[str, Any], top: dict[str, Any]) -> dict[str, Any]:
    """``base`` with the keys of ``top`` laid over it, table by table."""
    merged = dict(base)
    for key, value in top.items():
        old = merged.get(key)
        both = isinstance(old, dict) and isinstance(value, dict)
        merged[key] = merge_tables(old, value) if both else value  # type: ignore[arg-type]
    return merged


def read_yaml_file(path: Path) -> YamlFile:
    """Read one YAML file whose top level is a table of keys.

    Raises ConfigError for one that cannot be read or parsed, or has keys that stand twice or are
    no text.
    """
    where = show_path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise ConfigError(Problem(where=where, what="is not UTF-8 text")) from None
    except OSError as error:
        raise ConfigError(Problem(where=where, what=f"cannot be read: {error.strerror}")) from None
    loader = Loader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return YamlFile({})
        if not isinstance(node, yaml.MappingNode):
            what = "must be a table of keys at the top level"
            raise ConfigError(Problem(where=where, what=what))
        locations: dict[str, str] = {}
        raise_all(ConfigError, list(_check_keys(node, where, locations)))
        return YamlFile(loader.construct_document(node), locations)
    except yaml.YAMLError as error:
        raise ConfigError(_syntax_problem(error, where)) from None
    finally:
        loader.dispose()


def parse_value(text: str) -> Any:
    """The value that ``text`` has by YAML rules, as on the right of an override.

    Raises ValueError when it is no YAML, or YAML would silently drop a part of it as a comment.
    """
    loader = Loader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            raise ValueError("YAML takes it for a comment")
        if isinstance(node, yaml.ScalarNode):
            if what := _check_tag(node):
                raise ValueError(what)
            if not node.style and node.value != text.strip():
                raise ValueError("YAML takes a part of it for a comment")
        elif problems := list(_check_keys(node, "", {})):
            raise ValueError(problems[0].what)
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


def _check_keys(
    node: yaml.Node,
    where: str,
    locations: dict[str, str],
    prefix: str = "",
    above: tuple[int, ...] = (),
) -> Iterator[Problem]:
    """Note the location of every key below ``node``; yield what is wrong with the keys."""
    if id(node) in above:  # an alias may stand in two branches, but not below itself
        yield Problem(where=f"{where}:{node.start_mark.line + 1}", what="an alias contains itself")
        return
    if what := _check_tag(node):
        yield Problem(where=f"{where}:{node.start_mark.line + 1}", key=prefix, what=what)
        return
    children: list[tuple[str, yaml.Node]] = []
    if isinstance(node, yaml.SequenceNode):
        children = [(f"{prefix}[{index}]", item) for index, item in enumerate(node.value)]
        for key, item in children:
            locations.setdefault(key, f"{where}:{item.start_mark.line + 1}")
    if isinstance(node, yaml.MappingNode):
        lines: dict[str, int] = {}
        for name, item in node.value:
            if name.tag.endswith(":merge"):
                continue
            line, location = name.start_mark.line + 1, f"{where}:{name.start_mark.line + 1}"
            if name.tag != "tag:yaml.org,2002:str":
                what, fix = "a key must be text", f"put it in quotes: '{name.value}'"
                yield Problem(where=location, key=prefix, what=what, fix=fix)
                continue
            key = f"{prefix}.{name.value}" if prefix else name.value
            if name.value in lines:
                what = f"stands twice (before in line {lines[name.value]})"
                yield Problem(where=location, key=key, what=what)
            lines[name.value], locations[key] = line, location
            children.append((key, item))
    for key, item in children:
        yield from _check_keys(item, where, locations, key, (*above, id(node)))


def _check_tag(node: yaml.Node) -> str:
    """What is wrong with a tag that was written out: ``!!set`` is no JSON, ``!!int 010`` is 8."""
    kind = node.tag.removeprefix("tag:yaml.org,2002:")
    pattern = PLAIN_VALUES.get(kind)
    plain = isinstance(node, yaml.ScalarNode) and pattern and pattern.fullmatch(node.value)
    if plain or kind in ("str", "seq", "map"):
        return ""
    return f"the tag {node.tag!r} cannot be used: write plain text, a number, a list or a table"
