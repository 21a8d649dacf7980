"""The manifest of a step: what it is, what it consumes and produces, and how it is run.

A manifest is ``manifests/<id>/step.toml``. Its tables are those of NVIDIA Nemotron's ``step.toml``
(``[step]``, ``[[consumes]]``, ``[[produces]]``, ``[[parameters]]``, ``[[strategies]]``,
``[[errors]]``, ``[[models]]``, ``[reference]``); added are ``[run]``, ``[[needs]]``, ``[variants]``
and a ``name`` for each slot.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, StrictBool, ValidationError, field_validator

from nemotron_style.runtime.catalog.slot import SLOT_NAME, Slot, Table, match_pattern
from nemotron_style.runtime.errors import ManifestError, Problem, raise_all
from nemotron_style.runtime.paths import show_path
from nemotron_style.runtime.text_file import read_toml_file
from nemotron_style.runtime.validation import explain_errors

STEP_ID = re.compile(r"[a-z0-9][a-z0-9_]*(/[a-z0-9][a-z0-9_]*)+")
IMPORT_STRING = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*")


class Need(Table):
    """A service that runs beside the step, from before its first request to its end.

    Where the config has something at ``config_key``, a service that is there already is used
    instead, and none is started.
    """

    name: str
    step: str
    description: str = ""
    config_key: str | None = None

    @field_validator("name")
    @classmethod
    def _check_name(cls, name: str) -> str:
        return match_pattern(SLOT_NAME, name, "a lower-case name such as 'reward'")


class Parameter(Table):
    """A config key that an operator should know."""

    name: str
    description: str = ""
    default: Any = None
    choices: tuple[Any, ...] = ()


class Strategy(Table):
    """Advice: what to do when something is seen; ``skill`` is a text to read about it."""

    when: str
    then: str
    skill: str = ""


class KnownError(Table):
    """A failure with a name, and how to get out of it."""

    name: str
    recovery: str
    skill: str = ""


class Model(Table):
    """A model that the step is known to work with."""

    name: str
    description: str = ""
    default: StrictBool = False
    min_gpus: int | None = None


class Run(Table):
    """How the step is started: ``module:function`` and ``module:Config``, and what it needs.

    A ``service`` runs until it is stopped and makes no artifact. A ``compiler`` writes files that
    the job reads (``step.compiled``). The config's value at ``image_key`` names another image, and
    the one at ``variant_key`` a variant of the step.
    """

    entrypoint: str
    config: str
    launch: Literal["python", "torchrun", "ray"] = "python"
    compiler: str | None = None
    image: str | None = None
    image_key: str | None = None
    variant_key: str | None = None
    resources: dict[str, Any] = Field(default_factory=dict)
    passthrough: StrictBool = False
    service: StrictBool = False

    @field_validator("entrypoint", "config", "compiler")
    @classmethod
    def _check_import_string(cls, text: str | None) -> str | None:
        return text and match_pattern(IMPORT_STRING, text, "'package.module:name'")


class Variant(Table):
    """Another way to do a step's work: its tables replace those of the step as a whole."""

    run: Run | None = None
    consumes: tuple[Slot, ...] | None = None
    produces: tuple[Slot, ...] | None = None
    needs: tuple[Need, ...] | None = None


class Header(Table):
    """The ``[step]`` table."""

    id: str
    name: str
    category: str
    description: str
    tags: tuple[str, ...] = ()
    version: str = "1"
    aliases: tuple[str, ...] = ()

    @field_validator("id")
    @classmethod
    def _check_id(cls, text: str) -> str:
        return match_pattern(
            STEP_ID, text, "'<category>/<step>' in lower case, as its folder is called"
        )


class Tables(Table):
    """The tables of a ``step.toml`` but for ``[step]``."""

    run: Run
    consumes: tuple[Slot, ...] = ()
    produces: tuple[Slot, ...] = ()
    needs: tuple[Need, ...] = ()
    variants: dict[str, Variant] = Field(default_factory=dict)
    parameters: tuple[Parameter, ...] = ()
    strategies: tuple[Strategy, ...] = ()
    errors: tuple[KnownError, ...] = ()
    models: tuple[Model, ...] = ()
    reference: dict[str, Any] = Field(default_factory=dict)


class Document(Tables):
    """A whole ``step.toml``, as it is written."""

    step: Header


class Manifest(Header, Tables):
    """A step, as the rest of the program sees it. ``path`` is its ``step.toml``."""

    path: Path
    left_out: tuple[Slot, ...] = ()  # inputs that a config does not have

    @property
    def folder(self) -> Path:
        """The folder of the manifest, where its configs lie too."""
        return self.path.parent

    @property
    def config_folder(self) -> Path:
        """Where the configs of the step lie."""
        return self.folder

    @property
    def default_config(self) -> str:
        """The config that is meant where none is named."""
        return "default"

    @property
    def configs(self) -> tuple[str, ...]:
        """The names of the step's configs; ``default`` and ``tiny`` come first."""
        names = sorted(path.stem for path in self.config_folder.glob("*.yaml"))
        return tuple(sorted(names, key=lambda name: (name != "default", name != "tiny")))

    @property
    def bound_keys(self) -> dict[str, Slot]:
        """The consumed slots that have a config key, by that key."""
        return {slot.config_key: slot for slot in self.consumes if slot.config_key}

    @property
    def forms(self) -> dict[str, Manifest]:
        """The step under "", and what each of its variants makes of it under the variant's name."""
        forms = {"": self}
        for name, variant in self.variants.items():
            tables = {table: value for table, value in variant if value is not None}
            forms[name] = self.model_copy(update={**tables, "variants": {}})
        return forms

    def is_content(self, value: Any) -> bool:
        """Whether a value at the key of an input names what fills it; always, but for trees."""
        return True

    def choose_slots(self, values: Mapping[str, Any]) -> Manifest:
        """The step with the slots that a config of these values has."""
        kept = {
            table: tuple(slot for slot in getattr(self, table) if slot.is_there(values))
            for table in ("consumes", "produces")
        }
        left_out = tuple(slot for slot in self.consumes if not slot.is_there(values))
        return self.model_copy(update={**kept, "left_out": left_out})

    def explain_absence(self, name: str) -> str:
        """When there is the input ``name`` that this config does not have; empty for others."""
        absent = (slot for slot in self.left_out if slot.name == name)
        return next((f"it is one where {slot.condition}" for slot in absent), "")

    def produced(self, name: str) -> Slot | None:
        """The output slot called ``name``."""
        return next((slot for slot in self.produces if slot.name == name), None)


def load_manifest(path: Path, *, root: Path | None = None) -> Manifest:
    """Read one ``step.toml``; with ``root``, its folder below it must be the step's id.

    Raises ManifestError with every problem of the file; a TOML syntax error names its line.
    """
    where = show_path(path)
    table = read_toml_file(path, ManifestError)
    try:
        document = Document.model_validate(table)
    except ValidationError as error:
        problems = explain_errors(error, Document, table, where=lambda _: where)
        raise ManifestError([_add_fix(problem) for problem in problems]) from None
    tables = {name: getattr(document, name) for name in Tables.model_fields}
    manifest = Manifest(path=path, **document.step.model_dump(), **tables)
    raise_all(ManifestError, list(_cross_check(manifest, where, root)))
    return manifest


def _add_fix(problem: Problem) -> Problem:
    """Say what to write where a manifest written for another program lacks a table of ours."""
    fixes = {
        "run": "add [run] with entrypoint = 'module:run' and config = 'module:Config'",
        "name": "give the slot a name, unique in its step, such as 'model'",
    }
    fix = fixes.get(problem.key.rsplit(".", 1)[-1], "")
    return replace(problem, fix=fix) if fix and "required" in problem.what else problem


def _cross_check(manifest: Manifest, where: str, root: Path | None) -> Iterable[Problem]:
    folder = manifest.folder.resolve()
    inside = folder.relative_to(root.resolve()).as_posix() if root else folder.as_posix()
    if inside != manifest.id and (root or not inside.endswith("/" + manifest.id)):
        what = "differs from the folder of the manifest"
        allowed = repr(inside if root else folder.name)
        yield Problem(where=where, key="step.id", what=what, got=manifest.id, allowed=allowed)
    if bool(manifest.variants) != bool(manifest.run.variant_key):
        what = "variants are chosen by a key of the config, and that key chooses nothing else"
        fix = 'give both: [run] variant_key = "KEY", and [variants.VALUE]'
        yield Problem(where=where, key="variants", what=what, fix=fix)
    for name, form in manifest.forms.items():
        prefix = f"variants.{name}." if name else ""
        yield from (replace(one, key=prefix + one.key) for one in _check_tables(form, where))


def _check_tables(manifest: Manifest, where: str) -> Iterable[Problem]:
    for table, slots in (("consumes", manifest.consumes), ("produces", manifest.produces)):
        for name in _repeated(slot.name for slot in slots):
            yield Problem(where=where, key=f"{table}.name", what=f"slot {name!r} stands twice")
    for name in _repeated(need.name for need in manifest.needs):
        yield Problem(where=where, key="needs.name", what=f"service {name!r} stands twice")
    if manifest.needs and manifest.run.service:
        what = "a service that needs another one is more than a launcher starts"
        yield Problem(where=where, key="needs", what=what, fix="give it an address in its config")
    for slot in manifest.consumes:
        others = [one.name for one in manifest.consumes if one is not slot]
        if slot.same_tokens_as not in (None, *others):
            key, what = f"consumes.{slot.name}.same_tokens_as", "is no other input of the step"
            got, allowed = repr(slot.same_tokens_as), ", ".join(others)
            yield Problem(where=where, key=key, what=what, got=got, allowed=allowed)
    keys = [slot.config_key for slot in (*manifest.consumes, *manifest.produces)]
    for key in _repeated(key for key in keys if key):
        yield Problem(where=where, key="config_key", what=f"{key!r} is bound to two slots")
    if bool(manifest.produces) == manifest.run.service:
        what = "a step produces at least one artifact, and only a service none"
        fix = "say `service = true` under [run] if it runs until it is stopped"
        fix = "a service makes no artifact: take them out" if manifest.produces else fix
        yield Problem(where=where, key="produces", what=what, fix=fix)


def _repeated(names: Iterable[str]) -> list[str]:
    return [name for name, count in Counter(names).items() if count > 1]
