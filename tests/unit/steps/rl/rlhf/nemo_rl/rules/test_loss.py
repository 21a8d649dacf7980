"""The policy loss and the advantages: each rule is broken alone."""

import pytest

from nemo_rl_rules import COMPARE, Case, check_case, uncovered
from nemotron_style.steps.rl.rlhf.nemo_rl.rules import loss

TYPE = "loss_fn.truncated_importance_sampling_type"
RATIO = "loss_fn.truncated_importance_sampling_ratio"
CISPO = {"loss_fn.use_cispo": True}


CASES = [
    Case(
        "loss.truncation_corrects",
        {"loss_fn.use_importance_sampling_correction": False},
        "",
        ("use_importance_sampling_correction=true", "=null"),
    ),
    Case(
        "loss.truncation_type",
        {TYPE: "clip"},
        TYPE,
        ("got clip", "tis, icepop, seq-mask-tis"),
    ),
    Case("loss.truncation_ratio", {RATIO: 0}, RATIO, ("got 0", "above 0")),
    Case("loss.ratio_without_type", {TYPE: None}, RATIO, ("5.0", "type null", f"{TYPE}=tis")),
    Case("loss.truncation_bounds", {TYPE: "icepop"}, f"{RATIO}_min", ("icepop", "up to 5.0")),
    Case("loss.truncation_bounds", {f"{RATIO}_min": 6}, f"{RATIO}_min", ("got 6", "up to 5.0")),
    Case(
        "loss.masked_tokens",
        {
            TYPE: "seq-mask-tis",
            f"{RATIO}_min": 0.5,
            "loss_fn.sequence_level_importance_ratios": True,
            "loss_fn.token_level_loss": False,
        },
        TYPE,
        ("sequence_level_importance_ratios=false",),
    ),
    Case(
        "loss.sequence_level",
        {"loss_fn.sequence_level_importance_ratios": True},
        "loss_fn.sequence_level_importance_ratios",
        ("both true", "token_level_loss=false"),
    ),
    Case(
        "loss.cispo",
        {**CISPO, "loss_fn.force_on_policy_ratio": True},
        "loss_fn.use_cispo",
        ("force_on_policy_ratio=false", "got true"),
    ),
    Case(
        "loss.cispo",
        {**CISPO, "loss_fn.ratio_clip_c": 3},
        "loss_fn.use_cispo",
        ("ratio_clip_c=null", "got 3"),
    ),
    Case(
        "loss.cispo",
        {**CISPO, "loss_fn.token_level_loss": False},
        "loss_fn.use_cispo",
        ("token_level_loss=true", "got false"),
    ),
    Case(
        "loss.dual_clip",
        {"loss_fn.ratio_clip_c": 1.0},
        "loss_fn.ratio_clip_c",
        ("got 1.0", "above 1"),
    ),
    Case(
        "loss.kl_type",
        {"loss_fn.reference_policy_kl_type": "k4"},
        "loss_fn.reference_policy_kl_type",
        ("got k4", "k1, k2, k3"),
    ),
    Case(
        "loss.advantage_estimator",
        {"grpo.adv_estimator.name": "gae"},
        "grpo.adv_estimator.name",
        ("got gae", "grpo, gdpo, reinforce_plus_plus"),
    ),
    Case(
        "loss.unclipped_advantages",
        {"grpo.advantage_clip_high": None},
        "grpo.adv_estimator.normalize_rewards",
        ("grpo.advantage_clip_low",),
    ),
    Case(
        "loss.pairs_are_normalised",
        {
            "grpo.num_generations_per_prompt": 2,
            "grpo.val_period": 0,
            "checkpointing.metric_name": None,
            f"{COMPARE}.num_rollouts_per_prompt": 2,
            "policy.train_global_batch_size": 8,
        },
        "grpo.num_generations_per_prompt",
        ("groups of 2",),
    ),
    Case(
        "loss.normalisation_unread",
        {"grpo.normalize_rewards": False},
        "grpo.normalize_rewards",
        ("got false, and true there", "grpo.adv_estimator.normalize_rewards=false"),
    ),
    Case(
        "loss.skipped_reference",
        {"grpo.skip_reference_policy_logprobs_calculation": True},
        "grpo.skip_reference_policy_logprobs_calculation",
        ("0.0001", "reference_policy_kl_penalty=0"),
    ),
    Case(
        "loss.kl_in_reward",
        {
            "loss_fn.use_kl_in_reward": True,
            "loss_fn.force_on_policy_ratio": True,
            "grpo.seq_logprob_error_threshold": None,
        },
        "loss_fn.use_kl_in_reward",
        ("0.0001", "grpo.seq_logprob_error_threshold"),
    ),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.rule)
def test_the_rule_alone_is_broken_and_told(case: Case) -> None:
    check_case(case, loss)


def test_every_rule_has_a_case() -> None:
    assert not uncovered(CASES, loss)
