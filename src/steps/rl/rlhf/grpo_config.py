"""``grpo`` and ``policy``: how is sampled and trained, under the names of NeMo-RL."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from nemotron_style.runtime.config.model import Section, cosmetic, unused
from nemotron_style.runtime.errors import ConfigError, Problem
from nemotron_style.steps.blocks.loss.reward_shaping import RewardScaling, RewardShaping
from nemotron_style.steps.blocks.settings.fixed_value import fixed
from nemotron_style.steps.blocks.settings.generation_config import EngineName
from nemotron_style.steps.blocks.settings.not_built import NO_FUSION, NO_OFFLOAD, refuse_float16
from nemotron_style.steps.blocks.settings.optimizer_config import OptimConfig
from nemotron_style.steps.blocks.settings.parallel_config import Activations, DividedModel, Method
from nemotron_style.steps.blocks.settings.peft_config import MegatronPeft
from nemotron_style.steps.blocks.settings.training_config import Count
from nemotron_style.steps.rl.rlhf.fixed_values import DEAD, held

_MEGATRON = "is read where DTensor trains, and Megatron does"
_END = "an answer ends as the chat format says"
_FLOAT16 = "not built: float16 needs a scale of the loss that follows the gradients"
_WIDE_LOGITS = "not built: the logits of a whole pass are held in float32"
_TRAIN_PASS = "lower policy.train_micro_batch_size: a pass then holds fewer activations"
_LOGPROB_PASS = "lower policy.logprob_batch_size and policy.train_micro_batch_size"
_WHOLE_ROWS = "not built: a row is not divided along its length"
_NO_EXPERTS = "models have no experts"
_SHARE = "use more processes: in bfloat16 each holds its share of the optimizer's state"


class AdvEstimator(Section):
    """``grpo.adv_estimator``; what it leaves open stands in ``grpo``."""

    name: str = held("grpo", why="the loop is GRPO")
    normalize_rewards: bool | None = None
    use_leave_one_out_baseline: bool | None = None
    minus_baseline: bool = held(True, why="GRPO always subtracts it")
    reward_weights: list[float] | None = held(None, why="there is one reward")


class AsyncGrpo(Section):
    """``grpo.async_grpo``."""

    enabled: bool = held(False, why="a step is trained on its own samples")
    max_trajectory_age_steps: int = unused(1)
    max_generation_failures: int = unused(0)
    in_flight_weight_updates: bool = unused(False)
    recompute_kv_cache_after_weight_updates: bool = unused(False)


class Grpo(Section):
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
    # The last validation stands in the model's record: when it was, and of how many answers.
    val_period: int = Field(default=10, ge=0, description="steps; 0: never in between")
    val_at_start: bool = False
    val_at_end: bool = False
    val_start_at: int = -1
    val_num_generations_per_prompt: Count = 1
    num_val_generations_per_prompt: Count | None = cosmetic(default=None)
    overlong_filtering: bool = False
    skip_reference_policy_logprobs_calculation: bool = False
    reward_shaping: RewardShaping = RewardShaping()
    reward_scaling: RewardScaling = RewardScaling()
    seq_logprob_error_threshold: float | None = Field(default=None, gt=1)
    seed: int | None = cosmetic(default=None)
    # held to one value, or without effect
    max_rollout_turns: int = held(1, why="a sample is one answer")
    use_dynamic_sampling: bool = held(
        False, why="verdicts of a judge seldom tie", fix="leave it off"
    )
    dynamic_sampling_max_gen_batches: int = unused(10)
    batch_multiplier: int | float = held(1, 1.0, why="needs grpo.use_dynamic_sampling")
    async_grpo: AsyncGrpo = AsyncGrpo()
    invalid_tool_call_advantage: float | None = held(None, why="answers hold no tool calls")
    malformed_thinking_advantage: float | None = held(
        None, why="only the final answer is looked at"
    )
    stop_at_validation_metric: str | None = held(None, why="the run has a fixed length")
    val_batch_size: int | None = unused(None)
    max_val_samples: int | None = held(None, why="all validation prompts are answered")
    calculate_advantages_on_gpu: bool = unused(False)
    penalize_invalid_tool_call: bool = unused(True)
    penalize_malformed_thinking: bool = unused(True)
    use_best_at_k: bool = fixed(False, why=DEAD)
    best_at_k_k: int = unused(8)
    best_at_k_m: int = unused(1000)
    use_combined_training: bool = fixed(False, why=DEAD)
    combined_training_weight_mode: str = unused("auto")
    combined_training_best_at_k_weight: float = unused(0.2)
    combined_training_pass_at_1_weight: float = unused(1.0)
    dynamic_sampling_oversample_ratio: float = fixed(1.0, why=DEAD)


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
    sgd_momentum: float = unused(0.9)
    bf16: bool | None = cosmetic(default=None)
    fp16: bool | None = held(None, False, why=_FLOAT16, fix="set policy.precision=bfloat16")
    params_dtype: str | None = held(
        None, "float32", why="the optimizer's own weights are always float32"
    )
    use_distributed_optimizer: bool = cosmetic(default=True)
    use_precision_aware_optimizer: bool = unused(True)
    optimizer_cpu_offload: bool = held(False, why=NO_OFFLOAD, fix=_SHARE)
    optimizer_offload_fraction: float = held(0.0, why=NO_OFFLOAD, fix=_SHARE)


class Scheduler(Section):
    """``policy.megatron_cfg.scheduler``: the learning rate over updates."""

    lr_decay_style: Literal["constant", "linear", "cosine"] = "constant"
    lr_decay_iters: Count | None = None
    lr_warmup_iters: int = Field(default=0, ge=0)
    lr_warmup_init: float = Field(default=0.0, ge=0)
    weight_decay_incr_style: Literal["constant"] = "constant"
    start_weight_decay: float | None = cosmetic(default=None)
    end_weight_decay: float | None = cosmetic(default=None)

    @model_validator(mode="after")
    def _decay_follows_warmup(self) -> Self:
        # As megatron-core asserts: else the rate falls to min_lr in the middle of its warm-up.
        if self.lr_decay_iters is not None and self.lr_decay_iters <= self.lr_warmup_iters:
            raise ValueError(
                f"lr_decay_iters {self.lr_decay_iters} must exceed lr_warmup_iters "
                f"{self.lr_warmup_iters}"
            )
        return self


class MegatronCfg(DividedModel):
    """``policy.megatron_cfg``."""

    sequence_parallel: bool = cosmetic(default=False)
    activation_checkpointing: bool = cosmetic(default=False)
    optimizer: Optimizer = Optimizer()
    scheduler: Scheduler = Scheduler()
    peft: MegatronPeft = MegatronPeft()
    # held to one value, or without effect
    enabled: bool = fixed(
        True, why="only Megatron makes a checkpoint_megatron", fix="leave it true"
    )
    context_parallel_size: int = held(1, why=_WHOLE_ROWS)
    expert_model_parallel_size: int = held(1, why=_NO_EXPERTS)
    expert_tensor_parallel_size: int = held(1, why=_NO_EXPERTS)
    gradient_accumulation_fusion: bool = held(False, why=NO_FUSION)
    fine_grained_activation_offloading: bool = held(False, why=NO_OFFLOAD, fix=_TRAIN_PASS)
    empty_unused_memory_level: int = unused(1)
    converter_type: str | None = unused(None)
    num_layers_in_first_pipeline_stage: int | None = unused(None)
    num_layers_in_last_pipeline_stage: int | None = unused(None)
    pipeline_dtype: str | None = unused(default=None)
    apply_rope_fusion: bool = unused(True)
    bias_activation_fusion: bool = unused(True)
    defer_fp32_logits: bool = held(False, why=_WIDE_LOGITS, fix=_LOGPROB_PASS)
    freeze_moe_router: bool = unused(True)
    moe_router_dtype: str | None = unused("fp64")
    moe_router_load_balancing_type: str = unused("none")
    moe_router_bias_update_rate: float = unused(0.0)
    moe_permute_fusion: bool = unused(False)
    moe_per_layer_logging: bool = unused(False)
    moe_enable_deepep: bool = unused(False)
    moe_token_dispatcher_type: str = unused("alltoall")
    moe_shared_expert_overlap: bool = unused(False)
    distributed_data_parallel_config: dict[str, Any] = unused({})
    fp8_cfg: dict[str, Any] | None = unused(None)
    env_vars: dict[str, str] | None = unused(None)

    @property
    def activations(self) -> Activations:
        """Which activations are kept."""
        method: Method | None = "uniform" if self.activation_checkpointing else None
        return Activations(self.sequence_parallel, method)

    def learning_rate(self, update: int, *, updates: int) -> float:
        """Learning rate of the update number ``update`` (from 0) of ``updates``."""
        from nemotron_style.steps.blocks.training.lr_schedule import megatron_decay  # loads torch

        return megatron_decay(self.optimizer, self.scheduler, update, updates=updates)


class Generation(Section):
    """``policy.generation``: how answers are sampled."""

    backend: EngineName = Field(default="in_process", description="who samples")
    max_new_tokens: Count | None = Field(default=None, description="null: half of the context")
    temperature: float = Field(default=1.0, gt=0)
    top_p: float = held(1.0, why="the trainer sees log-probs of the whole distribution", gt=0, le=1)
    top_k: int | None = held(None, why="the trainer sees the whole distribution")
    stop_token_ids: list[int] | None = held(None, [], why=_END)
    stop_strings: list[str] | None = held(None, [], why=_END)
    # held to one value, or without effect
    port_range_low: int = unused(11001)
    port_range_high: int = unused(15000)
    vllm_cfg: dict[str, Any] = unused({})
    vllm_kwargs: dict[str, Any] = unused({})
    colocated: dict[str, Any] = unused({})


class PretrainedCheckpoint(Section):
    """``policy.pretrained_checkpoint``: the model to align, which is the reference too."""

    path: str | None = None
    format: Literal["megatron_bridge", "megatron_lm"] | None = unused(None)


class PolicyTokenizer(Section):
    """``policy.tokenizer``."""

    name: str | None = held(None, why="the checkpoint has its own tokenizer")
    chat_template: str | None = held(None, why="the checkpoint has its own template")
    chat_template_kwargs: dict[str, Any] | None = held(None, {}, why="the template takes none")


def _refuse_dtensor(config: dict[str, Any]) -> dict[str, Any]:
    if config.get("enabled", False) is not False:
        what = "DTensor makes no checkpoint_megatron, which this step produces"
        fix = "leave policy.megatron_cfg.enabled=true"
        got = str(config["enabled"])
        raise ConfigError(Problem(key="policy.dtensor_cfg.enabled", what=what, got=got, fix=fix))
    return config


class Policy(Section):
    """``policy``. Batch sizes count samples: of an update, of a pass with and without gradient."""

    model_name: str | None = held(
        None,
        why="the checkpoint knows its own sizes",
        fix="name it with policy.pretrained_checkpoint.path or -i model=REF",
    )
    pretrained_checkpoint: PretrainedCheckpoint = PretrainedCheckpoint()
    tokenizer: PolicyTokenizer = PolicyTokenizer()
    train_global_batch_size: Count
    train_micro_batch_size: Count = cosmetic(default=1)
    logprob_batch_size: Count = cosmetic(default=1)
    max_total_sequence_length: Count | None = Field(default=None, description="null: the model's")
    precision: Annotated[Literal["bfloat16", "float32"], BeforeValidator(refuse_float16)] = (
        "bfloat16"
    )
    max_grad_norm: float = Field(default=1.0, ge=0)
    megatron_cfg: MegatronCfg = MegatronCfg()
    generation: Generation = Generation()
    # held to one value, or without effect
    hf_config_overrides: dict[str, Any] = held({}, why="the checkpoint knows its own sizes")
    dtensor_cfg: Annotated[dict[str, Any], AfterValidator(_refuse_dtensor)] = unused(
        default={"enabled": False}
    )
    generation_batch_size: int | None = unused(None)
    logprob_chunk_size: int | None = held(None, why=_WIDE_LOGITS, fix=_LOGPROB_PASS)
    offload_optimizer_for_logprob: bool = held(False, why=NO_OFFLOAD, fix=_SHARE)
    refit_buffer_size_gb: float | None = unused(None)
    dynamic_batching: dict[str, Any] = unused({})
    sequence_packing: dict[str, Any] = unused({})
    draft: dict[str, Any] = unused({})
    make_sequence_length_divisible_by: int = unused(1)
    optimizer: dict[str, Any] | None = fixed(
        None, why=_MEGATRON, fix="set policy.megatron_cfg.optimizer"
    )
    scheduler: list[Any] | None = fixed(
        None, why=_MEGATRON, fix="set policy.megatron_cfg.scheduler"
    )

    @property
    def half(self) -> bool:
        """Whether weights and activations are bfloat16."""
        return self.precision == "bfloat16"

    @property
    def optim(self) -> OptimConfig:
        """The optimizer, as the block wants it."""
        adam, ddp = self.megatron_cfg.optimizer, self.megatron_cfg.distributed_data_parallel_config
        twice = adam.use_distributed_optimizer, ddp.get("use_distributed_optimizer", True)
        spread = self.half and all(twice)  # NeMo-RL has the key in both places
        return OptimConfig(
            name="distributed_fused_adam" if spread else "adamw",
            lr=adam.lr,
            weight_decay=adam.weight_decay,
            betas=(adam.adam_beta1, adam.adam_beta2),
            eps=adam.adam_eps,
        )
