"""Keys of NeMo-Aligner's ``training_rm.yaml`` that decide nothing here, or are held to one value.

The page ``docs/coming-from-nemo-aligner.md`` lists those of its documented command lines.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from nemotron_style.runtime.config.model import Section, cosmetic, unused
from nemotron_style.steps.blocks.settings.aligner_keys import BaseConfig
from nemotron_style.steps.blocks.settings.fixed_value import fixed
from nemotron_style.steps.blocks.settings.not_built import SavesMemory
from nemotron_style.steps.blocks.settings.training_config import Length


class RmRest(Length):
    """``trainer.rm``: the order of rows, which is no choice here."""

    train_random_sampler: bool = fixed(True, why="rows are always shuffled, by the seed")
    val_random_sampler: bool = fixed(False, why="the first rows are used, in their order")


class RegressionRest(Section):
    """``model.regression``: the losses that are not built."""

    loss_func: str = fixed(
        "regression",
        why="pairs are trained by the log-sigmoid of their difference, less their margin if any",
        fix="leave it out: rows with chosen and rejected are pairs",
    )
    load_rm_head_weights: bool = fixed(
        False, why="not built: the head starts at zero", fix="start from a model without a head"
    )


class ModelRest(SavesMemory):
    """``model``: the head's shape, and keys that repeat another one."""

    mcore_gpt: bool = fixed(True, why="models are megatron-core's")
    share_embeddings_and_output_weights: bool = unused(False)
    output_sequence: bool = fixed(False, why="not built: a conversation has one score")
    use_avg_pool: bool = fixed(False, why="not built: the last token is read, not a mean")
    force_head_dtype: str | None = unused(None, description="the head is float32")
    megatron_amp_O2: bool = cosmetic(default=False)
    forward_micro_batch_size: int | None = unused(None, ge=1)
    encoder_seq_length: Annotated[int, Field(ge=1)] | None = cosmetic(default=None)
    max_position_embeddings: int | None = cosmetic(default=None)
    seed: int | None = cosmetic(default=None)
    precision: str | int | None = cosmetic(default=None)
    overwrite_base_config: BaseConfig = unused(default={})
