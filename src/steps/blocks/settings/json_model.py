"""JSON that holds a pydantic model, and what is wrong with one that does not; no torch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ValidationError

from nemotron_style.runtime.errors import InputError, Problem

Model = TypeVar("Model", bound=BaseModel)


def read_json_model(kind: type[Model], file: Path, *, absent: Problem) -> Model:
    """The model in ``file``. Raises InputError with every fault; ``absent`` for no file."""
    try:
        return kind.model_validate_json(file.read_bytes())
    except OSError as error:
        raise InputError(absent) from error
    except ValidationError as error:
        raise InputError(validation_problems(error, where=str(file))) from error


def validation_problems(error: ValidationError, *, where: str = "") -> Iterator[Problem]:
    """What pydantic refused; keys are written as ``a[0].b``."""
    for fault in error.errors(include_url=False):
        parts = (f"[{part}]" if isinstance(part, int) else f".{part}" for part in fault["loc"])
        key = "".join(parts).removeprefix(".")
        cause = fault.get("ctx", {}).get("error")
        if isinstance(cause, InputError):  # raised by a validator of the model
            for problem in cause.problems:
                yield replace(problem, where=where, key=problem.key or key)
        elif fault["type"] == "missing":
            yield Problem(where=where, key=key, what="missing field")
        elif fault["type"] == "extra_forbidden":
            yield Problem(where=where, key=key, what="unknown field")
        else:
            got = repr(fault["input"])[:80] if key else ""
            yield Problem(where=where, key=key, what=fault["msg"], got=got)
