"""Settings of ``rl/rlhf``, under the names of NeMo-RL's GRPO and NeMo-Gym's ``genrm_compare``.

What is declared here, in ``grpo_config`` and in ``gym`` decides something; the keys of
``fixed_values`` are there so that a command line written for NeMo-RL is understood.  ``backend``,
``processes``, ``judge``, ``samples`` and ``agreement_limit`` are keys of this project.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import reduce
from typing import Any, Literal

from pydantic import Field, model_validator

from nemotron_style.runtime.config.model import (
    MLFLOW,
    WANDB,
    Section,
    StepConfig,
    Tracker,
    cosmetic,
    unused,
)
from nemotron_style.runtime.errors import ConfigError, Problem, raise_all
from nemotron_style.steps.blocks.http.endpoint import read_address
from nemotron_style.steps.blocks.judge.pairing import ComparisonPlan
from nemotron_style.steps.blocks.loss.clipped_pg_config import ClippedPGConfig
from nemotron_style.steps.blocks.settings.fixed_value import find_conflicts, fixed
from nemotron_style.steps.blocks.settings.generation_config import check_temperature, sampler_limit
from nemotron_style.steps.blocks.settings.row_config import LongRowReading
from nemotron_style.steps.blocks.settings.tracker_config import find_trackers
from nemotron_style.steps.blocks.settings.training_config import Count, Samples
from nemotron_style.steps.rl.rlhf.fixed_values import (
    HELD_ELSEWHERE,
    HELD_WITH_VLLM,
    Checkpointing,
    Cluster,
    Logger,
    Run,
    held,
    held_keys,
)
from nemotron_style.steps.rl.rlhf.grpo_config import Grpo, Policy
from nemotron_style.steps.rl.rlhf.gym import Env
from nemotron_style.steps.rl.rlhf.nemo_rl.schema import COMPARE

GYM = "nemo_gym"
"""What ``judge.url`` says where NeMo-Gym serves the judge itself."""


class TrainData(Section):
    """``data.train``."""

    data_path: str | None = None


class ValidationData(Section):
    """``data.validation``."""

    data_path: str | None = None
    repeat: int | None = held(None, 1, why="grpo.val_num_generations_per_prompt repeats them")


class Data(LongRowReading):
    """``data``: prompts to learn from, others to look at, and how their rows are read."""

    train: TrainData = TrainData()
    validation: ValidationData = ValidationData()
    shuffle: bool = True
    allow_train_as_validation: bool = False
    # held to one value, or without effect
    max_input_seq_length: int | None = held(None, why="prompts are never cut")
    num_workers: int = unused(0, ge=0)
    use_multiple_dataloader: bool = fixed(False, why="there is one file of prompts")
    manifest_path: str | None = fixed(
        None,
        why="names files that lineage would not see",
        fix="set data.train.data_path and data.validation.data_path",
    )
    default_agent_ref: str | dict[str, Any] | None = unused(None)
    normalized_data_dir: str | None = unused(None)
    default: dict[str, Any] = unused({})


class Judge(Section):
    """``judge``: keys of ours about the model that compares answers.

    A floor is a promise of the model that is produced, so another floor is another run.
    """

    url: str | None = Field(default=None, description="of a judge that is there already")
    token_env: str | None = cosmetic(default=None, pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")
    form: Literal["genrm", "instruct"] | None = Field(
        default=None, description="how it is asked; null: as its card says, else genrm"
    )
    response_format: dict[str, Any] | None = None
    both_orders: bool = False
    min_accuracy: float | None = Field(
        default=0.6, ge=0, le=1, description="floor of its card; null: no card is asked for"
    )
    min_swap_agreement: float = Field(default=0.5, ge=0, le=1)
    failure_budget: float = Field(default=0.2, ge=0, le=1)
    flat_steps: Count = Field(default=3, description="steps without any difference, then stop")
    at_once: Count = cosmetic(default=8)
    timeout: float = cosmetic(default=120.0, gt=0, description="seconds of one try")
    ready_seconds: float = cosmetic(default=600.0, gt=0)


class Config(StepConfig):
    """Settings of an RLHF run."""

    backend: Literal["embedded", "nemo_rl"] = "embedded"
    processes: Count = cosmetic(default=1, description="on each machine, of the embedded loop")
    grpo: Grpo = Grpo()
    loss_fn: ClippedPGConfig = ClippedPGConfig()
    policy: Policy
    data: Data = Data()
    env: Env = Env()
    judge: Judge = Judge()
    checkpointing: Checkpointing = Checkpointing()
    logger: Logger = Logger()
    samples: Samples = Samples()
    cluster: Cluster = Cluster()
    run: Run = None
    agreement_limit: float | None = Field(default=None, gt=1)

    def trackers(self) -> Mapping[str, Tracker]:
        if self.backend != "embedded":
            return {}  # NeMo-RL tells them itself
        asked = {
            "logger.wandb_enabled": (WANDB,) if self.logger.wandb_enabled else (),
            "logger.mlflow_enabled": (MLFLOW,) if self.logger.mlflow_enabled else (),
        }
        return find_trackers(asked, self.logger.wandb, self.logger.mlflow)

    @property
    def samples_per_step(self) -> int:
        """Samples of a step, P x N."""
        return self.grpo.num_prompts_per_step * self.grpo.num_generations_per_prompt

    @property
    def updates_per_step(self) -> int:
        """Updates of the weights in a step."""
        return self.samples_per_step // self.policy.train_global_batch_size

    @property
    def gate(self) -> float:
        """The largest token_mult_prob_error of sampler and trainer that is taken for rounding."""
        engine = self.policy.generation.backend
        return self.agreement_limit or sampler_limit(engine, half=self.policy.half)

    @property
    def normalize(self) -> bool:
        """Whether advantages are divided by the deviation of their group."""
        own = self.grpo.adv_estimator.normalize_rewards
        return self.grpo.normalize_rewards if own is None else own

    @property
    def leave_one_out(self) -> bool:
        """Whether a sample is compared with the others of its group alone."""
        own = self.grpo.adv_estimator.use_leave_one_out_baseline
        return self.grpo.use_leave_one_out_baseline if own is None else own

    @property
    def advantage_range(self) -> tuple[float | None, float | None]:
        """The least and the largest advantage; None leaves that side open."""
        return self.grpo.advantage_clip_low, self.grpo.advantage_clip_high

    @property
    def needs_previous_logprobs(self) -> bool:
        """Whether the log-probs of the policy before a step's first update are computed."""
        # v0.6.0 takes those of before the step even where the ratio is forced to 1.
        on_policy = self.loss_fn.force_on_policy_ratio and self.loss_fn.is_head
        return not on_policy or bool(self.grpo.seq_logprob_error_threshold)

    @property
    def judge_plan(self) -> ComparisonPlan:
        """What is compared in a step."""
        return self.env.compare.plan(
            both_orders=self.judge.both_orders, failure_budget=self.judge.failure_budget
        )

    def context(self, model_limit: int) -> int:
        """The most tokens of a prompt with its answer, for a model that holds ``model_limit``."""
        return min(model_limit, self.policy.max_total_sequence_length or model_limit)

    def max_new_tokens(self, model_limit: int) -> int:
        """The most tokens of an answer."""
        return self.policy.generation.max_new_tokens or max(1, self.context(model_limit) // 2)

    @model_validator(mode="after")
    def _agree(self) -> Config:
        problems = [*_sizes(self), *find_conflicts(_mirrors(self)), *_judge(self)]
        if self.backend == "embedded":
            problems += [*_held(self), *find_conflicts(_embedded_mirrors(self.policy))]
        raise_all(ConfigError, problems)
        return self


def _sizes(config: Config) -> Iterator[Problem]:
    """Numbers of samples that do not fit each other."""
    grpo, batch = config.grpo, config.policy.train_global_batch_size
    if grpo.num_generations_per_prompt < 2:
        yield Problem(
            key="grpo.num_generations_per_prompt",
            what="a sample is compared with others of its prompt, and one has none",
            got=str(grpo.num_generations_per_prompt),
            allowed="2 or more",
        )
    if config.samples_per_step % batch:
        yield Problem(
            key="policy.train_global_batch_size",
            what="the samples of a step are not divided into whole updates",
            got=f"{batch} for {grpo.num_prompts_per_step} prompts x "
            f"{grpo.num_generations_per_prompt} samples",
            allowed=f"a divisor of {config.samples_per_step}",
            fix="leave it to follow both",
        )
    elif config.loss_fn.force_on_policy_ratio and config.updates_per_step > 1:
        yield Problem(
            key="loss_fn.force_on_policy_ratio",
            what="holds for one update of a step alone; the second is off policy",
            got=f"{config.updates_per_step} updates",
            allowed=f"policy.train_global_batch_size={config.samples_per_step}",
        )
    if grpo.skip_reference_policy_logprobs_calculation and config.loss_fn.kl_weight:
        yield Problem(
            key="grpo.skip_reference_policy_logprobs_calculation",
            what="the KL penalty needs them",
            fix="set loss_fn.reference_policy_kl_penalty=0, or leave it false",
        )


def _mirrors(config: Config) -> list[tuple[str, Any, str, Any]]:
    """Keys that repeat another one: ``(key, value, the other key, its value)``."""
    grpo, policy = config.grpo, config.policy
    samples, val_samples = grpo.num_generations_per_prompt, grpo.val_num_generations_per_prompt
    older, cohort = grpo.num_val_generations_per_prompt, config.env.compare.num_rollouts_per_prompt
    clip, norm = policy.megatron_cfg.optimizer.clip_grad, policy.max_grad_norm
    val_key = "grpo.val_num_generations_per_prompt"
    return [
        ("grpo.seed", grpo.seed, "seed", config.seed),
        ("grpo.num_val_generations_per_prompt", older, val_key, val_samples),
        ("policy.megatron_cfg.optimizer.clip_grad", clip, "policy.max_grad_norm", norm),
        (f"{COMPARE}.num_rollouts_per_prompt", cohort, "grpo.num_generations_per_prompt", samples),
    ]


def _embedded_mirrors(policy: Policy) -> list[tuple[str, Any, str, Any]]:
    """Keys that repeat another one where our own loop trains."""
    adam, scheduler = policy.megatron_cfg.optimizer, policy.megatron_cfg.scheduler
    precision = "policy.precision", policy.precision
    adam_key, scheduler_key = "policy.megatron_cfg.optimizer", "policy.megatron_cfg.scheduler"
    asked = {True: "bfloat16", False: "float32", None: None}[adam.bf16]
    vllm = policy.generation.vllm_cfg if policy.generation.backend == "vllm" else {}
    decay = f"{adam_key}.weight_decay", adam.weight_decay
    return [
        (f"{adam_key}.bf16", asked, *precision),
        ("policy.generation.vllm_cfg.precision", vllm.get("precision"), *precision),
        (f"{scheduler_key}.start_weight_decay", scheduler.start_weight_decay, *decay),
        (f"{scheduler_key}.end_weight_decay", scheduler.end_weight_decay, *decay),
    ]


def _judge(config: Config) -> Iterator[Problem]:
    """Where the judge is."""
    url = config.judge.url
    if (url == GYM) != (config.backend == "nemo_rl"):
        what = "NeMo-Gym serves the judge where NeMo-RL trains, and only there"
        allowed = GYM if config.backend == "nemo_rl" else "null, or the URL of a judge"
        yield Problem(key="judge.url", what=what, got=str(url), allowed=allowed)
    elif url is not None and url != GYM:
        read_address(url, key="judge.url")


def _get(values: Any, name: str) -> Any:
    """An entry of a section, or of a table of any keys that may lack it or be null."""
    if isinstance(values, Section):
        return getattr(values, name)
    return (values or {}).get(name)


def _held(config: Config) -> Iterator[Problem]:
    """Keys at values that our own loop does not know."""
    generation = config.policy.generation
    key = "policy.generation.temperature"
    yield from check_temperature(generation.backend, generation.temperature, key=key)
    of_engine = HELD_WITH_VLLM if generation.backend == "vllm" else ()
    for key, mark in [*held_keys(Config), *HELD_ELSEWHERE, *of_engine]:
        value = reduce(_get, key.split("."), config)
        if not any(value == one and type(value) is type(one) for one in mark.allowed):
            yield Problem(
                key=key,
                what=f"{mark.why} (backend: embedded)",
                got=str(value),
                allowed=" or ".join("null" if one is None else str(one) for one in mark.allowed),
                fix=mark.fix,
            )
