"""``reward/serve``: a reward model that answers over HTTP until it is asked to stop.

Conversations come in as text and go out as one score and the attribute scores that it is made of.

Source: NeMo-Aligner's ``serve_reward_model.py``, a PyTriton server. Kept: the port's default, the
name ``rm_model_file``, dynamic batching. Left out: token ids as input, which bind every client to
the model's tokenizer; answers without the name of the model that gave them.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

from nemotron_style.runtime.errors import StepFailed
from nemotron_style.runtime.step.context import StepContext
from nemotron_style.steps.blocks.http.endpoint import read_token
from nemotron_style.steps.blocks.serving.dynamic_batcher import Batching
from nemotron_style.steps.blocks.serving.metrics import total
from nemotron_style.steps.blocks.serving.score_api import ScoreService
from nemotron_style.steps.blocks.serving.service_run import serve_until_stopped
from nemotron_style.steps.reward.serve.config import Config


def run(config: Config, ctx: StepContext) -> None:
    """Serve until the run is asked to stop. Raises ``StepFailed`` when the model is broken."""
    token = read_token(config.token_env)
    artifact = ctx.input("model")
    service = ScoreService(artifact.digest, limits=config.limits, token=token, say=ctx.say)

    def load() -> str:
        model, how = load_model(artifact.path), config.batching
        score = functools.partial(model.score, batch_tokens=config.batch_tokens)
        batching = Batching(how.max_conversations, how.max_wait_ms / 1000, how.max_queued)
        service.serve(score, model.outputs, batching, max_tokens=model.max_tokens)
        return f", scores of {', '.join(model.outputs)}"

    answered = serve_until_stopped(service, config, ctx, load=load)
    summarise(ctx, service, answered=answered)
    if service.is_broken:
        raise StepFailed("the model failed again and again; its errors are in the log")


def load_model(path: Path) -> Any:
    """The model of an artifact; torch is imported here, after the address is taken."""
    from nemotron_style.steps.blocks.reward.model import RewardModel

    return RewardModel.load(path)


def summarise(ctx: StepContext, service: ScoreService, *, answered: bool) -> None:
    """What it did, in a line and in the run's summary."""
    conversations, errors = int(total(service.conversations)), int(total(service.errors))
    ctx.say(f"stopped after {conversations} conversations and {errors} errors")
    batches = int(total(service.batcher.batches)) if service.batcher else 0
    ctx.summarise(
        conversations=conversations, batches=batches, errors=errors, all_answered=answered
    )
