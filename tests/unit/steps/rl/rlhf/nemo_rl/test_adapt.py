"""Names that people write, in those of a version: aliases, renames, and keys without effect."""

from __future__ import annotations

from typing import Any

import pytest

from nemotron_style.runtime.validation import get_key, put_key
from nemotron_style.steps.rl.rlhf.nemo_rl.adapt import adapt
from nemotron_style.steps.rl.rlhf.nemo_rl.check import check_keys
from nemotron_style.steps.rl.rlhf.nemo_rl.draft import Draft
from nemotron_style.steps.rl.rlhf.nemo_rl.schema import COMPARE, GYM, JUDGE
from nemotron_style.steps.rl.rlhf.nemo_rl.version import Version

DOCUMENTED = f"{GYM}.genrm_model.responses_api_models.vllm_model"


def adapted(version: str, /, **given: Any) -> Draft:
    values: dict[str, Any] = {}
    for key, value in given.items():
        put_key(values, key, value)
    draft = Draft(Version(version), values)
    adapt(draft)
    return draft


def test_the_documented_judge_is_the_one_that_is_served() -> None:
    named = {f"{DOCUMENTED}.model": "a/judge", f"{GYM}.genrm_model_name": "b/default"}
    draft = adapted("v0.7.0", **named)
    assert get_key(draft.given, f"{JUDGE}.model") == "a/judge"
    assert get_key(draft.given, f"{GYM}.genrm_model_name") == "a/judge"
    assert get_key(draft.given, DOCUMENTED) is None
    assert any("b/default" in line for line in draft.told)


def test_the_documented_settings_of_vllm_are_the_judges() -> None:
    draft = adapted("head", **{f"{GYM}.genrm_model.vllm.max_num_seqs": 4})
    assert get_key(draft.given, f"{JUDGE}.vllm_serve_kwargs") == {"max_num_seqs": 4}


def test_where_nemotrons_runner_runs_is_told_to_be_a_matter_of_profiles() -> None:
    draft = adapted("head", **{"run.env.container_image": "nemo-rl:v0.6.0"})
    assert "run" not in draft.given
    assert "profile" in draft.told[0]


def test_two_judges_are_refused_with_both_names() -> None:
    draft = adapted("head", **{f"{DOCUMENTED}.model": "a/judge", f"{JUDGE}.model": "b/judge"})
    (problem,) = draft.problems
    assert problem.key == f"{DOCUMENTED}.model"
    assert (problem.got, problem.allowed) == ("a/judge", "b/judge")


def test_genrm_compare_is_put_where_gym_reads_it() -> None:
    below = "resources_servers.genrm_compare.reasoning_bonus"
    draft = adapted("v0.6.0", **{f"{GYM}.genrm_compare.{below}": 0.25})
    assert get_key(draft.given, f"{COMPARE}.reasoning_bonus") == 0.25
    other = f"{GYM}.genrm_compare_resources_server.{below}"
    draft = adapted("v0.6.0", **{f"{GYM}.genrm_compare.{below}": 0.25, other: 0.5})
    assert [problem.got for problem in draft.problems] == ["0.25"]


@pytest.mark.parametrize(
    ("version", "old", "new"),
    [
        ("v0.8.0", "policy.dtensor_cfg.enabled", "policy.automodel_cfg.enabled"),
        ("v0.7.0", "policy.automodel_cfg.enabled", "policy.dtensor_cfg.enabled"),
        (
            "head",
            "policy.megatron_cfg.use_linear_ce_fusion_loss",
            "policy.megatron_cfg.use_fused_linear_logprobs",
        ),
    ],
)
def test_a_renamed_key_is_understood_by_either_name(version: str, old: str, new: str) -> None:
    draft = adapted(version, **{old: True})
    assert get_key(draft.given, new) is True
    assert get_key(draft.given, old) is None
    assert len(draft.told) == 1
    assert list(check_keys(draft.given, draft.version)) == []


def test_what_decides_nothing_is_dropped_and_told_where_nemotron_holds_it() -> None:
    given = {
        "grpo.use_best_at_k": False,
        "grpo.advantage_clip_low": -50.0,
        "policy.generation_batch_size": 8,
        f"{COMPARE}.group_style_penalty_coeff": 0.05,
        "env.genrm_agent_names": ["a"],
    }
    draft = adapted("v0.6.0", **given)
    assert list(check_keys(draft.given, draft.version)) == []
    assert len(draft.told) == len(given)
    assert any(
        "advantage_clip_low=-50.0 is dropped: unknown to NeMo-RL v0.6.0" in line
        for line in draft.told
    )
    assert not any("advantage_clip" in line for line in adapted("head", **given).told)


def test_normalize_rewards_moves_to_the_estimator_where_only_that_is_read() -> None:
    draft = adapted("head", **{"grpo.normalize_rewards": False})
    assert draft.given["grpo"] == {"adv_estimator": {"normalize_rewards": False}}


def test_files_that_lineage_would_not_see_are_refused() -> None:
    (problem,) = adapted("head", **{"data.manifest_path": "a.json"}).problems
    assert problem.key == "data.manifest_path"


def test_adapters_are_refused_in_words_and_switched_off_ones_are_not() -> None:
    key = "policy.megatron_cfg.peft.enabled"
    (problem,) = adapted("head", **{key: True}).problems
    assert (problem.key, problem.got, problem.allowed) == (key, "true", "false")
    assert "backend=embedded" in problem.fix
    assert adapted("head", **{key: False}).problems == []
