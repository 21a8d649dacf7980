"""``reward/serve``: a reward model that answers over HTTP until it is asked to stop.

Conversations come in as text and go out as one score and the attribute scores that it is made of.
The order of events: take the address, tell where it is (``endpoint.json`` and a log line), load
the model, answer; when asked to stop, take nothing new, answer what was taken, leave.

Source: NeMo-Aligner's ``serve_reward_model.py``, a PyTriton server. Kept: the port's default, the
name ``rm_model_file``, dynamic batching. Left out: token ids as input, which bind every client to
the model's tokenizer; answers without the name of the model that gave them.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nemotron_style.runtime.errors import StepFailed
from nemotron_style.runtime.step.context import StepContext
from nemotron_style.steps.blocks.http.endpoint import Address, read_token, write_endpoint
from nemotron_style.steps.blocks.reward.types import Message, Scorer
from nemotron_style.steps.blocks.serving.score_api import ScoreLimits, ScoreService
from nemotron_style.steps.reward.serve.config import Config

SECONDS_BETWEEN_LOOKS = 0.1


def run(config: Config, ctx: StepContext) -> None:
    """Serve until the run is asked to stop. Raises ``StepFailed`` when the model is broken."""
    token = read_token(config.token_env)
    model = ctx.input("model")
    limits = ScoreLimits(**config.limits.model_dump())
    service = ScoreService(model.digest, limits=limits, token=token, say=ctx.say)
    address = Address("http", *service.listen(config.host, config.port))
    endpoint = write_endpoint(ctx.run_dir, address, model=model.digest, attempt=ctx.attempt)
    ctx.say(f"listening at {address}, loading {model.ref}")
    try:
        scorer = load_scorer(model.path, config.batch_tokens)
        batching = config.batching
        service.serve(
            scorer,
            most=batching.max_conversations,
            seconds=batching.max_wait_ms / 1000,
            queued=batching.max_queued,
        )
        ctx.say(f"ready at {address}, scores of {', '.join(scorer.outputs)}")
        while not (ctx.stopping or service.is_broken):
            time.sleep(SECONDS_BETWEEN_LOOKS)
    finally:
        endpoint.unlink(missing_ok=True)
        answered = service.drain(config.drain_seconds)
    summarise(ctx, service, answered=answered)
    if service.is_broken:
        raise StepFailed("the model failed again and again; its errors are in the log")


@dataclass(frozen=True)
class Bounded:
    """A reward model with the size of its forward passes."""

    model: Any
    batch_tokens: int

    @property
    def outputs(self) -> tuple[str, ...]:
        return tuple(self.model.outputs)

    def score(self, conversations: Sequence[Sequence[Message]]) -> Sequence[Any]:
        return list(self.model.score(conversations, batch_tokens=self.batch_tokens))


def load_scorer(path: Path, batch_tokens: int) -> Scorer:
    """The model of an artifact; torch is imported here, after the address is taken."""
    from nemotron_style.steps.blocks.reward.model import RewardModel

    return Bounded(RewardModel.load(path), batch_tokens)


def summarise(ctx: StepContext, service: ScoreService, *, answered: bool) -> None:
    """What it did, in a line and in the run's summary."""
    conversations = int(service.conversations.total())
    errors = int(service.errors.total())
    ctx.say(f"stopped after {conversations} conversations and {errors} errors")
    if not answered:
        ctx.say("some requests were not answered in time and got nothing")
    batches = int(service.batcher.batches.total()) if service.batcher else 0
    ctx.summarise(
        conversations=conversations, batches=batches, errors=errors, all_answered=answered
    )
