"""Profiles: where and with what a run takes place. They never change what a run computes.

A TOML file holds one profile a table. Found are those that come with the package and those of the
project's ``env.toml`` (``$NEMOTRON_ENV_FILE``, else the nearest one upwards), which may be written
in the dialect of NVIDIA Nemotron.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
)

from nemotron_style.runtime.dialect import IGNORED, OURS, RESERVED, translate
from nemotron_style.runtime.errors import Problem, ProfileError, suggest
from nemotron_style.runtime.manifest import read_toml
from nemotron_style.runtime.project import find_project_root, shipped_folder, show_path
from nemotron_style.runtime.schema import read_refusal

ENV_FILE_VARIABLE = "NEMOTRON_ENV_FILE"
VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
DURATION = r"^(\d+-)?\d{1,3}(:\d{2}){0,2}$"


class Mount(BaseModel):
    """``source`` of the host (or of a ``volume``, on Lepton) appears as ``target`` in the image."""

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)

    source: str = Field(validation_alias="path")
    target: str = Field(validation_alias="mount_path")
    options: tuple[str, ...] = ()
    volume: str | None = Field(default=None, validation_alias="from")

    def __str__(self) -> str:
        return ":".join((self.source, self.target, *self.options[:1]))


def _read_mount(value: Any) -> Any:
    """``/a``, ``/a:/b`` or ``/a:/b:ro`` as a table."""
    if not isinstance(value, str):
        return value
    source, _, rest = value.partition(":")
    target, _, options = rest.partition(":")
    listed = tuple(re.split(r"[,+]", options)) if options else ()
    return {"source": source, "target": target or source, "options": listed}


class Profile(BaseModel):
    """One profile, complete: what it extends is already in it. Secrets are names, never values.

    ``time`` is a limit as Slurm writes it (``HH:MM:SS`` or ``D-HH:MM:SS``); a step is asked to
    save ``grace_seconds`` before it. ``python`` starts the worker where ``sys.executable`` cannot,
    in an image or on a node. ``secrets_file`` is read where the job runs; ``upload`` is an fsspec
    URL that takes plan and code to a job whose store (``remote_store``) this machine does not
    see. ``ignored`` are keys of the ``env.toml`` dialect that have no meaning here.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    executor: Literal["local", "slurm", "lepton"] = "local"
    origin: Path | None = None
    extends: str | None = None
    description: str = ""

    image: str | None = None
    mounts: tuple[Annotated[Mount, BeforeValidator(_read_mount)], ...] = ()
    env: dict[str, str] = Field(default_factory=dict)
    secrets: tuple[str, ...] = ()
    setup: tuple[str, ...] = ()
    store: str | None = None
    workdir: str | None = None

    nodes: int | None = Field(default=None, ge=1)
    gpus_per_node: int | None = Field(default=None, ge=0)
    tasks_per_node: int | None = Field(default=None, ge=1)
    cpus_per_task: int | None = Field(default=None, ge=1)
    memory: str | None = None
    time: str | None = Field(default=None, pattern=DURATION)
    max_requeues: int = Field(default=0, ge=0)
    grace_seconds: int = Field(default=120, ge=1)
    python: str | None = None
    engine: Literal["docker", "podman"] | None = None
    secrets_file: str | None = None

    account: str | None = None
    partition: str | None = None
    attached_partition: str | None = None
    detached_partition: str | None = None
    qos: str | None = None
    gres: str | None = None
    constraint: str | None = None
    reservation: str | None = None
    exclusive: bool | None = None
    tunnel: Literal["ssh", "local"] | None = None
    host: str | None = None
    user: str | None = None
    identity: str | None = None

    resource_shape: str | None = None
    node_group: str | None = None
    node_reservation: str | None = None
    shared_memory_mb: int | None = Field(default=None, ge=0)
    image_pull_secrets: tuple[str, ...] = ()
    priority: str | None = None
    upload: str | None = None
    remote_store: str | None = None
    custom_spec: dict[str, Any] = Field(default_factory=dict)

    ignored: tuple[str, ...] = ()

    @field_validator("env", mode="before")
    @classmethod
    def _write_numbers_out(cls, table: Any) -> Any:
        if not isinstance(table, dict):
            return table
        whole = {key for key, value in table.items() if type(value) is int}
        return {key: str(value) if key in whole else value for key, value in table.items()}

    @field_validator("env", "secrets")
    @classmethod
    def _check_variables(cls, names: Any) -> Any:
        for name in names:
            if not VARIABLE.fullmatch(name):
                raise ValueError(f"{name!r} is no name of an environment variable")
        return names

    def summary(self) -> dict[str, Any]:
        """What is set, as plain data: for people and for records."""
        return self.model_dump(mode="json", exclude_defaults=True, exclude={"origin"})


@dataclass(frozen=True)
class ProfileTable:
    """A profile as a file has it, before ``extends`` is followed."""

    name: str
    path: Path
    table: Mapping[str, Any]

    @property
    def where(self) -> str:
        """The file and the table."""
        return f"{show_path(self.path)} [{self.name}]"


def load_profile(name: str | None, *, project_root: Path | None = None) -> Profile:
    """The profile called ``name``, with what it extends; no name means this machine.

    Raises:
        ProfileError: there is no such profile, its chain goes round, or keys do not fit.
    """
    if name is None:
        return Profile(name="local")
    tables = read_profiles(project_root=project_root)
    chain = _follow(name, tables)
    merged: dict[str, Any] = {}
    problems: list[Problem] = []
    for each in reversed(chain):
        ours, found = translate(each.table, each.where)
        problems += found
        problems += _unknown_keys(each, ours)
        merged = _overlay(merged, ours)
    merged = {key: value for key, value in merged.items() if key in Profile.model_fields}
    merged, found = _resolve_variables(merged, chain[0].where)
    problems += found
    try:
        profile = Profile.model_validate({**merged, "name": name, "origin": chain[0].path})
    except ValidationError as error:
        problems += read_refusal(error, Profile, merged, where=lambda _: chain[0].where)
    if problems:
        raise ProfileError(problems)
    return profile


def read_profiles(*, project_root: Path | None = None) -> dict[str, ProfileTable]:
    """Every profile there is, by name; the project's own win over those of the package.

    Raises:
        ProfileError: a file is no TOML, or has keys outside of any table.
    """
    tables: dict[str, ProfileTable] = {}
    for path in [*sorted(shipped_folder("profiles").glob("*.toml")), *_env_files(project_root)]:
        for name, table in read_toml(path, ProfileError).items():
            if not isinstance(table, dict):
                what, fix = "stands outside of any profile", "put it below a line [name]"
                raise ProfileError(Problem(where=show_path(path), key=name, what=what, fix=fix))
            if name not in RESERVED:
                tables[name] = ProfileTable(name, path, table)
    return tables


def _env_files(project_root: Path | None) -> list[Path]:
    named = os.environ.get(ENV_FILE_VARIABLE)
    if named:
        path = Path(named).expanduser()
        if not path.is_file():
            what = f"names {named!r}, and there is no such file"
            raise ProfileError(Problem(where=f"${ENV_FILE_VARIABLE}", what=what))
        return [path]
    start = project_root or find_project_root(Path.cwd())
    nearest = (folder / "env.toml" for folder in (start, *start.parents))
    return [path for path in nearest if path.is_file()][:1]


def _follow(name: str, tables: Mapping[str, ProfileTable]) -> list[ProfileTable]:
    """The profile and what it extends, itself first."""
    chain: list[ProfileTable] = []
    where, wanted = "", name
    while True:
        if wanted not in tables:
            allowed, fix = ", ".join(sorted(tables)), suggest(wanted, tables)
            what = f"there is no profile {wanted!r}"
            raise ProfileError(Problem(where=where, what=what, allowed=allowed, fix=fix))
        chain.append(tables[wanted])
        where = chain[-1].where
        names = [each.name for each in chain]
        wanted = chain[-1].table.get("extends", "")
        if not wanted:
            return chain
        if not isinstance(wanted, str):
            raise ProfileError(Problem(where=where, key="extends", what="must be one name"))
        if wanted in names:
            circle = " -> ".join([*names, wanted])
            raise ProfileError(Problem(where=where, key="extends", what=f"circle: {circle}"))


def _unknown_keys(each: ProfileTable, ours: Mapping[str, Any]) -> list[Problem]:
    own = {"name", "origin", "ignored"}
    known = [*(key for key in Profile.model_fields if key not in own), *OURS, *IGNORED]
    strange = [key for key in each.table if OURS.get(key, key) in ours and key not in known]
    return [
        Problem(where=each.where, key=key, what="is not a known key", fix=suggest(key, known))
        for key in strange
    ]


def _overlay(base: dict[str, Any], top: Mapping[str, Any]) -> dict[str, Any]:
    """Lists are replaced; ``env`` is merged; secrets and ignored keys add up."""
    merged = {**base, **top}
    if isinstance(base.get("env"), dict) and isinstance(top.get("env"), dict):
        merged["env"] = {**base["env"], **top["env"]}
    for key in ("secrets", "ignored"):
        if isinstance(base.get(key), list) and isinstance(top.get(key), list):
            merged[key] = list(dict.fromkeys([*base[key], *top[key]]))
    return merged


def _resolve_variables(table: dict[str, Any], where: str) -> tuple[dict[str, Any], list[Problem]]:
    """Replace ``${oc.env:NAME,default}``, as the dialect allows in any text."""
    if "${" not in str(table):
        return table, []
    from nemotron_style.runtime.interpolation import resolve

    return resolve(table, BaseModel, where=lambda _: where)


__all__ = ["Mount", "Profile", "find_project_root", "load_profile", "read_profiles"]
