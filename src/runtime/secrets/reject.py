"""Secrets where they would be stored: in a config, a profile, on the command line, in a job.

They are refused, with the place and the way out, and never repeated.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from nemotron_style.runtime.errors import Problem, UsageError, raise_all
from nemotron_style.runtime.secrets.detect import Secret, find_secrets
from nemotron_style.runtime.secrets.names import (
    is_placeholder,
    is_secret_key,
    is_secret_variable,
    variable_name,
)
from nemotron_style.runtime.validation import join_key

Path = tuple[str | int, ...]
DROPPED = object()
# Texts of a profile that are scripts, or configs of something else.
SCRIPTS = ("setup", "custom_spec")
COLON = re.compile(r"(?P<name>[A-Za-z_][\w-]*)\\?[\"']?\s*:\s*\\?[\"']?(?P<secret>[^\s\"'\\,}]+)")
# Variables that say where something lies; what they say is shown and stored.
PLACES = ("NEMOTRON_STYLE_HOME", "NEMOTRON_ENV_FILE")


def secret_problem(secret: Secret, *, where: str, key: str = "") -> Problem:
    """What is told about a secret in the wrong place."""
    name = secret.variable or "NAME"
    what = f"holds {secret.why}; what is given here is stored and shown, and no secret may be"
    fix = f'take it out, export {name}, list it in the profile: secrets = ["{name}"], '
    fix += "and read it from the environment in the step"
    if "URL" in secret.why:
        fix += "; a file behind such a URL can be fetched first and given by its path"
    return Problem(where=where, key=key, what=what, fix=fix)


def reject_secrets(text: str, where: str) -> None:
    """Raise ``UsageError`` when ``text``, which is about to be shown or stored, holds a secret.

    ``where`` says what the text is; the problem names its line.
    """
    problems: dict[str, Problem] = {}
    for secret in find_secrets(text):
        line = text.count("\n", 0, secret.start) + 1
        problems.setdefault(f"line {line}", secret_problem(secret, where=where, key=f"line {line}"))
    raise_all(UsageError, list(problems.values()))


def remove_secrets(values: Any, *, where: Callable[[str], str]) -> tuple[Any, list[Problem]]:
    """Plain data without the leaves that hold a secret, and a problem for each of them."""
    problems: list[Problem] = []

    def look(path: Path, value: Any, *, named: bool) -> Any:
        if isinstance(value, Mapping):
            told = _is_named_pair(value)
            inner = {
                name: look((*path, str(name)), item, named=named or (told and name == "value"))
                for name, item in value.items()
            }
            return {name: item for name, item in inner.items() if item is not DROPPED}
        if isinstance(value, list | tuple):
            items = [look((*path, at), item, named=named) for at, item in enumerate(value)]
            return [item for item in items if item is not DROPPED]
        secret = _judge(path, value, named=named)
        if secret is None:
            return value
        key = join_key(path)
        problems.append(secret_problem(secret, where=where(key), key=key))
        return DROPPED

    return look((), values, named=False), problems


def find_argument_secrets(words: Sequence[str]) -> Iterator[Problem]:
    """A problem for every word of a command line, and place named beside it, with a secret."""
    for name in PLACES:
        found = find_secrets(os.environ.get(name, ""))
        if secret := next((each for each in found if each.variable != name), None):
            yield secret_problem(secret, where=f"${name}")
    cut = words.index("--") if "--" in words else len(words)
    for at, word in enumerate(words):
        before = words[at - 1] if at else ""
        where = f"argument {at - cut} after --" if at > cut else _name_place(word, before)
        secret = next(find_secrets(word), None) or _judge_option(before, word)
        if secret:
            yield secret_problem(secret, where=where, key=_name_key(word, before))


def _judge(path: Path, value: Any, *, named: bool) -> Secret | None:
    """The secret that a leaf is or holds. Numbers are secrets under the name of one only."""
    if value is None or isinstance(value, bool):
        return None
    text = str(value)
    key = join_key(path)
    if (named or is_secret_key(key)) and not is_placeholder(text) and "${" not in text:
        return Secret(0, len(text), "the value of a secret, as its name says", variable_name(key))
    if not isinstance(value, str):
        return None
    in_script = path[0] in SCRIPTS and next(_find_colons(text), None)
    return next(find_secrets(text), None) or in_script or None


def _find_colons(text: str) -> Iterator[Secret]:
    """``{"password": "..."}`` in a script; in prose a colon says nothing."""
    for match in COLON.finditer(text):
        if is_secret_key(match["name"]) and not is_placeholder(match["secret"]):
            why = f"the value of {match['name']}"
            yield Secret(*match.span("secret"), why, variable_name(match["name"]))


def _is_named_pair(table: Mapping[Any, Any]) -> bool:
    """``{name = "HF_TOKEN", value = ...}``, as a list of variables is written for containers."""
    name = table.get("name")
    return isinstance(name, str) and is_secret_variable(name)


def _judge_option(option: str, word: str) -> Secret | None:
    """``--token VALUE``, in two words."""
    name = option.lstrip("-")
    if not option.startswith("-") or "=" in option or word.startswith("-"):
        return None
    if not is_secret_key(name) or is_placeholder(word):
        return None
    return Secret(0, len(word), f"the value of {option}", variable_name(name))


def _name_place(word: str, before: str) -> str:
    option, _, _value = word.partition("=")
    if word.startswith("-"):
        return option
    if before.startswith("-"):
        return before
    return "override" if "=" in word else "argument"


def _name_key(word: str, before: str) -> str:
    """What stands before the ``=``, where that is a name and no part of a secret."""
    name, equals, _ = word.lstrip("+~").partition("=")
    plain = equals and name.replace(".", "").replace("_", "").replace("-", "").isalnum()
    return name if plain and not word.startswith("-") and len(name) < 80 else ""
