"""All rules together: what is valid passes, what hangs comes first, what is unknown is left."""

import re
from dataclasses import replace
from pathlib import Path

import pytest

import preflight_page
from nemo_rl_rules import COMPARE, FACTS, JUDGE, MEGATRON, REMOVED, change, valid_values
from nemotron_style.steps.rl.rlhf.nemo_rl.rules import check as all_rules
from nemotron_style.steps.rl.rlhf.nemo_rl.rules.check import RULES, SUBJECTS, advise, check
from nemotron_style.steps.rl.rlhf.nemo_rl.rules.facts import Facts
from nemotron_style.steps.rl.rlhf.nemo_rl.rules.rule import Effect
from nemotron_style.steps.rl.rlhf.nemo_rl.version import Version


@pytest.mark.parametrize("version", Version)
@pytest.mark.parametrize("gym", [True, False], ids=["gym", "plain"])
def test_a_valid_configuration_has_no_problem(version: Version, gym: bool) -> None:
    values, facts = valid_values(version, gym=gym), replace(FACTS, version=version)
    assert [str(problem) for problem in check(values, facts)] == []
    assert list(advise(values, facts)) == []


@pytest.mark.parametrize("version", Version)
def test_nothing_is_claimed_where_nothing_is_known(version: Version) -> None:
    unknown = "${oc.env:NEMOTRON_STYLE_POLICY_MODEL}"
    keys = ("policy.model_name", "data.train.data_path", "data.validation.data_path")
    values = change(valid_values(version), dict.fromkeys(keys, unknown))
    assert not list(check(values, Facts(version)))


def test_an_empty_configuration_is_told_its_missing_keys_and_raises_nothing() -> None:
    for version in Version:
        told = [problem.key for problem in check({}, Facts(version))]
        assert {"data.train", "policy.sequence_packing.enabled"} <= set(told)


@pytest.mark.parametrize("other", ["many", "${oc.env:NAME}", 3, 0, None, True, [], {}], ids=repr)
def test_values_of_another_type_raise_nothing(other: object) -> None:
    """Types are checked elsewhere, together with the rules."""

    def spoil(value: object) -> object:
        if isinstance(value, dict):
            return {key: spoil(inner) for key, inner in value.items()}
        return other

    for version in Version:
        values = spoil(valid_values(version))
        assert isinstance(values, dict)
        list(check(values, replace(FACTS, version=version)))
        list(advise(values, replace(FACTS, version=version)))


def test_what_hangs_comes_first_then_what_stops_then_what_is_silent() -> None:
    effects = [list(Effect).index(rule.effect) for rule in RULES]
    assert effects == sorted(effects)
    changes = {
        "grpo.normalize_rewards": False,
        "checkpointing.save_period": 0,
        f"{COMPARE}.num_rollouts_per_prompt": 16,
    }
    values = change(valid_values(Version.HEAD), changes)
    told = [problem.key.rpartition(".")[2] for problem in check(values, FACTS)]
    assert told == ["num_rollouts_per_prompt", "save_period", "normalize_rewards"]


def test_each_subject_has_its_cases_beside_it() -> None:
    """Each of these files holds a case for every rule of its subject, and tests that it does."""
    beside = Path(__file__).parent
    for subject in SUBJECTS:
        name = subject.__name__.rpartition(".")[2]
        text = (beside / f"test_{name}.py").read_text(encoding="utf-8")
        assert f"assert not uncovered(CASES, {name})" in text


def test_no_module_with_rules_is_left_out() -> None:
    folder = Path(all_rules.__file__).parent
    with_rules = {
        path.stem for path in folder.glob("*.py") if re.search(r"(?m)^@rule\(", path.read_text())
    }
    assert with_rules == {subject.__name__.rpartition(".")[2] for subject in SUBJECTS}
    assert len({rule.name for rule in RULES}) == len(RULES)


def test_a_rule_says_what_it_asks_and_what_happens_without_it() -> None:
    for rule in RULES:
        assert re.fullmatch(r"[A-Z`0-9a-z][^\n]*\.", rule.says), rule.name
        assert rule.upstream, rule.name


NEMOTRON = {
    # The judge's settings under a name that NeMo-Gym does not know as a server.
    "env.nemo_gym.genrm_compare": {
        "resources_servers": {
            "genrm_compare": {"num_rollouts_per_prompt": 4, "group_style_penalty_coeff": 0.05}
        }
    },
    "env.nemo_gym.genrm_compare_resources_server": REMOVED,
    "env.nemo_gym.policy_model_reasoning_off": REMOVED,
    "data.validation.repeat": 4,
    "loss_fn.force_on_policy_ratio": True,
    "policy.train_global_batch_size": 8,
    "policy.dtensor_cfg": {"enabled": True, "_v2": True, "tensor_parallel_size": 1},
    f"{MEGATRON}.enabled": False,
    "cluster.gpus_per_node": 8,
    f"{JUDGE}.vllm_serve_kwargs": {
        "data_parallel_size": 1,
        "tensor_parallel_size": 1,
        "pipeline_parallel_size": 1,
        "max_model_len": 8192,
    },
}
"""The defects of the ``rlhf`` step that NVIDIA Nemotron ships, for NeMo-RL v0.6.0."""


def test_the_defects_of_nemotron_s_own_step_are_all_named() -> None:
    values = change(valid_values(Version.V0_6_0), NEMOTRON)
    facts = replace(FACTS, version=Version.V0_6_0, publishes_megatron=True)
    told = {problem.key.removeprefix("env.nemo_gym."): problem for problem in check(values, facts)}
    assert list(told) == [
        f"{COMPARE}.num_rollouts_per_prompt".removeprefix("env.nemo_gym."),
        f"{JUDGE}.vllm_serve_kwargs".removeprefix("env.nemo_gym."),
        "policy_model_reasoning_off",
        "policy.train_global_batch_size",
        "genrm_compare",
        "policy.dtensor_cfg.enabled",
    ]
    assert told["policy.train_global_batch_size"].got == "8"
    assert (
        "cluster.gpus_per_node=7"
        in told["genrm_model.responses_api_models.genrm_model.vllm_serve_kwargs"].fix
    )


def test_the_documented_path_of_the_judge_is_not_dropped_silently() -> None:
    section = JUDGE.removesuffix(".genrm_model")
    values = change(
        valid_values(Version.V0_6_0),
        {f"{section}.vllm_model.model": "nvidia/Nemotron-Reward-Model"},
    )
    (problem,) = check(values, replace(FACTS, version=Version.V0_6_0))
    assert problem.key == section
    assert "genrm_model, vllm_model" in str(problem)


def test_the_page_of_rules_is_that_of_today() -> None:
    page = preflight_page.PAGE.read_text(encoding="utf-8")
    assert page == preflight_page.renew(page), "run: python tests/shared/preflight_page.py"
