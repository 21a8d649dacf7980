"""Find secrets in a text.

A secret is known by the name before it (``HF_TOKEN=...``, ``--token ...``), by its form (a
password inside a URL, a signature in its query, ``ghp_...``) or by its value, which is that of an
environment variable whose name says that it is secret.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from urllib.parse import quote, unquote

from nemotron_style.runtime.secrets.names import (
    is_placeholder,
    is_plain_word,
    is_secret_key,
    is_secret_variable,
    variable_name,
)

SHORTEST = 8  # a shorter value would be found in every other word
SHORTEST_LINE = 16
# Lengths are bounded, so that no text takes more than linear time.
_URL_PASSWORD = re.compile(
    r"://[^\s/:@\"'<>\\]{0,256}:(?!\d+(?:[/?#\"'\s\\]|$))(?P<secret>[^\s\"'<>]{1,512})@"
)
_URL_TOKEN = re.compile(r"https?://(?P<secret>[^\s/:@\"'<>\\]{16,512})@")
_URL_QUERY = re.compile(r"[?&;](?P<name>[\w.-]+)=(?P<secret>[^&;\s\"'#\\<>]+)")
_SIGNS = frozenset(
    (
        *("auth", "authorization", "awsaccesskeyid", "googleaccessid", "key-pair-id"),
        *("ossaccesskeyid", "sig", "signature", "token", "x-amz-credential"),
        *("x-amz-security-token", "x-amz-signature", "x-goog-credential", "x-goog-signature"),
    )
)
_PAIR = re.compile(
    r"(?<![\w.-])-{0,2}(?P<name>[A-Za-z_][\w.-]*)\s?=(?!=)\s?\\?[\"']?(?P<secret>[^\s\"'\\]+)"
)
_OPTION = re.compile(
    r"(?<!\S)--?(?P<name>[A-Za-z][\w-]*)\s+\\?[\"']?(?P<secret>[^\s\"'\\;&|-][^\s\"'\\;&|]*)"
)
_FORMS = (
    ("a Hugging Face token", r"\bhf_(?=[a-z]*[0-9A-Z])[A-Za-z0-9]{16,}"),
    ("a GitHub token", r"\b(?:gh[pousr]_[A-Za-z0-9]{16,}|github_pat_\w{20,})"),
    ("a GitLab token", r"\bglpat-[\w-]{16,}"),
    ("an NVIDIA API key", r"\bnvapi-[\w-]{16,}"),
    ("an API key", r"\bsk-(?=[\w-]*\d)[\w-]{20,}"),
    ("a Google API key", r"\bAIza[\w-]{30,}"),
    ("an AWS key", r"\b(?:AKIA|ASIA)[A-Z0-9]{16}\b"),
    ("a Slack token", r"\bxox[abeprs]-[\w-]{10,}|hooks\.slack\.com/services/[\w/]{20,}"),
    ("a W&B key", r"\bwandb_v\d_\w{16,}"),
    ("a package index token", r"\b(?:npm_[A-Za-z0-9]{30,}|pypi-[\w-]{30,}|dckr_pat_[\w-]{16,})"),
    ("a JSON web token", r"\beyJ[\w-]{8,}\.eyJ[\w-]{8,}\.[\w-]{8,}"),
    ("an authorization header", r"(?i:\b(?:bearer|basic)\s+)(?=\S*\d)[\w.~+/=-]{16,}"),
    (
        "a secret header",
        r"(?i:\b(?:authorization|private-token|x-[\w-]*(?:token|key|secret)):\s*)"
        r"(?i:token\s+)?(?![$\[])[^\s\"'\\]{8,}",
    ),
    ("a W&B key", r"\bwandb\s+login\s+(?:-\S+\s+){0,8}(?![$\[])[\w-]{20,}"),
    (
        "a password for curl",
        r"\bcurl\s[^\n]{0,512}?\s(?:-u|--user)\s+[\"']?[^\s:\"']+:(?![$\[])[^\s\"']+",
    ),
    (
        "a private key",
        r"-----BEGIN [A-Z ]{0,32}PRIVATE KEY-----"
        r"(?:[^\"']{0,8192}?-----END[A-Z ]*-----|[^\"']{0,8192})",
    ),
)
_DEFAULT = re.compile(r"oc\.env\s*:\s*['\"]?(?P<name>\w+)['\"]?\s*,\s*['\"]?(?P<secret>[^}'\"]+)")
_BY_FORM = re.compile("|".join(f"(?P<form{i}>{form})" for i, (_, form) in enumerate(_FORMS)))

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
    return _read_values(tuple(os.environ.items()), frozenset(_announced))


# Every line that is printed is searched for these; the environment hardly ever changes.
@lru_cache(maxsize=4)
def _read_values(
    environment: tuple[tuple[str, str], ...], announced: frozenset[str]
) -> Mapping[str, str]:
    variables: dict[str, str] = {}
    for name, value in environment:
        if (name in announced or is_secret_variable(name)) and not is_plain_word(value):
            for part in (value, value.strip(), *_lines(value)):
                variables |= dict.fromkeys(_spellings(part), name)
        for match in _URL_PASSWORD.finditer(value):
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
    for match in _BY_FORM.finditer(text):
        form = int((match.lastgroup or "form0").removeprefix("form"))
        yield Secret(match.start(), match.end(), _FORMS[form][0])
    if "://" in text:
        for pattern, what in ((_URL_PASSWORD, "password"), (_URL_TOKEN, "token")):
            for match in pattern.finditer(text):
                if not is_placeholder(match["secret"]):
                    yield Secret(*match.span("secret"), f"a {what} inside a URL")
        for match in _URL_QUERY.finditer(text):
            if is_signature(match["name"], match["secret"]):
                what = f"the part {match['name']!r} of a URL, which authenticates"
                yield Secret(*match.span("secret"), what)
    for pattern in (_PAIR, _OPTION, _DEFAULT):
        is_secret = is_secret_variable if pattern is _DEFAULT else is_secret_key
        for match in pattern.finditer(text):
            if is_secret(match["name"]) and not is_placeholder(match["secret"]):
                variable = variable_name(match["name"])
                yield Secret(*match.span("secret"), f"the value of {match['name']}", variable)


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
