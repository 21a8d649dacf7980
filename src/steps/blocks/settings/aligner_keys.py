"""Keys of NeMo-Aligner's configs that decide nothing here, so that its command lines carry over.

A key is either *without effect* (``unused``, any value of its type: it tunes something that does
not exist here, and the planner says so) or held to *one value* (another one would ask for
something that is not done, and the message says why and what to do instead).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import AfterValidator

from nemotron_style.runtime.config.model import Section, cosmetic, unused
from nemotron_style.runtime.errors import ConfigError, Problem
from nemotron_style.steps.blocks.settings.fixed_value import fixed
from nemotron_style.steps.blocks.settings.not_built import SavesMemory
from nemotron_style.steps.blocks.settings.optimizer_config import OptimConfig
from nemotron_style.steps.blocks.settings.peft_config import Peft
from nemotron_style.steps.blocks.settings.training_config import Precision

_CUT = "responses are never cut and prompts never rewritten, so there is nothing to choose"


class DatasetRest(Section):
    """``model.data.train_ds`` and ``validation_ds``: the part that no step uses."""

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
    add_bos: bool = fixed(
        False, why="a row begins as its chat format says, and was scored without a token more"
    )
    packed_sequence: bool | None = fixed(
        False, why="not built: responses share their prompt here instead", fix="leave it out"
    )
    min_seq_length: int = fixed(1, why="no row is left out for being short")


_NO_DROPOUT = "not built: with dropout a model would differ from the one that is sampled and scored"


class BucketOptim(OptimConfig):
    """``model.optim``, with the settings of buckets, which megatron-core chooses itself."""

    bucket_cap_mb: int = unused(200)
    overlap_grad_sync: bool = unused(False)
    contiguous_grad_buffer: bool = unused(True)


def _refuse_base_config(config: dict[str, Any]) -> dict[str, Any]:
    """``config``, which has no effect; NeMo-Aligner's own file names data in it."""
    if changed := sorted(set(config) - {"data"}):
        what = "the model's config is that of its checkpoint"
        fix = "take the keys out, or give model.KEY where the step has it"
        raise ConfigError(Problem(what=what, got=", ".join(changed), allowed="data", fix=fix))
    return config


BaseConfig = Annotated[dict[str, Any], AfterValidator(_refuse_base_config)]
"""``model.overwrite_base_config``: what of the start's config is not taken, which is nothing."""


class PrefixDataRest(Section):
    """``model.data`` of configs whose files are in ``data_prefix``: the part that no step uses."""

    data_impl: str = unused("jsonl")
    splits_string: str | None = fixed(None, why="rows are not split", fix="give two files")
    skip_warmup: bool = unused(True)
    num_workers: int = unused(0, ge=0)
    reset_position_ids: bool = fixed(False, why="a row holds one conversation")
    reset_attention_mask: bool = fixed(False, why="a row holds one conversation")
    eod_mask_loss: bool = fixed(False, why="the end of a response is learnt")
    index_mapping_dir: str | None = unused(None)


class ModelRest(SavesMemory):
    """``model`` of ``gpt_sft.yaml``: the part that is held to one value, or without effect."""

    resume_from_checkpoint: str | None = fixed(
        None, why="a run continues from its own checkpoints", fix="give model.restore_from_path"
    )
    save_nemo_on_validation_end: bool = unused(True)
    sync_batch_comm: bool = fixed(False, why="not supported")
    megatron_amp_O2: bool = cosmetic(default=False)
    answer_only_loss: bool = fixed(True, why="the loss is that of the answers")
    gradient_as_bucket_view: bool = unused(False)
    context_parallel_size: int = fixed(
        1, why="not built: a row is not divided along its length", fix="divide the model instead"
    )
    seq_len_interpolation_factor: float | None = fixed(
        None, why="positions stay those of the model that is trained"
    )
    use_flash_attention: bool | None = unused(None)
    hidden_dropout: float = fixed(0.0, why=_NO_DROPOUT)
    attention_dropout: float = fixed(0.0, why=_NO_DROPOUT)
    ffn_dropout: float = fixed(0.0, why=_NO_DROPOUT)
    peft: Peft = Peft()


def find_half_weights(asked: bool, trainer: Precision) -> Iterator[Problem]:
    """The problem of ``model.megatron_amp_O2`` in a run whose weights are not bfloat16."""
    if asked and not trainer.half:
        what, key = "asks for bfloat16 weights", "model.megatron_amp_O2"
        fix = "set trainer.precision=bf16 or model.megatron_amp_O2=false"
        yield Problem(key=key, what=what, fix=fix)
