"""NeMo-Aligner's keys that decide nothing here, so that its command lines still carry over.

A key is either *without effect* (any value of its type: it tunes something that does not exist
here) or held to *one value* (another one would ask for something that is not done, and the
message says why and what to do instead).  The page ``docs/steps/sft-steerlm2.md`` lists them all.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from nemotron_style.runtime.config.model import Section, cosmetic
from nemotron_style.steps.blocks.settings.fixed_value import only


class Peft(Section):
    """``model.peft``: low-rank adapters are not built yet; their settings are read and unused."""

    peft_scheme: Annotated[
        str,
        only(
            "none",
            why="low-rank adapters are not supported by this step yet",
            fix="train all weights with model.peft.peft_scheme=none",
        ),
    ] = "none"
    restore_from_path: Annotated[
        str | None, only(None, why="there are no adapters to restore without model.peft")
    ] = None
    lora_tuning: dict[str, Any] = cosmetic(default={})


class CheckpointCallback(Section):
    """``exp_manager.checkpoint_callback_params``; ``save_top_k`` is how many checkpoints stay."""

    monitor: Annotated[
        str, only("val_loss", why="the produced model is chosen by the validation distance")
    ] = "val_loss"
    mode: Annotated[str, only("min", why="a smaller distance is better")] = "min"
    save_top_k: int = cosmetic(default=2, ge=1)
    save_nemo_on_train_end: bool = cosmetic(default=False)
    save_best_model: bool = cosmetic(default=False)
    filename: str | None = cosmetic(default=None)
    model_parallel_size: int | None = cosmetic(default=None)


class ExpManager(Section):
    """``exp_manager``: the store keeps runs, logs and models, so little is left to manage."""

    explicit_log_dir: str | None = cosmetic(default=None)
    exp_dir: Annotated[
        str | None,
        only(
            None, why="not used", fix="set exp_manager.explicit_log_dir to get a copy of the logs"
        ),
    ] = None
    name: str | None = cosmetic(default=None)
    create_wandb_logger: Annotated[
        bool,
        only(
            False,
            why="no outside service is called while training",
            fix="read metrics.jsonl or the TensorBoard files of the run",
        ),
    ] = False
    wandb_logger_kwargs: dict[str, Any] = cosmetic(default={})
    resume_if_exists: Annotated[
        bool,
        only(True, why="a run always continues from its checkpoint", fix="start anew with --fresh"),
    ] = True
    resume_ignore_no_checkpoint: Annotated[
        bool, only(True, why="a run without a checkpoint starts at the beginning")
    ] = True
    create_checkpoint_callback: Annotated[
        bool,
        only(True, why="checkpoints are always written", fix="set trainer.sft.save_interval=0"),
    ] = True
    checkpoint_callback_params: CheckpointCallback = CheckpointCallback()


class TrainerRest(Section):
    """The part of ``trainer`` marked "do not change these" in NeMo-Aligner."""

    logger: Annotated[bool, only(False, why="the run keeps its own logs")] = False
    enable_checkpointing: Annotated[
        bool, only(False, why="checkpoints follow trainer.sft.save_interval")
    ] = False
    use_distributed_sampler: Annotated[
        bool, only(False, why="the order of samples is fixed by the seed alone")
    ] = False
    max_time: Annotated[
        str | None,
        only(
            None,
            why="a run has no clock of its own",
            fix="set the time limit in the profile: a run that is told to stop saves its state",
        ),
    ] = None


_CUT = "responses are never cut and prompts never rewritten, so there is nothing to choose"


class DatasetRest(Section):
    """What both data sets take and do not use."""

    micro_batch_size: int | None = cosmetic(default=None, ge=1)
    memmap_workers: int | None = cosmetic(default=None)
    index_mapping_dir: str | None = cosmetic(default=None)
    hf_dataset: bool = cosmetic(default=False)
    label_key: str = cosmetic(default="output")
    prompt_template: str = cosmetic(default="{input} {output}")
    truncation_field: str = cosmetic(default="input", description=_CUT)
    truncation_method: Literal["left", "right"] = cosmetic(default="right", description=_CUT)
    add_eos: bool = cosmetic(default=True)
    add_sep: Annotated[bool, only(False, why="the chat format has no separator")] = False
    add_bos: Annotated[
        bool, only(False, why="the responses were scored without a token before the prompt")
    ] = False
    min_seq_length: Annotated[int, only(1, why="no row is left out for being short")] = 1


_NO_DROPOUT = only(
    0.0, why="with dropout the model would differ from the one that scored the responses"
)


class ModelRest(Section):
    """The part of ``model`` that is held to one value or without effect."""

    resume_from_checkpoint: Annotated[
        str | None,
        only(
            None, why="a run continues from its own checkpoints", fix="give model.restore_from_path"
        ),
    ] = None
    save_nemo_on_validation_end: bool = cosmetic(default=True)
    sync_batch_comm: Annotated[bool, only(False, why="not supported")] = False
    megatron_amp_O2: bool = cosmetic(default=False)
    sequence_parallel: Annotated[
        bool,
        only(
            False,
            why="not supported: responses that share a prompt are not divided along the sequence",
            fix="raise model.tensor_model_parallel_size or lower model.steerlm2.micro_batch_size",
        ),
    ] = False
    activations_checkpoint_granularity: Annotated[
        str | None,
        only(
            None,
            why="activations are not recomputed",
            fix="lower model.steerlm2.micro_batch_size, down to 1 response a pass",
        ),
    ] = None
    activations_checkpoint_method: str | None = cosmetic(default=None)
    activations_checkpoint_num_layers: int | None = cosmetic(default=None)
    activations_checkpoint_layers_per_pipeline: int | None = cosmetic(default=None)
    answer_only_loss: bool = cosmetic(default=True)
    gradient_as_bucket_view: bool = cosmetic(default=False)
    seq_len_interpolation_factor: Annotated[
        float | None,
        only(None, why="positions stay those of the model that the responses were sampled from"),
    ] = None
    use_flash_attention: bool | None = cosmetic(default=None)
    hidden_dropout: Annotated[float, _NO_DROPOUT] = 0.0
    attention_dropout: Annotated[float, _NO_DROPOUT] = 0.0
    ffn_dropout: Annotated[float, _NO_DROPOUT] = 0.0
    peft: Peft = Peft()
