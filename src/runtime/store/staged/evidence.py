"""What a record may tell: plain data, and no secret's value."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from nemotron_style.runtime.errors import ArtifactError, Problem, raise_all

_SHORTEST_SECRET = 6


def reject_secret_values(text: str, forbidden: Sequence[str], *, where: str) -> None:
    """Refuse a record in which the value of a secret occurs; the value is not repeated.

    Values under six characters are passed over: ``1`` or ``true`` hides nothing and would occur
    in every record. Raises ArtifactError, which names the lines of the record.
    """
    what, fix = "holds a secret's value", "pass it by environment variable, not by config or facts"
    values = [
        json.dumps(value, ensure_ascii=False)[1:-1]  # as the record writes it
        for value in forbidden
        if len(value) >= _SHORTEST_SECRET
    ]
    lines = [line for line in text.splitlines() if any(value in line for value in values)]
    keys = [line.split(":")[0].strip(' "') for line in lines]
    raise_all(ArtifactError, [Problem(where=where, key=key, what=what, fix=fix) for key in keys])


def to_plain(value: Any, *, key: str) -> Any:
    """``value`` as JSON can hold it: paths become text, tuples lists, ``nan`` and ``inf`` text.

    Raises ArtifactError for anything else in it; ``key`` is the key of ``value``.
    """
    # A loss that is not a number is worth a line in the record, not a lost training run.
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if isinstance(value, str | os.PathLike):
        return os.fspath(value).encode("utf-8", "backslashreplace").decode()
    if isinstance(value, Mapping):
        return {str(name): to_plain(item, key=f"{key}.{name}") for name, item in value.items()}
    if isinstance(value, Iterable) and not isinstance(value, bytes):
        return [to_plain(item, key=f"{key}[{index}]") for index, item in enumerate(value)]
    what = "cannot be written as JSON"
    raise ArtifactError(Problem(where="record", key=key, what=what, got=type(value).__name__))
