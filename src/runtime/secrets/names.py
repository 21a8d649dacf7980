"""Which names of variables and keys say that their value is a secret.

The words for what authenticates are also words of language models: ``hf_token`` and ``api_key``
are secrets, ``eos_token``, ``max_new_tokens`` and ``config_key`` are not.
"""

from __future__ import annotations

import re
from functools import lru_cache


def _read_words(text: str) -> frozenset[str]:
    return frozenset(text.split())


# Words that are secrets wherever they stand in a name.
_ALWAYS = frozenset(
    ("apikey", "credential", "credentials", "passphrase", "passwd", "password", "secret")
)
# Words that are, as the last of several: GH_PAT, DB_PASS, MYSQL_PWD.
_LAST = frozenset(("auth", "cookie", "jwt", "pass", "passcode", "pat", "pwd"))
# Words before those that make them something else: eval_pass, use_auth, file_pat.
_NO_LOGIN = _read_words(
    """all avg backward band by check dev dry each enable enabled eval exclude file final first
    forward full glob has high include last low main max mean mid min multi n name need needs no
    num one over path per post pre regex require required requires second single skip test tests
    third total train two under unit use uses val warmup with without"""
)
# Names that end so hold a secret also where that is a short whole number.
_PASSWORDS = frozenset(("pass", "passcode", "passphrase", "passwd", "password", "pin", "pwd"))
_ENDS = ("apikey", "passwd", "password", "secret", "token")  # PGPASSWORD, HFTOKEN
# A last word that makes the name one of something about a secret.
_ABOUT = _read_words(
    """algorithm budget count dir env expiry field file folder header id index length limit mode
    name names path prefix provider ref rotation size stdin store ttl type"""
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
# What stands where a secret would and is none: a reference, a mask, a word from a manual.
_WORDS = r"EMPTY|VALUE|NAME|none|null|true|false|default|disabled|anonymous|x{3,}|\.{2,}.*|['\"]*"
_PLAIN_WORD = re.compile(_WORDS, re.IGNORECASE)
# Numbers of a measurement, and truth values.
_FIGURE = re.compile(
    r"[-+]?(?:\d+\.\d*|\.\d+|\d+(?:\.\d*)?e[-+]?\d+|inf|nan)%?|true|false|yes|no|on|off",
    re.IGNORECASE,
)
_COUNT = re.compile(r"[-+]?\d{1,7}%?")
_STAND_IN = re.compile(
    r"\$\w+(?:[;&|].*)?|\$[{(].*|`.*|\*+(?:[|)].*)?|\{[^}]*\}|<[^>]*>|\[[^\]]*\]|[\[{]|" + _WORDS,
    re.IGNORECASE | re.DOTALL,
)


def is_secret_variable(name: str) -> bool:
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


@lru_cache(maxsize=4096)
def is_secret_key(key: str) -> bool:
    """Whether a key of a config, or the name of an option, says that its value is a secret."""
    parts = [part for part in re.split(r"[.\[\]]+", key) if part and not part.isdigit()]
    return any(_is_secret_part(part) for part in parts)


def _is_secret_part(part: str) -> bool:
    if part.isupper():
        return is_secret_variable(part)
    split = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", part).lower()
    words = [word for word in re.split(r"[_\W]+", split) if word]
    if _says_so(words) or words in (["token"], ["authorization"], ["bearer"]):
        return True
    if words[-1:] != ["token"] and words and words[-1].endswith(_ENDS[:-1]):  # dbpassword
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
        return words[-2] not in _NO_LOGIN
    many = words[-1] in ("keys", "tokens") and {"api", "access", "auth"} & {*words[-2:-1]}
    together = tuple(words[-2:]) == _CONNECTION
    return bool(_ALWAYS.intersection(words) or many or together)


def holds_secret(name: str, value: str) -> bool:
    """Whether ``value``, as it stands after ``name``, is a secret."""
    last = re.split(r"[.\[\]]+", name)[-1]
    if last.isupper() and value.rstrip(",;)]}'\"") == last:
        return False  # HF_TOKEN: HF_TOKEN says which variable is read
    return is_secret_key(name) and not is_placeholder(value) and not is_figure(value, name=name)


def is_figure(value: str, *, name: str = "") -> bool:
    """Whether ``value`` is a truth value, a measurement or, for most names, a count.

    A password may be a short whole number, and a key or a token a long one.
    """
    value = re.split(r"[;,&|]", value, maxsplit=1)[0].rstrip(".:)]}")
    last = re.split(r"[\W_]+", name.lower())[-1]
    whole = _COUNT.fullmatch(value) and last not in _PASSWORDS and not last.endswith("password")
    return bool(whole or _FIGURE.fullmatch(value))


def is_placeholder(value: str) -> bool:
    """Whether ``value`` only stands for a secret: ``$HF_TOKEN``, ``...``, ``null``."""
    return any(_STAND_IN.fullmatch(each) for each in (value, value.rstrip(",.;:)]}")))


def is_plain_word(value: str) -> bool:
    """Whether ``value`` says that there is no secret, or none yet: ``disabled``, ``none``."""
    return _PLAIN_WORD.fullmatch(value) is not None


def variable_name(key: str) -> str:
    """An environment variable that could be called so: ``model.hf-token`` -> ``HF_TOKEN``."""
    last = re.split(r"[.\[\]]+", key.rstrip("]"))[-1]
    return re.sub(r"\W", "_", last).upper().strip("_")
