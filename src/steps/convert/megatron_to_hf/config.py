"""Settings of ``convert/megatron_to_hf``; readable without torch."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from nemotron_style.runtime.config.model import Section, StepConfig


class ModelPath(Section):
    """``model``: the checkpoint to convert."""

    restore_from_path: str | None = None


class Config(StepConfig):
    """``convert/megatron_to_hf``: the same weights under Hugging Face's names, and a proof."""

    model: ModelPath = ModelPath()
    dtype: Literal["float32", "float16", "bfloat16"] | None = Field(
        default=None, description="null: that of the checkpoint, bit for bit"
    )
    vocab_size: int | None = Field(
        default=None, ge=1, description="rows of the embedding to keep; null: all, padding too"
    )
    max_shard_gigabytes: float = Field(default=5.0, gt=0, description="10^9 bytes in one file")
    max_logit_difference: float = Field(
        default=1e-4, ge=0, description="in float32, for logits up to 10"
    )
    sample_rows: int = Field(default=4, ge=1)
    sample_tokens: int = Field(default=64, ge=1, description="tokens of a sample row")
