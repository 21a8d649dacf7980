"""Overrides on the command line: ``key=value``, ``+key=value``, ``++key=value`` and ``~key``."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

from pydantic import BaseModel

from nemotron_style.runtime.config.inheritance import merge_tables
from nemotron_style.runtime.config.trl_names import find_trl_name
from nemotron_style.runtime.config.yaml_file import parse_value
from nemotron_style.runtime.errors import ConfigError, Problem, did_you_mean, raise_all
from nemotron_style.runtime.secrets.reject import remove_secrets
from nemotron_style.runtime.validation import find_key, schema_keys, split_key, suggest_key

Action = Literal["set", "add", "put", "remove"]
ACTIONS: dict[str, Action] = {"": "set", "+": "add", "++": "put", "~": "remove"}
SIGN = re.compile(r"~|\+{0,2}")
KEY = re.compile(r"[A-Za-z_][\w-]*(?:\.[\w-]+|\[\d+\])*")


@dataclass(frozen=True)
class Override:
    """One override, parsed but not yet applied; ``text`` is what was typed.

    ``set`` changes what is there, ``add`` adds what is not, ``put`` does either.
    """

    text: str
    action: Action
    key: str
    value: Any = None

    @property
    def parts(self) -> list[str]:
        """The parts of the key."""
        return split_key(self.key)

    def problem(self, what: str, **more: str) -> Problem:
        return Problem(where=f"override {self.text!r}", key=self.key, what=what, **more)


def parse_override(text: str) -> Override:
    """Parse ``text``.

    Raises ConfigError when there is no ``=`` or no value, the key is malformed, or the value is no
    YAML or a secret.
    """
    sign = SIGN.match(text)[0]  # type: ignore[index]  # it matches an empty string, too
    key, equals, value = text.removeprefix(sign).partition("=")
    key = key.strip()
    where = f"override {sign + key!r}"  # without the value, which may be a secret
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
        parsed = parse_value(value)
    except ValueError as error:
        what, fix = f"the value cannot be read: {error}", f"quote it: {key}='\"...\"'"
        raise ConfigError(Problem(where=where, key=key, what=what, fix=fix)) from None
    raise_all(ConfigError, remove_secrets({key: parsed}, where=lambda _: "override")[1])
    return Override(text, ACTIONS[sign], key, parsed)


def apply_override(values: dict[str, Any], override: Override, schema: type[BaseModel]) -> None:
    """Change ``values`` in place.

    Raises ConfigError for a key that the schema does not know, or that cannot be set, added or
    removed.
    """
    info, present = find_key(schema, override.parts), _is_present(values, override.parts)
    if info.status == "unknown":
        known = list(schema_keys(schema))
        meant = find_trl_name(override.key, known)
        fix = did_you_mean([meant]) if meant else suggest_key(override.key, known)
        allowed = "" if fix else info.allowed
        raise ConfigError(override.problem("is not a key of this step", allowed=allowed, fix=fix))
    if override.action == "add" and (info.status == "declared" or present):
        fix = f"drop the plus: {override.text[1:]}"
        raise ConfigError(override.problem("exists already", fix=fix))
    if override.action in ("set", "remove") and info.status == "open" and not present:
        fix = f"to add it, write +{override.text}" if override.action == "set" else ""
        raise ConfigError(override.problem("is not set in the config", fix=fix))
    if override.action != "remove":
        _set(values, override)
        return
    if info.field is not None and info.field.is_required():
        raise ConfigError(override.problem("is required and cannot be removed"))
    if present:
        target, last = _find_container(values, override), override.parts[-1]
        del target[int(last) if isinstance(target, list) else last]


def _is_present(values: Any, parts: Sequence[str]) -> bool:
    for part in parts:
        if isinstance(values, dict) and part in values:
            values = values[part]
        elif isinstance(values, list) and part.isdigit() and int(part) < len(values):
            values = values[int(part)]
        else:
            return False
    return True


def _set(values: dict[str, Any], override: Override) -> None:
    target, last = _find_container(values, override), override.parts[-1]
    if isinstance(target, list):
        if not last.isdigit() or int(last) > len(target):  # one beyond the end appends
            raise ConfigError(override.problem(f"a list of {len(target)} has no index {last!r}"))
        target[int(last) : int(last) + 1] = [override.value]
        return
    old, new = target.get(last), override.value
    both = isinstance(old, dict) and isinstance(new, dict)
    target[last] = merge_tables(old, new) if both else new


def _find_container(values: dict[str, Any], override: Override) -> Any:
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
