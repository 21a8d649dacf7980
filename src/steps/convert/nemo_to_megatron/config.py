"""Settings of ``convert/nemo_to_megatron``; readable without torch."""

from __future__ import annotations

from pydantic import Field

from nemotron_style.runtime.config.model import Section, StepConfig
from nemotron_style.steps.blocks.data.chat_format import ModelData
from nemotron_style.steps.blocks.settings.conversion_config import WeightType


class Model(Section):
    """``model``: the file or folder to convert, and what it does not hold itself.

    ``data`` is the chat format that the training steps will use for this model; null: the one that
    NeMo-Aligner wrote into the file, if it did.
    """

    restore_from_path: str | None = None
    tokenizer: str | None = Field(
        default=None, description="folder with tokenizer.json, where the file holds none"
    )
    ignore_keys: tuple[str, ...] = Field(
        default=(), description="keys of model_config.yaml that do not change what is computed"
    )
    make_vocab_size_divisible_by: int = Field(
        default=1, ge=1, description="rows are added to the embedding; 1: none"
    )
    data: ModelData = ModelData()


class Config(StepConfig):
    """``convert/nemo_to_megatron``: the weights of NeMo or Megatron-LM, for the training steps."""

    model: Model = Model()
    dtype: WeightType | None = Field(
        default=None, description="null: that of the files, bit for bit"
    )
