"""Profiles: where and with what a run takes place. They never change what a run computes.

A TOML file holds one profile a table: those of the package, and those of the project's
``env.toml``, which may be written in the dialect of NVIDIA Nemotron.
"""

from __future__ import annotations

import os
import posixpath
import re
from collections.abc import Iterator, Mapping
from functools import reduce
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
)

from nemotron_style.runtime.config.interpolation import leaves, resolve_interpolations
from nemotron_style.runtime.errors import Problem, ProfileError, raise_all, suggest
from nemotron_style.runtime.profiles.files import ProfileTable, follow, read_profiles
from nemotron_style.runtime.profiles.keys import LOCAL, sort_keys
from nemotron_style.runtime.profiles.nemo_env import IGNORED, OURS, is_dialect, translate
from nemotron_style.runtime.secrets.detect import announce_secrets
from nemotron_style.runtime.secrets.reject import remove_secrets
from nemotron_style.runtime.validation import explain_errors, join_key

VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
DURATION = r"^(\d+-)?\d{1,3}(:\d{2}){0,2}$"
CONTROL = re.compile(r"[\x00-\x1f\x7f]")
# Text for a shell, for people, or for a service that takes any: line breaks have a meaning there.
FREE_TEXT = ("env", "setup", "custom_spec", "description")
SSH_NOTE = 'tunnel = "ssh": commands run where this is typed; type it on the login node'


def _check_absolute(path: str) -> str:
    if not path.startswith("/"):
        raise ValueError(f"must be an absolute path, and is {path!r}")
    return path


def _expand_home(path: str) -> str:
    return _check_absolute(os.path.expanduser(path))


class Mount(BaseModel):
    """``source`` of the host (or of a ``volume``, on Lepton) appears as ``target`` in the image."""

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)

    source: Annotated[str, AfterValidator(_expand_home)] = Field(validation_alias="path")
    target: Annotated[str, AfterValidator(_check_absolute)] = Field(validation_alias="mount_path")
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
    in an image or on a node. ``gpu_memory`` (``80G``) is what a plan compares a job's memory with.
    ``scratch`` is a folder for the runs of a ``store`` in a bucket.
    ``secrets_file`` is read where the job runs; ``upload`` is an fsspec
    URL that takes plan and code to a job whose store (``remote_store``) this machine does not
    see. ``steps`` are ``NAME=FOLDER`` of steps in NVIDIA's layout. ``ignored`` are keys of the
    ``env.toml`` dialect that have no meaning here.
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
    scratch: str | None = None
    workdir: str | None = None
    steps: tuple[str, ...] = ()

    nodes: int | None = Field(default=None, ge=1)
    gpus_per_node: int | None = Field(default=None, ge=0)
    gpu_memory: str | None = Field(default=None, pattern=r"^\d+[MGT]$", examples=["80G"])
    tasks_per_node: int | None = Field(default=None, ge=1)
    cpus_per_task: int | None = Field(default=None, ge=1)
    memory: str | None = None
    time: str | None = Field(
        default=None, pattern=DURATION, examples=["90 (minutes)", "04:00:00", "1-12:00:00"]
    )
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
        # Not bool, which is an int to Python: which spelling of it is meant is not known.
        return {key: str(item) if type(item) is int else item for key, item in table.items()}

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
        problems = []
        taken: dict[str, int] = {}
        for at, mount in enumerate(mounts):
            target = posixpath.normpath(mount.target)
            first = taken.setdefault(target, at)
            if first != at:
                what = f"{target} is the target of mounts[{first}] too"
                problems.append(Problem(key=f"mounts[{at}]", what=what, got=repr(str(mount))))
        raise_all(ProfileError, problems)
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
    for path, text in leaves(table):
        if not isinstance(text, str):
            continue
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


def load_profile(name: str | None, *, project_root: Path | None = None) -> Profile:
    """The profile called ``name``, with what it extends; no name means this machine.

    Raises:
        ProfileError: there is no such profile, its chain goes round, or keys do not fit.
    """
    if name is None:
        return Profile(name="local")
    profile = _assemble(name, follow(name, read_profiles(project_root=project_root)))
    announce_secrets(profile.secrets)
    return profile


def _assemble(name: str, chain: list[ProfileTable]) -> Profile:
    problems: list[Problem] = []
    links: list[tuple[str, dict[str, Any]]] = []
    for each in chain:
        table, found = _read_table(each)
        links.append((each.where, table))
        problems += found
    merged: dict[str, Any] = reduce(_overlay, (table for _, table in reversed(links)), {})
    dialect = [is_dialect(each.table) for each in chain]
    unusable, misplaced = sort_keys(links, OWN, dialect=dialect)
    ignored = list(dict.fromkeys([*merged.get("ignored", ()), *unusable]))
    merged = {
        key: value
        for key, value in merged.items()
        if key in Profile.model_fields and key not in (*unusable, "ignored")
    }
    where = chain[0].where
    if "${" in str(merged):  # ${oc.env:NAME,default}; OmegaConf is slow to import
        merged, found = resolve_interpolations(merged, BaseModel, where=lambda _: where)
        problems += found
    problems += [*misplaced, *_find_control(merged, where)]
    refused_already = {problem.key for problem in problems}
    merged |= {"name": name, "origin": chain[0].path, "ignored": ignored}
    try:
        profile = Profile.model_validate(merged)
    except ValidationError as error:
        refused = explain_errors(error, Profile, merged, where=lambda _: where)
        problems += [each for each in refused if each.key not in refused_already]
    raise_all(ProfileError, problems)
    return profile


def _read_table(each: ProfileTable) -> tuple[dict[str, Any], list[Problem]]:
    """One table under our key names and without secrets, and what is wrong with it."""
    table, problems = translate(each.table, each.where)
    table, leaked = remove_secrets(table, where=lambda _: each.where)
    known = [*OWN, *OURS, *IGNORED]
    unknown = [key for key in each.table if key in table and key not in known]
    what = "is not a known key"
    problems += leaked
    problems += [
        Problem(where=each.where, key=key, what=what, fix=suggest(key, known)) for key in unknown
    ]
    return table, problems


def _overlay(base: dict[str, Any], top: dict[str, Any]) -> dict[str, Any]:
    """Lists are replaced; ``env`` is merged; secrets and ignored keys add up."""
    merged = {**base, **top}
    if isinstance(base.get("env"), dict) and isinstance(top.get("env"), dict):
        merged["env"] = {**base["env"], **top["env"]}
    for key in ("secrets", "ignored"):
        if isinstance(base.get(key), list) and isinstance(top.get(key), list):
            merged[key] = list(dict.fromkeys([*base[key], *top[key]]))
    return merged
