"""``grpo`` and ``policy``: how is sampled and trained, under the names of NeMo-RL."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from nemotron_style.runtime.config.model import Section, cosmetic
from nemotron_style.steps.blocks.loss.reward_shaping import RewardScaling, RewardShaping
from nemotron_style.steps.blocks.settings.optimizer_config import OptimConfig
from nemotron_style.steps.blocks.settings.training_config import Count
from nemotron_style.steps.rl.rlhf.fixed_values import (
    GenerationRest,
    GrpoRest,
    MegatronRest,
    PolicyRest,
    TokenizerRest,
    held,
)

_END = "an answer ends as the chat format says"


class AdvEstimator(Section):
    """``grpo.adv_estimator``; what it leaves open stands in ``grpo``."""

    name: str = held("grpo", why="the loop is GRPO")
    normalize_rewards: bool | None = None
    use_leave_one_out_baseline: bool | None = None
    minus_baseline: bool = held(True, why="GRPO always subtracts it")
    reward_weights: list[float] | None = held(None, why="there is one reward")


class Grpo(GrpoRest):
    """``grpo``: prompts of a step, samples of a prompt, and what their rewards are worth."""

    num_prompts_per_step: Count = 32
    num_generations_per_prompt: Count = 8
    max_num_epochs: Count = 1
    max_num_steps: Count = 1_000_000
    normalize_rewards: bool = True
    use_leave_one_out_baseline: bool = True
    adv_estimator: AdvEstimator = AdvEstimator()
    advantage_clip_low: float | None = None
    advantage_clip_high: float | None = None
    val_period: int = cosmetic(default=10, ge=0, description="steps; 0: never in between")
    val_at_start: bool = cosmetic(default=False)
    val_at_end: bool = cosmetic(default=False)
    val_start_at: int = cosmetic(default=-1)
    val_num_generations_per_prompt: Count = cosmetic(default=1)
    num_val_generations_per_prompt: Count | None = cosmetic(default=None)
    overlong_filtering: bool = False
    skip_reference_policy_logprobs_calculation: bool = False
    reward_shaping: RewardShaping = RewardShaping()
    reward_scaling: RewardScaling = RewardScaling()
    seq_logprob_error_threshold: float | None = Field(default=None, gt=1)
    seed: int | None = cosmetic(default=None)


class Optimizer(Section):
    """``policy.megatron_cfg.optimizer``."""

    optimizer: Literal["adam"] = "adam"
    lr: float = Field(default=1e-6, gt=0)
    min_lr: float = Field(default=0.0, ge=0)
    weight_decay: float = Field(default=0.0, ge=0)
    adam_beta1: float = Field(default=0.9, ge=0, lt=1)
    adam_beta2: float = Field(default=0.999, ge=0, lt=1)
    adam_eps: float = Field(default=1e-8, gt=0)
    clip_grad: float | None = cosmetic(default=None)
    sgd_momentum: float = cosmetic(default=0.9)
    bf16: bool | None = cosmetic(default=None)
    fp16: bool | None = cosmetic(default=None)
    params_dtype: str | None = cosmetic(default=None)
    use_distributed_optimizer: bool = cosmetic(default=True)
    use_precision_aware_optimizer: bool = cosmetic(default=True)
    optimizer_cpu_offload: bool = cosmetic(default=False)
    optimizer_offload_fraction: float = cosmetic(default=0.0)


class Scheduler(Section):
    """``policy.megatron_cfg.scheduler``: the learning rate over updates."""

    lr_decay_style: Literal["constant", "linear", "cosine"] = "constant"
    lr_decay_iters: Count | None = None
    lr_warmup_iters: int = Field(default=0, ge=0)
    lr_warmup_init: float = Field(default=0.0, ge=0)
    weight_decay_incr_style: Literal["constant"] = "constant"
    start_weight_decay: float | None = cosmetic(default=None)
    end_weight_decay: float | None = cosmetic(default=None)


class MegatronCfg(MegatronRest):
    """``policy.megatron_cfg``."""

    optimizer: Optimizer = Optimizer()
    scheduler: Scheduler = Scheduler()


class Generation(GenerationRest):
    """``policy.generation``: how answers are drawn."""

    backend: Literal["in_process", "vllm"] = held(
        "in_process",
        why="samples are drawn in the training process",
        fix="set policy.generation.backend=in_process",
    )
    max_new_tokens: Count | None = Field(default=None, description="null: half of the context")
    temperature: float = Field(default=1.0, gt=0)
    top_p: float = held(1.0, why="the trainer sees log-probs of the whole distribution", gt=0, le=1)
    top_k: int | None = held(None, why="the trainer sees the whole distribution")
    stop_token_ids: list[int] | None = held(None, [], why=_END)
    stop_strings: list[str] | None = held(None, [], why=_END)


class PretrainedCheckpoint(Section):
    """``policy.pretrained_checkpoint``: the model to align, which is the reference too."""

    path: str | None = None
    format: Literal["megatron_bridge", "megatron_lm"] | None = cosmetic(default=None)


class Policy(PolicyRest):
    """``policy``. Batch sizes count samples: of an update, of a pass with and without gradient."""

    model_name: str | None = held(
        None,
        why="the checkpoint knows its own sizes",
        fix="name it with policy.pretrained_checkpoint.path or -i model=REF",
    )
    pretrained_checkpoint: PretrainedCheckpoint = PretrainedCheckpoint()
    tokenizer: TokenizerRest = TokenizerRest()
    train_global_batch_size: Count
    train_micro_batch_size: Count = cosmetic(default=1)
    logprob_batch_size: Count = cosmetic(default=1)
    max_total_sequence_length: Count | None = Field(default=None, description="null: the model's")
    precision: Literal["bfloat16", "float32"] = "bfloat16"
    max_grad_norm: float = Field(default=1.0, ge=0)
    megatron_cfg: MegatronCfg = MegatronCfg()
    generation: Generation = Generation()

    @property
    def half(self) -> bool:
        """Whether weights and activations are bfloat16."""
        return self.precision == "bfloat16"

    @property
    def optim(self) -> OptimConfig:
        """The optimizer, as the block wants it."""
        adam = self.megatron_cfg.optimizer
        return OptimConfig(
            name="distributed_fused_adam" if self.half else "adamw",
            lr=adam.lr,
            weight_decay=adam.weight_decay,
            betas=(adam.adam_beta1, adam.adam_beta2),
            eps=adam.adam_eps,
        )
