"""The config of a step: YAML beside the manifest, overrides, and the step's own schema.

    manifests/<id>/<name>.yaml  (with its ``defaults:`` chain)  <-  overrides  ->  Config

Every problem is collected and reported once, with the file and line that it stands in.
"""

from __future__ import annotations

import importlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from nemotron_style.runtime.errors import ConfigError, ManifestError, Problem, StepsError, suggest
from nemotron_style.runtime.manifest import Manifest
from nemotron_style.runtime.project import show_path
from nemotron_style.runtime.schema import locate, read_refusal, split_key

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


class InputSource(Section):
    """Where an input comes from when nobody names it: a step to run first, or a ref."""

    step: str | None = None
    config: str = "default"
    slot: str | None = None
    overrides: dict[str, Any] = Field(default_factory=dict)
    ref: str | None = None

    @model_validator(mode="after")
    def _check_one_source(self) -> InputSource:
        if (self.step is None) == (self.ref is None):
            raise ValueError("needs exactly one of 'step' and 'ref'")
        return self

    def as_overrides(self) -> tuple[str, ...]:
        """``overrides`` as they would be typed: nested tables as dotted keys, values as JSON."""
        pairs = flatten(self.overrides)
        return tuple(f"{key}={json.dumps(value)}" for key, value in pairs.items())


@dataclass(frozen=True)
class ResolvedConfig:
    """A config that passed.

    ``values`` is complete (defaults included) and JSON-able; a slot-bound key that nobody gave is
    null in it. ``semantic`` is what can change the result, by dotted key: ``values`` without
    cosmetic fields and without slot-bound keys. ``sources`` says where inputs come from.
    """

    name: str
    values: dict[str, Any]
    sources: dict[str, InputSource] = field(default_factory=dict)
    semantic: dict[str, Any] = field(default_factory=dict)


def cosmetic(default: Any = ..., **kwargs: Any) -> Any:
    """A field that cannot change the result, such as an interval of reporting.

    It takes the arguments of pydantic's ``Field`` and never enters the identity of a run.
    """
    return Field(default, json_schema_extra={"cosmetic": True}, **kwargs)


def load_config_class(manifest: Manifest) -> type[StepConfig]:
    """The class that the manifest's ``[run] config`` names.

    Raises:
        ManifestError: it cannot be imported, or it is no StepConfig.
    """
    where, text = show_path(manifest.path), manifest.run.config
    module, _, name = text.partition(":")
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        what = f"{text!r} cannot be imported: {error}"
        raise ManifestError(Problem(where=where, key="run.config", what=what)) from None
    if not (isinstance(found, type) and issubclass(found, StepConfig)):
        what = f"{text!r} is not a subclass of StepConfig"
        raise ManifestError(Problem(where=where, key="run.config", what=what))
    return found


def parse_config(manifest: Manifest, values: Mapping[str, Any]) -> StepConfig:
    """Validate complete ``values``, as a plan holds them, into the step's ``Config``.

    Raises:
        ConfigError: a key or value does not fit.
    """
    schema = load_config_class(manifest)
    try:
        return validate(schema, values)
    except ValidationError as error:
        problems = read_refusal(error, schema, values, where=lambda _: manifest.id)
        raise ConfigError(problems) from None


def validate(schema: type[StepConfig], values: Mapping[str, Any]) -> StepConfig:
    """Plain data into ``schema``. JSON's types are the rule: a list may fill a tuple, no more."""
    return schema.model_validate_json(json.dumps(values))


def resolve_config(
    manifest: Manifest, *, name: str = "default", overrides: Sequence[str] = ()
) -> ResolvedConfig:
    """Merge a config with its parents and with ``overrides``, and validate it.

    ``name`` is a config beside the manifest, or a path of a YAML file (it has a ``/`` or a
    ``.yaml``). A slot-bound key may be left open (``???``): what fills it is not decided here.

    Raises:
        ConfigError: with every problem of the files, the overrides and the values.
    """
    from nemotron_style.runtime.chain import read_chain

    path = find_config(manifest, name)
    draft = _Draft(manifest, load_config_class(manifest), read_chain(path))
    draft.apply(overrides)
    sources = draft.take_sources()
    config, unbound = draft.finish()
    values = config.model_dump(mode="json")
    for key in unbound:
        _put(values, key, None)
    semantic = flatten(meaning(config))
    for key in manifest.bound_keys:
        semantic = {known: each for known, each in semantic.items() if not _is_below(known, key)}
    label = re.sub(r"[^a-z0-9._-]+", "-", path.stem.lower()).strip("-.")
    return ResolvedConfig(label or "config", values, sources, semantic)


def find_config(manifest: Manifest, name: str) -> Path:
    """The file that ``name`` means; raises ConfigError, with the names there are, for none."""
    if "/" in name or name.endswith((".yaml", ".yml")):
        path = Path(name).expanduser()
        if not path.is_file():
            raise ConfigError(Problem(where=f"config {name!r}", what="there is no such file"))
        return path
    if name in manifest.configs:
        return manifest.folder / f"{name}.yaml"
    allowed = ", ".join(manifest.configs) or "none; give the path of a YAML file"
    what = f"{manifest.id} has no config {name!r}"
    raise ConfigError(Problem(what=what, allowed=allowed, fix=suggest(name, manifest.configs)))


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested tables as dotted keys; lists and empty tables stay values."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat


def meaning(value: Any) -> Any:
    """``value`` as plain data without what is cosmetic."""
    if isinstance(value, BaseModel):
        plain = value.model_dump(mode="json")
        fields = type(value).model_fields
        kept = [name for name in plain if not _is_cosmetic(fields.get(name))]
        return {name: _meaning_of(getattr(value, name), plain[name]) for name in kept}
    return value


def _meaning_of(value: Any, plain: Any) -> Any:
    if isinstance(value, BaseModel):
        return meaning(value)
    if isinstance(value, Mapping):
        return {key: _meaning_of(item, plain[str(key)]) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_meaning_of(item, flat) for item, flat in zip(value, plain, strict=True)]
    return plain


def _is_cosmetic(info: Any) -> bool:
    extra = getattr(info, "json_schema_extra", None)
    return isinstance(extra, dict) and bool(extra.get("cosmetic"))


def _is_below(key: str, above: str) -> bool:
    return key == above or key.startswith(above + ".")


def _get(values: Any, key: str) -> Any:
    for part in split_key(key):
        values = values.get(part) if isinstance(values, Mapping) else None
    return values


def _put(values: dict[str, Any], key: str, value: Any) -> None:
    *above, last = split_key(key)
    for part in above:
        values = values.setdefault(part, {})
    values[last] = value


class _Draft:
    """A config on its way: values, where each key stands, and the problems found so far."""

    def __init__(self, manifest: Manifest, schema: type[StepConfig], document: Any) -> None:
        self.manifest = manifest
        self.schema = schema
        self.values: dict[str, Any] = document.values
        self.places: dict[str, str] = dict(document.places)
        self.problems: list[Problem] = []

    def where(self, key: str) -> str:
        """The file and line of ``key``, or of the nearest table above it."""
        while key and key not in self.places:
            key = key[: max(key.rfind("."), key.rfind("["), 0)]
        return self.places.get(key, "")

    def apply(self, overrides: Sequence[str]) -> None:
        """Apply what was typed, in its order."""
        from nemotron_style.runtime.override import apply_override, read_override

        inputs = _with_inputs(self.schema)
        for text in overrides:
            try:
                override = read_override(text)
                apply_override(self.values, override, inputs)
                self.places[override.key] = f"override {text!r}"
            except ConfigError as error:
                self.problems += error.problems

    def take_sources(self) -> dict[str, InputSource]:
        """Take the ``inputs`` table out of the values."""
        table = self.values.pop("inputs", None) or {}
        sources: dict[str, InputSource] = {}
        if not isinstance(table, dict):
            problem = Problem(where=self.where("inputs"), key="inputs", what="must be a table")
            self.problems.append(problem)
            return {}
        slots = [slot.name for slot in self.manifest.consumes]
        for slot, value in table.items():
            if slot not in slots:
                fix = suggest(slot, slots) or f"slots: {', '.join(slots)}"
                key, what = f"inputs.{slot}", f"{self.manifest.id} has no such input"
                self.problems.append(Problem(where=self.where(key), key=key, what=what, fix=fix))
            elif value is not None:
                sources |= self._read_source(slot, value)
        return sources

    def _read_source(self, slot: str, value: Any) -> dict[str, InputSource]:
        try:
            return {slot: InputSource.model_validate(value)}
        except ValidationError as error:
            prefix = f"inputs.{slot}"
            found = read_refusal(error, InputSource, value, where=lambda _: self.where(prefix))
            for each in found:
                key = f"{prefix}.{each.key}".rstrip(".")
                place = self.where(key)
                self.problems.append(Problem(**{**vars(each), "key": key, "where": place}))
            return {}

    def finish(self) -> tuple[StepConfig, list[str]]:
        """Resolve and validate; the second result are the slot-bound keys that are still open."""
        from nemotron_style.runtime.interpolation import resolve

        values, dangling = resolve(self.values, self.schema, where=self.where)
        self.problems += dangling
        unbound = self._open_slots(values)
        self._refuse_mandatory(values)
        silent = [problem.key for problem in self.problems]
        try:
            config = validate(self.schema, values)
        except ValidationError as error:
            found = read_refusal(error, self.schema, values, where=self.where)
            self.problems += [each for each in found if each.key not in silent or each.got]
        if self.problems:
            raise ConfigError(self.problems)
        return config, unbound

    def _open_slots(self, values: dict[str, Any]) -> list[str]:
        """Fill required slot-bound keys for validation; what is typed in a plan comes later."""
        unbound = []
        for key in self.manifest.bound_keys:
            if _get(values, key) not in (None, MANDATORY):
                continue
            unbound.append(key)
            info = locate(self.schema, split_key(key)).field
            _put(values, key, "unbound" if info and info.is_required() else None)
        return unbound

    def _refuse_mandatory(self, values: dict[str, Any]) -> None:
        from nemotron_style.runtime.interpolation import leaves
        from nemotron_style.runtime.schema import join_key

        for path, value in list(leaves(values)):
            if value != MANDATORY:
                continue
            key = join_key(path)
            what, fix = "is mandatory and was not given", f"give {key}=VALUE"
            self.problems.append(Problem(where=self.where(key), key=key, what=what, fix=fix))
            if all(isinstance(part, str) for part in path):
                _drop(values, [str(part) for part in path])


def _drop(values: dict[str, Any], parts: Sequence[str]) -> None:
    for part in parts[:-1]:
        values = values[part]
    del values[parts[-1]]


def _with_inputs(schema: type[StepConfig]) -> type[BaseModel]:
    """The schema as the command line sees it: with the ``inputs`` table, which is no field."""
    from pydantic import create_model

    inputs: Any = (dict[str, InputSource], Field(default_factory=dict))
    return create_model("WithInputs", __base__=schema, inputs=inputs)


__all__ = [
    "InputSource",
    "ResolvedConfig",
    "Section",
    "StepConfig",
    "StepsError",
    "cosmetic",
    "parse_config",
    "resolve_config",
]


def config_keys(manifest: Manifest) -> Iterator[str]:
    """Every dotted key of the step's schema."""
    from nemotron_style.runtime.schema import keys_of

    yield from keys_of(load_config_class(manifest))
