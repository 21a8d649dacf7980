"""A chat model as an HTTP service in OpenAI's form.

``POST /v1/chat/completions`` answers a conversation, ``GET /v1/models`` names the model. What
cannot be read, rendered or fitted into the model is refused before it waits for a batch.
"""

from __future__ import annotations

import functools
import hashlib
import secrets
import time
from collections.abc import Callable, Mapping
from typing import Any

from prometheus_client import Counter
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request

from nemotron_style.runtime.errors import InputError
from nemotron_style.steps.blocks.http.error import HttpError, shorten
from nemotron_style.steps.blocks.serving.completion import (
    ChatModel,
    CompletionTask,
    check_choices,
    write_completion,
)
from nemotron_style.steps.blocks.serving.config import ChatLimits
from nemotron_style.steps.blocks.serving.dynamic_batcher import Batching, Naming
from nemotron_style.steps.blocks.serving.openai_schema import ChatRequest, parse_chat_request
from nemotron_style.steps.blocks.serving.server import Route, Service

CHAT, MODELS = "/v1/chat/completions", "/v1/models"
NAMING = Naming("chat", "choices", "answered", "answer")
SEED_BITS = 31
"""Of a seed that is chosen here: every reader of JSON keeps such a number."""


class ChatService(Service):
    """``listen``, then ``serve`` a model, and in the end ``drain``."""

    limits: ChatLimits

    def __init__(
        self,
        digest: str,
        name: str,
        *,
        limits: ChatLimits | None = None,
        token: str | None = None,
        say: Callable[[str], None] = print,
    ) -> None:
        """``digest`` is that of the model's files; requests call it ``name``, or by the digest."""
        routes = {CHAT: Route("POST", self.complete), MODELS: Route("GET", self.list_models)}
        super().__init__(NAMING, routes, limits or ChatLimits(), token=token, say=say)
        self.digest, self.name = digest, name
        self.fingerprint = "fp_" + hashlib.sha256(digest.encode()).hexdigest()[:12]
        self.created = int(time.time())
        self.model: ChatModel | None = None
        count = functools.partial(Counter, registry=self.registry)
        ended, kinds = "Answers drawn, by how they ended.", "Tokens of answered requests, by kind."
        self.choices = count("chat_choices_total", ended, ["finish"])
        self.tokens = count("chat_tokens_total", kinds, ["kind"])

    def serve(self, model: ChatModel, batching: Batching) -> None:
        """Answer from now on, in batches of choices."""
        self.model = model
        self.start(batching, work=model.complete, check=check_choices)

    async def complete(self, request: Request) -> Mapping[str, Any]:
        """One or more answers to a conversation. Raises ``HttpError`` when there is none."""
        asked = parse_chat_request(await self.read_body(request))
        self.check_ready()
        self.check_model(asked.model)
        task = await run_in_threadpool(self.plan, asked)  # the template and the tokenizer take time
        [choices] = await self.ask(request, [task], size=task.n)
        self.tokens.labels(kind="prompt").inc(len(task.prompt))
        for choice in choices:
            self.choices.labels(finish=choice.finish).inc()
            self.tokens.labels(kind="completion").inc(len(choice.log_probs))
        return write_completion(asked, task, choices, model=self.name, fingerprint=self.fingerprint)

    def check_model(self, wanted: str | None) -> None:
        """Raises ``HttpError`` (404) for another model than the one there is."""
        if wanted not in (None, self.name, self.digest):
            message = f"model: there is {self.name}, and no {shorten(wanted)}"
            raise HttpError(404, "model_not_found", message, param="model")

    def plan(self, request: ChatRequest) -> CompletionTask:
        """The model's task for a request. Raises ``HttpError`` (400) for one that does not fit."""
        assert self.model
        try:
            prompt = self.model.encode(request.messages)
        except InputError as error:
            raise HttpError(400, "cannot_render", str(error), param="messages") from None
        seed = secrets.randbits(SEED_BITS) if request.seed is None else request.seed
        return CompletionTask(
            prompt,
            max_tokens=self.answer_length(request.max_tokens, len(prompt)),
            temperature=request.temperature,
            top_p=request.top_p,
            stop=request.stop,
            n=request.n,
            seed=seed,
            pieces=request.logprobs,
        )

    def answer_length(self, wanted: int | None, prompt: int) -> int:
        """How many tokens an answer may have. Raises ``HttpError`` (400) where none fits."""
        assert self.model
        most, room = self.limits.completion_tokens, self.model.max_model_len
        if wanted is not None and wanted > most:
            message = f"max_tokens: must be {most} at most, got {wanted}"
            raise HttpError(400, "invalid_value", message, param="max_tokens")
        needed = prompt + (wanted or 1)
        if needed > room:
            message = (
                f"messages: the prompt has {prompt} tokens and the answer may have {wanted or 1}; "
                f"the model holds {room}"
            )
            raise HttpError(400, "context_length_exceeded", message, param="messages")
        return wanted or min(most, room - prompt)

    async def list_models(self, request: Request) -> Mapping[str, Any]:
        """The one model that there is, also while it loads."""
        model: dict[str, Any] = {
            "id": self.name,
            "object": "model",
            "created": self.created,
            "owned_by": "nemotron-style",
            "root": self.digest,
        }
        if self.model:
            model["max_model_len"] = self.model.max_model_len
        return {"object": "list", "data": [model]}

    def facts(self) -> Mapping[str, Any]:
        facts: dict[str, Any] = {"model": self.digest, "served_model_name": self.name}
        return facts | ({"max_model_len": self.model.max_model_len} if self.model else {})

    def write_error(self, error: HttpError) -> Mapping[str, Any]:
        """OpenAI's form of an error."""
        fields = {
            "message": error.message,
            "type": _error_type(error.status),
            "param": error.param,
            "code": error.kind,
        }
        return {"error": fields}


def _error_type(status: int) -> str:
    if status == 429:
        return "rate_limit_error"
    if status == 401:
        return "authentication_error"
    return "invalid_request_error" if status < 500 else "server_error"
