"""Questions to a pydantic schema: which keys it has, and what its refusals mean in plain words."""

from __future__ import annotations

import difflib
import re
import types
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from nemotron_style.runtime.errors import Problem, StepsError, suggest

KeyStatus = Literal["declared", "open", "unknown"]


@dataclass(frozen=True)
class KeyInfo:
    """Where a dotted key stands in a schema.

    ``declared``: a field; ``open``: an entry of a dict, a list item, or an extra key that the
    model allows; ``unknown``: neither, and ``siblings`` are the keys that exist at that point.
    """

    status: KeyStatus
    field: FieldInfo | None = None
    siblings: tuple[str, ...] = ()


def split_key(key: str) -> list[str]:
    """``a.b[0].c`` -> ``["a", "b", "0", "c"]``."""
    return key.replace("[", ".").replace("]", "").split(".")


def join_key(parts: Sequence[str | int]) -> str:
    """``("a", 0, "b")`` -> ``a[0].b``."""
    text = ""
    for part in parts:
        text += f"[{part}]" if isinstance(part, int) else f".{part}"
    return text.removeprefix(".")


def union_members(annotation: Any) -> list[Any]:
    """The members of a union, with ``Annotated`` and ``None`` taken away."""
    if get_origin(annotation) is Annotated:
        return union_members(get_args(annotation)[0])
    if get_origin(annotation) in (Union, types.UnionType):
        return [kind for member in get_args(annotation) for kind in union_members(member)]
    return [] if annotation is type(None) else [annotation]


def fields_of(model: type[BaseModel]) -> dict[str, FieldInfo]:
    """The fields by the name under which they are written in a file."""
    return {
        field.validation_alias if isinstance(field.validation_alias, str) else name: field
        for name, field in model.model_fields.items()
    }


def find_key(annotation: Any, parts: Sequence[str]) -> KeyInfo:
    """Find a key, given in ``parts``, below a type annotation."""
    if not parts:
        return KeyInfo("open")
    places = [_locate_in(kind, parts) for kind in union_members(annotation)]
    known = [place for place in places if place.status != "unknown"]
    if known:
        return min(known, key=lambda place: place.status)
    return KeyInfo("unknown", siblings=tuple(key for each in places for key in each.siblings))


def _locate_in(kind: Any, parts: Sequence[str]) -> KeyInfo:
    head, rest = parts[0], parts[1:]
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        return _locate_in_model(kind, head, rest)
    if kind is Any or kind is dict or kind is object:
        return KeyInfo("open")
    arguments = get_args(kind)
    if isinstance(get_origin(kind), type) and issubclass(get_origin(kind), Mapping):
        return find_key(arguments[1], rest)
    if get_origin(kind) in (list, tuple, Sequence) and head.isdigit():
        return find_key(arguments[0], rest)
    return KeyInfo("unknown")


def _locate_in_model(model: type[BaseModel], head: str, rest: Sequence[str]) -> KeyInfo:
    fields = fields_of(model)
    if head in fields:
        field = fields[head]
        return find_key(field.annotation, rest) if rest else KeyInfo("declared", field=field)
    if model.model_config.get("extra") == "allow":
        return KeyInfo("open")
    return KeyInfo("unknown", siblings=tuple(fields))


def schema_keys(annotation: Any, prefix: str = "", depth: int = 8) -> Iterator[str]:
    """Every dotted key that is declared below ``annotation``, for suggestions and completion."""
    for kind in union_members(annotation) if depth else ():
        if not (isinstance(kind, type) and issubclass(kind, BaseModel)):
            continue
        for name, field in fields_of(kind).items():
            yield prefix + name
            yield from schema_keys(field.annotation, f"{prefix}{name}.", depth - 1)


def suggest_key(key: str, known: Iterable[str]) -> str:
    """A did-you-mean for a dotted key, judged by its last part; siblings come first."""
    prefix, _, last = key.rpartition(".")
    tails: dict[str, list[str]] = {}
    for name in sorted(set(known), key=lambda name: (name.rpartition(".")[0] != prefix, name)):
        tails.setdefault(name.rpartition(".")[2], []).append(name)
    near = [last] if last in tails else difflib.get_close_matches(last, tails, cutoff=0.6)
    near = near or [tail for tail in tails if len(last) > 3 and tail.startswith(last[:4])]
    names = [name for tail in near for name in tails[tail]][:3]
    return "did you mean " + " or ".join(map(repr, names)) + "?" if names else ""


def list_siblings(place: KeyInfo) -> str:
    """The keys that exist where an unknown one was written, as many as one can take in."""
    return ", ".join(place.siblings) if len(place.siblings) <= 20 else ""


def explain_errors(
    error: ValidationError,
    model: type[BaseModel],
    data: Any,
    *,
    where: Callable[[str], str],
) -> list[Problem]:
    """What pydantic refused, one problem a key; ``where`` tells the file (and line) of a key."""
    problems: dict[tuple[str, str], Problem] = {}
    details = error.errors(include_url=False)
    for detail in details:
        for problem in _read_detail(detail, model, data, where):
            known = problems.get((problem.key, problem.got))
            if known and known.allowed and problem.allowed:
                both = dict.fromkeys([*known.allowed.split(" or "), problem.allowed])
                problem = replace(known, allowed=" or ".join(both))
            problems[problem.key, problem.got or problem.what] = problem
    return list(problems.values())


def _read_detail(
    detail: Any, model: type[BaseModel], data: Any, where: Callable[[str], str]
) -> Iterator[Problem]:
    parts = _parts_in_data(detail["loc"], data, missing=detail["type"] == "missing")
    key = join_key(parts)
    context = detail.get("ctx", {})
    cause = context.get("error")
    if isinstance(cause, StepsError):
        for problem in cause.problems:
            origin = problem.where or where(problem.key or key)
            yield replace(problem, where=origin, key=problem.key or key)
        return
    if detail["type"] == "missing":
        yield Problem(where=where(key), key=key, what="is required and was not given")
    elif detail["type"] == "extra_forbidden":
        place = find_key(model, [str(part) for part in parts])
        siblings = [join_key([*parts[:-1], name]) for name in place.siblings]
        fix = suggest_key(key, [*siblings, *schema_keys(model)])
        allowed = "" if fix else list_siblings(place)
        what = "is not a known key"
        yield Problem(where=where(key), key=key, what=what, allowed=allowed, fix=fix)
    elif cause is not None:
        yield Problem(where=where(key), key=key, what=str(cause))
    else:
        allowed = _allowed(detail["type"], context) or detail["msg"]
        got = detail["input"]
        fix = suggest(got, re.findall(r"'([^']*)'", allowed)) if isinstance(got, str) else ""
        yield Problem(
            where=where(key),
            key=key,
            what="does not fit",
            got=show_value(got),
            allowed=allowed,
            fix=fix,
        )


def _parts_in_data(loc: Sequence[str | int], data: Any, *, missing: bool) -> list[str | int]:
    """``loc`` without the names of union members, which are no keys of the data."""
    parts: list[str | int] = []
    for index, part in enumerate(loc):
        inside = isinstance(data, Mapping) and part in data
        inside = inside or (isinstance(data, list) and isinstance(part, int))
        if inside:
            parts.append(part)
            data = data[part]
        elif missing and index == len(loc) - 1:
            parts.append(part)
    return parts


def _allowed(kind: str, context: Mapping[str, Any]) -> str:
    if "expected" in context:
        return str(context["expected"])
    bounds = {"gt": ">", "ge": ">=", "lt": "<", "le": "<="}
    for name, sign in bounds.items():
        if name in context:
            return f"a number {sign} {context[name]}"
    names = {
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
    return names.get(kind, "")


def show_value(value: Any) -> str:
    """A value as YAML users know it, cut to one line."""
    text = {None: "null", True: "true", False: "false"}.get(value) if _is_word(value) else None
    text = repr(value) if text is None else text
    return text if len(text) <= 80 else text[:77] + "..."


def _is_word(value: Any) -> bool:
    return value is None or isinstance(value, bool)
