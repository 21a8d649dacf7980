"""Overrides of a config that has no schema but its YAML files: their keys and types are the rule.

NVIDIA's runner merges whatever is typed, so that a misspelt key trains with the old value. Here
``key=value`` names a key that the files have, with a value of the type that it has there;
``+key=value`` adds a key, and ``++key=value`` sets any key to any value.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nemotron_style.runtime.config.interpolation import leaves
from nemotron_style.runtime.config.model import MANDATORY
from nemotron_style.runtime.config.override import Override
from nemotron_style.runtime.errors import ConfigError
from nemotron_style.runtime.validation import join_key, show_value, suggest_key

MISSING = object()
TYPES: Mapping[type, str] = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "a string",
    list: "a list",
    dict: "a table of keys",
}


def check_open(values: Mapping[str, Any], override: Override) -> None:
    """Raise ConfigError for a key that the files lack, or a value of another type than theirs."""
    if override.action == "put":
        return
    old = find_value(values, override.parts)
    if override.action == "add":
        if old is not MISSING:
            raise ConfigError(
                override.problem("exists already", fix=f"drop the plus: {override.text[1:]}")
            )
        return
    if old is MISSING:
        fix = suggest_key(override.key, list_keys(values))
        fix = f"{fix}; " if fix else ""
        fix += f"to add it, write +{override.text}" if override.action == "set" else ""
        what = "is in no file of this config"
        raise ConfigError(override.problem(what, fix=fix.removesuffix("; ")))
    if override.action == "set" and not fits(old, override.value):
        what, fix = "has another type than in the file", f"to change it, write ++{override.text}"
        raise ConfigError(
            override.problem(
                what, got=show_value(override.value), allowed=TYPES[type(old)], fix=fix
            )
        )


def fits(old: Any, new: Any) -> bool:
    """Whether ``new`` has the type of ``old``; an interpolation has any, and so has null."""
    if old is None or is_open(old) or is_open(new):
        return True
    if isinstance(old, float):
        return isinstance(new, int | float) and not isinstance(new, bool)
    return type(new) is type(old)


def is_open(value: Any) -> bool:
    """Whether a value stands for one of any type."""
    return isinstance(value, str) and (value == MANDATORY or "${" in value)


def find_value(values: Any, parts: list[str]) -> Any:
    """The value at a key of nested tables and lists, or MISSING."""
    for part in parts:
        if isinstance(values, Mapping) and part in values:
            values = values[part]
        elif isinstance(values, list) and part.isdigit() and int(part) < len(values):
            values = values[int(part)]
        else:
            return MISSING
    return values


def list_keys(values: Any) -> list[str]:
    """Every key of nested tables, and the tables themselves."""
    paths = [path for path, _ in leaves(values)]
    tables = {path[:depth] for path in paths for depth in range(1, len(path))}
    return [join_key(path) for path in (*paths, *sorted(tables, key=str))]
