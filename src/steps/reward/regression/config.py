"""Settings of ``reward/regression``, under the names of NeMo-Aligner's ``training_rm.yaml``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from nemotron_style.runtime.config.model import StepConfig, Tracker, cosmetic
from nemotron_style.runtime.errors import ConfigError, raise_all
from nemotron_style.steps.blocks.data.chat_format import ChatPromptTokens
from nemotron_style.steps.blocks.settings.aligner_keys import (
    BucketOptim,
    PrefixDataRest,
    find_half_weights,
)
from nemotron_style.steps.blocks.settings.data_prefix import DataPrefix
from nemotron_style.steps.blocks.settings.fixed_value import find_conflicts
from nemotron_style.steps.blocks.settings.parallel_config import DividedModel
from nemotron_style.steps.blocks.settings.row_config import LongRowReading
from nemotron_style.steps.blocks.settings.training_config import (
    AlignerJob,
    Count,
    LastExpManager,
    ValidationLimit,
    limit_validation,
    trackers_of,
)
from nemotron_style.steps.reward.regression.nemo_aligner import ModelRest, RegressionRest, RmRest

Weight = Annotated[float, Field(allow_inf_nan=False)]


class Rm(RmRest):
    """``trainer.rm``: where training ends, and how often it validates and saves.

    The rows of the last validation change the figures that the model's record holds.
    """

    save_interval: int = cosmetic(default=100, ge=0)
    limit_val_batches: ValidationLimit = 1.0


class Trainer(AlignerJob):
    """``trainer``: processes, precision (of the trunk; the head is float32) and length."""

    rm: Rm = Rm()


class Regression(RegressionRest):
    """``model.regression``: the outputs of the head, and how they make one score.

    ``attributes`` names the outputs in order; null takes the names that the data rate, sorted,
    or ``reward`` where there are only pairs. ``attribute_weights`` is a list in that order or a
    table by name; null weighs all alike, as their mean.
    """

    num_attributes: Count | None = Field(default=None, description="null: as many as are named")
    attributes: list[str] | None = None
    merge_attributes: bool = Field(default=False, description="produce the score as the one output")
    attribute_weights: list[Weight] | dict[str, Weight] | None = None
    loss_mask_val: float | None = Field(default=-100.0, description="a rating that means none")

    @model_validator(mode="after")
    def _names_fit(self) -> Self:
        names = self.attributes
        if names is not None and (not names or len(set(names)) < len(names)):
            raise ValueError("attributes must be names, each once")
        if names is not None and self.num_attributes not in (None, len(names)):
            raise ValueError(f"num_attributes is {self.num_attributes}, attributes {len(names)}")
        weights = self.attribute_weights
        values = weights.values() if isinstance(weights, dict) else weights
        if values is not None and not any(values):
            raise ValueError("attribute_weights must not all be zero")
        return self


class Data(LongRowReading, PrefixDataRest):
    """``model.data``: the files, how rows are read, and how a conversation is written as text."""

    data_prefix: DataPrefix = DataPrefix()
    seq_length: Count | None = Field(default=None, description="null: as long as the model")
    chat_prompt_tokens: ChatPromptTokens | None = None
    sample: bool = Field(default=False, description="repeat the data, reshuffled, until max_steps")


class Model(ModelRest, DividedModel):
    """``model``: where it starts, its head, its batches, and how it is divided.

    ``micro_batch_size`` bounds memory and never changes the result; a pair is one row.
    """

    restore_from_path: str | None = None
    reward_model_type: Literal["binary_ranking", "regression"] | None = Field(
        default=None, description="refuse rows of the other sort; null takes both"
    )
    regression: Regression = Regression()
    global_batch_size: Count = 64
    micro_batch_size: int = cosmetic(default=1, ge=1)
    data: Data = Data()
    optim: BucketOptim = BucketOptim()


class Config(StepConfig):
    """Settings of the training of a reward model."""

    trainer: Trainer = Trainer()
    exp_manager: LastExpManager = LastExpManager()
    model: Model = Model()

    def validation_rows(self, available: int) -> int:
        """How many of ``available`` validation rows are used, the first ones."""
        limit, batch_size = self.trainer.rm.limit_val_batches, self.model.global_batch_size
        return limit_validation(limit, available, batch_size=batch_size)

    def trackers(self) -> Mapping[str, Tracker]:
        return trackers_of(self.trainer, self.exp_manager)

    @model_validator(mode="after")
    def _has_an_end(self) -> Self:
        problems = self.trainer.rm.find_missing_end("trainer.rm", sample=self.model.data.sample)
        problems += find_conflicts(_mirrors(self))
        problems += find_half_weights(self.model.megatron_amp_O2, self.trainer)
        raise_all(ConfigError, problems)
        return self


def _mirrors(config: Config) -> list[tuple[str, Any, str, Any]]:
    """Keys that repeat another one: ``(key, value, the other key, its value)``."""
    model, trainer, rm = config.model, config.trainer, config.trainer.rm
    length, length_key = model.data.seq_length, "model.data.seq_length"
    return [
        ("model.seed", model.seed, "seed", config.seed),
        ("model.precision", model.precision, "trainer.precision", trainer.precision),
        ("model.encoder_seq_length", model.encoder_seq_length, length_key, length),
        ("model.max_position_embeddings", model.max_position_embeddings, length_key, length),
        ("trainer.max_epochs", trainer.max_epochs, "trainer.rm.max_epochs", rm.max_epochs),
        ("trainer.max_steps", trainer.max_steps, "trainer.rm.max_steps", rm.max_steps),
    ]
