"""A config on its way from files and overrides to values that fit the step's schema."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any, TypeVar

from pydantic import BaseModel, Field, ValidationError, create_model

from nemotron_style.runtime.catalog.manifest import Manifest
from nemotron_style.runtime.catalog.nemotron_tree import TreeManifest
from nemotron_style.runtime.catalog.other_keys import meant_keys
from nemotron_style.runtime.config.interpolation import leaves, resolve_interpolations
from nemotron_style.runtime.config.model import (
    MANDATORY,
    InputSource,
    OpenConfig,
    ServiceSource,
    StepConfig,
    parse_config,
)
from nemotron_style.runtime.config.open_override import MISSING, check_open, find_value
from nemotron_style.runtime.config.override import apply_override, parse_override
from nemotron_style.runtime.config.yaml_file import YamlFile
from nemotron_style.runtime.errors import ConfigError, Problem, suggest
from nemotron_style.runtime.secrets.reject import remove_secrets
from nemotron_style.runtime.validation import (
    explain_errors,
    find_key,
    get_key,
    join_key,
    put_key,
    remove_key,
    split_key,
)

SOURCES = ("inputs.", "services.")
Source = TypeVar("Source", bound=ServiceSource)


class MergedConfig:
    """The values of a config's files and overrides, their locations, and the problems so far."""

    def __init__(
        self, manifest: Manifest, schema: type[StepConfig], file: YamlFile, *, name: str
    ) -> None:
        self.manifest = manifest
        self.schema = schema
        self.name = name
        self.values = file.values
        self.locations = dict(file.locations)
        self.overridden: list[str] = []
        self.problems: list[Problem] = []
        self.literal: dict[str, Any] = {}

    def where(self, key: str) -> str:
        """The file and line of ``key``, or of the nearest table above it.

        A table is blamed together with the overrides of what is in it.
        """
        while key and key not in self.locations:
            key = key[: max(key.rfind("."), key.rfind("["), 0)]
        inside = (self.locations[below] for below in self.overridden if below.startswith(f"{key}."))
        return ", ".join([self.locations.get(key, self.name), *inside])

    def apply_overrides(self, overrides: Sequence[str]) -> None:
        """Apply overrides in the order in which they were typed."""
        schema, meant = _with_sources(self.schema), meant_keys(self.manifest)
        for text in overrides:
            try:
                override = parse_override(text)
                override = replace(override, key=meant.get(override.key, override.key))
                if issubclass(self.schema, OpenConfig):
                    check_open(self.values, override)
                apply_override(self.values, override, schema)
                self.locations[override.key] = f"override {text!r}"
                self.overridden.append(override.key)
            except ConfigError as error:
                self.problems += error.problems

    def fill_slots(self, manifest: TreeManifest, filled: Iterable[str]) -> None:
        """Put marks at the keys of a tree's slots, and its literal keys aside, uninterpolated.

        The keys of all outputs are filled, and those of the inputs that are named.
        """
        for slot in manifest.slots("output"):
            for key, text in manifest.marks("output", [slot.name]).items():
                if key in self.overridden:
                    what = f"is where the output {slot.name} is made, and cannot be chosen"
                    self._add_problem(key, what, fix="leave it out; --name names the artifact")
                if find_value(self.values, split_key(key)) is not MISSING:
                    put_key(self.values, key, text)
                elif slot.required:
                    what = f"is bound to the output {slot.name}, and this config has no such key"
                    self._add_problem(key, what, fix=f"add it: +{key}=''")
        for key, text in manifest.marks("input", filled).items():
            put_key(self.values, key, text)
        required = [slot for slot in manifest.slots("input") if slot.required]
        for key in (key for slot in required for key in slot.keys):
            if find_value(self.values, split_key(key)) == MANDATORY:
                put_key(self.values, key, None)  # what fills it is decided when inputs are bound
        for key in manifest.literal:
            value = find_value(self.values, split_key(key))
            if value is not MISSING:
                safe, leaked = remove_secrets({key: value}, where=self.where)
                self.problems += leaked
                put_key(self.literal, key, safe.get(key))
                remove_key(self.values, key)

    def take_sources(self) -> tuple[dict[str, InputSource], dict[str, ServiceSource]]:
        """Take the tables ``inputs`` and ``services`` out of the values, interpolations resolved.

        They say where inputs come from, and how the services beside the step are started.
        """
        resolved, problems = resolve_interpolations(self.values, self.schema, where=self.where)
        # Those of other tables are found again, and reported, when the rest is validated.
        self.problems += [problem for problem in problems if problem.key.startswith(SOURCES)]
        slots = [slot.name for slot in self.manifest.consumes]
        needs = [need.name for need in self.manifest.needs]
        inputs = self._take_table("inputs", resolved, InputSource, slots)
        return inputs, self._take_table("services", resolved, ServiceSource, needs)

    def _take_table(
        self, table: str, resolved: dict[str, Any], model: type[Source], names: Sequence[str]
    ) -> dict[str, Source]:
        self.values.pop(table, None)
        entries = resolved.get(table) or {}
        if not isinstance(entries, dict):
            self._add_problem(table, "must be a table")
            return {}
        sources: dict[str, Source] = {}
        for name, value in entries.items():
            key = f"{table}.{name}"
            if name not in names:
                fix = suggest(name, names) or f"there are: {', '.join(names) or 'none'}"
                what = f"{self.manifest.id} has no such {table.removesuffix('s')}"
                self._add_problem(key, what, fix=fix)
            elif value is not None:
                try:
                    sources[name] = model.model_validate(value)
                except ValidationError as error:
                    for problem in explain_errors(error, model, value, where=lambda _: ""):
                        below = f"{key}.{problem.key}".rstrip(".")
                        problem = replace(problem, key=below, where=self.where(below))
                        self.problems.append(problem)
        return sources

    def validate(self) -> tuple[StepConfig, list[str]]:
        """The config, and the slot-bound keys that are still open.

        Raises ConfigError with every problem that was found on the way.
        """
        values, problems = resolve_interpolations(self.values, self.schema, where=self.where)
        self.problems += problems
        unbound = self._fill_open_slots(values)
        self._remove_mandatory(values)
        reported = {problem.key for problem in self.problems}
        try:
            config = parse_config(self.schema, values, where=self.where)
        except ConfigError as error:
            # What was taken out because of its own problem is not missing as well.
            self.problems += [
                self._add_fix(each)
                for each in error.problems
                if each.got or each.key not in reported
            ]
        if self.problems:
            raise ConfigError(self.problems)
        return config, unbound

    def _add_fix(self, problem: Problem) -> Problem:
        """Say what to do, where pydantic cannot know it."""
        written = str(get_key(self.values, problem.key))
        if problem.what.startswith("is required"):
            return replace(problem, fix=f"give {problem.key}=VALUE")
        if problem.got and "${oc.env:" in written and "oc.decode" not in written:
            fix = f"a variable is text; to read it as a value write ${{oc.decode:{written}}}"
            return replace(problem, fix=fix)
        return problem

    def _fill_open_slots(self, values: dict[str, Any]) -> list[str]:
        """Give open slot-bound keys what validation needs; return the required ones.

        What an input is called in the end is decided when inputs are bound, not here.
        """
        unbound = []
        for key in self.manifest.bound_keys:
            field, value = find_key(self.schema, split_key(key)).field, get_key(values, key)
            if field is None or value not in (None, MANDATORY):
                continue
            if field.is_required():
                unbound.append(key)
                put_key(values, key, "unbound")
            elif value == MANDATORY:
                _remove(values, split_key(key))
        return unbound

    def _remove_mandatory(self, values: dict[str, Any]) -> None:
        for path, value in list(leaves(values)):
            if value == MANDATORY:
                key = join_key(path)
                self._add_problem(key, "is mandatory and was not given", fix=f"give {key}=VALUE")
                if all(isinstance(part, str) for part in path):
                    _remove(values, [str(part) for part in path])

    def _add_problem(self, key: str, what: str, *, fix: str = "") -> None:
        self.problems.append(Problem(where=self.where(key), key=key, what=what, fix=fix))


def _with_sources(schema: type[StepConfig]) -> type[BaseModel]:
    """The schema as the command line sees it: with two tables that are no fields."""
    inputs: Any = (dict[str, InputSource], Field(default_factory=dict))
    services: Any = (dict[str, ServiceSource], Field(default_factory=dict))
    return create_model("WithSources", __base__=schema, inputs=inputs, services=services)


def _remove(values: dict[str, Any], parts: Sequence[str]) -> None:
    for part in parts[:-1]:
        values = values[part]
    del values[parts[-1]]
