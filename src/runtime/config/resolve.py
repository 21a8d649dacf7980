"""The config of a step: YAML beside the manifest, overrides, and the step's own schema.

    manifests/<id>/<name>.yaml  (with its ``defaults:`` chain)  <-  overrides  ->  Config

Every problem is collected and reported once, with the file and line that it stands in.
"""

from __future__ import annotations

import importlib
import re
import traceback
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel

from nemotron_style.runtime.catalog.manifest import Manifest
from nemotron_style.runtime.catalog.nemotron_tree import TreeManifest
from nemotron_style.runtime.config.model import (
    InputSource,
    OpenConfig,
    ServiceSource,
    StepConfig,
)
from nemotron_style.runtime.errors import ConfigError, ManifestError, Problem, raise_all, suggest
from nemotron_style.runtime.paths import expand_path, show_path
from nemotron_style.runtime.validation import (
    find_key,
    get_key,
    put_key,
    remove_key,
    schema_keys,
    split_key,
    suggest_key,
)

if TYPE_CHECKING:
    from nemotron_style.runtime.config.yaml_file import YamlFile


@dataclass(frozen=True)
class ResolvedConfig:
    """A config that passed.

    ``values`` is complete (defaults included) and JSON-able; a slot-bound key that nobody gave is
    null in it. ``semantic`` is what can change the result: ``values`` without cosmetic fields and
    without slot-bound keys, as a tree (dotted keys would make one of two). ``sources`` says where
    inputs come from, and ``services`` how the services beside the step are started. ``unused`` are
    the keys that were set and that no code reads. ``manifest`` is the step, or the variant of it
    that the config chooses; ``parsed`` has the class it names.
    """

    manifest: Manifest
    name: str
    values: dict[str, Any]
    sources: dict[str, InputSource] = field(default_factory=dict)
    services: dict[str, ServiceSource] = field(default_factory=dict)
    semantic: dict[str, Any] = field(default_factory=dict)
    unused: tuple[str, ...] = ()
    parsed: StepConfig | None = None


def load_config_class(manifest: Manifest) -> type[StepConfig]:
    """The class that the manifest's ``[run] config`` names.

    Raises ManifestError when it cannot be imported, is no StepConfig, or lacks a key that the
    manifest binds.
    """
    where, text = show_path(manifest.path), manifest.run.config
    schema = import_object(text, where=where, key="run.config")
    if not (isinstance(schema, type) and issubclass(schema, StepConfig)):
        what = f"{text!r} is not a subclass of StepConfig"
        raise ManifestError(Problem(where=where, key="run.config", what=what))
    if issubclass(schema, OpenConfig):
        return schema  # which keys there are, its files say
    keys = [*manifest.bound_keys, *(need.config_key for need in manifest.needs if need.config_key)]
    keys += [key for slot in (*manifest.consumes, *manifest.produces) for key in slot.when]
    if unknown := [key for key in keys if find_key(schema, split_key(key)).field is None]:
        known = list(schema_keys(schema))
        raise ManifestError(
            Problem(
                where=where,
                key="config_key",
                what=f"{key!r} is no key of {text}",
                fix=suggest_key(key, known),
            )
            for key in unknown
        )
    return schema


def import_object(text: str, *, where: str, key: str) -> Any:
    """What ``module:name`` names. Raises ManifestError when it cannot be imported."""
    module, _, name = text.partition(":")
    try:
        return getattr(importlib.import_module(module), name)
    except (Exception, SystemExit) as error:  # a module of the user's own may raise anything
        what = f"{text!r} cannot be imported: {_describe_import_error(error)}"
        raise ManifestError(Problem(where=where, key=key, what=what)) from None


def _describe_import_error(error: BaseException) -> str:
    if isinstance(error, ImportError | AttributeError | SyntaxError):  # they name the place
        return str(error)
    last = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__}: {error} ({last.filename}, line {last.lineno})"


def resolve_config(
    manifest: Manifest,
    *,
    name: str = "default",
    overrides: Sequence[str] = (),
    filled: Iterable[str] = (),
) -> ResolvedConfig:
    """Merge a config with its parents and with ``overrides``, and validate it.

    ``name`` is a config beside the manifest, or a path of a YAML file (it has a ``/`` or a
    ``.yaml``). A slot-bound key may be left open (``???``): what fills it is not decided here.
    Of a step of a tree, the keys of ``filled`` inputs hold marks, which other keys may refer to.

    Raises ConfigError with every problem of the files, the overrides and the values.
    """
    # They import YAML, which `steps list` can do without.
    from nemotron_style.runtime.config.inheritance import merge_tables, read_config_file
    from nemotron_style.runtime.config.merge import MergedConfig

    path = find_config(manifest, name)
    file = read_config_file(path, home=manifest.config_folder)
    manifest = choose_variant(manifest, file, overrides)
    schema = load_config_class(manifest)
    merged = MergedConfig(manifest, schema, file, name=show_path(path))
    merged.apply_overrides(overrides)
    if isinstance(manifest, TreeManifest):
        merged.fill_slots(manifest, filled)
    sources, services = merged.take_sources()
    config, unbound = merged.validate()
    values = config.model_dump(mode="json")
    for key in unbound:
        put_key(values, key, None)
    semantic = semantic_values(config)
    for key in manifest.bound_keys:
        remove_key(semantic, key)
    if isinstance(manifest, TreeManifest):
        for tree in (values, semantic):
            tree.update(merge_tables(tree, merged.literal))
        semantic.pop("run", None)  # the identity has what of it can change the result
        manifest = manifest.settle(values)
    manifest = manifest.choose_slots(values)
    what = "is no input of this config"
    absent = {f"inputs.{name}": manifest.explain_absence(name) for name in sources}
    raise_all(
        ConfigError,
        [
            Problem(where=merged.where(key), key=key, what=what, fix=fix)
            for key, fix in absent.items()
            if fix
        ],
    )
    label = re.sub(r"[^a-z0-9._-]+", "-", path.stem.lower()).strip("-.")
    label, unused = label or "config", tuple(unused_keys(config))
    return ResolvedConfig(manifest, label, values, sources, services, semantic, unused, config)


def choose_variant(manifest: Manifest, file: YamlFile, overrides: Sequence[str]) -> Manifest:
    """The variant of a step that its merged config names, before a schema has seen that config.

    Any other value, or none, leaves the step as it is. Raises ConfigError for an interpolation.
    """
    from nemotron_style.runtime.config.override import parse_override

    key = manifest.run.variant_key
    if not manifest.variants or key is None:
        return manifest
    where, chosen = file.locations.get(key, ""), get_key(file.values, key)
    for text in overrides:
        with suppress(ConfigError):  # it is reported with all others when they are applied
            override = parse_override(text)
            if override.key == key:
                where, chosen = f"override {text!r}", override.value
    if isinstance(chosen, str) and "${" in chosen:
        what, fix = "decides how the step runs before any value is resolved", "write it out"
        raise ConfigError(Problem(where=where, key=key, what=what, got=chosen, fix=fix))
    return manifest.forms[chosen] if chosen in [*manifest.variants] else manifest


def find_config(manifest: Manifest, name: str) -> Path:
    """The file that ``name`` means, which need not exist where it is a path.

    Raises ConfigError, with the names there are, for the name of no config.
    """
    if "/" in name or name.endswith((".yaml", ".yml")):
        return expand_path(name)
    if name == "default":
        name = manifest.default_config
    if name in manifest.configs:
        return manifest.config_folder / f"{name}.yaml"
    allowed = ", ".join(manifest.configs) or "none; give the path of a YAML file"
    what = f"{manifest.id} has no config {name!r}"
    raise ConfigError(Problem(what=what, allowed=allowed, fix=suggest(name, manifest.configs)))


def semantic_values(config: BaseModel) -> dict[str, Any]:
    """``config`` as plain data without its cosmetic fields."""
    plain = config.model_dump(mode="json")
    fields = type(config).model_fields
    kept = [name for name in plain if not _is_marked(fields.get(name), "cosmetic")]
    return {name: _semantic(getattr(config, name), plain[name]) for name in kept}


def _semantic(value: Any, plain: Any) -> Any:
    """``plain``, which is ``value`` dumped, without the cosmetic fields of models inside it."""
    if isinstance(value, BaseModel):
        return semantic_values(value)
    if isinstance(value, Mapping):
        return {key: _semantic(item, plain[str(key)]) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_semantic(item, flat) for item, flat in zip(value, plain, strict=True)]
    return plain


def unused_keys(config: BaseModel, prefix: str = "") -> Iterator[str]:
    """Every key that no code reads and that has another value than its default."""
    for name, info in type(config).model_fields.items():
        value = getattr(config, name)
        if _is_marked(info, "unused"):
            if value != info.get_default(call_default_factory=True):
                yield prefix + name
        elif isinstance(value, BaseModel):
            yield from unused_keys(value, f"{prefix}{name}.")


def _is_marked(info: Any, mark: str) -> bool:
    extra = getattr(info, "json_schema_extra", None)
    return isinstance(extra, dict) and bool(extra.get(mark))
