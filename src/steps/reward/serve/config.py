"""Settings of ``reward/serve``; readable without torch."""

from __future__ import annotations

from pydantic import Field

from nemotron_style.runtime.config.model import Section
from nemotron_style.steps.blocks.serving.config import ScoreLimits, ServiceConfig


class Batching(Section):
    """How requests are collected before the model sees them."""

    max_conversations: int = Field(default=64, ge=1, description="conversations in a batch")
    max_wait_ms: float = Field(default=5.0, ge=0, description="how long a batch stays open")
    max_queued: int = Field(
        default=4096, ge=1, description="conversations that may wait; more get 429"
    )


class Config(ServiceConfig):
    """``reward/serve``: a reward model that answers over HTTP until it is stopped."""

    rm_model_file: str | None = Field(default=None, description="NeMo-Aligner's name for the model")
    port: int = Field(default=5555, ge=0, le=65535, description="0: any that is free")
    batching: Batching = Batching()
    limits: ScoreLimits = ScoreLimits()
    batch_tokens: int = Field(default=16384, ge=1, description="tokens in a forward pass")
