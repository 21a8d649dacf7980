"""Overrides of a test's settings, as they would be typed."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from typing import Any


def override(settings: Mapping[str, Any], *overrides: str) -> dict[str, Any]:
    """A copy of ``settings`` with ``a.b=json`` on top."""
    values = copy.deepcopy(dict(settings))
    for text in overrides:
        key, _, value = text.partition("=")
        *above, last = key.split(".")
        table = values
        for part in above:
            table = table.setdefault(part, {})
        table[last] = json.loads(value)
    return values
