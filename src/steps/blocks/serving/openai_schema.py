"""The body of ``POST /v1/chat/completions``: OpenAI's form, and which part of it is taken.

A field that this service does not have is taken where its value means the same as its absence
(``"frequency_penalty": 0``), and refused with any other value: no answer is sampled in another way
than its request says. ``null`` stands for absence everywhere, as in OpenAI's interface.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

from nemotron_style.steps.blocks.data.jsonl import is_number
from nemotron_style.steps.blocks.http.error import HttpError, is_text, read_json, shorten
from nemotron_style.steps.blocks.reward.types import Message

MOST_CHOICES = 8
MOST_STOPS = 4
LEAST_TEMPERATURE = 0.01
LARGEST_SEED = 2**63 - 1

_ROLE = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,63}")

# Values of other fields that change nothing.
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "stream": (False,),
    "stream_options": (),
    "frequency_penalty": (0,),
    "presence_penalty": (0,),
    "repetition_penalty": (1,),
    "top_k": (0, -1),
    "min_p": (0,),
    "top_logprobs": (0,),
    "logit_bias": ({},),
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "parallel_tool_calls": (True, False),
    "service_tier": ("auto", "default"),
    "store": (False,),
}
# Fields about the client and not about the answer.
_IGNORED = ("user", "metadata")
_OF_A_MESSAGE = ("name", "refusal", "tool_calls", "function_call", "audio")


@dataclass(frozen=True)
class ChatRequest:
    """A checked request. ``max_tokens`` and ``seed`` are None where they were not given."""

    messages: tuple[Message, ...]
    model: str | None
    temperature: float
    top_p: float
    max_tokens: int | None
    n: int
    seed: int | None
    stop: tuple[str, ...]
    logprobs: bool


def parse_chat_request(body: bytes) -> ChatRequest:
    """Raises ``HttpError`` (400) that names the field, what it holds, and what it may hold."""
    request = read_json(body)
    if not isinstance(request, dict):
        raise HttpError(400, "invalid_type", "body: must be an object with the field messages")
    fields = {key: value for key, value in request.items() if value is not None}
    _refuse_foreign(fields)
    return ChatRequest(
        messages=_read_messages(fields.get("messages")),
        model=_read(fields, "model", None, _is_name, "the name of the model"),
        temperature=float(_read(fields, "temperature", 1, _is_temperature, "0, or 0.01 to 2")),
        top_p=float(_read(fields, "top_p", 1, _between(0, 1), "above 0, up to 1")),
        max_tokens=_read_length(fields),
        n=_read(fields, "n", 1, _whole(1, MOST_CHOICES), f"a whole number, 1 to {MOST_CHOICES}"),
        seed=_read(fields, "seed", None, _whole(-LARGEST_SEED - 1, LARGEST_SEED), "64 bits"),
        stop=_read_stop(fields.get("stop")),
        logprobs=_read(fields, "logprobs", False, lambda v: isinstance(v, bool), "true or false"),
    )


_OWN = ("max_completion_tokens", *ChatRequest.__dataclass_fields__)


def _refuse_foreign(fields: Mapping[str, Any]) -> None:
    """Raise ``HttpError`` for an unknown field, and for a known one with an effect."""
    for key, value in fields.items():
        if key in _OWN or key in _IGNORED:
            continue
        if key not in _NEUTRAL:
            what = f"{shorten(key)}: is not a field that this service knows"
            raise HttpError(400, "unknown_parameter", what, param=key[:64])
        if not any(_same(value, allowed) for allowed in _NEUTRAL[key]):
            may = " or ".join(["absent", *map(json.dumps, _NEUTRAL[key])])
            _refuse(key, value, f"{may}, since this service does not have it")


def _same(value: Any, allowed: Any) -> bool:
    return isinstance(value, bool) == isinstance(allowed, bool) and value == allowed


def _read_messages(messages: Any) -> tuple[Message, ...]:
    if not isinstance(messages, list) or not messages:
        _refuse("messages", messages, "a list of at least one message")
    return tuple(
        _read_message(message, f"messages[{index}]") for index, message in enumerate(messages)
    )


def _read_message(message: Any, where: str) -> Message:
    """``{"role", "content"}``, both text; which roles there are is the chat template's matter."""
    if not isinstance(message, dict):
        _refuse(where, message, "an object with role and content")
    for key in message:
        if key in _OF_A_MESSAGE and message[key] is None:
            continue
        if key not in ("role", "content"):
            _refuse(f"{where}.{key[:64]}", message[key], "absent; a message has role and content")
    role, content = message.get("role"), message.get("content")
    if not isinstance(role, str) or not _ROLE.fullmatch(role):
        _refuse(f"{where}.role", role, "the name of a role")
    if not is_text(content):
        _refuse(f"{where}.content", content, "text")
    return {"role": role, "content": content}


def _read_length(fields: Mapping[str, Any]) -> int | None:
    """``max_tokens`` by its old name or its new one."""
    names = [name for name in ("max_tokens", "max_completion_tokens") if name in fields]
    fits = _whole(1, 2**31)
    lengths = {_read(fields, name, None, fits, "a whole number above 0") for name in names}
    if len(lengths) > 1:
        _refuse("max_tokens", fields["max_tokens"], "the same as max_completion_tokens, or absent")
    return lengths.pop() if lengths else None


def _read_stop(stop: Any) -> tuple[str, ...]:
    texts = [stop] if isinstance(stop, str) else [] if stop is None else stop
    fits = isinstance(texts, list) and len(texts) <= MOST_STOPS
    if not fits or not all(is_text(text) and 0 < len(text) <= 256 for text in texts):
        _refuse("stop", stop, f"text, or a list of up to {MOST_STOPS}, of 1 to 256 characters each")
    return tuple(texts)


def _read(
    fields: Mapping[str, Any], key: str, default: Any, fits: Callable[[Any], bool], allowed: str
) -> Any:
    value = fields.get(key, default)
    if key in fields and not fits(value):
        _refuse(key, value, allowed)
    return value


def _is_name(value: Any) -> bool:
    return isinstance(value, str)


def _is_temperature(value: Any) -> bool:
    return is_number(value) and (value == 0 or LEAST_TEMPERATURE <= value <= 2)


def _between(low: float, high: float) -> Callable[[Any], bool]:
    return lambda value: is_number(value) and low < value <= high


def _whole(low: int, high: int) -> Callable[[Any], bool]:
    return lambda value: (
        isinstance(value, int) and not isinstance(value, bool) and low <= value <= high
    )


def _refuse(where: str, got: Any, allowed: str) -> NoReturn:
    message = f"{where}: must be {allowed}, got {shorten(got)}"
    raise HttpError(400, "invalid_value", message, param=where)
