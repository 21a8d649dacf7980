"""Settings of ``convert/hf_to_megatron``; readable without torch."""

from __future__ import annotations

from pydantic import Field

from nemotron_style.runtime.config.model import Section
from nemotron_style.steps.blocks.data.chat_format import ModelData
from nemotron_style.steps.blocks.settings.conversion_config import ConversionConfig, WeightType


class Model(Section):
    """``model``: the folder to convert, and what the checkpoint adds to it.

    ``data`` is the chat format that the training steps will use for this model; null: that of its
    tokenizer, when the training steps made it; else it is not known yet.
    """

    restore_from_path: str | None = None
    make_vocab_size_divisible_by: int = Field(
        default=1, ge=1, description="rows are added to the embedding; 1: none"
    )
    data: ModelData = ModelData()


class Config(ConversionConfig):
    """``convert/hf_to_megatron``: Hugging Face's weights as the training steps read them."""

    model: Model = Model()
    dtype: WeightType | None = Field(
        default=None, description="null: that of the files, bit for bit"
    )
