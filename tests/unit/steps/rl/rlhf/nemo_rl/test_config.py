"""The config of ``rl/rlhf`` on NeMo-RL: its keys are those of every version, and only what was
given is kept."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from nemotron_style.runtime.config.model import parse_config
from nemotron_style.runtime.config.resolve import semantic_values
from nemotron_style.runtime.errors import ConfigError
from nemotron_style.runtime.validation import find_key, schema_keys, suggest_key
from nemotron_style.steps.rl.rlhf.nemo_rl.config import Config
from nemotron_style.steps.rl.rlhf.nemo_rl.schema import keys_of, nemotron
from nemotron_style.steps.rl.rlhf.nemo_rl.version import Version

KEYS_OF_NEMOTRON = Path(__file__).parents[5] / "golden/rlhf_keys.txt"
OWN = {"backend": "nemo_rl", "seed": 1234}


def parse(values: dict[str, Any]) -> Any:
    return parse_config(Config, values, where=lambda _: "a.yaml")


def dump(values: dict[str, Any]) -> dict[str, Any]:
    dumped = parse(values).model_dump(mode="json")
    return {key: value for key, value in dumped.items() if key not in (*OWN, "nemo_rl")}


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"policy": {"dtensor_cfg": {"_v2": True}, "optimizer": None}},
        {"grpo": {"val_batch_size": None}, "loss_fn": {}},
        {"env": {"nemo_gym": {"my_server": {"responses_api_agents": {"a": {"entrypoint": "b"}}}}}},
        {"data": {"train": {"data_path": "a.jsonl"}, "validation": None}},
    ],
)
def test_only_what_was_given_is_dumped(values: dict[str, Any]) -> None:
    assert dump(values) == values


def test_a_whole_number_is_a_number_and_no_more_is_converted() -> None:
    assert dump({"loss_fn": {"ratio_clip_max": 1}}) == {"loss_fn": {"ratio_clip_max": 1}}
    with pytest.raises(ConfigError, match=r"grpo.seed: does not fit; got 'x'.*a whole number"):
        parse({"grpo": {"seed": "x"}})
    with pytest.raises(ConfigError, match="'k1', 'k2' or 'k3'"):
        parse({"loss_fn": {"reference_policy_kl_type": "k4"}})


def test_all_unknown_keys_are_told_with_near_names() -> None:
    with pytest.raises(ConfigError) as caught:
        parse({"grpo": {"num_promts_per_step": 4}, "data": {"train": {"data_pth": "a"}}})
    fixes = {problem.key: problem.fix for problem in caught.value.problems}
    assert "'grpo.num_prompts_per_step'" in fixes["grpo.num_promts_per_step"]
    assert "'data.train.data_path'" in fixes["data.train.data_pth"]


def test_every_key_of_every_version_and_of_nemotron_can_be_given() -> None:
    known = set(schema_keys(Config))
    names = {name for version in Version for name in keys_of(version)} | set(nemotron().dead)
    assert names <= known
    theirs = KEYS_OF_NEMOTRON.read_text().split()
    assert [key for key in theirs if find_key(Config, key.split(".")).status == "unknown"] == []
    near = suggest_key("policy.generation.vllm_cfg.max_modle_len", known)
    assert "policy.generation.vllm_cfg.max_model_len" in near


def test_where_a_run_works_is_no_part_of_its_identity() -> None:
    config = parse({"cluster": {"num_nodes": 4}, "logger": {"log_dir": "x"}, "grpo": {"seed": 1}})
    assert semantic_values(config)["grpo"] == {"seed": 1}
    assert not {"cluster", "logger"} & semantic_values(config).keys()
    # Validation on training prompts gives figures of their own.
    config = parse({"data": {"allow_train_as_validation": True}})
    assert semantic_values(config)["data"] == {"allow_train_as_validation": True}
