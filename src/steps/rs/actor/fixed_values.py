"""Keys of ``gpt_rs_actor.yaml`` that decide nothing here, so that command lines carry over.

A key is either *without effect* (any value of its type: it tunes something that does not exist
here) or held to *one value*.  The page ``docs/steps/rs-actor.md`` lists them all.
"""

from __future__ import annotations

from typing import Any

from nemotron_style.runtime.config.model import Section, cosmetic
from nemotron_style.steps.blocks.settings import training_config
from nemotron_style.steps.blocks.settings.fixed_value import fixed
from nemotron_style.steps.blocks.settings.optimizer_config import OptimConfig


class RsRest(Section):
    """The part of ``trainer.rs`` that has no effect or repeats ``model``."""

    model_gbs: int | None = cosmetic(default=None)
    model_mbs: int | None = cosmetic(default=None)
    rollout_batch_seq_length: int | None = cosmetic(default=None)


class CheckpointCallback(training_config.CheckpointCallback):
    """``exp_manager.checkpoint_callback_params``; the ``save_top_k`` newest states stay."""

    monitor: str = fixed("val_global_rewards", why="the last weights are produced, not chosen ones")
    mode: str = fixed("max", why="a larger reward is better")
    always_save_nemo: bool = cosmetic(default=False)
    save_nemo_on_train_end: bool = cosmetic(default=True)


class ExpManager(training_config.ExpManager):
    """``exp_manager``, with the callback of this step."""

    resume_from_checkpoint: str | None = fixed(None, why="a run continues from its own checkpoints")
    checkpoint_callback_params: CheckpointCallback = CheckpointCallback()


class Peft(training_config.Peft):
    """``model.peft``, with one more key that has no effect."""

    restore_from_ckpt: dict[str, Any] = cosmetic(default={})


class SamplingRest(Section):
    """The part of ``sampling_params`` that asks for what is not done, or always done."""

    add_BOS: bool = fixed(
        False, why="the prompt is the text of the chat format, and nothing before it"
    )
    all_probs: bool = cosmetic(default=False)
    compute_logprob: bool = cosmetic(default=False)


class DataRest(Section):
    """The part of ``model.data`` that tunes an index which is not built."""

    data_impl: str = cosmetic(default="jsonl")
    splits_string: str | None = fixed(None, why="prompts are not split", fix="give two files")
    seq_length: int | None = cosmetic(default=None)
    skip_warmup: bool = cosmetic(default=True)
    num_workers: int = cosmetic(default=0, ge=0)
    dataloader_type: str = fixed(
        "single", why="epochs follow each other", fix="set model.data.sample=true"
    )
    reset_position_ids: bool = fixed(False, why="a row holds one conversation")
    reset_attention_mask: bool = fixed(False, why="a row holds one conversation")
    eod_mask_loss: bool = fixed(False, why="the end of a response is learnt")
    index_mapping_dir: str | None = cosmetic(default=None)


_WHOLE = "sampling in the training process needs the whole model in each process"
_WHOLE_FIX = "leave it at 1; a model that needs to be divided cannot be sampled so"


class Optim(OptimConfig):
    """``model.optim``, with the settings of buckets, which megatron-core chooses itself."""

    bucket_cap_mb: int = cosmetic(default=200)
    overlap_grad_sync: bool = cosmetic(default=False)
    contiguous_grad_buffer: bool = cosmetic(default=True)


class ModelRest(Section):
    """The part of ``model`` that is held to one value, without effect, or a mirror."""

    tensor_model_parallel_size: int = fixed(1, why=_WHOLE, fix=_WHOLE_FIX)
    pipeline_model_parallel_size: int = fixed(1, why=_WHOLE, fix=_WHOLE_FIX)
    mcore_gpt: bool = fixed(True, why="models are megatron-core's")
    megatron_amp_O2: bool = cosmetic(default=False)
    max_position_embeddings: int | None = cosmetic(default=None)
    sequence_parallel: bool = fixed(False, why="the model is whole in each process")
    seed: int | None = cosmetic(default=None)
    precision: str | int | None = cosmetic(default=None)
    peft: Peft = Peft()
    overwrite_base_config: dict[str, Any] = cosmetic(default={})
