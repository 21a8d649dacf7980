"""Interpolations in a config: ``${a.b}``, ``${.c}``, ``${oc.env:NAME,default}``.

They are resolved by OmegaConf. Added are ``mul``, ``add``, ``div`` and ``max``, which configs of
NeMo-RL use. A key that no file sets is looked up among the schema's defaults.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

from pydantic import BaseModel

from nemotron_style.runtime.config.override import merge
from nemotron_style.runtime.errors import Problem, suggest
from nemotron_style.runtime.secrets.names import is_secret_variable
from nemotron_style.runtime.secrets.reject import remove_secrets
from nemotron_style.runtime.validation import join_key, schema_keys, suggest_key, union_members

MANDATORY = "???"
Path = tuple[str | int, ...]


def resolve_interpolations(
    values: dict[str, Any], schema: type[BaseModel], *, where: Callable[[str], str]
) -> tuple[dict[str, Any], list[Problem]]:
    """``values`` with every interpolation replaced, and a problem for each that dangles.

    A value that could not be resolved, or is a secret, is left out of the result.
    """
    _register()
    problems: list[Problem] = []
    sound, leaked = remove_secrets(_drop_broken(values, problems, where), where=where)
    problems += leaked
    from omegaconf import OmegaConf

    whole = OmegaConf.create(merge(defaults_of(schema), sound))
    known = [*schema_keys(schema), *(join_key(path) for path, _ in leaves(sound))]

    def answer(path: Path, text: str) -> Any:
        try:
            return _look_up(whole, path)
        except Exception as error:  # OmegaConf lets whatever a resolver raises come through
            key = join_key(path)
            problems.append(_explain(error, text, key, where(key), known=known))
            return _GONE

    resolved, leaked = remove_secrets(_replace_leaves(sound, answer), where=where)
    return resolved, [*problems, *leaked]


def leaves(values: Any, path: Path = ()) -> Iterator[tuple[Path, Any]]:
    """Every value that is no table and no list, with its path."""
    if isinstance(values, dict):
        for key, value in values.items():
            yield from leaves(value, (*path, key))
    elif isinstance(values, list):
        for index, value in enumerate(values):
            yield from leaves(value, (*path, index))
    else:
        yield path, values


def defaults_of(schema: type[BaseModel]) -> dict[str, Any]:
    """The defaults that a schema declares, as plain data; what is required is absent."""
    values: dict[str, Any] = {}
    for name, field in schema.model_fields.items():
        if field.is_required():
            inner = [kind for kind in union_members(field.annotation) if _is_model(kind)]
            if len(inner) == 1:
                values[name] = defaults_of(inner[0])
            continue
        default = field.get_default(call_default_factory=True, validated_data={})
        plain = default.model_dump(mode="json") if isinstance(default, BaseModel) else default
        if isinstance(plain, str | int | float | bool | list | dict | None):
            values[name] = plain
    return values


def _is_model(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, BaseModel)


class _Gone:
    """Stands for a value that could not be resolved."""


_GONE = _Gone()


def _is_interpolation(value: Any) -> bool:
    return isinstance(value, str) and "${" in value


def _replace_leaves(values: Any, answer: Callable[[Path, str], Any], path: Path = ()) -> Any:
    if isinstance(values, dict):
        pairs = {key: _replace_leaves(item, answer, (*path, key)) for key, item in values.items()}
        return {key: item for key, item in pairs.items() if item is not _GONE}
    if isinstance(values, list):
        items = [_replace_leaves(item, answer, (*path, i)) for i, item in enumerate(values)]
        return [item for item in items if item is not _GONE]
    return answer(path, values) if _is_interpolation(values) else values


def _drop_broken(
    values: dict[str, Any], problems: list[Problem], where: Callable[[str], str]
) -> dict[str, Any]:
    """Take out what OmegaConf could not even read, and secrets, which never enter a config."""
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    def check(path: Path, text: str) -> Any:
        key = join_key(path)
        names = re.findall(r"oc\.env:\s*['\"]?(\w+)", text)
        secrets = [name for name in names if is_secret_variable(name)]
        if secrets:
            what = f"would write the secret {secrets[0]} into the record of the run"
            fix = f'name it in the profile, secrets = ["{secrets[0]}"], and read it in the step'
            problems.append(Problem(where=where(key), key=key, what=what, fix=fix))
            return _GONE
        try:
            OmegaConf.create({"value": text})
        except OmegaConfBaseException:
            what, fix = f"the interpolation {text} is malformed", "write ${a.b} or ${oc.env:NAME}"
            problems.append(Problem(where=where(key), key=key, what=what, fix=fix))
            return _GONE
        return text

    return dict(_replace_leaves(values, check))


def _look_up(config: Any, path: Path) -> Any:
    from omegaconf import Container, OmegaConf

    for part in path:
        config = config[part]
    if isinstance(config, Container):
        return OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    return config


def _explain(error: Exception, text: str, key: str, where: str, *, known: list[str]) -> Problem:
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
        what = f"{text} uses {resolver[1]!r}, which is not known"
        allowed = ", ".join(names)
        fix = suggest(resolver[1], names)
        return Problem(where=where, key=key, what=what, allowed=allowed, fix=fix)
    if missing := re.search(r"Missing mandatory value: (\S+)", reason):
        what = f"{text} points to {missing[1]!r}, which has no value yet"
        return Problem(where=where, key=key, what=what, fix=f"give {missing[1]}=VALUE")
    if isinstance(error, RecursionError):
        reason = "it refers to itself"
    return Problem(where=where, key=key, what=f"{text} cannot be resolved: {reason}")


def _register() -> None:
    from omegaconf import OmegaConf

    resolvers: dict[str, Callable[[Any, Any], Any]] = {
        "add": lambda left, right: left + right,
        "div": lambda left, right: left / right,
        "max": lambda left, right: max(left, right),
        "mul": lambda left, right: left * right,
    }
    # The name of this function changes between OmegaConf 2.3 and 2.4.
    register = getattr(OmegaConf, "register_resolver", OmegaConf.register_new_resolver)
    for name, function in resolvers.items():
        if not OmegaConf.has_resolver(name):
            register(name, function)
