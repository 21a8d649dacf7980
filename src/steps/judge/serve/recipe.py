"""``judge/serve``: a chat model that answers over HTTP until it is asked to stop.

Conversations come in as messages, in whatever roles the checkpoint's own chat template knows, and
answers go out in OpenAI's form.

Source: vLLM's ``vllm serve``, whose place it takes where one small model on one machine is enough.
Kept: the paths, the port, ``served_model_name`` and ``max_model_len``. Left out: streaming, tools,
constrained answers and continuous batching; each of the first three is refused where it is asked
for. More than vLLM has: an answer tells its seed, and the same seed gives the same text whatever
is drawn beside it (to the rounding of the matrix products).
"""

from __future__ import annotations

from pathlib import Path

from nemotron_style.runtime.errors import StepFailed
from nemotron_style.runtime.step.context import StepContext
from nemotron_style.steps.blocks.http.endpoint import read_token
from nemotron_style.steps.blocks.serving.chat_service import ChatService
from nemotron_style.steps.blocks.serving.completion import ChatModel
from nemotron_style.steps.blocks.serving.dynamic_batcher import Batching
from nemotron_style.steps.blocks.serving.metrics import total
from nemotron_style.steps.blocks.serving.service_run import serve_until_stopped
from nemotron_style.steps.judge.serve.config import Config


def run(config: Config, ctx: StepContext) -> None:
    """Serve until the run is asked to stop. Raises ``StepFailed`` when the model is broken."""
    token = read_token(config.token_env)
    artifact = ctx.input("model")
    service = ChatService(
        artifact.digest, config.served_model_name, limits=config.limits, token=token, say=ctx.say
    )

    def load() -> str:
        model, how = load_model(artifact.path, config, ctx.run_dir), config.batching
        batching = Batching(how.max_choices, how.max_wait_ms / 1000, how.max_queued)
        service.serve(model, batching)
        return f" as {service.name}, {model.max_model_len} tokens at most"

    answered = serve_until_stopped(service, config, ctx, load=load)
    summarise(ctx, service, answered=answered)
    if service.is_broken:
        raise StepFailed("the model failed again and again; its errors are in the log")


def load_model(path: Path, config: Config, run_dir: Path) -> ChatModel:
    """The model of an artifact; torch is imported here, after the address is taken."""
    import torch

    from nemotron_style.steps.blocks.model.parallel import initialize
    from nemotron_style.steps.blocks.serving.local_chat_model import load_chat_model

    initialize(seed=config.seed)
    return load_chat_model(
        path,
        dtype=getattr(torch, config.dtype),
        batch_tokens=config.batch_tokens,
        max_model_len=config.max_model_len,
        work=run_dir / "model",
    )


def summarise(ctx: StepContext, service: ChatService, *, answered: bool) -> None:
    """What it did, in a line and in the run's summary."""
    choices, errors = int(total(service.choices)), int(total(service.errors))
    ctx.say(f"stopped after {choices} answers and {errors} errors")
    ctx.summarise(
        answers=choices,
        completion_tokens=int(total(service.tokens, kind="completion")),
        batches=int(total(service.batcher.batches)) if service.batcher else 0,
        errors=errors,
        all_answered=answered,
    )
