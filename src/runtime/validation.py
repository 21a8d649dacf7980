"""A pydantic schema as its users see it: which keys it has, and what its errors mean in words."""

from __future__ import annotations

import difflib
import json
import re
import types
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from nemotron_style.runtime.errors import Problem, StepsError, did_you_mean, suggest


@dataclass(frozen=True)
class KeyInfo:
    """What a schema says about a dotted key.

    ``declared``: it is a field; ``open``: an entry of a dict, a list item, or an extra key that
    the model allows; ``unknown``: neither, and ``siblings`` are the keys that exist at that point.
    """

    status: Literal["declared", "open", "unknown"]
    field: FieldInfo | None = None
    siblings: tuple[str, ...] = ()

    @property
    def allowed(self) -> str:
        """The keys that exist where an unknown one was written; empty where they are too many."""
        return ", ".join(self.siblings) if len(self.siblings) <= 20 else ""


def split_key(key: str) -> list[str]:
    """``a.b[0].c`` -> ``["a", "b", "0", "c"]``."""
    return key.replace("[", ".").replace("]", "").split(".")


def join_key(parts: Sequence[str | int]) -> str:
    """``("a", 0, "b")`` -> ``a[0].b``."""
    text = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in parts)
    return text.removeprefix(".")


def get_key(values: Any, key: str) -> Any:
    """The value at a dotted key of nested tables, or None."""
    for part in split_key(key):
        values = values.get(part) if isinstance(values, Mapping) else None
    return values


def put_key(values: dict[str, Any], key: str, value: Any) -> None:
    """Set the value at a dotted key, and make the tables above it where they are missing."""
    *above, last = split_key(key)
    for part in above:
        inner = values.setdefault(part, {})
        if not isinstance(inner, dict):  # the schema refuses it under its own name
            return
        values = inner
    values[last] = value


def remove_key(values: dict[str, Any], key: str) -> None:
    """Take the value at a dotted key out of nested tables, where there is one.

    The tables above it are there afterwards, so that nothing tells whether it was.
    """
    *above, last = split_key(key)
    for part in above:
        inner = values.setdefault(part, {})
        if not isinstance(inner, dict):
            return
        values = inner
    values.pop(last, None)


def is_plain_key(key: str) -> bool:
    """Whether a key can stand in a dotted key as it is."""
    return bool(key) and not set(key) & set('."[]')


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested tables as dotted keys; lists and empty tables stay values.

    A key that holds a dot is quoted, so that no two keys become one: ``{"a.b": 1, "a": {"b": 2}}``
    gives ``"a.b"`` (in quotes) and ``a.b``.
    """
    flat: dict[str, Any] = {}
    for name, value in values.items():
        key = prefix + (name if is_plain_key(name) else json.dumps(name, ensure_ascii=False))
        if isinstance(value, Mapping) and value:
            flat |= flatten(value, f"{key}.")
        else:
            flat[key] = value
    return flat


def union_members(annotation: Any) -> list[Any]:
    """The members of a union, without ``Annotated`` and ``None``."""
    if get_origin(annotation) is Annotated:
        return union_members(get_args(annotation)[0])
    if get_origin(annotation) in (Union, types.UnionType):
        return [kind for member in get_args(annotation) for kind in union_members(member)]
    return [] if annotation is type(None) else [annotation]


def fields_of(model: type[BaseModel]) -> dict[str, FieldInfo]:
    """The fields of a model by the name under which they are written in a file."""
    return {
        field.validation_alias if isinstance(field.validation_alias, str) else name: field
        for name, field in model.model_fields.items()
    }


def find_key(annotation: Any, parts: Sequence[str]) -> KeyInfo:
    """Find a key, split into ``parts``, below a type annotation."""
    if not parts:
        return KeyInfo("open")
    found = [_find_in(kind, parts) for kind in union_members(annotation)]
    # A union knows a key when one of its members does; "declared" sorts before "open".
    if known := [info for info in found if info.status != "unknown"]:
        return min(known, key=lambda info: info.status)
    return KeyInfo("unknown", siblings=tuple(key for info in found for key in info.siblings))


def _find_in(kind: Any, parts: Sequence[str]) -> KeyInfo:
    head, rest = parts[0], parts[1:]
    if _is_model(kind):
        fields = fields_of(kind)
        if head in fields:
            field = fields[head]
            return find_key(field.annotation, rest) if rest else KeyInfo("declared", field)
        if kind.model_config.get("extra") == "allow":
            return KeyInfo("open")
        return KeyInfo("unknown", siblings=tuple(fields))
    if kind is Any or kind is dict or kind is object:
        return KeyInfo("open")
    origin, arguments = get_origin(kind), get_args(kind)
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return find_key(arguments[1], rest)
    if origin in (list, tuple, Sequence) and head.isdigit():
        return find_key(arguments[0], rest)
    return KeyInfo("unknown")


def schema_keys(annotation: Any, prefix: str = "", depth: int = 8) -> Iterator[str]:
    """Every dotted key that is declared below ``annotation``, for suggestions and completion."""
    # A model may contain itself: the depth ends it.
    for kind in filter(_is_model, union_members(annotation)) if depth else ():
        for name, field in fields_of(kind).items():
            yield prefix + name
            yield from schema_keys(field.annotation, f"{prefix}{name}.", depth - 1)


def suggest_key(key: str, known: Iterable[str]) -> str:
    """A did-you-mean for a dotted key, compared by its last part; siblings come first."""
    prefix, _, last = key.rpartition(".")
    by_last: dict[str, list[str]] = {}
    for name in sorted(set(known), key=lambda name: (name.rpartition(".")[0] != prefix, name)):
        by_last.setdefault(name.rpartition(".")[2], []).append(name)
    near = [last] if last in by_last else difflib.get_close_matches(last, by_last, cutoff=0.6)
    near = near or [word for word in by_last if len(last) > 3 and word.startswith(last[:4])]
    return did_you_mean([name for word in near for name in by_last[word]][:3])


def explain_errors(
    error: ValidationError,
    model: type[BaseModel],
    data: Any,
    *,
    where: Callable[[str], str],
) -> list[Problem]:
    """What pydantic refused, one problem a key; ``where`` gives the file (and line) of a key."""
    problems: dict[tuple[str, str], Problem] = {}
    for detail in error.errors(include_url=False):
        for problem in _explain(detail, model, data, where):
            # Each member of a union refuses a value in its own words: they become one sentence.
            known = problems.get((problem.key, problem.got))
            if known and known.allowed and problem.allowed:
                both = dict.fromkeys([*known.allowed.split(" or "), problem.allowed])
                problem = replace(known, allowed=" or ".join(both))
            problems[problem.key, problem.got or problem.what] = problem
    return list(problems.values())


def _explain(
    detail: Any, model: type[BaseModel], data: Any, where: Callable[[str], str]
) -> Iterator[Problem]:
    parts = _key_parts(detail["loc"], data, missing=detail["type"] == "missing")
    key = join_key(parts)
    context = detail.get("ctx", {})
    cause = context.get("error")
    if isinstance(cause, StepsError):  # raised by a validator, and explained there
        for problem in cause.problems:
            origin = problem.where or where(problem.key or key)
            yield replace(problem, where=origin, key=problem.key or key)
        return
    problem = Problem(where=where(key), key=key, what="does not fit")
    if detail["type"] == "missing":
        yield replace(problem, what="is required and was not given")
    elif detail["type"] == "extra_forbidden":
        info = find_key(model, [str(part) for part in parts])
        siblings = [join_key([*parts[:-1], name]) for name in info.siblings]
        fix = suggest_key(key, [*siblings, *schema_keys(model)])
        yield replace(
            problem, what="is not a known key", allowed="" if fix else info.allowed, fix=fix
        )
    elif cause is not None:
        yield replace(problem, what=str(cause))
    else:
        allowed = _allowed(detail["type"], context) or _examples(model, parts) or detail["msg"]
        got = detail["input"]
        fix = ""
        if isinstance(got, str):
            fix = _suggest_plain(got, allowed) or suggest(got, re.findall(r"'([^']*)'", allowed))
        yield replace(problem, got=show_value(got), allowed=allowed, fix=fix)


def _examples(model: type[BaseModel], parts: Sequence[str | int]) -> str:
    """The examples of a key that a pattern decides; people do not read patterns."""
    field = find_key(model, [str(part) for part in parts]).field
    return f"such as {', '.join(map(str, field.examples))}" if field and field.examples else ""


def _key_parts(loc: Sequence[str | int], data: Any, *, missing: bool) -> list[str | int]:
    """``loc`` without the names of union members, which are no keys of the data."""
    parts: list[str | int] = []
    for index, part in enumerate(loc):
        inside = isinstance(data, Mapping) and part in data
        if inside or (isinstance(data, list) and isinstance(part, int)):
            parts.append(part)
            data = data[part]
        elif missing and index == len(loc) - 1:
            parts.append(part)
    return parts


_TYPES = {
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "finite_number": "a finite number",
    "string_type": "a string",
    "path_type": "a path",
    "bool_type": "true or false",
    "none_required": "null",
    "list_type": "a list",
    "tuple_type": "a list",
    "dict_type": "a table of keys",
    "model_type": "a table of keys",
    "model_attributes_type": "a table of keys",
}


def _allowed(kind: str, context: Mapping[str, Any]) -> str:
    if "expected" in context:
        return str(context["expected"])
    for name, sign in {"gt": ">", "ge": ">=", "lt": "<", "le": "<="}.items():
        if name in context:
            return f"a number {sign} {context[name]}"
    return _TYPES.get(kind, "")


def _suggest_plain(text: str, allowed: str) -> str:
    """How to write what YAML 1.1 would have taken ``text`` for: ``1_000``, ``010``, ``yes``."""
    truth = {"yes": "true", "on": "true", "no": "false", "off": "false"}.get(text.lower())
    if truth and allowed == _TYPES["bool_type"]:
        return f"write {truth}"
    if "number" not in allowed or not re.fullmatch(r"[-+]?[0-9][0-9_]*", text):
        return ""
    return f"write {int(text.replace('_', ''))}, without {'_' if '_' in text else 'leading zeros'}"


def show_value(value: Any) -> str:
    """A value as YAML users know it, cut to one line."""
    text = json.dumps(value) if value is None or isinstance(value, bool) else repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def _is_model(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, BaseModel)
