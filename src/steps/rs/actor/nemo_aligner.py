"""Sections of NeMo-Aligner's ``gpt_rs_actor.yaml``.

A key decides something, or it is held to one value (``fixed``), or it is *without effect*
(``unused``: any value of its type, it tunes something that does not exist here). The page
``docs/steps/rs-actor.md`` lists them all.
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field

from nemotron_style.runtime.config.model import Section, cosmetic, unused
from nemotron_style.steps.blocks.data.chat_format import ChatPromptTokens
from nemotron_style.steps.blocks.http.waiting_config import Waiting
from nemotron_style.steps.blocks.settings import peft_config, training_config
from nemotron_style.steps.blocks.settings.aligner_keys import (
    BaseConfig,
    BucketOptim,
    PrefixDataRest,
)
from nemotron_style.steps.blocks.settings.data_prefix import DataPrefix
from nemotron_style.steps.blocks.settings.fixed_value import fixed
from nemotron_style.steps.blocks.settings.not_built import (
    NO_OFFLOAD,
    SMALLER_SHARE,
    SavesMemory,
)
from nemotron_style.steps.blocks.settings.parallel_config import DividedModel
from nemotron_style.steps.blocks.settings.row_config import LongRowReading
from nemotron_style.steps.blocks.settings.training_config import AlignerJob, Count, Length

Port = Annotated[int, Field(ge=1, le=65535)]


class Rs(Length):
    """``trainer.rs``: where training ends, and how often it validates and saves.

    There is a validation before the first step, too.
    """

    val_check_interval: int = cosmetic(default=10, ge=0)
    # mirrors, or without effect
    model_gbs: int | None = cosmetic(default=None)
    model_mbs: int | None = cosmetic(default=None)
    rollout_batch_seq_length: int | None = unused(None)


class Trainer(AlignerJob):
    """``trainer``: processes, precision and length of the run."""

    rs: Rs = Rs()


class RewardModelAddress(Section):
    """``remote_rm.reward_model``: NeMo-Aligner's older names of ``remote_rm.host`` and ``port``."""

    name: str | None = unused(None)
    ip: str | None = None
    port: Port | None = None


class RemoteRm(Section):
    """``remote_rm``: where the reward model answers."""

    host: str | None = Field(default=None, description="a name, an address or a URL")
    port: Port | None = None
    reward_model: RewardModelAddress = RewardModelAddress()
    pad_to_length: int | None = unused(None)
    token_env: str | None = cosmetic(
        default=None,
        pattern=r"^[A-Za-z_][A-Za-z0-9_]*$",
        description="environment variable that holds the bearer token",
    )
    waiting: Waiting = Waiting()


class SamplingParams(Section):
    """``model.rs.sampling_params``; a response also ends with the chat's start of a turn."""

    use_greedy: bool = False
    temperature: float = Field(default=1.0, gt=0)
    top_k: int = Field(default=0, ge=0, description="0: off")
    top_p: float = Field(default=1.0, gt=0, le=1, description="1: off")
    repetition_penalty: float = Field(default=1.0, gt=0)
    end_strings: tuple[Annotated[str, Field(min_length=1)], ...] = Field(default=(), strict=False)
    # held to one value, or without effect
    add_BOS: bool = fixed(
        False, why="the prompt is the text of the chat format, and nothing before it"
    )
    all_probs: bool = unused(False)
    compute_logprob: bool = unused(False)


class LengthParams(Section):
    """``model.rs.length_params``: tokens of a response."""

    max_length: Count | None = Field(default=None, description="null: half of the context")
    min_length: int = Field(default=1, ge=0)


class RejectionSampling(Section):
    """``model.rs``: prompts of a step, samples of a prompt, and how many of them are kept.

    The samples of validation change the gain that the model's record holds.
    """

    num_rollout_samples: Count = 512
    num_rollouts_per_prompt: Count = 4
    top_n_rollouts: Count = 1
    rollout_micro_batch_size: Count = 8
    forward_micro_batch_size: Count | None = cosmetic(default=None)
    num_val_samples: Count | None = None
    val_rollout_micro_batch_size: Count | None = None
    offload_adam_states: bool = fixed(False, why=NO_OFFLOAD, fix=SMALLER_SHARE)
    sampling_params: SamplingParams = SamplingParams()
    length_params: LengthParams = LengthParams()
    agreement_limit: Annotated[float, Field(gt=1)] | None = None


class Data(LongRowReading, PrefixDataRest):
    """``model.data``: the files, how rows are read, and how a conversation is written as text."""

    data_prefix: DataPrefix = DataPrefix()
    chat_prompt_tokens: ChatPromptTokens | None = None
    sample: bool = Field(default=False, description="repeat the prompts, reshuffled")
    # held to one value, or without effect
    seq_length: int | None = cosmetic(default=None)
    dataloader_type: str = fixed(
        "single", why="epochs follow each other", fix="set model.data.sample=true"
    )


class CheckpointCallback(training_config.CheckpointCallback):
    """``exp_manager.checkpoint_callback_params``; the ``save_top_k`` newest states stay."""

    monitor: str = fixed("val_global_rewards", why="the last weights are produced, not chosen ones")
    mode: str = fixed("max", why="a larger reward is better")
    always_save_nemo: bool = unused(False)
    save_nemo_on_train_end: bool = unused(True)


class ExpManager(training_config.ExpManager):
    """``exp_manager``, with the callback of this step."""

    resume_from_checkpoint: str | None = fixed(None, why="a run continues from its own checkpoints")
    checkpoint_callback_params: CheckpointCallback = CheckpointCallback()


class Peft(peft_config.Peft):
    """``model.peft``, with one more key that has no effect."""

    restore_from_ckpt: dict[str, Any] = unused({})


class Model(SavesMemory, DividedModel):
    """``model``: what is sampled, and how what is kept is trained on.

    ``global_batch_size`` counts kept responses of an update, ``micro_batch_size`` those of a pass.
    """

    rs: RejectionSampling = RejectionSampling()
    global_batch_size: Count = 64
    micro_batch_size: int = cosmetic(default=1, ge=1)
    encoder_seq_length: Count | None = None
    data: Data = Data()
    optim: BucketOptim = BucketOptim()
    # held to one value, or without effect
    mcore_gpt: bool = fixed(True, why="models are megatron-core's")
    megatron_amp_O2: bool = cosmetic(default=False)
    max_position_embeddings: int | None = cosmetic(default=None)
    seed: int | None = cosmetic(default=None)
    precision: str | int | None = cosmetic(default=None)
    peft: Peft = Peft()
    overwrite_base_config: BaseConfig = unused(default={})
