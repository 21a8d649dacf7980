"""Settings of ``rs/actor``, under the names of NeMo-Aligner's ``gpt_rs_actor.yaml``.

A key that merely mirrors another one may be left out or must agree with it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import Field, model_validator

from nemotron_style.runtime.config.model import StepConfig, Tracker
from nemotron_style.runtime.errors import ConfigError, Problem, raise_all
from nemotron_style.steps.blocks.http.endpoint import Address, read_address
from nemotron_style.steps.blocks.settings.aligner_keys import find_half_weights
from nemotron_style.steps.blocks.settings.fixed_value import find_conflicts
from nemotron_style.steps.blocks.settings.generation_config import (
    EngineName,
    check_temperature,
    sampler_limit,
)
from nemotron_style.steps.blocks.settings.training_config import CheckpointPath, trackers_of
from nemotron_style.steps.rs.actor.nemo_aligner import ExpManager, Model, RemoteRm, Trainer

PORT = 5555


class Config(StepConfig):
    """Settings of a rejection sampling run."""

    trainer: Trainer = Trainer()
    remote_rm: RemoteRm = RemoteRm()
    exp_manager: ExpManager = ExpManager()
    pretrained_checkpoint: CheckpointPath = CheckpointPath()
    model: Model = Model()
    generation: EngineName = Field(default="in_process", description="who samples")

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
        own = self.model.rs.agreement_limit
        return own or sampler_limit(self.generation, half=self.trainer.half)

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

    def trackers(self) -> Mapping[str, Tracker]:
        return trackers_of(self.trainer, self.exp_manager)

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
    sampling = config.model.rs.sampling_params
    if not sampling.use_greedy:
        key = "model.rs.sampling_params.temperature"
        yield from check_temperature(config.generation, sampling.temperature, key=key)
    yield from find_half_weights(config.model.megatron_amp_O2, config.trainer)
    if config.generation == "vllm" and config.model.is_divided:
        key = "model.tensor_model_parallel_size x model.pipeline_model_parallel_size"
        what = "vLLM is handed the model by a process that holds it whole"
        yield Problem(key=key, what=what, allowed="1", fix="set generation=in_process")


def _mirrors(config: Config) -> list[tuple[str, Any, str, Any]]:
    """Keys that repeat another one: ``(key, value, the other key, its value)``."""
    model, trainer, rs = config.model, config.trainer, config.trainer.rs
    remote, older = config.remote_rm, config.remote_rm.reward_model
    batch, micro_batch = model.global_batch_size, model.micro_batch_size
    length, position = model.encoder_seq_length, model.max_position_embeddings
    pairs: list[tuple[str, Any, str, Any]] = [
        ("model.seed", model.seed, "seed", config.seed),
        ("model.precision", model.precision, "trainer.precision", trainer.precision),
        ("trainer.max_epochs", trainer.max_epochs, "trainer.rs.max_epochs", rs.max_epochs),
        ("trainer.max_steps", trainer.max_steps, "trainer.rs.max_steps", rs.max_steps),
        ("trainer.rs.model_gbs", rs.model_gbs, "model.global_batch_size", batch),
        ("trainer.rs.model_mbs", rs.model_mbs, "model.micro_batch_size", micro_batch),
        ("model.max_position_embeddings", position, "model.encoder_seq_length", length),
        ("model.data.seq_length", model.data.seq_length, "model.encoder_seq_length", length),
    ]
    if remote.host:
        pairs.append(("remote_rm.reward_model.ip", older.ip, "remote_rm.host", remote.host))
    if remote.port:
        pairs.append(("remote_rm.reward_model.port", older.port, "remote_rm.port", remote.port))
    return pairs
