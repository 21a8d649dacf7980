"""Find secrets in a text.

A secret is known by the name before it (``HF_TOKEN=...``, ``--token ...``, ``"token": "..."``), by
its form (:mod:`forms`) or by its value, which is that of an environment variable whose name says
that it is secret.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote, unquote

from nemotron_style.runtime.secrets.forms import FORMS, SHORTEST_TOKEN, Form
from nemotron_style.runtime.secrets.names import (
    holds_secret,
    is_figure,
    is_placeholder,
    is_plain_word,
    is_secret_key,
    is_secret_variable,
    variable_name,
)

SHORTEST = 8  # a shorter value would be found in every other word
SHORTEST_LINE = 16
_URL_PASSWORD = next(form for form in FORMS if form.what == "a password inside a URL")
_URL_QUERY = re.compile(r"[?&;](?P<name>[\w.-]+)=(?P<secret>[^&;\s\"'#\\<>]+)")
_SIGNS = frozenset(
    (
        *("auth", "authorization", "awsaccesskeyid", "googleaccessid", "key-pair-id"),
        *("ossaccesskeyid", "sig", "signature", "token", "x-amz-credential"),
        *("x-amz-security-token", "x-amz-signature", "x-goog-credential", "x-goog-signature"),
    )
)
# One of these is in the name of every secret (and ``string``: of a connection).
_WORDS = [
    "apikey",
    "auth",
    "bearer",
    "cookie",
    "cred",
    "jwt",
    "key",
    "pass",
    "pat",
    "pwd",
    "secret",
    "string",
    "token",
]
# From the word to the beginning of the value, in a text in lower case. No more of it is consumed,
# because the next pair may stand in what follows: Password=$PW;ApiKey=...
_PAIR = re.compile(
    rf"(?:{'|'.join(_WORDS)})[\w.\]-]{{0,64}}(?:"
    r"[ \t]?=(?!=)[ \t]?\\?[\"']?(?P<secret>[^\s\"'\\;&,|=]+)"
    r"|\\?[\"'][ \t]?:[ \t]?\\?[\"'](?P<quoted>[^\s\"'\\][^\"'\\\n]*))"
)
_WORD = re.compile(r"[^\s\"'\\]+")
_OPTION = re.compile(
    r"-(?<!\S-)-?(?P<name>[A-Za-z][\w-]*)\s+\\?[\"']?(?P<secret>[^\s\"'\\;&|-][^\s\"'\\;&|]*)"
)
_DEFAULT = re.compile(r"oc\.env\s*:\s*['\"]?(?P<name>\w+)['\"]?\s*,\s*['\"]?(?P<secret>[^}'\"]+)")
_IN_NAME = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_.-[]"
# What any token is in; a line without it is not searched for each of their beginnings.
_LONG_WORD = re.compile(rf"(?<![\w.-])[\w.-]{{{SHORTEST_TOKEN},}}")
_A_LINE = 2000  # characters
_TOKENS = [form for form in FORMS if form.token]
# Which other forms a word is of, so that a text is searched for each word once.
_FORMS_OF: dict[str, list[Form]] = {}
for _form in FORMS:
    for _word in () if _form.token else _form.words:
        _FORMS_OF.setdefault(_word, []).append(_form)

_announced: set[str] = set()


@dataclass(frozen=True)
class Secret:
    """A secret at ``text[start:end]``: ``why`` says what it is, ``variable`` whose value."""

    start: int
    end: int
    why: str
    variable: str = ""


def announce_secrets(names: Iterable[str]) -> None:
    """Treat these environment variables as secrets too, whatever they are called."""
    _announced.update(names)


def secret_values() -> Mapping[str, str]:
    """The values of secrets in the environment, as they may be written, with their variables.

    A value may stand in a text raw, or as JSON, a URL, a shell or Python write it. Of a value of
    many lines each line counts; of a URL its password does.
    """
    # os.environ decodes each entry anew whenever it is asked, which takes longer than to search a
    # line; the bytes below it are compared in no time.
    raw = getattr(os.environ, "_data", os.environ)
    if raw != _known.environment or _announced != _known.announced:
        _known.environment, _known.announced = dict(raw), set(_announced)
        _known.values = _read_values(os.environ)
    return _known.values


@dataclass
class _Known:
    """The values of secrets, and the environment that they were read from."""

    environment: Mapping[Any, Any] = field(default_factory=dict)
    announced: set[str] = field(default_factory=set)
    values: Mapping[str, str] = field(default_factory=dict)


_known = _Known()


def _read_values(environment: Mapping[str, str]) -> Mapping[str, str]:
    variables: dict[str, str] = {}
    for name, value in environment.items():
        secret = name in _announced or (is_secret_variable(name) and not is_figure(value))
        if secret and not is_plain_word(value):
            for part in (value, value.strip(), *_lines(value)):
                variables |= dict.fromkeys(_spellings(part), name)
        for match in _URL_PASSWORD.pattern.finditer(value) if "://" in value else ():
            if not is_placeholder(match["secret"]):
                variables |= {match["secret"]: name, unquote(match["secret"]): name}
    return {value: name for value, name in variables.items() if len(value) >= SHORTEST}


def find_secrets(text: str) -> Iterator[Secret]:
    """Every secret in ``text``, by value, by form and by name; they may overlap."""
    for value, variable in secret_values().items():
        start = text.find(value)
        while start >= 0:
            yield Secret(start, start + len(value), f"the value of ${variable}", variable)
            start = text.find(value, start + 1)  # occurrences may overlap
    # Of all characters only this one becomes two in lower case: places stay what they are.
    lower = text.replace("\u0130", "i").lower()
    words = [word for word in _FORMS_OF if word in lower]
    forms = [*dict.fromkeys(form for word in words for form in _FORMS_OF[word])]
    # In a longer text there nearly always is such a word.
    if len(text) > _A_LINE or _LONG_WORD.search(text):
        forms += [form for form in _TOKENS if form.words[0] in lower]
    for form in forms:
        yield from _find_form(form, text)
    if "://" in text and "=" in text:
        yield from _find_signatures(text)
    if "=" in text or ":" in text:
        yield from _find_pairs(text, lower)
    if "-" in text:
        yield from _find_named(_OPTION, text)
    if "oc.env" in text:
        yield from _find_named(_DEFAULT, text)


def _find_form(form: Form, text: str) -> Iterator[Secret]:
    group = "secret" if "secret" in form.pattern.groupindex else 0
    named = "name" in form.pattern.groupindex
    for match in form.pattern.finditer(text):
        if named and not is_secret_key(match["name"]):
            continue
        if group == 0 or not is_placeholder(match[group]):
            yield Secret(*match.span(group), form.what)


def _find_signatures(text: str) -> Iterator[Secret]:
    for match in _URL_QUERY.finditer(text):
        if is_signature(match["name"], match["secret"]):
            what = f"the part {match['name']!r} of a URL, which authenticates"
            yield Secret(*match.span("secret"), what)


def _find_pairs(text: str, lower: str) -> Iterator[Secret]:
    """``name=value`` and ``"name": "value"``."""
    done = 0
    for match in _PAIR.finditer(lower):
        group = "quoted" if match["secret"] is None else "secret"
        start, end = match.span(group)
        if start < done:
            continue
        before = text[max(match.start() - 64, 0) : match.start()]
        head = before[len(before.rstrip(_IN_NAME)) :]
        name = re.split(r"[=\s\"'\\]", text[match.start() : start], maxsplit=1)[0]
        name = f"{head}{name}".lstrip("-.[]")
        if holds_secret(name, text[start:end]):
            word = _WORD.match(text, start) if group == "secret" else None
            done = word.end() if word else end
            yield Secret(start, done, f"the value of {name}", variable_name(name))


def _find_named(pattern: re.Pattern[str], text: str) -> Iterator[Secret]:
    is_secret = is_secret_variable if pattern is _DEFAULT else is_secret_key
    for match in pattern.finditer(text):
        name, value = match["name"], match["secret"]
        if is_secret(name) and not is_placeholder(value) and not is_figure(value, name=name):
            yield Secret(*match.span("secret"), f"the value of {name}", variable_name(name))


def is_signature(name: str, value: str) -> bool:
    """Whether a part of a URL's query authenticates whoever has it."""
    known = name.lower() in _SIGNS or (name.lower() == "key" and len(value) >= SHORTEST_LINE)
    return (known or is_secret_key(name)) and not is_placeholder(value)


def _lines(value: str) -> list[str]:
    """The lines of a value that has several (a private key), as a log may show one of them."""
    lines = value.split("\n") if "\n" in value else []
    return [line.strip() for line in lines if len(line.strip()) >= SHORTEST_LINE]


def _spellings(value: str) -> set[str]:
    """A value as it is, and as JSON, a URL, Python and a quoting shell write it."""
    as_json = {json.dumps(value, ensure_ascii=plain)[1:-1] for plain in (True, False)}
    escaped = {repr(value)[1:-1], ascii(value)[1:-1], repr(value.encode())[2:-1]}
    escaped |= {value.encode("unicode_escape").decode(), value.replace("'", "'\"'\"'")}
    return {value, quote(value), quote(value, safe=""), *as_json, *escaped}
