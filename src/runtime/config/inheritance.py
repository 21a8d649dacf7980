"""A config file over the files that it inherits from (``defaults:``)."""

from __future__ import annotations

import copy
import os
from pathlib import Path
from typing import Any

from nemotron_style.runtime.config.model import MANDATORY
from nemotron_style.runtime.config.yaml_file import YamlFile, read_yaml_file
from nemotron_style.runtime.errors import ConfigError, Problem, suggest
from nemotron_style.runtime.paths import show_path


def read_config_file(path: Path, *, home: Path) -> YamlFile:
    """Read ``path`` over the files it names in ``defaults:``, and those over their own.

    They lie beside the file, or else in ``home``, so that a config of one's own can inherit from
    those that come with the step.

    Raises ConfigError for a file that is missing or malformed, and for a circle.
    """
    return _read(path, home, below=(), known={})


def _read(
    path: Path, home: Path, *, below: tuple[Path, ...], known: dict[Path, YamlFile]
) -> YamlFile:
    """``below`` are the files that inherit from this one, ``known`` those that were read."""
    chain = (*below, Path(os.path.realpath(path)))
    if chain[-1] in below:
        circle = " -> ".join(each.name for each in chain)
        raise ConfigError(Problem(where=show_path(path), key="defaults", what=f"circle: {circle}"))
    # Where each of n files inherits twice from the next, the last would be read 2^n times.
    if chain[-1] in known:
        return known[chain[-1]]
    own = read_yaml_file(path)
    values: dict[str, Any] = {}
    locations: dict[str, str] = {}
    for parent in _find_parents(own, path, home):
        inherited = _read(parent, home, below=chain, known=known)
        values = merge_files(values, inherited.values)
        locations |= inherited.locations
    own_values = {key: value for key, value in own.values.items() if key != "defaults"}
    known[chain[-1]] = YamlFile(merge_files(values, own_values), {**locations, **own.locations})
    return known[chain[-1]]


def _find_parents(file: YamlFile, path: Path, home: Path) -> list[Path]:
    names = file.values.get("defaults", [])
    names = [names] if isinstance(names, str) else names
    if isinstance(names, list) and names[-1:] == ["_self_"]:
        names = names[:-1]  # Hydra's word for what is so here: the file itself comes last
    problem = {"where": file.locations.get("defaults", show_path(path)), "key": "defaults"}
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ConfigError(Problem(**problem, what="must be a file name or a list of them"))
    parents = []
    for name in names:
        file_name = name if name.endswith((".yaml", ".yml")) else f"{name}.yaml"
        # What is there and is no file is reported when it is read.
        folders = [each for each in (path.parent, home) if os.path.lexists(each / file_name)]
        if not folders:
            known = sorted(
                {each.name for folder in (path.parent, home) for each in folder.glob("*.yaml")}
            )
            what, fix = f"there is no file {name!r} beside this one", suggest(file_name, known)
            raise ConfigError(Problem(**problem, what=what, allowed=", ".join(known), fix=fix))
        parents.append(folders[0] / file_name)
    return parents


def merge_files(base: dict[str, Any], top: dict[str, Any]) -> dict[str, Any]:
    """Merge as OmegaConf does, except that a ``???`` on top makes a key mandatory again."""
    if not base:
        return top
    if not _lays_table_over_interpolation(base, top):
        # OmegaConf's result, without the import and the containers that make most of its time.
        return copy.deepcopy(merge_tables(base, top))
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    try:
        merged: Any = OmegaConf.to_container(OmegaConf.merge(base, top), resolve=False)
    except OmegaConfBaseException:  # a malformed interpolation, which is reported later
        return merge_tables(base, top)
    _demand_again(merged, top)
    return {str(key): value for key, value in merged.items()}


def _lays_table_over_interpolation(base: Any, top: Any) -> bool:
    """Whether what an interpolation stands for is needed to lay ``top`` over ``base``."""
    if not isinstance(top, dict):
        return False
    if isinstance(base, dict):
        both = base.keys() & top.keys()
        return any(_lays_table_over_interpolation(base[key], top[key]) for key in both)
    return isinstance(base, str) and "${" in base


def _demand_again(merged: Any, top: dict[str, Any]) -> None:
    for key, value in top.items():
        if value == MANDATORY:
            merged[key] = MANDATORY
        elif isinstance(value, dict) and isinstance(merged.get(key), dict):
            _demand_again(merged[key], value)


def merge_tables(base: dict[str, Any], top: dict[str, Any]) -> dict[str, Any]:
    """``base`` with the keys of ``top`` laid over it, table by table."""
    merged = dict(base)
    for key, value in top.items():
        old = merged.get(key)
        both = isinstance(old, dict) and isinstance(value, dict)
        merged[key] = merge_tables(old, value) if both else value  # type: ignore[arg-type]
    return merged
