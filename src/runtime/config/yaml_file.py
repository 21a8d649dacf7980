"""YAML files as plain data that knows its lines.

The dialect is YAML of which only the plain spellings count: a whole number is decimal or ``0x``
hex, a truth value is ``true`` or ``false``, ``1e-4`` is a number. What YAML 1.1 also takes for a
value (``010`` and ``0b11``, ``1_000``, ``1:30``, ``yes`` and ``off``, dates, ``=``) is text, which
a field of another type refuses. ``${...}`` is an interpolation, ``???`` a mandatory value. A key
that stands twice is refused.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from nemotron_style.runtime.errors import ConfigError, Problem, raise_all
from nemotron_style.runtime.paths import show_path
from nemotron_style.runtime.text_file import MOST_DIGITS, SURROGATE, read_text_file

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
MOST_BITS = 14_000  # of a whole number; Python writes no more than 4300 digits
TOO_LONG = f"a number of more than {MOST_DIGITS} digits cannot be read"
MOST_VALUES = 20_000
TOO_MANY = f"holds more than {MOST_VALUES:,} values"
DEEPEST = 64
"""Bounds of a config with every alias written out: OmegaConf takes a second for the one, and
recursion ends in a crash well beyond the other."""


class Loader(yaml.SafeLoader):
    """A safe loader that takes nothing for a number or a truth value but its plain spelling."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._left = MOST_VALUES

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        """The next node. Raises a YAML error at the first that is too many: reading takes long."""
        self._left -= 1
        if self._left < 0:
            mark = self.peek_event().start_mark  # type: ignore[no-untyped-call]
            raise yaml.composer.ComposerError(None, None, TOO_MANY, mark)
        return super().compose_node(parent, index)

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        """The value of ``node``. Raises a YAML error for one that cannot be written again."""
        reason = ""
        try:
            value = super().construct_object(node, deep)
        except ValueError:  # of int(): no other constructor is used
            reason = TOO_LONG
        else:
            if isinstance(value, int) and value.bit_length() > MOST_BITS:  # 0xff...
                reason = TOO_LONG
            if isinstance(value, str) and not value.isascii() and SURROGATE.search(value):
                reason = "half of a surrogate pair is no character"
        if reason:
            raise yaml.constructor.ConstructorError(None, None, reason, node.start_mark)
        return value


class Dumper(yaml.SafeDumper):
    """A dumper that puts text in quotes where this loader, or one of YAML 1.1, needs them."""


Loader.yaml_implicit_resolvers = {}

for _kind, _pattern in PLAIN_VALUES.items():
    _whole = re.compile(f"(?:{_pattern.pattern})\\Z", _pattern.flags)
    for _side in (Loader, Dumper):
        _side.add_implicit_resolver(f"tag:yaml.org,2002:{_kind}", _whole, None)


@dataclass(frozen=True)
class YamlFile:
    """What YAML files say, and the location (``file:line``) of each dotted key."""

    values: dict[str, Any]
    locations: Mapping[str, str] = field(default_factory=dict)


def read_yaml_file(path: Path) -> YamlFile:
    """Read one YAML file whose top level is a table of keys.

    Raises ConfigError for one that cannot be read or parsed, is deeper or larger than any config,
    or has keys that stand twice or are no text.
    """
    where = show_path(path)
    text = read_text_file(path, ConfigError)
    try:
        with _load(text) as loader:
            node = loader.get_single_node()
            if node is None:
                return YamlFile({})
            if not isinstance(node, yaml.MappingNode):
                what = "must be a table of keys at the top level"
                raise ConfigError(Problem(where=where, what=what))
            locations: dict[str, str] = {}
            raise_all(ConfigError, list(_check_node(node, where, locations)))
            return YamlFile(loader.construct_document(node), locations)
    except (yaml.YAMLError, RecursionError) as error:
        raise ConfigError(_syntax_problem(error, where, text)) from None


def parse_value(text: str) -> Any:
    """The value that ``text`` has by YAML rules, as on the right of an override.

    Raises ValueError when it is no YAML, or YAML would silently drop a part of it as a comment.
    """
    try:
        with _load(text) as loader:
            node = loader.get_single_node()
            if node is None:
                raise ValueError("YAML takes it for a comment")
            if isinstance(node, yaml.ScalarNode):
                if what := _check_tag(node):
                    raise ValueError(what)
                if not node.style and node.value != text.strip():
                    raise ValueError("YAML takes a part of it for a comment")
            elif problems := list(_check_node(node, "", {})):
                raise ValueError(problems[0].what)
            return loader.construct_document(node)
    except (yaml.YAMLError, RecursionError) as error:
        raise ValueError(_syntax_problem(error, "", text).what) from None


@contextmanager
def _load(text: str) -> Iterator[Loader]:
    loader = Loader(text)
    try:
        yield loader
    finally:
        loader.dispose()


def _syntax_problem(error: Exception, where: str, text: str) -> Problem:
    if isinstance(error, RecursionError):
        return Problem(where=where, what=f"is nested deeper than {DEEPEST} levels")
    if isinstance(error, yaml.reader.ReaderError):
        line = text.count("\n", 0, error.position) + 1
        what = f"is not valid YAML: the character {chr(error.character)!a} cannot stand in it"
        return Problem(where=f"{where}:{line}", what=what)
    mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
    place = f"{where}:{mark.line + 1}:{mark.column + 1}" if mark else where
    reason = getattr(error, "problem", None) or getattr(error, "reason", None) or "cannot be read"
    fix = "inside braces put it in quotes: '???'" if "found '?'" in reason else ""
    return Problem(where=place, what=f"is not valid YAML: {reason}", fix=fix)


def _check_node(node: yaml.Node, where: str, locations: dict[str, str]) -> Iterator[Problem]:
    """Note the location of every key below ``node``; yield what is wrong with it."""
    # Ten lines of aliases stand for 10^10 values: they are counted before any is visited.
    values, depth = _measure(node, {})
    if depth > DEEPEST:
        yield Problem(where=where, what=f"is nested deeper than {DEEPEST} levels")
    elif values > MOST_VALUES:
        what = f"{TOO_MANY}, once aliases are written out"
        yield Problem(where=where, what=what, got=f"{values:,}" if values < 10**12 else "")
    else:
        yield from _check_keys(node, where, locations)


def _measure(node: yaml.Node, known: dict[int, tuple[int, int]]) -> tuple[int, int]:
    """How many values ``node`` stands for with every alias written out, and how deep they nest."""
    if id(node) in known:
        return known[id(node)]
    known[id(node)] = (1, 1)  # for an alias below itself, which is reported with its line
    children: list[yaml.Node] = []
    if isinstance(node, yaml.SequenceNode):
        children = node.value
    elif isinstance(node, yaml.MappingNode):
        children = [each for pair in node.value for each in pair]
    below = [_measure(child, known) for child in children]
    values = 1 + sum(count for count, _ in below)
    known[id(node)] = (values, 1 + max((depth for _, depth in below), default=0))
    return known[id(node)]


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
                quoted = f"put it in quotes: '{name.value}'"
                what, fix = "a key must be text", quoted if isinstance(name.value, str) else ""
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
