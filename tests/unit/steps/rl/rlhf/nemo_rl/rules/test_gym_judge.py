"""The judge of pairs: each rule is broken alone."""

from dataclasses import replace

import pytest

from nemo_rl_rules import (
    COMPARE,
    FACTS,
    JUDGE,
    REMOVED,
    Case,
    change,
    check_case,
    uncovered,
    valid_values,
)
from nemotron_style.steps.rl.rlhf.nemo_rl.rules import gym_judge
from nemotron_style.steps.rl.rlhf.nemo_rl.rules.check import check
from nemotron_style.steps.rl.rlhf.nemo_rl.rules.facts import Facts, FileRows, RowFacts
from nemotron_style.steps.rl.rlhf.nemo_rl.version import Version


def validation(version: Version, sent: int) -> dict[str, object]:
    """Changes that send a validation prompt ``sent`` times."""
    is_new = version >= Version.HEAD
    return {"grpo.val_num_generations_per_prompt" if is_new else "data.validation.repeat": sent}


CASES = [
    Case(
        "gym_judge.cohort_fills",
        {f"{COMPARE}.num_rollouts_per_prompt": 16},
        f"{COMPARE}.num_rollouts_per_prompt",
        ("waits for 16", "sends 4", "num_rollouts_per_prompt=4"),
    ),
    Case(
        "gym_judge.validation_cohort_fills",
        lambda version: validation(version, 2),
        "",
        ("waits for 4", "2 come", "=4"),
    ),
    Case(
        "gym_judge.one_worker",
        {f"{COMPARE}.num_workers": 2},
        f"{COMPARE}.num_workers",
        ("got 2", "allowed: 1"),
    ),
    Case(
        "gym_judge.comparison_names",
        {f"{COMPARE}.aggregator_method": "mean"},
        f"{COMPARE}.aggregator_method",
        ("got mean", "simple_tiebreaker"),
    ),
    Case(
        "gym_judge.comparison_names",
        {f"{COMPARE}.comparison_strategy": "swiss"},
        f"{COMPARE}.comparison_strategy",
        ("got swiss", "circular or all_pairs"),
    ),
    Case(
        "gym_judge.judge_has_gpus",
        {f"{JUDGE}.vllm_serve_kwargs.data_parallel_size": 2},
        f"{JUDGE}.vllm_serve_kwargs",
        ("1 x 8 GPUs", "takes 1 x 4", "DP 2 * (TP * PP) 4 = 8", "4 left", "start the job on 2"),
    ),
    Case(
        "gym_judge.judge_has_gpus",
        {f"{JUDGE}.vllm_serve_kwargs.tensor_parallel_size": 6},
        f"{JUDGE}.vllm_serve_kwargs",
        ("DP 1 * (TP * PP) 6 = 6", "cluster.gpus_per_node=2"),
    ),
    Case(
        "gym_judge.judge_fits_a_node",
        {f"{JUDGE}.vllm_serve_kwargs.tensor_parallel_size": 16},
        f"{JUDGE}.vllm_serve_kwargs.tensor_parallel_size",
        ("got 16", "up to 8", "span"),
    ),
    Case(
        "gym_judge.serve_settings",
        {f"{JUDGE}.vllm_serve_kwargs.pipeline_parallel_size": None},
        f"{JUDGE}.vllm_serve_kwargs.pipeline_parallel_size",
        ("got null",),
    ),
    Case(
        "gym_judge.serve_settings",
        {f"{JUDGE}.vllm_serve_env_vars": {}, "env.nemo_gym.config_paths": []},
        f"{JUDGE}.vllm_serve_env_vars.VLLM_RAY_DP_PACK_STRATEGY",
        ("got null",),
    ),
    Case(
        "gym_judge.judge_is_named",
        {f"{JUDGE}.model": None, "env.nemo_gym.genrm_model_name": None},
        "env.nemo_gym.genrm_model_name",
        ("no judge", "RL_REWARD_MODEL"),
    ),
    Case(
        "gym_judge.judge_implementation",
        {f"{JUDGE.removesuffix('.genrm_model')}.vllm_model": {"model": "org/judge"}},
        JUDGE.removesuffix(".genrm_model"),
        ("genrm_model, vllm_model", "genrm_model alone"),
    ),
    Case(
        "gym_judge.external_judge",
        {f"{JUDGE}.base_url": ["http://judge:8000/v1"]},
        f"{JUDGE}.base_url",
        ("http://judge:8000/v1", "v0.7.0"),
    ),
    Case(
        "gym_judge.cohort_compares",
        {f"{COMPARE}.num_rollouts_per_prompt": 1},
        f"{COMPARE}.num_rollouts_per_prompt",
        ("got 1", "default_score"),
    ),
    Case(
        "gym_judge.blocks_are_servers",
        {"env.nemo_gym.genrm_compare.resources_servers.genrm_compare.top_percentile": 0.2},
        "env.nemo_gym.genrm_compare",
        ("no entrypoint", "env.nemo_gym.genrm_compare_resources_server"),
    ),
    Case(
        "gym_judge.second_policy",
        {"env.nemo_gym.policy_model_reasoning_off": REMOVED},
        "env.nemo_gym.policy_model_reasoning_off",
        ("genrm_compare.yaml", "policy_model"),
    ),
    Case(
        "gym_judge.style_penalty",
        {f"{COMPARE}.group_style_penalty_coeff": 0.05},
        f"{COMPARE}.group_style_penalty_coeff",
        ("got 0.05", "v0.6.0"),
    ),
    Case(
        "gym_judge.judge_has_room",
        {f"{COMPARE}.genrm_responses_create_params.max_output_tokens": 8192},
        f"{COMPARE}.genrm_responses_create_params.max_output_tokens",
        ("got 8192", "max_model_len 8192"),
    ),
    Case(
        "gym_judge.judge_is_another",
        {f"{JUDGE}.model": "org/policy"},
        f"{JUDGE}.model",
        ("org/policy",),
    ),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.rule)
def test_the_rule_alone_is_broken_and_told(case: Case) -> None:
    check_case(case, gym_judge)


def test_every_rule_has_a_case() -> None:
    assert not uncovered(CASES, gym_judge)


def facts_of(version: Version, **changes: object) -> Facts:
    return replace(FACTS, version=version, **changes)


@pytest.mark.parametrize("version", Version)
def test_the_default_of_the_file_counts_where_the_configuration_is_silent(version: Version) -> None:
    values = change(valid_values(version), {f"{COMPARE}.num_rollouts_per_prompt": REMOVED})
    problems = list(check(values, facts_of(version)))
    assert [problem.got for problem in problems] == ["16"]


@pytest.mark.parametrize("version", Version)
def test_validation_rows_that_stand_often_enough_need_no_repeat(version: Version) -> None:
    values = change(valid_values(version), validation(version, 1))
    rows = FileRows("/data/val.jsonl", 8, copies=4, copies_of_ids=4, all_have_ids=True)
    facts = facts_of(version, rows=RowFacts(validation=rows))
    assert not list(check(values, facts))


def test_rows_that_stand_unequally_often_never_fill_all_groups() -> None:
    rows = FileRows("/data/val.jsonl", 3, copies=None, copies_of_ids=None)
    facts = facts_of(Version.HEAD, rows=RowFacts(validation=rows, are_final=True))
    assert "different numbers come" in str(next(check(valid_values(Version.HEAD), facts)))


def test_rows_without_ids_are_prompts_of_their_own_once_the_job_gave_them_ids() -> None:
    rows = FileRows("/data/val.jsonl", 8, copies=4, copies_of_ids=4)
    for version in Version:
        values = valid_values(version)
        problems = list(check(values, facts_of(version, rows=RowFacts(validation=rows))))
        assert bool(problems) is (version == Version.V0_6_0)


def test_validation_rows_of_other_agents_need_no_groups() -> None:
    values = change(valid_values(Version.HEAD), {"grpo.val_num_generations_per_prompt": 1})
    values["env"]["nemo_gym"]["math"] = {
        "responses_api_agents": {"simple_agent": {"entrypoint": "app.py"}}
    }
    for agent, is_judged in (("math", False), ("genrm_simple_agent", True)):
        rows = RowFacts(validation=FileRows("/data/val.jsonl", 8, agents={agent: 1}))
        assert bool(list(check(values, facts_of(Version.HEAD, rows=rows)))) is is_judged


def test_a_validation_that_is_never_reached_needs_no_groups() -> None:
    changes = {"grpo.val_period": 1000, "grpo.val_num_generations_per_prompt": 1}
    values = change(valid_values(Version.HEAD), changes)
    assert not list(check(values, facts_of(Version.HEAD)))


def test_an_external_judge_takes_no_gpus() -> None:
    changes = {f"{JUDGE}.base_url": ["http://judge:8000/v1"], "cluster.gpus_per_node": 8}
    for version in (Version.V0_7_0, Version.HEAD, Version.V0_8_0):
        values = change(valid_values(version), changes)
        assert not list(check(values, facts_of(version)))


def test_copies_of_the_judge_are_packed_on_the_nodes_that_are_free() -> None:
    sizes = {"data_parallel_size": 4, "tensor_parallel_size": 8, "pipeline_parallel_size": 1}
    changes = {
        f"{JUDGE}.vllm_serve_kwargs": sizes,
        "cluster.num_nodes": 4,
        "cluster.gpus_per_node": 8,
    }
    values = change(valid_values(Version.HEAD), changes)
    for nodes, is_enough in ((8, True), (7, False)):
        facts = facts_of(Version.HEAD, nodes=nodes, variables=frozenset({"HF_HOME"}))
        problems = [str(problem) for problem in check(values, facts)]
        assert bool(problems) is not is_enough, problems
        assert all("start the job on 8 nodes" in problem for problem in problems)
