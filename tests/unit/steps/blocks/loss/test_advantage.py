"""Baselines, advantages, masks, rewards and their metrics."""

from __future__ import annotations

import math

import pytest
import torch

from nemotron_style.steps.blocks.loss.advantage import (
    Baseline,
    clip_advantages,
    group_advantages,
    group_baseline,
)
from nemotron_style.steps.blocks.loss.kl import estimate_kl
from nemotron_style.steps.blocks.loss.reward_shaping import (
    RewardScaling,
    RewardShaping,
    scale_reward,
    shape_reward,
)
from nemotron_style.steps.blocks.loss.rollout_metrics import (
    distribution_metrics,
    length_metrics,
    reward_metrics,
)
from nemotron_style.steps.blocks.loss.sample_mask import (
    fill_batch,
    mask_by_logprob_error,
    mask_flagged,
    sequence_logprob_errors,
)

NAN = float("nan")


def tensor(*values):
    return torch.tensor(values, dtype=torch.float64)


def advantages(rewards, groups=None, *, valid=None, loo=True, normalize=True):
    groups = groups or [0] * len(rewards)
    valid_B = None if valid is None else torch.tensor(valid)
    baseline = group_baseline(tensor(*rewards), groups, valid_B=valid_B, leave_one_out=loo)
    return group_advantages(tensor(*rewards), baseline, valid_B=valid_B, normalize=normalize)


@pytest.mark.parametrize("loo", [True, False])
@pytest.mark.parametrize("reward", [3.3, 0.1, 1e-9, 1e9 + 0.1, -7.7])
@pytest.mark.parametrize("size", [2, 3, 7, 8, 16])
def test_a_constant_group_has_advantages_of_exactly_zero(reward, size, loo):
    assert advantages([reward] * size, loo=loo).tolist() == [0.0] * size


@pytest.mark.parametrize("others", [3.3, 0.1, 1e7 + 0.1])
def test_an_only_winner_sees_no_deviation(others):
    """Rounding must not make one of equal rewards: dividing by it would be a factor of 1e6."""
    winner, *losers = advantages([others + 2.5, *[others] * 6]).tolist()
    assert winner == pytest.approx(2.5)
    assert all(value < 0 for value in losers)


def test_shifting_rewards_changes_nothing_and_scaling_them_almost_nothing():
    rewards = [3.5, 4.25, 1.75, 2.0]
    plain = advantages(rewards)
    assert torch.allclose(plain, advantages([reward + 1024 for reward in rewards]), atol=1e-9)
    assert torch.allclose(plain, advantages([reward * 8 for reward in rewards]), atol=1e-5)


def test_without_leaving_one_out_advantages_sum_to_zero():
    assert advantages([3.5, 4.25, 1.75, 2.0], loo=False).sum().item() == pytest.approx(0, abs=1e-12)


def test_groups_have_ids_and_need_not_lie_together():
    found = advantages([1.0, 5.0, 3.0, 2.0], [7, 9, 7, 9], normalize=False)
    assert found.tolist() == [-2.0, 3.0, 2.0, -3.0]


@pytest.mark.parametrize("junk", [NAN, math.inf, 0.0, 1e300])
@pytest.mark.parametrize("loo", [True, False])
def test_an_invalid_sample_is_no_part_of_anything(junk, loo):
    with_junk = advantages([4.0, junk, 2.0, 3.0], valid=[True, False, True, True], loo=loo)
    without = advantages([4.0, 2.0, 3.0], loo=loo)
    assert with_junk.tolist() == [without[0], 0.0, without[1], without[2]]


def test_the_only_valid_sample_has_nothing_to_be_compared_with():
    assert advantages([4.0, NAN, NAN], valid=[True, False, False]).tolist() == [0.0] * 3
    assert advantages([NAN, NAN], valid=[False, False]).tolist() == [0.0] * 2


def test_a_group_of_one_is_refused():
    with pytest.raises(ValueError, match="group 4 has 1 samples and needs 2"):
        group_baseline(tensor(1.0, 2.0, 3.0), [3, 3, 4])


def test_a_valid_reward_is_finite():
    with pytest.raises(ValueError, match="not finite"):
        group_baseline(tensor(1.0, NAN), [0, 0])


def test_float32_rewards_are_worked_on_in_float64():
    baseline = group_baseline(torch.tensor([3.3] * 8), [0] * 8)
    assert baseline.mean_B.dtype is torch.float64
    assert not baseline.std_B.any()


def test_either_bound_may_be_left_out():
    given = tensor(-3.0, 0.5, 9.0)
    assert clip_advantages(given, low=None, high=1.0).tolist() == [-3.0, 0.5, 1.0]
    assert clip_advantages(given, low=-1.0, high=None).tolist() == [-1.0, 0.5, 9.0]


# --- rewards -------------------------------------------------------------------------------------


def test_equal_bands_only_clip():
    scaling = RewardScaling(enabled=True, source_min=1, source_max=5, target_min=1, target_max=5)
    found = [scale_reward(one, scaling) for one in (0.0, 3.3, 9.0)]
    assert found == pytest.approx([1, 3.3, 5])
    assert math.isnan(scale_reward(NAN, scaling))


def test_dapo_punishes_without_an_end():
    shaping = RewardShaping(
        enabled=True, overlong_buffer_length=4, overlong_buffer_penalty=1.0, max_response_length=16
    )
    given = [(1.0, 8), (1.0, 12), (1.0, 14), (1.0, 16), (0.0, 20)]
    found = [shape_reward(one, shaping, length=n, truncated=False) for one, n in given]
    assert found == [1.0, 1.0, 0.5, 0.0, -2.0]


@pytest.mark.parametrize(
    "how",
    [
        {"stop_properly_penalty_coef": 1.5},
        {"max_response_length": None},
        {"max_response_length": 16, "overlong_buffer_penalty": -1.0},
        {"max_response_length": 16, "overlong_buffer_length": 32},
    ],
)
def test_shaping_that_cannot_be_meant_is_refused(how):
    with pytest.raises(ValueError, match=r"."):
        RewardShaping(enabled=True, **how)
    RewardShaping(enabled=False, **how)


def test_a_band_has_two_ends():
    with pytest.raises(ValueError, match="source_max"):
        RewardScaling(source_min=1.0, source_max=1.0)


# --- masks ---------------------------------------------------------------------------------------


def test_flags_only_take_away():
    mask = mask_flagged(torch.tensor([1.0, 1.0, 0.0]), torch.tensor([True, False, False]))
    assert mask.tolist() == [0.0, 1.0, 0.0]


def test_engine_and_trainer_that_agree_have_an_error_of_one():
    logprobs = tensor([-1.0, -2.0], [-0.5, -0.1])
    token_mask, sample_mask = torch.ones(2, 2), torch.ones(2)
    errors = sequence_logprob_errors(logprobs, logprobs, token_mask, sample_mask)
    kept, metrics = mask_by_logprob_error(
        sample_mask, errors, threshold=1.001, rewards_B=tensor(1.0, 1.0)
    )
    assert kept.tolist() == [1.0, 1.0]
    assert metrics["max_seq_mult_prob_error"] == 1.0


def test_the_right_answers_among_the_masked_are_counted():
    off = tensor([0.0, 0.0], [-1.0, -1.0], [-1.0, -1.0])
    errors = sequence_logprob_errors(off, off * 3, torch.ones(3, 2), torch.ones(3))
    kept, metrics = mask_by_logprob_error(
        torch.ones(3), errors, threshold=2.0, rewards_B=tensor(1.0, 1.0, 0.0)
    )
    assert kept.tolist() == [1.0, 0.0, 0.0]
    assert (metrics["num_masked_seqs"], metrics["masked_correct_pct"]) == (2, 0.5)


def test_a_batch_that_never_fills_ends():
    with pytest.raises(ValueError, match="3 batches gave 1 samples"):
        fill_batch([], [("a", 0.0), ("b", 1.0)], size=4, batch=3, most_batches=2)
    filled = fill_batch(["x"], [("a", 1.0), ("b", 1.0)], size=2, batch=9, most_batches=2)
    assert (filled.samples, filled.discarded) == (["x", "a"], 1)


# --- metrics -------------------------------------------------------------------------------------


def test_what_has_no_value_is_no_metric():
    assert distribution_metrics("x", []) == {}
    assert distribution_metrics("x", [2.0])["x/stddev"] == 0.0
    assert length_metrics([], [], []) == {}
    nothing = Baseline(tensor(NAN), tensor(0.0))
    assert reward_metrics(tensor(NAN), nothing, [0], valid_B=torch.tensor([False])) == {}


def test_reward_metrics_leave_out_what_is_invalid_and_show_dead_groups():
    rewards, groups = tensor(1.0, 3.0, 2.0, 2.0, NAN, 0.0), [0, 0, 1, 1, 1, 2]
    valid = torch.tensor([True, True, True, True, False, False])
    baseline = group_baseline(rewards, groups, valid_B=valid, least=1)
    found = reward_metrics(rewards, baseline, groups, valid_B=valid)
    assert found["reward"] == 2.0
    assert found["total_reward/max"] == 3.0
    assert found["hacking/zero_std_groups"] == 0.5
    assert found["hacking/reward_std_in_group"] == 0.5
    assert found["baseline_reward/pct_1"] == 0.25
    assert found["baseline_reward/pct_mixed"] == 0.75


def test_length_metrics():
    found = length_metrics([4, 8], [10, 20], [False, True])
    assert found["truncation_rate"] == found["natural_termination_rate"] == 0.5
    assert found["total_num_tokens"] == 42
    assert found["mean_prompt_length"] == 15


@pytest.mark.parametrize("kind", ["k1", "k2", "k3"])
def test_equal_policies_have_no_divergence(kind):
    assert not estimate_kl(tensor(-1.0, -5.0), tensor(-1.0, -5.0), kind=kind).any()


def test_an_unknown_estimate_is_refused():
    with pytest.raises(ValueError, match="k4"):
        estimate_kl(tensor(0.0), tensor(0.0), kind="k4")
