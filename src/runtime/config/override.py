"""Overrides on the command line: ``key=value``, ``+key=value``, ``++key=value`` and ``~key``."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

from pydantic import BaseModel

from nemotron_style.runtime.config.yaml_file import parse_value
from nemotron_style.runtime.errors import ConfigError, Problem, raise_all
from nemotron_style.runtime.secrets.reject import remove_secrets
from nemotron_style.runtime.validation import (
    KeyInfo,
    find_key,
    list_siblings,
    schema_keys,
    split_key,
    suggest_key,
)

Action = Literal["set", "add", "put", "remove"]
ACTIONS: dict[str, Action] = {"": "set", "+": "add", "++": "put", "~": "remove"}
SIGN = re.compile(r"~|\+{0,2}")
KEY = re.compile(r"[A-Za-z_][\w-]*(?:\.[\w-]+|\[\d+\])*")


@dataclass(frozen=True)
class Override:
    """One override, read but not yet applied. ``text`` is what was typed.

    ``set`` changes what is there, ``add`` adds what is not, ``put`` does whichever it takes.
    """

    text: str
    action: Action
    key: str
    value: Any = None

    @property
    def parts(self) -> list[str]:
        """The key, taken apart."""
        return split_key(self.key)

    def problem(self, what: str, **more: str) -> Problem:
        """A problem of this override."""
        return Problem(where=f"override {self.text!r}", key=self.key, what=what, **more)


def read_override(text: str) -> Override:
    """Take ``text`` apart.

    Raises:
        ConfigError: there is no ``=`` or no value, the key is malformed, the value is no YAML, or
            it is a secret.
    """
    sign = SIGN.match(text)[0]  # type: ignore[index]  # it matches nothing at all, too
    key, equals, value = text.removeprefix(sign).partition("=")
    key = key.strip()
    where = f"override {sign + key!r}"  # without the value, of which nothing is known yet
    if not KEY.fullmatch(key):
        what, fix = f"{key!r} is no key", "write a.b=value, +a.b=value or ~a.b"
        raise ConfigError(Problem(where=where, what=what, fix=fix))
    if sign == "~":
        if equals:
            raise ConfigError(Problem(where=where, key=key, what="takes no value", fix=f"~{key}"))
        return Override(text, "remove", key)
    if not equals:
        what, fix = "has no value", f"write {sign}{key}=VALUE, or ~{key} to remove it"
        raise ConfigError(Problem(where=where, key=key, what=what, fix=fix))
    if not value.strip():
        fix = f"write {key}=null for nothing, {key}='\"\"' for an empty string"
        raise ConfigError(Problem(where=where, key=key, what="has an empty value", fix=fix))
    try:
        meant = parse_value(value)
    except ValueError as error:
        what, fix = f"the value cannot be read: {error}", f"quote it: {key}='\"...\"'"
        raise ConfigError(Problem(where=where, key=key, what=what, fix=fix)) from None
    raise_all(ConfigError, remove_secrets({key: meant}, where=lambda _: "override")[1])
    return Override(text, ACTIONS[sign], key, meant)


def apply_override(values: dict[str, Any], override: Override, schema: type[BaseModel]) -> None:
    """Change ``values`` in place, provided that the schema knows the key.

    Raises:
        ConfigError: the key is unknown, cannot be added, or cannot be removed.
    """
    place = find_key(schema, override.parts)
    if place.status == "unknown":
        fix = suggest_key(override.key, schema_keys(schema))
        allowed = "" if fix else list_siblings(place)
        raise ConfigError(override.problem("is not a key of this step", allowed=allowed, fix=fix))
    present = _present(values, override.parts)
    if override.action == "add" and (place.status == "declared" or present):
        fix = f"drop the plus: {override.text[1:]}"
        raise ConfigError(override.problem("exists already", fix=fix))
    if override.action == "set" and place.status == "open" and not present:
        fix = f"to add it, write +{override.text}"
        raise ConfigError(override.problem("is not set in the config", fix=fix))
    if override.action == "remove":
        _remove(values, override, place)
    else:
        _set(values, override)


def _present(values: Any, parts: Sequence[str]) -> bool:
    for part in parts:
        if isinstance(values, dict) and part in values:
            values = values[part]
        elif isinstance(values, list) and part.isdigit() and int(part) < len(values):
            values = values[int(part)]
        else:
            return False
    return True


def _remove(values: dict[str, Any], override: Override, place: KeyInfo) -> None:
    if place.field is not None and place.field.is_required():
        raise ConfigError(override.problem("is required and cannot be removed"))
    if not _present(values, override.parts):
        if place.status == "open":
            raise ConfigError(override.problem("is not set in the config"))
        return
    target = _descend(values, override)
    last = override.parts[-1]
    if isinstance(target, list):
        del target[int(last)]
    else:
        del target[last]


def _set(values: dict[str, Any], override: Override) -> None:
    target = _descend(values, override)
    last = override.parts[-1]
    if isinstance(target, list):
        if not last.isdigit() or int(last) > len(target):
            what = f"a list of {len(target)} has no place {last!r}"
            raise ConfigError(override.problem(what))
        target[int(last) : int(last) + 1] = [override.value]
        return
    old, new = target.get(last), override.value
    target[last] = merge(old, new) if isinstance(old, dict) and isinstance(new, dict) else new


def _descend(values: dict[str, Any], override: Override) -> Any:
    """The table or list that holds the last part of the key, made where it is missing."""
    target: Any = values
    for part, following in pairwise(override.parts):
        if isinstance(target, list):
            if not part.isdigit() or int(part) >= len(target):
                raise ConfigError(override.problem(f"a list of {len(target)} has no {part!r}"))
            target = target[int(part)]
            continue
        inner = target.get(part)
        if isinstance(inner, str) and "${" in inner:
            what = f"{part!r} is the interpolation {inner}, nothing can be set below it"
            raise ConfigError(override.problem(what, fix=f"override {part!r} as a whole"))
        if not isinstance(inner, dict | list):
            inner = target[part] = [] if following.isdigit() else {}
        target = inner
    return target


def merge(base: dict[str, Any], top: dict[str, Any]) -> dict[str, Any]:
    """``base`` with the keys of ``top`` laid over it, table by table."""
    merged = dict(base)
    for key, value in top.items():
        old = merged.get(key)
        both = isinstance(old, dict) and isinstance(value, dict)
        merged[key] = merge(old, value) if both else value  # type: ignore[arg-type]
    return merged
