"""The rows of prompts: each rule is broken alone."""

from dataclasses import replace
from typing import Any

import pytest

from nemo_rl_rules import FACTS, Case, check_case, uncovered, valid_values
from nemotron_style.steps.rl.rlhf.nemo_rl.rules import data_rows
from nemotron_style.steps.rl.rlhf.nemo_rl.rules.check import check
from nemotron_style.steps.rl.rlhf.nemo_rl.rules.facts import FileRows, RowFacts, SamePrompt
from nemotron_style.steps.rl.rlhf.nemo_rl.version import Version

TRAIN, VALIDATION = FileRows("/data/train.jsonl", 8), FileRows("/data/val.jsonl", 2)


def rows(are_final: bool = True, **changes: Any) -> dict[str, Any]:
    """Facts whose training file differs in ``changes``."""
    return {"rows": RowFacts(replace(TRAIN, **changes), VALIDATION, are_final)}


CASES = [
    Case(
        "data_rows.rows_fill_a_step",
        {},
        "grpo.num_prompts_per_step",
        ("rows are 3", "P 4", "up to 3"),
        facts=rows(rows=3),
    ),
    Case(
        "data_rows.rows_are_used",
        {},
        "grpo.num_prompts_per_step",
        ("10 rows, P 4: 2 steps an epoch, 2 rows dropped",),
        facts=rows(rows=10),
    ),
    Case(
        "data_rows.prompts_are_told_apart",
        {},
        "",
        ("/data/train.jsonl", "lines 1, 3 have the same prompt"),
        facts=rows(same_prompts=(SamePrompt((1, 3)),)),
    ),
    Case(
        "data_rows.prompts_are_told_apart",
        {"data.shuffle": True},
        "",
        ("lines 1, 8",),
        facts=rows(same_prompts=(SamePrompt((1, 8)),)),
    ),
    Case("data_rows.rows_are_whole", {}, "", ("lines 2, 5 are no",), facts=rows(broken=(2, 5))),
    Case("data_rows.rows_ask", {}, "", ("lines 4 hold no",), facts=rows(without_prompt=(4,))),
    Case("data_rows.no_blank_rows", {}, "", ("lines 7 are blank",), facts=rows(blank=(7,))),
    Case(
        "data_rows.rows_have_params",
        {},
        "",
        ("lines 3 have no object",),
        facts=rows(without_params=(3,)),
    ),
    Case(
        "data_rows.rows_have_agents",
        {},
        "agent_ref",
        ("lines 6 name no agent", "genrm_simple_agent"),
        facts=rows(without_agent=(6,)),
    ),
    Case(
        "data_rows.agents_exist",
        {},
        "agent_ref",
        ("/data/train.jsonl:2", "got genrm_simple_agnt", "did you mean 'genrm_simple_agent"),
        facts=rows(agents={"genrm_simple_agnt": 2}),
    ),
    Case(
        "data_rows.input_is_text",
        {},
        "responses_create_params.input",
        ("lines 1", "empty turns"),
        facts=rows(flat_input=(1,)),
    ),
    Case(
        "data_rows.responses_are_limited",
        {},
        "responses_create_params.max_output_tokens",
        ("8 rows", "max_new_tokens 1024"),
        facts=rows(without_limit=8),
    ),
    Case(
        "data_rows.prompts_fit",
        {},
        "",
        ("/data/train.jsonl:5", "9310 tokens", "max_model_len 4096"),
        facts=rows(longest=(30000, 5), longest_tokens=9310),
    ),
    Case(
        "data_rows.files_have_names",
        {"data.validation.data_path": "/data/train.val.jsonl"},
        "data.validation.data_path",
        ("'data-train'",),
    ),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.rule)
def test_the_rule_alone_is_broken_and_told(case: Case) -> None:
    check_case(case, data_rows)


def test_every_rule_has_a_case() -> None:
    assert not uncovered(CASES, data_rows)


def find(version: Version, **changes: Any) -> list[str]:
    facts = replace(FACTS, version=version, **changes)
    return [str(problem) for problem in check(valid_values(version), facts)]


def test_the_same_prompt_in_different_steps_is_no_problem_without_shuffling() -> None:
    for version in Version:
        assert not find(version, **rows(same_prompts=(SamePrompt((4, 5)),)))


def test_ids_tell_rows_apart_from_v0_7_0_on() -> None:
    same = rows(same_prompts=(SamePrompt((1, 3), have_ids=True),))
    assert [bool(find(version, **same)) for version in Version] == [True, False, False, False]


def test_the_job_gives_rows_ids_where_they_are_read() -> None:
    same = rows(are_final=False, same_prompts=(SamePrompt((1, 3)),))
    assert [bool(find(version, **same)) for version in Version] == [True, False, False, False]


def test_what_the_job_mends_is_no_problem_before_it_does() -> None:
    changes = {"blank": (1,), "without_params": (2,), "without_agent": (3,), "flat_input": (4,)}
    for version in Version:
        assert not find(version, **rows(are_final=False, **changes))


def test_agents_of_files_that_are_not_known_here_are_not_doubted() -> None:
    values = valid_values(Version.HEAD)
    values["env"]["nemo_gym"]["config_paths"].append("resources_servers/mine/configs/mine.yaml")
    facts = replace(FACTS, **rows(agents={"mine_agent": 1}))
    assert not list(check(values, facts))
