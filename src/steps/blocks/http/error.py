"""What a service answers instead of an answer, and the JSON that it is asked with."""

from __future__ import annotations

import json
import re
from typing import Any, NoReturn

_SURROGATE = re.compile("[\ud800-\udfff]")


class HttpError(Exception):
    """HTTP status, a word for what it is, one line about it, and the field that is to blame."""

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


class ClientDisconnected(Exception):
    """Nobody waits for the answer any more."""


def read_json(body: bytes) -> Any:
    """The JSON value of a body in UTF-8. Raises ``HttpError`` (400)."""
    try:
        return json.loads(body.decode("utf-8"), parse_constant=_refuse_constant)
    except UnicodeDecodeError as error:
        raise HttpError(400, "not_json", f"body: not UTF-8 at byte {error.start}") from None
    except json.JSONDecodeError as error:
        place = f"line {error.lineno}, column {error.colno}"
        raise HttpError(400, "not_json", f"body: not JSON: {error.msg} at {place}") from None
    except (ValueError, RecursionError) as error:
        message = f"body: not JSON: {str(error) or 'nested too deeply'}"
        raise HttpError(400, "not_json", message) from None


def is_text(value: Any) -> bool:
    """Whether it is text that can be written as UTF-8: JSON can hold half a surrogate pair."""
    return isinstance(value, str) and not _SURROGATE.search(value)


def _refuse_constant(word: str) -> NoReturn:
    """JSON has no NaN and no infinities, whatever Python's parser thinks."""
    raise ValueError(f"{word} is no JSON value")


def shorten(value: Any, most: int = 60) -> str:
    """A value as a message can hold it."""
    text = repr(value)
    return text if len(text) <= most else text[: most - 3] + "..."
