"""NeMo-Aligner's keys that decide nothing here, so that its command lines still carry over.

A key is either *without effect* (``unused``, any value of its type: it tunes something that does
not exist here, and the planner says so) or held to *one value* (another one would ask for
something that is not done, and the message says why and what to do instead).  The page
``docs/steps/sft-steerlm2.md`` lists them all.
"""

from __future__ import annotations

from typing import Literal

from nemotron_style.runtime.config.model import Section, cosmetic, unused
from nemotron_style.steps.blocks.settings import training_config
from nemotron_style.steps.blocks.settings.fixed_value import fixed
from nemotron_style.steps.blocks.settings.not_built import SavesMemory


class CheckpointCallback(training_config.CheckpointCallback):
    """``exp_manager.checkpoint_callback_params``; the ``save_top_k`` newest states stay."""

    monitor: str = fixed("val_loss", why="the produced model is chosen by the validation distance")
    mode: str = fixed("min", why="a smaller distance is better")
    save_nemo_on_train_end: bool = unused(False)
    save_best_model: bool = unused(False)


class ExpManager(training_config.ExpManager):
    """``exp_manager``, with the callback of this step."""

    checkpoint_callback_params: CheckpointCallback = CheckpointCallback()


_CUT = "responses are never cut and prompts never rewritten, so there is nothing to choose"


class DatasetRest(Section):
    """What both data sets take and do not use."""

    micro_batch_size: int | None = unused(None, ge=1)
    memmap_workers: int | None = unused(None)
    index_mapping_dir: str | None = unused(None)
    hf_dataset: bool = unused(False)
    label_key: str = unused("output")
    prompt_template: str = unused("{input} {output}")
    truncation_field: str = unused("input", description=_CUT)
    truncation_method: Literal["left", "right"] = unused("right", description=_CUT)
    add_eos: bool = unused(True)
    add_sep: bool = fixed(False, why="the chat format has no separator")
    add_bos: bool = fixed(False, why="the responses were scored without a token before the prompt")
    min_seq_length: int = fixed(1, why="no row is left out for being short")


_NO_DROPOUT = "with dropout the model would differ from the one that scored the responses"


class ModelRest(SavesMemory):
    """The part of ``model`` that is held to one value or without effect."""

    resume_from_checkpoint: str | None = fixed(
        None, why="a run continues from its own checkpoints", fix="give model.restore_from_path"
    )
    save_nemo_on_validation_end: bool = unused(True)
    sync_batch_comm: bool = fixed(False, why="not supported")
    megatron_amp_O2: bool = cosmetic(default=False)
    answer_only_loss: bool = fixed(True, why="the loss is that of the responses")
    gradient_as_bucket_view: bool = unused(False)
    seq_len_interpolation_factor: float | None = fixed(
        None, why="positions stay those of the model that the responses were sampled from"
    )
    use_flash_attention: bool | None = unused(None)
    hidden_dropout: float = fixed(0.0, why=_NO_DROPOUT)
    attention_dropout: float = fixed(0.0, why=_NO_DROPOUT)
    ffn_dropout: float = fixed(0.0, why=_NO_DROPOUT)
    peft: training_config.Peft = training_config.Peft()
