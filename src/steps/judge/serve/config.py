"""Settings of ``judge/serve``; readable without torch."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from nemotron_style.runtime.config.model import Section
from nemotron_style.steps.blocks.serving.config import ChatLimits, ServiceConfig


class Batching(Section):
    """How requests are collected before the model sees them."""

    max_choices: int = Field(default=64, ge=1, description="answers that are drawn together")
    max_wait_ms: float = Field(default=5.0, ge=0, description="how long a batch stays open")
    max_queued: int = Field(default=1024, ge=1, description="answers that may wait; more get 429")


class Config(ServiceConfig):
    """``judge/serve``: a chat model that answers in OpenAI's form until it is stopped."""

    model: str | None = Field(default=None, description="a Hugging Face folder, or an artifact")
    served_model_name: str = Field(
        default="judge", min_length=1, description="what requests call it (vLLM's name)"
    )
    port: int = Field(default=8000, ge=0, le=65535, description="0: any that is free")
    max_model_len: int | None = Field(
        default=None, ge=2, description="tokens of a prompt and its answer, where less than it can"
    )
    dtype: Literal["float32", "bfloat16"] = Field(
        default="float32", description="the type that the model computes in"
    )
    batching: Batching = Batching()
    limits: ChatLimits = ChatLimits()
    batch_tokens: int = Field(
        default=65536, ge=1, description="tokens whose keys and values are held at once"
    )
