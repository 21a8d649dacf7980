"""The words in OpenAI Responses objects, as NeMo-Gym's rows and rollouts hold them; no torch."""

from __future__ import annotations

import hashlib
import json
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


def read_output(response: Mapping[str, Any]) -> tuple[str, str]:
    """Reasoning and final answer of a response: all summaries, and all ``output_text`` parts."""
    reasoning, answer = [], []
    for item in response.get("output", ()):
        if item.get("type") == "reasoning":
            reasoning += [part.get("text") or "" for part in item.get("summary") or ()]
        elif item.get("type") == "message" and isinstance(item.get("content"), list):
            answer += [
                part.get("text") or ""
                for part in item["content"]
                if part.get("type") == "output_text"
            ]
    return "".join(reasoning), "".join(answer)


def prompt_digest(given: Any, principle: str | None) -> str:
    """How NeMo-Gym names a prompt: SHA-256 of its ``input`` and its principle."""
    named = json.dumps({"input": given, "principle": principle}, sort_keys=True)
    return hashlib.sha256(named.encode()).hexdigest()


def _text(content: Any) -> str:
    if content is None or isinstance(content, str):
        return content or ""
    return "".join(part.get("text") or "" for part in content if part.get("type") in TEXT_PARTS)
