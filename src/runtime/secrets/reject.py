"""Reject secrets where they would be stored: in a config, a profile, a command line, a job.

The problem names the place and the way out, and never repeats the secret.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from nemotron_style.runtime.errors import Problem, UsageError, raise_all
from nemotron_style.runtime.secrets.detect import Secret, find_secrets
from nemotron_style.runtime.secrets.names import (
    holds_secret,
    is_placeholder,
    is_secret_variable,
    variable_name,
)
from nemotron_style.runtime.validation import join_key

Path = tuple[str | int, ...]
REMOVED = object()
# Texts of a profile that are scripts, or configs of something else.
SCRIPTS = ("setup", "custom_spec")
COLON = re.compile(r"(?P<name>[A-Za-z_][\w-]*)\\?[\"']?\s*:\s*\\?[\"']?(?P<secret>[^\s\"'\\,}]+)")
# Variables that hold paths, which are shown and stored.
LOCATIONS = ("NEMOTRON_STYLE_HOME", "NEMOTRON_ENV_FILE")


def secret_problem(secret: Secret, *, where: str, key: str = "") -> Problem:
    """The problem of a secret in the wrong place."""
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

    def clean(path: Path, value: Any, *, named: bool) -> Any:
        if isinstance(value, Mapping):
            name = value.get("name")  # {name = "HF_TOKEN", value = ...}, as containers take it
            pair = isinstance(name, str) and is_secret_variable(name)
            inner = {
                key: clean((*path, str(key)), item, named=named or (pair and key == "value"))
                for key, item in value.items()
            }
            return {key: item for key, item in inner.items() if item is not REMOVED}
        if isinstance(value, list | tuple):
            items = [clean((*path, index), item, named=named) for index, item in enumerate(value)]
            return [item for item in items if item is not REMOVED]
        secret = _find_in_leaf(path, value, named=named)
        if secret is None:
            return value
        key = join_key(path)
        problems.append(secret_problem(secret, where=where(key), key=key))
        return REMOVED

    return clean((), values, named=False), problems


def find_argument_secrets(words: Sequence[str]) -> Iterator[Problem]:
    """A problem for every word of a command line, and every variable beside it, with a secret."""
    for name in LOCATIONS:
        secrets = find_secrets(os.environ.get(name, ""))
        if secret := next((each for each in secrets if each.variable != name), None):
            yield secret_problem(secret, where=f"${name}")
    cut = words.index("--") if "--" in words else len(words)
    for index, word in enumerate(words):
        before = words[index - 1] if index else ""
        where = f"argument {index - cut} after --" if index > cut else _location(word, before)
        secret = next(find_secrets(word), None) or _find_option_value(before, word)
        if secret:
            yield secret_problem(secret, where=where, key=_assigned_key(word))


def _find_in_leaf(path: Path, value: Any, *, named: bool) -> Secret | None:
    """The secret that a leaf is or holds; a number is one only under the name of a secret."""
    if value is None or isinstance(value, bool):
        return None
    text = str(value)
    key = join_key(path)
    is_secret = (named and not is_placeholder(text)) or holds_secret(key, text)
    if is_secret and "${" not in text:
        return Secret(0, len(text), "the value of a secret, as its name says", variable_name(key))
    if not isinstance(value, str):
        return None
    in_script = path[0] in SCRIPTS and next(_find_colons(text), None)
    return next(find_secrets(text), None) or in_script or None


def _find_colons(text: str) -> Iterator[Secret]:
    """``{"password": "..."}`` in a script; in prose a colon says nothing."""
    for match in COLON.finditer(text):
        if holds_secret(match["name"], match["secret"]):
            why = f"the value of {match['name']}"
            yield Secret(*match.span("secret"), why, variable_name(match["name"]))


def _find_option_value(option: str, word: str) -> Secret | None:
    """``--token VALUE``, in two words."""
    name = option.lstrip("-")
    in_two_words = option.startswith("-") and "=" not in option and not word.startswith("-")
    if not in_two_words or not holds_secret(name, word):
        return None
    return Secret(0, len(word), f"the value of {option}", variable_name(name))


def _location(word: str, before: str) -> str:
    option, _, _value = word.partition("=")
    if word.startswith("-"):
        return option
    if before.startswith("-"):
        return before
    return "override" if "=" in word else "argument"


def _assigned_key(word: str) -> str:
    """What stands before the ``=``, where that is a name and no part of a secret."""
    name, equals, _ = word.lstrip("+~").partition("=")
    plain = equals and name.replace(".", "").replace("_", "").replace("-", "").isalnum()
    return name if plain and not word.startswith("-") and len(name) < 80 else ""
