"""Checkpoints and resume: each rule is broken alone."""

import pytest

from nemo_rl_rules import Case, check_case, uncovered
from nemotron_style.steps.rl.rlhf.nemo_rl.rules import checkpointing
from nemotron_style.steps.rl.rlhf.nemo_rl.rules.facts import Resumed

SECTION = "checkpointing"


def resumed(**values: object) -> dict[str, object]:
    """Facts of a folder whose newest checkpoint was made with other values."""
    return {"resumes": Resumed(120, values)}


CASES = [
    Case(
        "checkpointing.save_period",
        {f"{SECTION}.save_period": 0},
        f"{SECTION}.save_period",
        ("got 0", "1 or more", "above grpo.max_num_steps"),
    ),
    Case(
        "checkpointing.metric_prefix",
        {f"{SECTION}.metric_name": "val_reward"},
        f"{SECTION}.metric_name",
        ("got val_reward", "metric_name=val:val_reward"),
    ),
    Case(
        "checkpointing.metric_exists",
        {f"{SECTION}.metric_name": "val:reward"},
        f"{SECTION}.metric_name",
        ("got val:reward", "val:total_reward/mean"),
    ),
    Case(
        "checkpointing.metric_exists",
        {f"{SECTION}.metric_name": "val:total_reward/mean"},
        f"{SECTION}.metric_name",
        ("got val:total_reward/mean", "val:accuracy"),
        gym=False,
    ),
    Case(
        "checkpointing.metric_at_saves",
        {f"{SECTION}.save_period": 25},
        f"{SECTION}.save_period",
        ("25", "val_period 10", "ranked last"),
    ),
    Case(
        "checkpointing.metric_at_saves",
        {"grpo.val_period": 0},
        f"{SECTION}.metric_name",
        ("nothing is validated",),
    ),
    Case(
        "checkpointing.kept",
        {f"{SECTION}.keep_top_k": 1},
        f"{SECTION}.keep_top_k",
        ("two checkpoints",),
    ),
    Case(
        "checkpointing.save_by",
        {f"{SECTION}.checkpoint_must_save_by": "03:45:00"},
        f"{SECTION}.checkpoint_must_save_by",
        ("got 03:45:00", "DD:HH:MM:SS"),
    ),
    Case(
        "checkpointing.resumes_same_rows",
        {},
        "data.train.data_path",
        ("step_120", "/run/checkpoints", "got /data/train.jsonl", "allowed: /data/old.jsonl"),
        facts=resumed(data={"train": {"data_path": "/data/old.jsonl"}}),
        also=frozenset({"checkpointing.resumes"}),
    ),
    Case(
        "checkpointing.resumes_same_rows",
        {},
        "grpo.seed",
        ("got 42", "allowed: 1"),
        facts=resumed(grpo={"seed": 1}),
        also=frozenset({"checkpointing.resumes"}),
    ),
    Case(
        "checkpointing.resumes_same_model",
        {},
        "policy.model_name",
        ("got org/policy", "allowed: org/other", "checkpointing.checkpoint_dir"),
        facts=resumed(policy={"model_name": "org/other"}),
        also=frozenset({"checkpointing.resumes"}),
    ),
    Case(
        "checkpointing.resumes",
        {},
        f"{SECTION}.checkpoint_dir",
        ("step_120", "up to 100"),
        facts=resumed(),
    ),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.rule)
def test_the_rule_alone_is_broken_and_told(case: Case) -> None:
    check_case(case, checkpointing)


def test_every_rule_has_a_case() -> None:
    assert not uncovered(CASES, checkpointing)
