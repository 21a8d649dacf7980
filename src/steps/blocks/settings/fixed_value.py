"""Settings that are understood and held to the values that mean what is done.

Steps take the keys of the systems that their users come from. A key that asks for something that
is not done must not be swallowed: it is refused unless it asks for what happens anyway.
"""

from __future__ import annotations

import json
from typing import Any

from pydantic import AfterValidator

from nemotron_style.runtime.errors import ConfigError, Problem


def only(*allowed: Any, why: str, fix: str = "") -> AfterValidator:
    """Accept the values ``allowed``; refuse others with the reason and what to do."""

    def check(value: Any) -> Any:
        if any(value == one and type(value) is type(one) for one in allowed):
            return value
        words = " or ".join(map(json.dumps, allowed))
        raise ConfigError(Problem(what=why, got=json.dumps(value), allowed=words, fix=fix))

    return AfterValidator(check)
