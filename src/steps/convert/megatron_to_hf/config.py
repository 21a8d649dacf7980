"""Settings of ``convert/megatron_to_hf``; readable without torch."""

from __future__ import annotations

from pydantic import Field

from nemotron_style.runtime.config.model import Section
from nemotron_style.steps.blocks.settings.conversion_config import ConversionConfig, WeightType


class ModelPath(Section):
    """``model``: the checkpoint to convert."""

    restore_from_path: str | None = None


class Config(ConversionConfig):
    """``convert/megatron_to_hf``: the same weights under Hugging Face's names, and a proof."""

    model: ModelPath = ModelPath()
    dtype: WeightType | None = Field(
        default=None, description="null: that of the checkpoint, bit for bit"
    )
    vocab_size: int | None = Field(
        default=None, ge=1, description="rows of the embedding to keep; null: all, padding too"
    )
    max_shard_gigabytes: float = Field(default=5.0, gt=0, description="10^9 bytes in one file")
