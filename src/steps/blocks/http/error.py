"""Errors that a service answers with, and the JSON of a request."""

from __future__ import annotations

import json
import re
from typing import Any, NoReturn

_SURROGATE = re.compile("[\ud800-\udfff]")


class HttpError(Exception):
    """An error to answer with: its status, a word for its kind, a line, and the field at fault."""

    def __init__(
        self,
        status: int,
        kind: str,
        message: str,
        *,
        retry_after: int = 0,
        param: str | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.kind, self.message = status, kind, message
        self.retry_after, self.param = retry_after, param

    @property
    def body(self) -> dict[str, Any]:
        return {"error": {"type": self.kind, "message": self.message}}


def read_json(body: bytes) -> Any:
    """The JSON value of a body in UTF-8. Raises ``HttpError`` (400)."""
    try:
        return json.loads(body.decode("utf-8"), parse_constant=_refuse_constant)
    except UnicodeDecodeError as error:
        raise HttpError(400, "not_json", f"body: not UTF-8 at byte {error.start}") from None
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno}"
        raise HttpError(400, "not_json", f"body: not JSON: {error.msg} at {where}") from None
    except (ValueError, RecursionError) as error:
        message = f"body: not JSON: {str(error) or 'nested too deeply'}"
        raise HttpError(400, "not_json", message) from None


def is_text(value: Any) -> bool:
    """Whether it is text that UTF-8 can write; ``"\\ud800"`` in JSON is half a surrogate pair."""
    return isinstance(value, str) and not _SURROGATE.search(value)


def _refuse_constant(word: str) -> NoReturn:
    """JSON has no NaN and no infinities; Python's parser takes them."""
    raise ValueError(f"{word} is no JSON value")


def shorten(value: Any, most: int = 60) -> str:
    """The ``repr`` of a value, cut to ``most`` characters."""
    text = repr(value)
    return text if len(text) <= most else text[: most - 3] + "..."
