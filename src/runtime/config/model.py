"""What every ``Config`` is made of: strict, frozen tables, and where inputs come from."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, Field, model_validator

if TYPE_CHECKING:
    pass

MANDATORY = "???"


class Section(BaseModel):
    """A table inside a config: unknown keys refused, no silent conversion, unchangeable."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        strict=True,
        validate_default=True,
        allow_inf_nan=False,
        protected_namespaces=(),
    )


class StepConfig(Section):
    """The base of every step's ``Config``."""

    seed: int = Field(default=1234, ge=0, description="seeds everything that is drawn")


class ServiceSource(Section):
    """How a service that the step needs is started: the config of its step, and overrides."""

    config: str = "default"
    overrides: dict[str, Any] = Field(default_factory=dict)

    def as_overrides(self) -> tuple[str, ...]:
        """``overrides`` as they would be typed: nested tables as dotted keys, values as JSON."""
        pairs = flatten(self.overrides)
        return tuple(f"{key}={json.dumps(value)}" for key, value in pairs.items())


class InputSource(ServiceSource):
    """Where an input comes from when nobody names it: a step to run first, or a ref."""

    step: str | None = None
    slot: str | None = None
    ref: str | None = None

    @model_validator(mode="after")
    def _check_one_source(self) -> InputSource:
        if (self.step is None) == (self.ref is None):
            raise ValueError("needs exactly one of 'step' and 'ref'")
        return self


def cosmetic(default: Any = ..., **kwargs: Any) -> Any:
    """A field that cannot change the result, such as an interval of reporting.

    It takes the arguments of pydantic's ``Field`` and never enters the identity of a run.
    """
    return Field(default, json_schema_extra={"cosmetic": True}, **kwargs)


def validate(schema: type[StepConfig], values: Mapping[str, Any]) -> StepConfig:
    """Plain data into ``schema``. JSON's types are the rule: a list may fill a tuple, no more."""
    return schema.model_validate_json(json.dumps(values))


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested tables as dotted keys; lists and empty tables stay values."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat
