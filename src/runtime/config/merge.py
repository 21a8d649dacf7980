"""A config on its way from files and overrides to values that fit the step's schema."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeVar

from pydantic import BaseModel, Field, ValidationError, create_model

from nemotron_style.runtime.catalog.manifest import Manifest
from nemotron_style.runtime.config.interpolation import leaves, resolve_interpolations
from nemotron_style.runtime.config.model import (
    MANDATORY,
    InputSource,
    ServiceSource,
    StepConfig,
    validate,
)
from nemotron_style.runtime.config.override import apply_override, read_override
from nemotron_style.runtime.config.yaml_file import YamlFile
from nemotron_style.runtime.errors import ConfigError, Problem, suggest
from nemotron_style.runtime.validation import explain_errors, find_key, join_key, split_key

SOURCES = ("inputs.", "services.")
Source = TypeVar("Source", bound=ServiceSource)


class MergedConfig:
    """A config on its way: values, where each key stands, and the problems found so far."""

    def __init__(self, manifest: Manifest, schema: type[StepConfig], file: str) -> None:
        self.manifest = manifest
        self.schema = schema
        self.file = file
        self.values: dict[str, Any] = {}
        self.places: dict[str, str] = {}
        self.problems: list[Problem] = []

    def read(self, document: YamlFile) -> None:
        """Begin with what the files say."""
        self.values = document.values
        self.places = dict(document.places)

    def where(self, key: str) -> str:
        """The file and line of ``key``, or of the nearest table above it."""
        while key and key not in self.places:
            key = key[: max(key.rfind("."), key.rfind("["), 0)]
        return self.places.get(key, self.file)

    def apply(self, overrides: Sequence[str]) -> None:
        """Apply what was typed, in its order."""
        typed = _with_sources(self.schema)
        for text in overrides:
            try:
                override = read_override(text)
                apply_override(self.values, override, typed)
                self.places[override.key] = f"override {text!r}"
            except ConfigError as error:
                self.problems += error.problems

    def take_sources(self) -> tuple[dict[str, InputSource], dict[str, ServiceSource]]:
        """Take the tables ``inputs`` and ``services`` out of the values, interpolations resolved.

        They say where inputs come from, and how the services beside the step are started.
        """
        whole, dangling = resolve_interpolations(self.values, self.schema, where=self.where)
        self.problems += [each for each in dangling if each.key.startswith(SOURCES)]
        slots = [slot.name for slot in self.manifest.consumes]
        needs = [need.name for need in self.manifest.needs]
        inputs = self._read_table("inputs", whole, InputSource, slots)
        return inputs, self._read_table("services", whole, ServiceSource, needs)

    def _read_table(
        self, table: str, whole: dict[str, Any], model: type[Source], names: Sequence[str]
    ) -> dict[str, Source]:
        self.values.pop(table, None)
        told = whole.get(table) or {}
        if not isinstance(told, dict):
            problem = Problem(where=self.where(table), key=table, what="must be a table")
            self.problems.append(problem)
            return {}
        found: dict[str, Source] = {}
        for name, value in told.items():
            key = f"{table}.{name}"
            if name not in names:
                fix = suggest(name, names) or f"there are: {', '.join(names) or 'none'}"
                what = f"{self.manifest.id} has no such {table.removesuffix('s')}"
                self.problems.append(Problem(where=self.where(key), key=key, what=what, fix=fix))
            elif value is not None:
                found |= self._read_source(name, value, model, prefix=key)
        return found

    def _read_source(
        self, name: str, value: Any, model: type[Source], *, prefix: str
    ) -> dict[str, Source]:
        try:
            return {name: model.model_validate(value)}
        except ValidationError as error:
            for each in explain_errors(error, model, value, where=lambda _: self.where(prefix)):
                key = f"{prefix}.{each.key}".rstrip(".")
                self.problems.append(replace(each, key=key, where=self.where(key)))
            return {}

    def finish(self) -> tuple[StepConfig, list[str]]:
        """Resolve and validate; the second result are the slot-bound keys that are still open."""
        values, dangling = resolve_interpolations(self.values, self.schema, where=self.where)
        self.problems += dangling
        unbound = self._open_slots(values)
        self._refuse_mandatory(values)
        told = {problem.key for problem in self.problems}
        try:
            config = validate(self.schema, values)
        except ValidationError as error:
            found = explain_errors(error, self.schema, values, where=self.where)
            self.problems += [
                self._advise(each) for each in found if each.got or each.key not in told
            ]
        if self.problems:
            raise ConfigError(self.problems)
        return config, unbound

    def _advise(self, problem: Problem) -> Problem:
        """Add what to do, where pydantic cannot know it."""
        written = str(get(self.values, problem.key))
        if problem.what.startswith("is required"):
            return replace(problem, fix=f"give {problem.key}=VALUE")
        if problem.got and "${oc.env:" in written and "oc.decode" not in written:
            fix = f"a variable is text; to read it as a value write ${{oc.decode:{written}}}"
            return replace(problem, fix=fix)
        return problem

    def _open_slots(self, values: dict[str, Any]) -> list[str]:
        """Give slot-bound keys that are still open what validation needs; name the required ones.

        What an input is called in the end is decided when inputs are bound, not here.
        """
        unbound = []
        for key in self.manifest.bound_keys:
            info = find_key(self.schema, split_key(key)).field
            value = get(values, key)
            if info is None or value not in (None, MANDATORY):
                continue
            if info.is_required():
                unbound.append(key)
                put(values, key, "unbound")
            elif value == MANDATORY:
                drop(values, split_key(key))
        return unbound

    def _refuse_mandatory(self, values: dict[str, Any]) -> None:

        for path, value in list(leaves(values)):
            if value != MANDATORY:
                continue
            key = join_key(path)
            what, fix = "is mandatory and was not given", f"give {key}=VALUE"
            self.problems.append(Problem(where=self.where(key), key=key, what=what, fix=fix))
            if all(isinstance(part, str) for part in path):
                drop(values, [str(part) for part in path])


def drop(values: dict[str, Any], parts: Sequence[str]) -> None:
    for part in parts[:-1]:
        values = values[part]
    del values[parts[-1]]


def _with_sources(schema: type[StepConfig]) -> type[BaseModel]:
    """The schema as the command line sees it: with two tables that are no fields."""
    inputs: Any = (dict[str, InputSource], Field(default_factory=dict))
    services: Any = (dict[str, ServiceSource], Field(default_factory=dict))
    return create_model("WithSources", __base__=schema, inputs=inputs, services=services)


def get(values: Any, key: str) -> Any:
    for part in split_key(key):
        values = values.get(part) if isinstance(values, Mapping) else None
    return values


def put(values: dict[str, Any], key: str, value: Any) -> None:
    *above, last = split_key(key)
    for part in above:
        inner = values.setdefault(part, {})
        if not isinstance(inner, dict):  # refused by the schema, under its own name
            return
        values = inner
    values[last] = value
