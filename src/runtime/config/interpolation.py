"""Interpolations in a config: ``${a.b}``, ``${.c}``, ``${oc.env:NAME,default}``.

OmegaConf resolves them. Added are ``mul``, ``add``, ``div`` and ``max``, which configs of NeMo-RL
use, and ``multiply`` of NeMo. A key that no file sets is looked up among the schema's defaults.
Most are the name of a key that has a plain value; these need no OmegaConf, whose import and
containers take longer than all the rest of a dry run.
"""

from __future__ import annotations

import inspect
import operator
import re
import warnings
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

from pydantic import BaseModel

from nemotron_style.runtime.config.inheritance import merge_tables
from nemotron_style.runtime.config.model import MANDATORY
from nemotron_style.runtime.errors import Problem, suggest
from nemotron_style.runtime.secrets.names import is_secret_variable
from nemotron_style.runtime.secrets.reject import remove_secrets
from nemotron_style.runtime.validation import join_key, schema_keys, suggest_key, union_members

Path = tuple[str | int, ...]
_UNRESOLVED = object()
_NAME_OF_KEY = re.compile(r"\$\{([A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*)\}")
_LONGEST_CHAIN = 8
_NVIDIAS = {
    "art": "it looks an artifact up in NVIDIA's registry; give -i SLOT=REF, or the key a path",
    "manifest": "it reads a file of a data step while a job runs; give the key a path",
    "auto_mount": "it clones a repository, and is understood in run.env.mounts only",
}
"""Resolvers that NVIDIA Nemotron's runner adds to OmegaConf, and what to do instead."""
_RESOLVERS: dict[str, Callable[[Any, Any], Any]] = {
    "add": operator.add,
    "div": operator.truediv,
    "max": lambda left, right: max(left, right),  # OmegaConf reads signatures; max has none
    "mul": operator.mul,
    "multiply": operator.mul,  # as NeMo calls it
}


def resolve_interpolations(
    values: dict[str, Any], schema: type[BaseModel], *, where: Callable[[str], str]
) -> tuple[dict[str, Any], list[Problem]]:
    """``values`` with every interpolation replaced, and a problem for each that dangles.

    A value that could not be resolved, or is a secret, is left out of the result.
    """
    problems: list[Problem] = []
    readable, leaked = remove_secrets(_remove_unreadable(values, problems, where), where=where)
    problems += leaked
    if not any(isinstance(value, str) and "${" in value for _, value in leaves(readable)):
        return readable, problems
    tables = merge_tables(defaults_of(schema), readable)

    @cache
    def config() -> Any:
        from omegaconf import OmegaConf

        _register_resolvers()
        return OmegaConf.create(tables)

    def look_up(path: Path, text: str) -> Any:
        value = _find_named(tables, text)
        if value is not _UNRESOLVED:
            return value
        try:
            with warnings.catch_warnings(action="ignore"):  # of ``${oc.env:NAME,}``, which works
                return _look_up(config(), path)
        except Exception as error:  # OmegaConf passes on whatever a resolver raises
            key = join_key(path)
            known = [*schema_keys(schema), *(join_key(path) for path, _ in leaves(readable))]
            problems.append(_explain(error, text, key, where(key), known=known))
            return _UNRESOLVED

    # Checked again, because what an interpolation brings in may be a secret too.
    resolved, leaked = remove_secrets(_replace_leaves(readable, look_up), where=where)
    return resolved, [*problems, *leaked]


def _find_named(tables: dict[str, Any], text: str) -> Any:
    """The plain value of the key that ``${a.b}`` names; _UNRESOLVED for all that is less simple."""
    for _ in range(_LONGEST_CHAIN):
        named = _NAME_OF_KEY.fullmatch(text)
        if named is None:
            break
        value: Any = tables
        for part in named[1].split("."):
            value = value.get(part, _UNRESOLVED) if isinstance(value, dict) else _UNRESOLVED
        if isinstance(value, str) and "${" in value:
            text = value
            continue
        is_plain = isinstance(value, str | int | float | None) and value != MANDATORY
        return value if is_plain else _UNRESOLVED
    return _UNRESOLVED


def leaves(values: Any, path: Path = ()) -> Iterator[tuple[Path, Any]]:
    """Every value that is no table and no list, with its path."""
    if isinstance(values, dict | list):
        pairs = values.items() if isinstance(values, dict) else enumerate(values)
        for key, value in pairs:
            yield from leaves(value, (*path, key))
    else:
        yield path, values


def defaults_of(schema: type[BaseModel]) -> dict[str, Any]:
    """The defaults that a schema declares, as plain data; what is required is absent."""
    values: dict[str, Any] = {}
    for name, field in schema.model_fields.items():
        if field.is_required():
            kinds = union_members(field.annotation)
            models = [k for k in kinds if isinstance(k, type) and issubclass(k, BaseModel)]
            if len(models) == 1:
                values[name] = defaults_of(models[0])
            continue
        default = field.get_default(call_default_factory=True, validated_data={})
        plain = default.model_dump(mode="json") if isinstance(default, BaseModel) else default
        if isinstance(plain, str | int | float | bool | list | dict | None):
            values[name] = plain
    return values


def _replace_leaves(values: Any, replace: Callable[[Path, str], Any], path: Path = ()) -> Any:
    """``values`` with every interpolation replaced, or left out where that is _UNRESOLVED."""
    if isinstance(values, dict):
        pairs = {key: _replace_leaves(item, replace, (*path, key)) for key, item in values.items()}
        return {key: item for key, item in pairs.items() if item is not _UNRESOLVED}
    if isinstance(values, list):
        items = [_replace_leaves(item, replace, (*path, i)) for i, item in enumerate(values)]
        return [item for item in items if item is not _UNRESOLVED]
    return replace(path, values) if isinstance(values, str) and "${" in values else values


def _remove_unreadable(
    values: dict[str, Any], problems: list[Problem], where: Callable[[str], str]
) -> dict[str, Any]:
    """``values`` without what OmegaConf could not even read, and without variables of secrets."""

    def check(path: Path, text: str) -> Any:
        key, what, fix = join_key(path), "", ""
        names = re.findall(r"oc\.env:\s*['\"]?(\w+)", text)
        if secret := next(filter(is_secret_variable, names), None):
            what = f"would write the secret {secret} into the record of the run"
            fix = f'name it in the profile, secrets = ["{secret}"], and read it in the step'
        elif _is_malformed(text):
            what = f"the interpolation {text} is malformed"
            fix = "write ${a.b} or ${oc.env:NAME}"
        if not what:
            return text
        problems.append(Problem(where=where(key), key=key, what=what, fix=fix))
        return _UNRESOLVED

    return dict(_replace_leaves(values, check))


def _is_malformed(text: str) -> bool:
    if _NAME_OF_KEY.fullmatch(text):
        return False
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    try:
        OmegaConf.create({"value": text})
    except OmegaConfBaseException:
        return True
    return False


def _look_up(config: Any, path: Path) -> Any:
    from omegaconf import Container, OmegaConf

    for part in path:
        config = config[part]
    if isinstance(config, Container):
        return OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    return config


def _explain(error: Exception, text: str, key: str, where: str, *, known: list[str]) -> Problem:
    """OmegaConf's errors differ in their texts alone."""
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    if wanted := re.search(r"Interpolation key '([^']*)' not found", reason):
        what = f"{text} points to {wanted[1]!r}, which is not set"
        return Problem(where=where, key=key, what=what, fix=suggest_key(wanted[1], known))
    if variable := re.search(r"Environment variable '([^']*)' not found", reason):
        what = f"{text} reads the environment variable {variable[1]}, which is not set"
        fix = f"export {variable[1]}=..., or give a default: ${{oc.env:{variable[1]},DEFAULT}}"
        return Problem(where=where, key=key, what=what, fix=fix)
    if resolver := re.search(r"Unsupported interpolation type (\S+)", reason):
        names = ("oc.env", "oc.select", "oc.decode", "oc.create", "mul", "add", "div", "max")
        what, fix = f"{text} uses {resolver[1]!r}, which is not known", suggest(resolver[1], names)
        if resolver[1] in _NVIDIAS:
            return Problem(where=where, key=key, what=f"{text}: {_NVIDIAS[resolver[1]]}")
        return Problem(where=where, key=key, what=what, allowed=", ".join(names), fix=fix)
    if missing := re.search(r"Missing mandatory value: (\S+)", reason):
        what = f"{text} points to {missing[1]!r}, which has no value yet"
        return Problem(where=where, key=key, what=what, fix=f"give {missing[1]}=VALUE")
    if isinstance(error, RecursionError):
        reason = "it refers to itself"
    return Problem(where=where, key=key, what=f"{text} cannot be resolved: {reason}")


def _register_resolvers() -> None:
    from omegaconf import OmegaConf

    # OmegaConf 2.4 renames this function, to a name that 2.3 has for one which gives the resolver
    # texts and follows no reference inside its arguments.
    register: Callable[..., None] = OmegaConf.register_resolver
    if "replace" not in inspect.signature(register).parameters:
        register = OmegaConf.register_new_resolver
    for name, function in _RESOLVERS.items():
        if not OmegaConf.has_resolver(name):
            register(name, function)
