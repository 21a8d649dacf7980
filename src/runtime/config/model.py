"""What every ``Config`` is made of: strict, frozen tables, and where inputs come from."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    ValidationError,
    model_serializer,
    model_validator,
)

from nemotron_style.runtime.errors import ConfigError
from nemotron_style.runtime.validation import explain_errors, is_plain_key
from nemotron_style.runtime.validation import flatten as flatten  # for schemas of steps

MANDATORY = "???"
"""OmegaConf's value of a key that has to be given."""


MLFLOW, WANDB, OPENLINEAGE = "mlflow", "wandb", "openlineage"
TITLES = {MLFLOW: "MLflow", WANDB: "Weights & Biases", OPENLINEAGE: "OpenLineage"}
"""What can be told about runs. The names of the first two are also those of their packages and of
our extras."""


@dataclass(frozen=True)
class Tracker:
    """A tracker that is asked for: ``key`` is the config key that does.

    ``project`` is what it groups runs by (of MLflow the experiment; "": as its variable in the
    environment says, else the step) and ``name`` what it calls the run ("": the run's id). ``uri``
    is where MLflow keeps its runs ("": ``MLFLOW_TRACKING_URI``, else the folder of the run).
    ``more`` is for the tracker itself: its tags, the entity of Weights & Biases.
    """

    key: str
    project: str = ""
    name: str = ""
    uri: str = ""
    more: Mapping[str, Any] = field(default_factory=dict)


class Section(BaseModel):
    """A table inside a config: unknown keys refused, no silent conversion, unchangeable."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        strict=True,
        validate_default=True,
        allow_inf_nan=False,
        protected_namespaces=(),
        defer_build=True,  # of most sections only the config around them is validated
    )


class StepConfig(Section):
    """The base of every step's ``Config``."""

    seed: int = Field(default=1234, ge=0, description="seeds everything that is drawn")

    def trackers(self) -> Mapping[str, Tracker]:
        """The trackers that are told the metrics of the run, by name; here none."""
        return {}


class OpenConfig(StepConfig):
    """A config whose YAML files are its schema: keys and types are those that they have.

    Overrides are held to that (``config.override``); here every key and value is accepted.
    """

    model_config = ConfigDict(extra="allow", allow_inf_nan=True)

    seed: Any = None

    @model_serializer(mode="wrap")
    def _leave_out_no_seed(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        values: dict[str, Any] = dump(self)
        if "seed" not in self.model_fields_set:
            del values["seed"]
        return values


class ServiceSource(Section):
    """How a service that the step needs is started: the config of its step, and overrides.

    The keys of ``overrides`` are those of the command line (``model.optim.lr``), or tables.
    """

    config: str = "default"
    overrides: dict[str, Any] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _check_overrides(self) -> Self:
        keys = [key for key, _ in _spell_out(self.overrides)]
        if twice := sorted({key for key in keys if keys.count(key) > 1}):
            raise ValueError(f"overrides say {', '.join(twice)} twice")
        return self

    def as_overrides(self) -> tuple[str, ...]:
        """``overrides`` as they would be typed: nested tables as dotted keys, values as JSON."""
        return tuple(f"{key}={_write_json(item)}" for key, item in _spell_out(self.overrides))


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


def _spell_out(table: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(key, value) of every override; a table below whose keys hold a dot is a value as a whole."""
    for key, value in table.items():
        if isinstance(value, Mapping) and value and all(map(is_plain_key, value)):
            yield from _spell_out(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def _write_json(value: Any) -> str:
    """``value`` as JSON that is YAML too.

    YAML knows no surrogate pairs, and breaks lines at characters that JSON lets stand.
    """
    text = json.dumps(value, ensure_ascii=False)
    return re.sub(r"[\x7f-\uffff]", lambda char: f"\\u{ord(char[0]):04x}", text)


def cosmetic(default: Any = ..., **kwargs: Any) -> Any:
    """A field that cannot change the result, such as an interval of reporting.

    It takes the arguments of pydantic's ``Field`` and never enters the identity of a run.
    """
    return Field(default, json_schema_extra={"cosmetic": True}, **kwargs)


def unused(default: Any, **kwargs: Any) -> Any:
    """A field that no code reads: it is there so that the configs of other systems carry over.

    It is cosmetic, and the planner names it where a config gives it another value than
    ``default``. A key that promises something that matters (memory, numbers) must be held to one
    value instead: nobody would notice that the promise is not kept.
    """
    return Field(default, json_schema_extra={"cosmetic": True, "unused": True}, **kwargs)


def parse_config(
    schema: type[StepConfig], values: Mapping[str, Any], *, where: Callable[[str], str]
) -> StepConfig:
    """Complete ``values``, as a plan holds them, as a config.

    Raises ConfigError with every key or value that does not fit; ``where`` gives their places.
    """
    try:
        # By way of JSON, whose types are the rule: a list may fill a tuple, and no more.
        return schema.model_validate_json(json.dumps(values))
    except ValidationError as error:
        raise ConfigError(explain_errors(error, schema, values, where=where)) from None
