"""Tasks of a chat model, its answers, and OpenAI's form of them; no torch."""

from __future__ import annotations

import math
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from nemotron_style.steps.blocks.reward.types import Message
from nemotron_style.steps.blocks.serving.openai_schema import ChatRequest

REPLACEMENT = "\ufffd"


@dataclass(frozen=True)
class CompletionTask:
    """``n`` answers to one prompt, sampled from the random stream that ``seed`` names.

    ``pieces`` asks for the text of each token.
    """

    prompt: Sequence[int]
    max_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    stop: tuple[str, ...] = ()
    n: int = 1
    seed: int = 0
    pieces: bool = False


@dataclass(frozen=True)
class Choice:
    """One answer. ``log_probs`` are those of every sampled token, the one that ended the answer
    too, under the distribution that it was sampled from; ``pieces`` are their texts, if wanted.
    """

    text: str
    finish: Literal["stop", "length"]
    log_probs: Sequence[float]
    pieces: Sequence[str] = ()


class ChatModel(Protocol):
    """Whatever answers conversations."""

    @property
    def max_model_len(self) -> int:
        """Tokens that a prompt and its answer may have together."""

    def encode(self, messages: Sequence[Message]) -> list[int]:
        """The prompt of a conversation; called from many threads. Raises ``InputError``."""

    def complete(self, tasks: Sequence[CompletionTask]) -> Sequence[Sequence[Choice]]:
        """``n`` choices for each task; called from one thread."""


def check_choices(task: CompletionTask, choices: Any) -> Sequence[Choice]:
    """Raises ``ValueError`` for what is no answer to ``task``."""
    if len(choices) != task.n:
        raise ValueError(f"{len(choices)} choices instead of {task.n}")
    for choice in choices:
        if not 0 < len(choice.log_probs) <= task.max_tokens:
            raise ValueError(f"{len(choice.log_probs)} tokens where {task.max_tokens} may be")
        if not all(map(math.isfinite, choice.log_probs)):
            raise ValueError("a log-prob that is no finite number")
    return list(choices)


def write_completion(
    request: ChatRequest,
    task: CompletionTask,
    choices: Sequence[Choice],
    *,
    model: str,
    fingerprint: str,
) -> Mapping[str, Any]:
    """The answer. Its ``seed`` is no field of OpenAI's; a request with it gets the same again."""
    sampled = sum(len(choice.log_probs) for choice in choices)
    return {
        "id": f"chatcmpl-{uuid.uuid4().hex}",
        "object": "chat.completion",
        "created": int(time.time()),
        "model": model,
        "choices": [
            _write_choice(number, choice, logprobs=request.logprobs)
            for number, choice in enumerate(choices)
        ],
        "usage": {
            "prompt_tokens": len(task.prompt),
            "completion_tokens": sampled,
            "total_tokens": len(task.prompt) + sampled,
        },
        "system_fingerprint": fingerprint,
        "seed": task.seed,
    }


def _write_choice(index: int, choice: Choice, *, logprobs: bool) -> dict[str, Any]:
    pairs = zip(choice.pieces, choice.log_probs, strict=True) if logprobs else ()
    return {
        "index": index,
        "message": {"role": "assistant", "content": choice.text, "refusal": None},
        "finish_reason": choice.finish,
        "logprobs": {"content": [_write_token(*pair) for pair in pairs]} if logprobs else None,
    }


def _write_token(piece: str, log_prob: float) -> dict[str, Any]:
    """``bytes`` are null where a token is a part of a letter: its text is then a replacement."""
    whole = REPLACEMENT not in piece
    return {
        "token": piece,
        "logprob": log_prob,
        "bytes": list(piece.encode()) if whole else None,
        "top_logprobs": [],
    }
