"""A named input or output of a step, as its manifest describes it."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, StrictBool, field_validator

from nemotron_style.runtime.errors import ManifestError, Problem
from nemotron_style.runtime.validation import get_key

SLOT_NAME = re.compile(r"[a-z][a-z0-9_]*")


class Table(BaseModel):
    """A TOML table that refuses keys it does not know."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        populate_by_name=True,
        protected_namespaces=(),
        defer_build=True,  # of most tables only the document around them is validated
    )


class Slot(Table):
    """One named input or output; an input may ``also`` take other kinds, or have a config key.

    With ``when`` it is there only where the config has those values at those keys. An input with
    ``same_tokens_as`` is joined with that in another slot, so both must have the same tokens.
    """

    name: str
    kind: str = Field(validation_alias="type")
    also: tuple[str, ...] = ()
    description: str = ""
    required: StrictBool = True
    config_key: str | None = None
    other_keys: tuple[str, ...] = ()  # what other systems call it
    same_tokens_as: str | None = None
    when: dict[str, Any] = Field(default_factory=dict)

    def is_there(self, values: Mapping[str, Any]) -> bool:
        """Whether a config with these values, its defaults included, has the slot."""
        return all(get_key(values, key) == value for key, value in self.when.items())

    @property
    def condition(self) -> str:
        """When the slot is there, in words; empty where it always is."""
        named = (f"{key} is {json.dumps(value)}" for key, value in self.when.items())
        return " and ".join(named)

    @field_validator("name")
    @classmethod
    def _check_name(cls, name: str) -> str:
        return match_pattern(SLOT_NAME, name, "a lower-case name such as 'model' or 'train_data'")


def match_pattern(pattern: re.Pattern[str], text: str, allowed: str) -> str:
    """``text``, unless it is not what ``pattern`` asks for: then ManifestError."""
    if not pattern.fullmatch(text):
        raise ManifestError(Problem(what="is malformed", got=repr(text), allowed=allowed))
    return text
