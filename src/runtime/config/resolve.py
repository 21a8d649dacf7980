"""The config of a step: YAML beside the manifest, overrides, and the step's own schema.

    manifests/<id>/<name>.yaml  (with its ``defaults:`` chain)  <-  overrides  ->  Config

Every problem is collected and reported once, with the file and line that it stands in.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ValidationError

from nemotron_style.runtime.catalog.manifest import Manifest
from nemotron_style.runtime.config.model import (
    InputSource,
    ServiceSource,
    StepConfig,
    flatten,
    validate,
)
from nemotron_style.runtime.errors import ConfigError, ManifestError, Problem, suggest
from nemotron_style.runtime.paths import show_path
from nemotron_style.runtime.validation import (
    explain_errors,
    find_key,
    schema_keys,
    split_key,
    suggest_key,
)

if TYPE_CHECKING:
    pass


@dataclass(frozen=True)
class ResolvedConfig:
    """A config that passed.

    ``values`` is complete (defaults included) and JSON-able; a slot-bound key that nobody gave is
    null in it. ``semantic`` is what can change the result, by dotted key: ``values`` without
    cosmetic fields and without slot-bound keys. ``sources`` says where inputs come from, and
    ``services`` how the services beside the step are started.
    """

    name: str
    values: dict[str, Any]
    sources: dict[str, InputSource] = field(default_factory=dict)
    services: dict[str, ServiceSource] = field(default_factory=dict)
    semantic: dict[str, Any] = field(default_factory=dict)


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
    keys = [*manifest.bound_keys, *(need.config_key for need in manifest.needs if need.config_key)]
    strange = [key for key in keys if find_key(found, split_key(key)).field is None]
    if strange:
        known = list(schema_keys(found))
        raise ManifestError(
            Problem(
                where=where,
                key="config_key",
                what=f"{key!r} is no key of {text}",
                fix=suggest_key(key, known),
            )
            for key in strange
        )
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
        problems = explain_errors(error, schema, values, where=lambda _: manifest.id)
        raise ConfigError(problems) from None


def resolve_config(
    manifest: Manifest, *, name: str = "default", overrides: Sequence[str] = ()
) -> ResolvedConfig:
    """Merge a config with its parents and with ``overrides``, and validate it.

    ``name`` is a config beside the manifest, or a path of a YAML file (it has a ``/`` or a
    ``.yaml``). A slot-bound key may be left open (``???``): what fills it is not decided here.

    Raises:
        ConfigError: with every problem of the files, the overrides and the values.
    """
    from nemotron_style.runtime.config.chain import read_chain
    from nemotron_style.runtime.config.merge import MergedConfig, put

    path = find_config(manifest, name)
    draft = MergedConfig(manifest, load_config_class(manifest), show_path(path))
    draft.read(read_chain(path, home=manifest.folder))
    draft.apply(overrides)
    sources, services = draft.take_sources()
    config, unbound = draft.finish()
    values = config.model_dump(mode="json")
    for key in unbound:
        put(values, key, None)
    semantic = flatten(semantic_values(config))
    for key in manifest.bound_keys:
        semantic = {known: each for known, each in semantic.items() if not _is_below(known, key)}
    label = re.sub(r"[^a-z0-9._-]+", "-", path.stem.lower()).strip("-.")
    return ResolvedConfig(label or "config", values, sources, services, semantic)


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


def semantic_values(value: Any) -> Any:
    """``value`` as plain data without what is cosmetic."""
    if isinstance(value, BaseModel):
        plain = value.model_dump(mode="json")
        fields = type(value).model_fields
        kept = [name for name in plain if not _is_cosmetic(fields.get(name))]
        return {name: _meaning_of(getattr(value, name), plain[name]) for name in kept}
    return value


def _meaning_of(value: Any, plain: Any) -> Any:
    if isinstance(value, BaseModel):
        return semantic_values(value)
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
