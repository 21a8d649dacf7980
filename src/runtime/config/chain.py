"""The ``defaults:`` chain of a config: a file, the file it inherits from, and so on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from nemotron_style.runtime.config.yaml_file import YamlFile, read_yaml_file
from nemotron_style.runtime.errors import ConfigError, Problem, suggest
from nemotron_style.runtime.paths import show_path

MANDATORY = "???"


def read_chain(path: Path, *, home: Path, below: tuple[Path, ...] = ()) -> YamlFile:
    """Read ``path`` over the files it names in ``defaults:``.

    They lie beside the file, or else in ``home``, so that a config of one's own can inherit from
    those that come with the step.

    Raises:
        ConfigError: a file is missing or malformed, or the chain goes round in a circle.
    """
    chain = (*below, path.resolve())
    if path.resolve() in below:
        circle = " -> ".join(each.name for each in chain)
        raise ConfigError(Problem(where=show_path(path), key="defaults", what=f"circle: {circle}"))
    own = read_yaml_file(path)
    values: dict[str, Any] = {}
    places: dict[str, str] = {}
    for parent in _parents(own, path, home):
        inherited = read_chain(parent, home=home, below=chain)
        values = overlay(values, inherited.values)
        places |= inherited.places
    own_values = {key: value for key, value in own.values.items() if key != "defaults"}
    return YamlFile(overlay(values, own_values), {**places, **own.places})


def _parents(document: YamlFile, path: Path, home: Path) -> list[Path]:
    names = document.values.get("defaults", [])
    names = [names] if isinstance(names, str) else names
    where = document.places.get("defaults", show_path(path))
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        what = "must be a file name or a list of them"
        raise ConfigError(Problem(where=where, key="defaults", what=what))
    found = []
    for name in names:
        file = name if name.endswith((".yaml", ".yml")) else f"{name}.yaml"
        there = [folder / file for folder in (path.parent, home) if (folder / file).is_file()]
        if not there:
            names = sorted(
                {each.name for each in (*path.parent.glob("*.yaml"), *home.glob("*.yaml"))}
            )
            what, allowed = f"there is no file {name!r} beside this one", ", ".join(names)
            fix = suggest(file, names)
            raise ConfigError(
                Problem(where=where, key="defaults", what=what, allowed=allowed, fix=fix)
            )
        found.append(there[0])
    return found


def overlay(base: dict[str, Any], top: dict[str, Any]) -> dict[str, Any]:
    """Merge as OmegaConf does, except that a ``???`` on top makes a key mandatory again."""
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    if not base:
        return top
    try:
        merged = OmegaConf.to_container(OmegaConf.merge(base, top), resolve=False)
    except OmegaConfBaseException:  # an interpolation that is malformed is told of later
        from nemotron_style.runtime.config.override import merge

        return merge(base, top)
    assert isinstance(merged, dict)
    _demand_again(merged, top)
    return {str(key): value for key, value in merged.items()}


def _demand_again(merged: Any, top: dict[str, Any]) -> None:
    for key, value in top.items():
        if value == MANDATORY:
            merged[key] = MANDATORY
        elif isinstance(value, dict) and isinstance(merged.get(key), dict):
            _demand_again(merged[key], value)
