"""The TOML files that hold profiles, and the chain of what a profile extends."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nemotron_style.runtime.catalog.manifest import read_toml
from nemotron_style.runtime.errors import Problem, ProfileError, suggest
from nemotron_style.runtime.paths import expand_path, find_project_root, shipped_folder, show_path
from nemotron_style.runtime.profiles.nemo_env import RESERVED

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

    The project's file is ``$NEMOTRON_ENV_FILE``, or the nearest ``env.toml`` upwards.

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
        path = expand_path(named)
        if not path.exists():
            what = f"names {named!r}, and there is no such file"
            raise ProfileError(Problem(where=f"${ENV_FILE_VARIABLE}", what=what))
        return [path]
    start = project_root or find_project_root(Path.cwd())
    nearest = (folder / "env.toml" for folder in (start, *start.parents))
    return [path for path in nearest if path.is_file()][:1]


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
