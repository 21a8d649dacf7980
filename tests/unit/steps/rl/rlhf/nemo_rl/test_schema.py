"""What the tables say about the keys of NeMo-RL and NeMo-Gym, version by version."""

from __future__ import annotations

import json
from importlib.resources import files

import pytest

from nemotron_style.steps.rl.rlhf.nemo_rl.schema import COMPARE, JUDGE, keys_of, versions_with
from nemotron_style.steps.rl.rlhf.nemo_rl.version import Version

TABLES = files("nemotron_style.steps.rl.rlhf.nemo_rl.tables")


def test_a_key_is_known_to_the_versions_that_read_it() -> None:
    assert versions_with("grpo.seed") == list(Version)
    assert versions_with("grpo.advantage_clip_low") == ["v0.7.0", "head", "v0.8.0"]
    assert versions_with("grpo.val_num_generations_per_prompt") == ["head", "v0.8.0"]
    assert versions_with("grpo.normalize_rewards") == ["v0.6.0", "v0.7.0"]  # dead since
    assert versions_with("policy.dtensor_cfg.enabled") == ["v0.6.0", "v0.7.0", "head"]
    assert versions_with("policy.automodel_cfg.enabled") == ["v0.8.0"]
    assert versions_with(f"{COMPARE}.group_style_penalty_coeff") == ["v0.7.0", "head", "v0.8.0"]
    assert versions_with(f"{COMPARE}.judge_request_timeout_s") == ["v0.8.0"]
    assert versions_with("policy.generation.vllm_cfg.nonsense") == []


def test_what_v0_8_0_is_assumed_to_keep_says_so() -> None:
    newest = keys_of(Version.V0_8_0)
    assert newest["policy.precision"].inferred
    assert newest[f"{JUDGE}.model"].inferred
    assert not newest["grpo.seed"].inferred
    assert not newest["telemetry.enabled"].inferred
    assert not any(key.inferred for key in keys_of(Version.HEAD).values())


def test_a_key_has_types_values_and_limits() -> None:
    keys = keys_of(Version.V0_7_0)
    assert keys["grpo.max_val_samples"].kinds == ("int", "null")
    assert keys["loss_fn.reference_policy_kl_type"].allowed == ("k1", "k2", "k3")
    period = keys["checkpointing.save_period"]
    assert (period.need, period.range, period.holds(0)) == ("type", "a number >= 1", False)
    assert keys["policy.generation_batch_size"].dead
    assert keys[f"{JUDGE}.vllm_serve_kwargs"].open


@pytest.mark.parametrize("name", ["v0.6.0", "v0.7.0", "head", "v0.8.0"])
def test_the_tables_are_small_and_have_one_key_a_line(name: str) -> None:
    text = (TABLES / f"{name}.json").read_text()
    assert len(text) < 55_000
    assert len(text.splitlines()) > sum(map(len, json.loads(text).values())) - 10


@pytest.mark.parametrize("version", list(Version))
def test_every_key_lies_in_a_table_that_is_known(version: Version) -> None:
    keys = keys_of(version)
    above = {name.rpartition(".")[0] for name in keys} - {""}
    assert [name for name in sorted(above) if name not in keys or not keys[name].is_table] == []
