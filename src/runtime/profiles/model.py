"""Profiles: where and with what a run takes place. They never change what a run computes.

A TOML file holds one profile a table. Found are those that come with the package and those of the
project's ``env.toml`` (``$NEMOTRON_ENV_FILE``, else the nearest one upwards), which may be written
in the dialect of NVIDIA Nemotron.
"""

from __future__ import annotations

import os
import posixpath
import re
from collections.abc import Iterator, Mapping
from functools import partial
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

from nemotron_style.runtime.errors import Problem, ProfileError, raise_all, suggest
from nemotron_style.runtime.paths import find_project_root
from nemotron_style.runtime.profiles.files import ProfileTable, follow, is_base, read_profiles
from nemotron_style.runtime.profiles.keys import LOCAL, sort_keys
from nemotron_style.runtime.profiles.nemo_env import IGNORED, OURS, translate
from nemotron_style.runtime.secrets.detect import announce_secrets
from nemotron_style.runtime.secrets.reject import drop_secrets
from nemotron_style.runtime.validation import join_key, read_refusal

VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
DURATION = r"^(\d+-)?\d{1,3}(:\d{2}){0,2}$"
CONTROL = re.compile(r"[\x00-\x1f\x7f]")
# Text for a shell, for people, or for a service that takes any: line breaks have a meaning there.
FREE_TEXT = ("env", "setup", "custom_spec", "description")
SSH_NOTE = 'tunnel = "ssh": commands run where this is typed; type it on the login node'


class Mount(BaseModel):
    """``source`` of the host (or of a ``volume``, on Lepton) appears as ``target`` in the image."""

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)

    source: str = Field(validation_alias="path")
    target: str = Field(validation_alias="mount_path")
    options: tuple[str, ...] = ()
    volume: str | None = Field(default=None, validation_alias="from")

    @field_validator("source")
    @classmethod
    def _expand_source(cls, path: str) -> str:
        return _check_absolute(os.path.expanduser(path))

    @field_validator("target")
    @classmethod
    def _check_target(cls, path: str) -> str:
        return _check_absolute(path)

    def __str__(self) -> str:
        return ":".join((self.source, self.target, *self.options[:1]))


def _check_absolute(path: str) -> str:
    if not path.startswith("/"):
        raise ValueError(f"must be an absolute path, and is {path!r}")
    return path


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

    @field_validator("mounts")
    @classmethod
    def _check_targets(cls, mounts: tuple[Mount, ...]) -> tuple[Mount, ...]:
        raise_all(ProfileError, list(_find_same_targets(mounts)))
        return mounts

    @property
    def notes(self) -> tuple[str, ...]:
        """What a user of this profile should know before it is used."""
        return (SSH_NOTE,) if self.tunnel == "ssh" else ()

    def summary(self) -> dict[str, Any]:
        """What is set, as plain data: for people and for records."""
        return self.model_dump(mode="json", exclude_defaults=True, exclude={"origin"})


OWN = tuple(key for key in Profile.model_fields if key not in ("name", "origin", "ignored"))


def _find_control(table: Mapping[str, Any], where: str) -> Iterator[Problem]:
    """Characters that would begin a new line, or a new option, where a value is written."""
    local = table.get("executor", LOCAL) == LOCAL
    for path, text in _texts(table):
        free = path[0] in FREE_TEXT
        if "\0" in text:
            what = "holds a null character"
        elif not free and CONTROL.search(text):
            what = "holds a line break or another control character"
        elif not free and not local and "\\" in text:
            what = "holds a backslash"
        else:
            continue
        yield Problem(where=where, key=join_key(path), what=what, got=repr(text))


def _texts(values: Any, path: tuple[str | int, ...] = ()) -> Iterator[tuple[Any, str]]:
    if isinstance(values, str):
        yield path, values
    elif isinstance(values, dict):
        for key, item in values.items():
            yield from _texts(item, (*path, key))
    elif isinstance(values, list):
        for at, item in enumerate(values):
            yield from _texts(item, (*path, at))


def _find_same_targets(mounts: tuple[Mount, ...]) -> Iterator[Problem]:
    taken: dict[str, int] = {}
    for at, mount in enumerate(mounts):
        target = posixpath.normpath(mount.target)
        first = taken.setdefault(target, at)
        if first != at:
            what = f"{target} is the target of mounts[{first}] too"
            yield Problem(key=f"mounts[{at}]", what=what, got=repr(str(mount)))


def load_profile(name: str | None, *, project_root: Path | None = None) -> Profile:
    """The profile called ``name``, with what it extends; no name means this machine.

    Raises:
        ProfileError: there is no such profile, its chain goes round, or keys do not fit.
    """
    if name is None:
        return Profile(name="local")
    tables = read_profiles(project_root=project_root)
    profile = _assemble(name, follow(name, tables))
    announce_secrets(profile.secrets)
    return profile


def _assemble(name: str, chain: list[ProfileTable]) -> Profile:
    problems: list[Problem] = []
    links: list[tuple[str, dict[str, Any]]] = []
    merged: dict[str, Any] = {}
    for each in chain:
        ours, found = translate(each.table, each.where)
        ours, leaked = drop_secrets(ours, where=partial(_say, each.where))
        links.append((each.where, ours))
        problems += [*found, *leaked, *_unknown_keys(each, ours)]
    for _, ours in reversed(links):
        merged = _overlay(merged, ours)
    left_out, misplaced = sort_keys(links, OWN)
    merged = {key: merged[key] for key in merged if key in Profile.model_fields}
    merged = _leave_out(merged, left_out)
    where = chain[0].where
    merged, found = _resolve_variables(merged, where)
    problems += [*misplaced, *found, *_find_control(merged, where)]
    told = {problem.key for problem in problems}
    try:
        profile = Profile.model_validate({**merged, "name": name, "origin": chain[0].path})
    except ValidationError as error:
        refused = read_refusal(error, Profile, merged, where=lambda _: where)
        problems += [each for each in refused if each.key not in told]
    raise_all(ProfileError, problems)
    return profile


def _say(place: str, key: str) -> str:
    return place


def _leave_out(merged: dict[str, Any], keys: list[str]) -> dict[str, Any]:
    kept = {key: value for key, value in merged.items() if key not in keys}
    ignored = list(dict.fromkeys([*merged.get("ignored", ()), *keys]))
    return {**kept, "ignored": ignored} if ignored else kept


def _unknown_keys(each: ProfileTable, ours: Mapping[str, Any]) -> list[Problem]:
    known = [*OWN, *OURS, *IGNORED]
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
    from nemotron_style.runtime.config.interpolation import resolve

    return resolve(table, BaseModel, where=lambda _: where)


__all__ = [
    "Mount",
    "Profile",
    "find_project_root",
    "is_base",
    "load_profile",
    "read_profiles",
]
