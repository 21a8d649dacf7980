"""The TOML files that hold profiles, and the chain of what a profile extends."""

from __future__ import annotations

import os
import pwd
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nemotron_style.runtime.errors import Problem, ProfileError, raise_all, suggest
from nemotron_style.runtime.paths import (
    ROOT,
    expand_path,
    find_home,
    find_project_root,
    list_folders_above,
    shipped_folder,
    show_path,
)
from nemotron_style.runtime.profiles.nemo_env import RESERVED
from nemotron_style.runtime.text_file import read_toml_file

ENV_FILE_VARIABLE = "NEMOTRON_ENV_FILE"


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


def read_profiles(*, project_root: Path | None = None) -> dict[str, ProfileTable]:
    """Every profile by name; the project's own win over those of the package.

    The project's file is ``$NEMOTRON_ENV_FILE``, or the nearest ``env.toml`` at or above the
    project's root, within the user's home or the same repository.

    Raises:
        ProfileError: a file is no TOML, has keys outside of any table, or is not the user's own.
    """
    tables: dict[str, ProfileTable] = {}
    for path in [*sorted(shipped_folder("profiles").glob("*.toml")), *_env_files(project_root)]:
        for name, table in read_toml_file(path, ProfileError).items():
            if not isinstance(table, dict):
                what, fix = "stands outside of any profile", "put it below a line [name]"
                raise ProfileError(Problem(where=show_path(path), key=name, what=what, fix=fix))
            if name not in RESERVED:
                tables[name] = ProfileTable(name, path, table)
    return tables


def _env_files(project_root: Path | None) -> list[Path]:
    named = os.environ.get(ENV_FILE_VARIABLE)
    if named:
        path = expand_path(named)
        if not path.exists():
            what = f"names {named!r}, and there is no such file"
            raise ProfileError(Problem(where=f"${ENV_FILE_VARIABLE}", what=what))
        return [path]
    root = project_root or find_project_root(Path.cwd())
    nearest = (folder / "env.toml" for folder in _list_folders(root))
    found = [path for path in nearest if path.is_file()][:1]
    raise_all(ProfileError, [problem for path in found for problem in _find_distrust(path)])
    return found


def _list_folders(root: Path) -> list[Path]:
    """The project's root, and what is above it in the user's home or in the same repository."""
    folders = list_folders_above(root)
    if find_home() in folders:
        return folders
    inside = [at for at, folder in enumerate(folders) if (folder / ".git").exists()][:1]
    return folders[: inside[0] + 1] if inside else [root]


def _find_distrust(path: Path) -> Iterator[Problem]:
    """Why a file that was only come upon must not decide what is run in the user's name."""
    facts = path.stat()
    trust = f"or, to trust it, export {ENV_FILE_VARIABLE}={path}"
    if facts.st_uid not in (os.getuid(), ROOT):
        what = "belongs to another user, and its profiles are commands that you would run"
        fix = f"copy it into your project's root, {trust}"
        yield Problem(where=str(path), what=what, got=_name_user(facts.st_uid), fix=fix)
    # A group of the user's own is how most systems set up a user.
    by_group = facts.st_mode & stat.S_IWGRP and facts.st_gid != os.getgid()
    if by_group or facts.st_mode & stat.S_IWOTH:
        what = "can be written by other users, and its profiles are commands that you would run"
        mode = f"{stat.S_IMODE(facts.st_mode):03o}"
        fix = f"chmod go-w {path}, {trust}"
        yield Problem(where=str(path), what=what, got=f"mode {mode}", fix=fix)


def _name_user(number: int) -> str:
    try:
        return pwd.getpwuid(number).pw_name
    except KeyError:
        return f"user {number}"


def follow(name: str, tables: Mapping[str, ProfileTable]) -> list[ProfileTable]:
    """The profile and what it extends, itself first.

    Raises:
        ProfileError: a name is not known, ``extends`` is no name, or the chain goes round.
    """
    chain: list[ProfileTable] = []
    while name or not chain:
        where = chain[-1].where if chain else ""
        if name not in tables:
            allowed, fix = ", ".join(sorted(tables)), suggest(name, tables)
            what = f"there is no profile {name!r}"
            raise ProfileError(Problem(where=where, what=what, allowed=allowed, fix=fix))
        names = [each.name for each in chain]
        if name in names:
            circle = " -> ".join([*names, name])
            raise ProfileError(Problem(where=where, key="extends", what=f"circle: {circle}"))
        chain.append(tables[name])
        name = chain[-1].table.get("extends", "")
        if not isinstance(name, str):
            raise ProfileError(
                Problem(where=chain[-1].where, key="extends", what="must be one name")
            )
    return chain


def is_base(name: str, tables: Mapping[str, ProfileTable]) -> bool:
    """Whether others extend ``name``, and it says nowhere which executor it is for."""
    extended = any(each.table.get("extends") == name for each in tables.values())
    return extended and all("executor" not in each.table for each in follow(name, tables))
