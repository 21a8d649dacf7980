"""Settings of ``rs/actor``, under the names of NeMo-Aligner's ``gpt_rs_actor.yaml``.

What is declared in this file decides something; the keys of ``fixed_values`` are there so that a
command line written for NeMo-Aligner is understood.  A key that merely mirrors another one may be
left out or must agree with it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from nemotron_style.runtime.config.model import Section, StepConfig, cosmetic
from nemotron_style.runtime.errors import ConfigError, Problem, raise_all
from nemotron_style.steps.blocks.data.chat_format import ChatPromptTokens
from nemotron_style.steps.blocks.http.endpoint import Address, read_address
from nemotron_style.steps.blocks.settings.fixed_value import find_conflicts
from nemotron_style.steps.blocks.settings.training_config import AlignerJob, Count, Length
from nemotron_style.steps.rs.actor.fixed_values import (
    DataRest,
    ExpManager,
    ModelRest,
    Optim,
    RsRest,
    SamplingRest,
)

Port = Annotated[int, Field(ge=1, le=65535)]
PORT = 5555


class Rs(Length, RsRest):
    """``trainer.rs``: where training ends, and how often it validates and saves.

    There is a validation before the first step, too.
    """

    val_check_interval: int = cosmetic(default=10, ge=0)


class Trainer(AlignerJob):
    """``trainer``: processes, precision and length of the run."""

    rs: Rs = Rs()


class RewardModelAddress(Section):
    """``remote_rm.reward_model``: NeMo-Aligner's older names of ``remote_rm.host`` and ``port``."""

    name: str | None = cosmetic(default=None)
    ip: str | None = None
    port: Port | None = None


class Waiting(Section):
    """How long and how often the reward model is asked; see ``http.retry.RetryPolicy``."""

    ready_seconds: float = cosmetic(default=600.0, gt=0, description="until it must be ready")
    tries: int = cosmetic(default=8, ge=1, description="of each request")
    timeout: float = cosmetic(default=120.0, gt=0, description="seconds of one try")
    first_pause: float = cosmetic(default=0.5, ge=0, description="seconds; doubled each time")
    longest_pause: float = cosmetic(default=30.0, ge=0)


class RemoteRm(Section):
    """``remote_rm``: where the reward model answers."""

    host: str | None = Field(default=None, description="a name, an address or a URL")
    port: Port | None = None
    reward_model: RewardModelAddress = RewardModelAddress()
    pad_to_length: int | None = cosmetic(default=None)
    token_env: str | None = cosmetic(
        default=None,
        pattern=r"^[A-Za-z_][A-Za-z0-9_]*$",
        description="environment variable that holds the bearer token",
    )
    waiting: Waiting = Waiting()


class SamplingParams(SamplingRest):
    """``model.rs.sampling_params``; a response also ends with the chat's start of a turn."""

    use_greedy: bool = False
    temperature: float = Field(default=1.0, gt=0)
    top_k: int = Field(default=0, ge=0, description="0: off")
    top_p: float = Field(default=1.0, gt=0, le=1, description="1: off")
    repetition_penalty: float = Field(default=1.0, gt=0)
    end_strings: tuple[Annotated[str, Field(min_length=1)], ...] = Field(default=(), strict=False)


class LengthParams(Section):
    """``model.rs.length_params``: tokens of a response."""

    max_length: Count | None = Field(default=None, description="null: half of the context")
    min_length: int = Field(default=1, ge=0)


class RejectionSampling(Section):
    """``model.rs``: prompts of a step, samples of a prompt, and how many of them are kept."""

    num_rollout_samples: Count = 512
    num_rollouts_per_prompt: Count = 4
    top_n_rollouts: Count = 1
    rollout_micro_batch_size: Count = 8
    forward_micro_batch_size: Count | None = cosmetic(default=None)
    num_val_samples: Count | None = cosmetic(default=None)
    val_rollout_micro_batch_size: Count | None = cosmetic(default=None)
    offload_adam_states: bool = cosmetic(default=False)
    sampling_params: SamplingParams = SamplingParams()
    length_params: LengthParams = LengthParams()
    agreement_limit: Annotated[float, Field(gt=1)] | None = None


class DataPrefix(Section):
    """``model.data.data_prefix``: the files of prompts."""

    train: str | None = None
    validation: str | None = None
    test: str | None = cosmetic(default=None)


class Data(DataRest):
    """``model.data``: the files, and how a conversation is written as text."""

    data_prefix: DataPrefix = DataPrefix()
    chat_prompt_tokens: ChatPromptTokens | None = None
    sample: bool = Field(default=False, description="repeat the prompts, reshuffled")


class Model(ModelRest):
    """``model``: what is sampled, and how what is kept is trained on.

    ``global_batch_size`` counts kept responses of an update, ``micro_batch_size`` those of a pass.
    """

    rs: RejectionSampling = RejectionSampling()
    global_batch_size: Count = 64
    micro_batch_size: int = cosmetic(default=1, ge=1)
    encoder_seq_length: Count | None = None
    data: Data = Data()
    optim: Optim = Optim()


class PretrainedCheckpoint(Section):
    """``pretrained_checkpoint``: the model to start from."""

    restore_from_path: str | None = None


class Config(StepConfig):
    """Settings of a rejection sampling run."""

    trainer: Trainer = Trainer()
    remote_rm: RemoteRm = RemoteRm()
    exp_manager: ExpManager = ExpManager()
    pretrained_checkpoint: PretrainedCheckpoint = PretrainedCheckpoint()
    model: Model = Model()
    generation: Literal["in_process", "vllm"] = Field(
        default="in_process", description="who samples"
    )

    @property
    def address(self) -> Address | None:
        """Where the reward model answers, or None when the config does not say."""
        remote, older = self.remote_rm, self.remote_rm.reward_model
        host, port = remote.host or older.ip, remote.port or older.port
        if host is None:
            return None
        return read_address(host, port or (None if ":" in host else PORT), key="remote_rm.host")

    @property
    def agreement_limit(self) -> float:
        """The largest token_mult_prob_error of sampler and trainer that is taken for rounding."""
        rounding = 1.05 if self.trainer.half else 1.001
        return self.model.rs.agreement_limit or (1.1 if self.generation == "vllm" else rounding)

    @property
    def updates_per_step(self) -> int:
        """Updates of the weights in a step."""
        rs = self.model.rs
        return rs.num_rollout_samples * rs.top_n_rollouts // self.model.global_batch_size

    def context(self, model_limit: int) -> int:
        """The most tokens of a prompt with its response, for a model that holds ``model_limit``."""
        return min(model_limit, self.model.encoder_seq_length or model_limit)

    def max_new_tokens(self, model_limit: int) -> int:
        """The most tokens of a response."""
        return self.model.rs.length_params.max_length or max(1, self.context(model_limit) // 2)

    @model_validator(mode="after")
    def _agree(self) -> Config:
        problems = [*find_conflicts(_mirrors(self)), *_sizes(self), *_rest(self)]
        raise_all(ConfigError, problems)
        assert self.address is None or self.address.port  # refuses what is no address
        return self


def _sizes(config: Config) -> Iterator[Problem]:
    """Numbers of prompts, samples and kept rows that do not fit each other."""
    rs, batch = config.model.rs, config.model.global_batch_size
    if rs.top_n_rollouts > rs.num_rollouts_per_prompt:
        yield Problem(
            key="model.rs.top_n_rollouts",
            what="cannot keep more samples than are drawn",
            got=str(rs.top_n_rollouts),
            allowed=f"1 to {rs.num_rollouts_per_prompt} (model.rs.num_rollouts_per_prompt)",
        )
    kept = rs.num_rollout_samples * rs.top_n_rollouts
    if batch % rs.top_n_rollouts or kept % batch:
        yield Problem(
            key="model.global_batch_size",
            what="the responses that a step keeps are not divided into whole global batches, "
            "each of whole prompts",
            got=f"{batch} for {rs.num_rollout_samples} prompts x {rs.top_n_rollouts} kept",
            allowed=f"a multiple of {rs.top_n_rollouts} that divides {kept}",
            fix="change it, or model.rs.num_rollout_samples",
        )
    if rs.sampling_params.use_greedy and rs.num_rollouts_per_prompt > 1:
        what = "greedy samples of a prompt are all the same, so there is nothing to choose"
        yield Problem(key="model.rs.sampling_params.use_greedy", what=what, allowed="false")
    longest, shortest = rs.length_params.max_length, rs.length_params.min_length
    if longest is not None and shortest > longest:
        what = "is more than model.rs.length_params.max_length"
        yield Problem(
            key="model.rs.length_params.min_length",
            what=what,
            got=str(shortest),
            allowed=f"0 to {longest}",
        )


def _rest(config: Config) -> Iterator[Problem]:
    """An end, an address, and a precision that goes with the weights."""
    remote = config.remote_rm
    yield from config.trainer.rs.find_missing_end("trainer.rs", sample=config.model.data.sample)
    if (remote.port or remote.reward_model.port) and not (remote.host or remote.reward_model.ip):
        what = "a port is given and no host"
        yield Problem(key="remote_rm.port", what=what, fix="set remote_rm.host, e.g. to localhost")
    if config.model.megatron_amp_O2 and not config.trainer.half:
        fix = "set trainer.precision=bf16 or model.megatron_amp_O2=false"
        what = "asks for bfloat16 weights"
        yield Problem(key="model.megatron_amp_O2", what=what, fix=fix)


def _mirrors(config: Config) -> list[tuple[str, Any, str, Any]]:
    """Keys that repeat another one: ``(key, value, the other key, its value)``."""
    model, trainer, remote = config.model, config.trainer, config.remote_rm
    pairs: list[tuple[str, Any, str, Any]] = [
        ("model.seed", model.seed, "seed", config.seed),
        ("model.precision", model.precision, "trainer.precision", trainer.precision),
        ("trainer.max_epochs", trainer.max_epochs, "trainer.rs.max_epochs", trainer.rs.max_epochs),
        ("trainer.max_steps", trainer.max_steps, "trainer.rs.max_steps", trainer.rs.max_steps),
        (
            "trainer.rs.model_gbs",
            trainer.rs.model_gbs,
            "model.global_batch_size",
            model.global_batch_size,
        ),
        (
            "trainer.rs.model_mbs",
            trainer.rs.model_mbs,
            "model.micro_batch_size",
            model.micro_batch_size,
        ),
    ]
    if remote.host:
        pairs.append(
            ("remote_rm.reward_model.ip", remote.reward_model.ip, "remote_rm.host", remote.host)
        )
    if remote.port:
        older = remote.reward_model.port
        pairs.append(("remote_rm.reward_model.port", older, "remote_rm.port", remote.port))
    for key in ("max_position_embeddings", "data.seq_length"):
        given = model.max_position_embeddings if "." not in key else model.data.seq_length
        wanted = model.encoder_seq_length
        pairs.append((f"model.{key}", given, "model.encoder_seq_length", wanted))
    return pairs
