"""A NeMo-RL config that is being made: what was given, what stands now, and why."""

from __future__ import annotations

import json
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any

from nemotron_style.runtime.errors import Problem
from nemotron_style.steps.rl.rlhf.nemo_rl.job_variables import JobVariable
from nemotron_style.steps.rl.rlhf.nemo_rl.version import Version

ABSENT: Any = object()


@dataclass(frozen=True)
class Derived:
    """A value that was decided here, and why it is what it is."""

    key: str
    value: Any
    why: str


@dataclass
class Draft:
    """``given``: what the user said; ``values``: the whole; ``told``: what became of the rest."""

    version: Version
    given: dict[str, Any]
    values: dict[str, Any] = field(default_factory=dict)
    derived: list[Derived] = field(default_factory=list)
    told: list[str] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)

    def get(self, key: str) -> Any:
        """The value that stands at a key, or None."""
        value = find(self.values, key)
        return None if value is ABSENT else value

    def was_given(self, key: str) -> bool:
        """Whether the user said something at a key, null included."""
        return find(self.given, key) is not ABSENT

    def derive(self, key: str, value: Any, why: str) -> None:
        """Set a value that nobody gave; a given one stays, and the rules say whether it fits."""
        if not self.was_given(key):
            self._put(key, value, why)

    def force(self, key: str, value: Any, why: str) -> None:
        """Set a value that can be no other one; a given one that differs is told."""
        old = find(self.given, key)
        if old not in (ABSENT, None, value):
            why = f"{why}; {show(old)} was given"
            self.told.append(f"{key}={show(value)}: {why}")
        self._put(key, value, why)

    def leave_to_job(self, key: str, variable: JobVariable, why: str) -> None:
        """Set a value that only the job knows, whatever path or name was given for it here."""
        self._put(key, variable.reference, why)

    def take(self, key: str) -> Any:
        """The value that was given at a key, which is taken out; ABSENT where there is none."""
        value = find(self.given, key)
        if value is not ABSENT:
            above, _, last = key.rpartition(".")
            table = find(self.given, above) if above else self.given
            del table[last]
        return value

    def _put(self, key: str, value: Any, why: str) -> None:
        put(self.values, key, value)
        self.derived.append(Derived(key, value, why))


def find(values: Mapping[str, Any], key: str) -> Any:
    """The value at a dotted key of nested tables, or ABSENT: null and absent differ."""
    inner: Any = values
    for part in key.split("."):
        if not isinstance(inner, Mapping) or part not in inner:
            return ABSENT
        inner = inner[part]
    return inner


def put(values: dict[str, Any], key: str, value: Any) -> None:
    """Set the value at a dotted key, and make the tables above it where there are none."""
    *above, last = key.split(".")
    for part in above:
        if not isinstance(values.get(part), dict):
            values[part] = {}
        values = values[part]
    values[last] = value


def show(value: Any, width: int = 60) -> str:
    """A value in one line, as YAML users know it."""
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= width else text[: width - 3] + "..."


def merge(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """``above`` over ``below``, table by table."""
    merged = deepcopy(dict(below))
    for key, value in above.items():
        old = merged.get(key)
        both = isinstance(old, Mapping) and isinstance(value, Mapping)
        merged[key] = merge(old, value) if both else deepcopy(value)
    return merged
