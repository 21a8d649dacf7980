"""What people and records call an artifact: names, versions and digests.

A ref is ``name`` or ``name:latest`` (the highest version), ``name:v3``, ``sha256:<prefix>``, or
``run:<run id>/<slot>`` (what a run put into a slot). On disk ``name:v3`` is written ``name@v3``.
No character that these patterns allow can leave the store's directory.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from nemotron_style.runtime.errors import Problem, RefError, shorten

LONGEST_NAME = 100
_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,99}")
_WORD = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,199}")
_VERSION = re.compile(r"v([1-9][0-9]{0,8})")
_PREFIX = re.compile(r"[0-9a-f]{6,64}")
_RESERVED = {"sha256", "run"}
_LOCATION = re.compile(r"[a-z][a-z0-9+.-]*://.*|[./~].*|.*/.*", re.DOTALL)
_USER = re.compile(r"(?<=://)[^/@]*@")


@dataclass(frozen=True)
class NamedRef:
    """An artifact by name; ``version`` None is the highest one."""

    name: str
    version: int | None


@dataclass(frozen=True)
class DigestRef:
    """An artifact by the first hex digits of its digest."""

    prefix: str


@dataclass(frozen=True)
class OutputRef:
    """What a run committed from one of its slots."""

    run_id: str
    slot: str


def parse_ref(text: str) -> NamedRef | DigestRef | OutputRef:
    """Parse a ref; raises RefError for a text that has the shape of none."""
    name, colon, rest = text.partition(":")
    if name == "sha256" and colon:
        if not _PREFIX.fullmatch(rest):
            raise _malformed(text, "sha256: and 6 to 64 hex digits")
        return DigestRef(rest)
    if name == "run" and colon:
        run_id, _, slot = rest.partition("/")
        return OutputRef(check_word(run_id, "run id"), check_word(slot, "slot"))
    check_name(name)
    version = _VERSION.fullmatch(rest)
    if colon and rest != "latest" and not version:
        raise _malformed(text, "name, name:latest, name:v3 or sha256:<prefix>")
    return NamedRef(name, int(version[1]) if version else None)


def is_location(text: str) -> bool:
    """Whether ``text`` is a path or a URI, to be adopted, rather than a ref."""
    return not text.startswith("run:") and bool(_LOCATION.fullmatch(text))


def strip_user(uri: str) -> str:
    """A URI as records hold it, without ``user:password@``."""
    return _USER.sub("", uri)


def check_name(name: str) -> str:
    """``name``; raises RefError when an artifact may not be called so."""
    if _NAME.fullmatch(name) and name not in _RESERVED:
        return name
    allowed = "a letter or digit, then up to 99 of a-z 0-9 . _ -, and not 'sha256' or 'run'"
    raise RefError(
        Problem(
            where="artifact name", what="cannot be used", got=shorten(repr(name)), allowed=allowed
        )
    )


def check_word(word: str, what: str) -> str:
    """``word``; raises RefError when it cannot be a run id, slot or kind in a file name."""
    if _WORD.fullmatch(word):
        return word
    allowed = "a letter or digit, then letters, digits, '.', '_' and '-'"
    raise RefError(
        Problem(where=what, what="cannot be used", got=shorten(repr(word)), allowed=allowed)
    )


def parse_version(text: str) -> int | None:
    """3 for ``v3``, None for anything else."""
    version = _VERSION.fullmatch(text)
    return int(version[1]) if version else None


def to_key(ref: str) -> str:
    """``name:v3`` as a file name."""
    return ref.replace(":", "@")


def from_key(key: str) -> str:
    """The ref that :func:`to_key` wrote as a file name."""
    return key.replace("@", ":")


def _malformed(text: str, allowed: str) -> RefError:
    return RefError(
        Problem(what="not a reference to an artifact", got=shorten(repr(text)), allowed=allowed)
    )
