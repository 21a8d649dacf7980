"""Keys that are understood but not free: held to one value, or to the value of another key.

Steps take the keys of the systems that their users come from. A key that asks for something that
is not done must not be swallowed: it is refused unless it asks for what happens anyway.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from typing import Any

from pydantic import AfterValidator, Field

from nemotron_style.runtime.errors import ConfigError, Problem


def only(*allowed: Any, why: str, fix: str = "") -> AfterValidator:
    """Accept the values ``allowed``; refuse others with the reason and what to do."""

    def check(value: Any) -> Any:
        if any(value == one and type(value) is type(one) for one in allowed):
            return value
        words = " or ".join(map(json.dumps, allowed))
        raise ConfigError(Problem(what=why, got=json.dumps(value), allowed=words, fix=fix))

    return AfterValidator(check)


def fixed(default: Any, *also: Any, why: str, fix: str = "") -> Any:
    """A field that is held to ``default``, and perhaps to the values ``also``; see :func:`only`."""
    field = Field(default=default)
    field.metadata.append(only(default, *also, why=why, fix=fix))
    return field


def find_conflicts(pairs: Iterable[tuple[str, Any, str, Any]]) -> Iterator[Problem]:
    """Problems of keys that repeat another key with another value.

    ``pairs`` are ``(key, its value or None, the key it repeats, that value)``.
    """
    for key, value, source, wanted in pairs:
        if value is not None and value != wanted:
            yield Problem(
                key=key,
                what=f"repeats {source} and must agree with it",
                got=str(value),
                allowed=str(wanted),
                fix=f"set {source}",
            )
