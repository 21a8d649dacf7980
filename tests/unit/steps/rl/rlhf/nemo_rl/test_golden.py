"""What is compiled, word by word, and the page that compares the versions."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from nemo_rl_configs import CASES, CASES_WITHOUT_GYM, case_values, compile_case
from nemo_rl_page import PAGE, with_table
from nemotron_style.steps.rl.rlhf.nemo_rl.check import check_keys, find_missing
from nemotron_style.steps.rl.rlhf.nemo_rl.job_variables import CONFIG_FILE

GOLDEN = Path(__file__).parents[5] / "golden" / "nemo_rl"
SHOWN = (
    "v0.6.0-one_node-hf",
    "v0.6.0-four_nodes-megatron",
    "v0.7.0-one_node-megatron",
    "v0.7.0-external_judge-hf",
    "head-four_nodes-hf",
    "head-external_judge-megatron",
    "head-no_gym_five_nodes-megatron",
)


@pytest.mark.parametrize("case", SHOWN)
def test_the_yaml_is_the_golden_one(case: str) -> None:
    path, text = GOLDEN / f"{case}.yaml", compile_case(case).files[CONFIG_FILE]
    if "REWRITE_GOLDEN" in os.environ:
        path.write_text(text, encoding="utf-8")
    assert text == path.read_text(encoding="utf-8")


@pytest.mark.parametrize("case", CASES + CASES_WITHOUT_GYM)
def test_every_combination_is_complete_and_breaks_no_rule(case: str) -> None:
    compiled = case_values(case)
    assert find_missing(compiled.values, compiled.version) == []
    assert list(check_keys(compiled.values, compiled.version)) == []
    served = case.startswith("v0.6.0-external")  # its NeMo-Gym would start a judge all the same
    assert len(compiled.problems) == served
    assert compiled.placement.nodes == (5 if "_nodes" in case else 1)


def test_the_page_compares_the_versions_as_they_are_compiled_now() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert page == with_table(page), "python tests/shared/nemo_rl_page.py writes it anew"
