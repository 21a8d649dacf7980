"""Which environment variables hold secrets, judged by their name."""

from __future__ import annotations

WORDS = frozenset(
    ("TOKEN", "KEY", "SECRET", "PASSWORD", "PAT", "CREDENTIAL", "CREDENTIALS", "PASSWD")
)


def looks_secret(name: str) -> bool:
    """Whether one of the words in ``name``, split at ``_``, says that it is a secret."""
    return not WORDS.isdisjoint(name.upper().split("_"))
