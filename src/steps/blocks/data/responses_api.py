"""The words in OpenAI Responses objects, as NeMo-Gym's rows and rollouts hold them; no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

TEXT_PARTS = ("input_text", "output_text")


def read_history(given: str | Sequence[Mapping[str, Any]]) -> list[dict[str, str]]:
    """Messages ``{"role", "content"}`` of an ``input``: a question, or a list of items.

    Items other than messages are left out, and of a list of parts the texts are joined.
    """
    if isinstance(given, str):
        return [{"role": "user", "content": given}]
    return [
        {"role": item["role"], "content": _text(item.get("content"))}
        for item in given
        if item.get("type", "message") == "message"
    ]


def _text(content: Any) -> str:
    if content is None or isinstance(content, str):
        return content or ""
    return "".join(part.get("text") or "" for part in content if part.get("type") in TEXT_PARTS)
