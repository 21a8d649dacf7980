"""Settings of ``convert/hf_to_megatron``; readable without torch."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from nemotron_style.runtime.config.model import Section, StepConfig
from nemotron_style.steps.blocks.data.chat_format import ModelData


class Model(Section):
    """``model``: the folder to convert, and what is settled about it on the way.

    ``data`` says how the training steps will write a conversation for this model; null: as its
    tokenizer says, when it was made by them; else it is not known yet.
    """

    restore_from_path: str | None = None
    make_vocab_size_divisible_by: int = Field(
        default=1, ge=1, description="rows are added to the embedding; 1: none"
    )
    data: ModelData = ModelData()


class Config(StepConfig):
    """``convert/hf_to_megatron``: Hugging Face's weights as the training steps read them."""

    model: Model = Model()
    dtype: Literal["float32", "float16", "bfloat16"] | None = Field(
        default=None, description="null: that of the files, bit for bit"
    )
    max_logit_difference: float = Field(
        default=1e-4, ge=0, description="in float32, for logits up to 10"
    )
    sample_rows: int = Field(default=4, ge=1)
    sample_tokens: int = Field(default=64, ge=1, description="tokens of a sample row")
