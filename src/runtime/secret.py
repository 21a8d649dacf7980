"""What is a secret, and how to keep it out of what is shown.

A secret is known by its name (``HF_TOKEN``, ``api_key``), by its form (a password inside a URL, a
signature in its query, ``ghp_...``) or by its value, which is that of an environment variable
whose name says that it is secret. What authenticates is meant, not the vocabulary of language
models: ``eos_token``, ``max_new_tokens`` and ``config_key`` are no secrets.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from urllib.parse import quote

SHORTEST = 8  # a shorter value would be found in every other word
SHORTEST_LINE = 16
MASK = "[secret]"


def _read_words(text: str) -> frozenset[str]:
    return frozenset(text.split())


# Words that are secrets wherever they stand in a name.
_ALWAYS = frozenset(
    ("apikey", "credential", "credentials", "passphrase", "passwd", "password", "secret")
)
# Words that are, as the last of several: GH_PAT, DB_PASS, MYSQL_PWD.
_LAST = frozenset(("auth", "cookie", "jwt", "pass", "passcode", "pat", "pwd"))
_ENDS = ("apikey", "passwd", "password", "secret", "token")  # PGPASSWORD, HFTOKEN
# A last word that makes the name one of something about a secret.
_ABOUT = _read_words(
    """algorithm budget count dir env expiry field file folder header id index length limit mode
    name names path prefix provider ref rotation size store ttl type"""
)
# In a variable, every token and key is a secret but those; in a config, only these others are.
_PLAIN = _read_words(
    """bos cache cls column config dict eos foreign group host image input label lookup mask
    messages num output pad partition per primary prompt public response sep sort special start
    state stop system text turn unk video"""
)
_AUTHENTICATES = _read_words(
    """access account api app auth aws azure bearer bot client csrf deploy encryption github gh git
    gitlab hf hub huggingface id license login master ngc nvidia oauth openai personal private
    refresh sas secret security service session signing slack ssh storage subscription wandb
    x"""
)
_NAMED = {"DOCKER_AUTH_CONFIG": True, "GOOGLE_APPLICATION_CREDENTIALS": False}
_CONNECTION = ("connection", "string")

_URL_PASSWORD = re.compile(r"://[^\s/:@\"'<>\\]*:(?!\d+(?:[/?#\"'\s\\]|$))(?P<secret>[^\s\"'<>]+)@")
_URL_TOKEN = re.compile(r"https?://(?P<secret>[^\s/:@\"'<>\\]{16,})@")
_URL_QUERY = re.compile(r"[?&;](?P<name>[\w.-]+)=(?P<secret>[^&;\s\"'#\\<>]+)")
_SIGNS = _read_words(
    """auth authorization awsaccesskeyid sig signature token x-amz-credential
    x-amz-security-token x-amz-signature x-goog-credential x-goog-signature"""
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
    ("a private key", r"-----BEGIN [A-Z ]*PRIVATE KEY-----[^\"']*?(?:-----END[A-Z ]*-----|$)"),
)
_DEFAULT = re.compile(r"oc\.env\s*:\s*['\"]?(?P<name>\w+)['\"]?\s*,\s*['\"]?(?P<secret>[^}'\"]+)")
_BY_FORM = re.compile("|".join(f"(?P<form{i}>{form})" for i, (_, form) in enumerate(_FORMS)))
# What stands where a secret would and is none: a reference, a mask, a word from a manual.
_STAND_IN = re.compile(
    r"[$`*{\[(<].*|\.{2,}.*|x{3,}|['\"]*|EMPTY|VALUE|NAME|none|null|true|false|default",
    re.IGNORECASE | re.DOTALL,
)
_BEGUN = re.compile(r":/?\Z|(?:://|\bhf_|\bgh[pousr]_|github_pat_|nvapi-|\bsk-)[^\s\"']*\Z")
_BEGUN_PAIR = re.compile(r"(?<![\w.-])(?P<name>[A-Za-z_][\w.-]*)\s?=\s?[^\s\"']*\Z")
_LAST_WORD = re.compile(r"(?<!\S)\S+\Z")
_WINDOW = 4096  # more of the end of a text is never held back

_announced: set[str] = set()


@dataclass(frozen=True)
class Secret:
    """A place in a text: ``text[start:end]``. ``why`` says what it is, ``variable`` whose value."""

    start: int
    end: int
    why: str
    variable: str = ""


def looks_secret(name: str) -> bool:
    """Whether the name of an environment variable says that it holds a secret."""
    words = name.lower().split("_")
    if name.upper() in _NAMED:
        return _NAMED[name.upper()]
    if _says_so(words) or (words[-1].endswith(_ENDS) and words[-1] != "token"):
        return True
    if words[-1] in _ABOUT and words[-2:] != ["key", "id"]:
        return False
    before = ["", *words]
    named = [before[at] for at, word in enumerate(words) if word in ("token", "key")]
    return any(word not in _PLAIN for word in named)


def is_secret_key(key: str) -> bool:
    """Whether a key of a config, or the name of an option, says that its value is a secret."""
    parts = [part for part in re.split(r"[.\[\]]+", key) if part and not part.isdigit()]
    return any(_is_secret_part(part) for part in parts)


def _is_secret_part(part: str) -> bool:
    if part.isupper():
        return looks_secret(part)
    split = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", part).lower()
    words = [word for word in re.split(r"[_\W]+", split) if word]
    if _says_so(words) or words in (["token"], ["authorization"], ["bearer"]):
        return True
    if words[-2:] == ["key", "id"]:
        words.pop()
    whole = words[-1:] in (["token"], ["key"], ["tokens"], ["keys"])
    return whole and bool(_AUTHENTICATES.intersection(words[-2:-1]))


def _says_so(words: list[str]) -> bool:
    """What names of variables and keys have in common."""
    if not words or words[-1] in _ABOUT:
        return False
    if len(words) > 1 and words[-1] in _LAST:
        return True
    many = words[-1] in ("keys", "tokens") and {"api", "access", "auth"} & {*words[-2:-1]}
    together = tuple(words[-2:]) == _CONNECTION
    return bool(_ALWAYS.intersection(words) or many or together)


def announce_secrets(names: Iterable[str]) -> None:
    """Treat these environment variables as secrets too, whatever they are called."""
    _announced.update(names)


def known_values(environment: Mapping[str, str] | None = None) -> dict[str, str]:
    """The values of secrets in the environment, as they may be written, with their variables.

    A value may stand in a text raw, or as JSON, a URL or Python write it. Of a value of many
    lines each line counts; of a URL its password does.
    """
    found: dict[str, str] = {}
    for name, value in (os.environ if environment is None else environment).items():
        if name in _announced or looks_secret(name):
            for part in (value, value.strip(), *_lines(value)):
                found |= dict.fromkeys(_spellings(part), name)
        elif "://" in value:
            passwords = [each["secret"] for each in _URL_PASSWORD.finditer(value)]
            found |= {word: name for word in passwords if not is_stand_in(word)}
    return {value: name for value, name in found.items() if len(value) >= SHORTEST}


def find_secrets(text: str) -> Iterator[Secret]:
    """Every secret in ``text``, by value, by form and by name; they may overlap."""
    for value, variable in known_values().items():
        for start in _places(text, value):
            yield Secret(start, start + len(value), f"the value of ${variable}", variable)
    for match in _BY_FORM.finditer(text):
        form = int((match.lastgroup or "form0").removeprefix("form"))
        yield Secret(match.start(), match.end(), _FORMS[form][0])
    if "://" in text:
        yield from _groups(_URL_PASSWORD, text, "a password inside a URL")
        yield from _groups(_URL_TOKEN, text, "a token inside a URL")
        for match in _URL_QUERY.finditer(text):
            if is_signing(match["name"], match["secret"]):
                what = f"the part {match['name']!r} of a URL, which authenticates"
                yield Secret(*match.span("secret"), what)
    for pattern in (_PAIR, _OPTION, _DEFAULT):
        judge = looks_secret if pattern is _DEFAULT else is_secret_key
        for match in pattern.finditer(text):
            if judge(match["name"]) and not is_stand_in(match["secret"]):
                variable = name_variable(match["name"])
                yield Secret(*match.span("secret"), f"the value of {match['name']}", variable)


def is_signing(name: str, value: str) -> bool:
    """Whether a part of a URL's query lets its bearer in."""
    known = name.lower() in _SIGNS or (name.lower() == "key" and len(value) >= SHORTEST_LINE)
    return (known or is_secret_key(name)) and not is_stand_in(value)


def is_stand_in(value: str) -> bool:
    """Whether ``value`` only stands for a secret: ``$HF_TOKEN``, ``...``, ``null``."""
    return any(_STAND_IN.fullmatch(each) for each in (value, value.rstrip(",.;:)]}")))


def name_variable(key: str) -> str:
    """An environment variable that could be called so: ``model.hf-token`` -> ``HF_TOKEN``."""
    last = re.split(r"[.\[\]]+", key.rstrip("]"))[-1]
    return re.sub(r"\W", "_", last).upper().strip("_")


def redact(text: str) -> str:
    """``text`` with every secret replaced by a mask."""
    spans = sorted((each.start, each.end) for each in find_secrets(text))
    if not spans:
        return text
    parts, done = [], 0
    for start, end in spans:
        if start >= done:
            parts += [text[done:start], MASK]
        done = max(done, end)
    return "".join([*parts, text[done:]])


def begun_secret(text: str, *, any_word: bool = False) -> int:
    """How many characters at the end of ``text`` may be the beginning of a secret.

    With ``any_word`` the last word may be one, whatever it looks like so far.
    """
    text = text[-_WINDOW:]
    form, pair = _BEGUN.search(text), _BEGUN_PAIR.search(text)
    longest = len(text) - form.start() if form else 0
    if any_word and (word := _LAST_WORD.search(text)):
        longest = max(longest, len(text) - word.start())
    if pair and is_secret_key(pair["name"]):
        longest = max(longest, len(text) - pair.start())
    for value in known_values():
        most = min(len(value) - 1, len(text))
        ends = (size for size in range(most, longest, -1) if text.endswith(value[:size]))
        longest = max(longest, next(ends, 0))
    return longest


def _groups(pattern: re.Pattern[str], text: str, why: str) -> Iterator[Secret]:
    for match in pattern.finditer(text):
        if not is_stand_in(match["secret"]):
            yield Secret(*match.span("secret"), why)


def _places(text: str, value: str) -> Iterator[int]:
    start = text.find(value)
    while start >= 0:
        yield start
        start = text.find(value, start + 1)


def _lines(value: str) -> list[str]:
    lines = value.split("\n") if "\n" in value else []
    return [line.strip() for line in lines if len(line.strip()) >= SHORTEST_LINE]


def _spellings(value: str) -> set[str]:
    as_json = {json.dumps(value, ensure_ascii=plain)[1:-1] for plain in (True, False)}
    return {value, repr(value)[1:-1], quote(value), quote(value, safe=""), *as_json}
