"""The parts of rl/rlhf: rows of prompts, rewards, alerts of hacking, validation."""

from __future__ import annotations

import math

import pytest
import torch

from nemotron_style.runtime.errors import InputError, StepFailed
from nemotron_style.steps.blocks.data.prompt import Prompt
from nemotron_style.steps.blocks.data.toy_truth import Truth
from nemotron_style.steps.blocks.judge.aggregation import Answer
from nemotron_style.steps.blocks.judge.client import JudgeFailure
from nemotron_style.steps.blocks.judge.group_judge import JudgedGroups
from nemotron_style.steps.blocks.judge.pairing import Pair
from nemotron_style.steps.blocks.judge.verdict import Verdict
from nemotron_style.steps.blocks.loss.advantage import clip_advantages, group_advantages
from nemotron_style.steps.blocks.model.parallel import initialize
from nemotron_style.steps.blocks.training.microbatch_plan import plan_microbatches
from nemotron_style.steps.rl.rlhf.advantages import build_samples, shape_rewards
from nemotron_style.steps.rl.rlhf.check import count_flat_steps
from nemotron_style.steps.rl.rlhf.config import Config
from nemotron_style.steps.rl.rlhf.hacking_alert import find_alerts
from nemotron_style.steps.rl.rlhf.metrics import rollout_metrics
from nemotron_style.steps.rl.rlhf.prompt import read_messages
from nemotron_style.steps.rl.rlhf.recipe import plan_schedule
from nemotron_style.steps.rl.rlhf.rollout import Rollout, Sample
from nemotron_style.steps.rl.rlhf.samples import sample_rows, validation_rows
from nemotron_style.steps.rl.rlhf.train_sample import (
    TrainSample,
    count_batch,
    group_samples,
    packed_indices,
    split_batches,
)
from nemotron_style.steps.rl.rlhf.validation import (
    Answers,
    clustered_rate,
    judge_metrics,
    pair_answers,
    truth_metrics,
)

USER = {"role": "user", "content": "Hi"}
PARTS = [{"type": "input_text", "text": "H"}, {"type": "input_text", "text": "i"}]


@pytest.mark.parametrize(
    "row",
    [
        {"responses_create_params": {"input": "Hi"}, "question": "no"},
        {"responses_create_params": {"input": [USER], "tools": []}, "dataset": "hs3"},
        {"responses_create_params": {"input": [{"role": "user", "content": PARTS}]}},
        {"extra_env_info": {"responses_create_params": {"input": "Hi"}}},
        {"messages": [USER]},
        {"messages": "Hi"},
        {"prompt": ["Hi"]},
        {"prompt": [{"from": "human", "value": "Hi"}]},
        {"messages": [{"role": "user", "text": "Hi"}]},
        {"question": "Hi"},
        {"messages": [], "problem": "Hi"},
        {"input": "Hi"},
    ],
)
def test_a_row_may_say_its_prompt_in_many_ways(row):
    assert read_messages(row) == [USER]


def test_turns_and_instructions_are_kept():
    turns = [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}, USER]
    assert [each["role"] for each in read_messages({"messages": turns})] == [
        "user",
        "assistant",
        "user",
    ]
    params = {"input": "Hi", "instructions": "Be brief."}
    told = read_messages({"responses_create_params": params})
    assert told == [{"role": "system", "content": "Be brief."}, USER]


@pytest.mark.parametrize(
    "row",
    [
        {},
        {"question": 3},
        {"responses_create_params": "Hi"},
        {"responses_create_params": {"input": 4}},
        {"responses_create_params": {"input": ["Hi"]}},
        {"responses_create_params": {"input": "Hi", "tools": [{}]}},
        {"messages": 4},
        {"messages": [4]},
    ],
)
def test_a_row_without_a_prompt_is_refused(row):
    with pytest.raises(InputError):
        read_messages(row)


def config(**grpo):
    values = {"num_prompts_per_step": 2, "num_generations_per_prompt": 4, **grpo}
    return Config.model_validate({"policy": {"train_global_batch_size": 8}, "grpo": values})


def sample(length=3, *, truncated=False, log_prob=-1.0, known=True):
    tokens = list(range(length))
    return Sample(tokens, [log_prob] * length, Answer("x"), truncated, known)


def group(name, samples):
    return Rollout(name, Prompt((USER,), [1, 2]), samples)


def train_on(rollouts, rewards, config):
    """The samples that a step trains on, and its metrics: what the recipe does with rewards."""
    grpo = config.grpo
    shaped = shape_rewards(rollouts, rewards, grpo)
    baseline = shaped.baseline(leave_one_out=config.leave_one_out)
    advantages_B = group_advantages(shaped.rewards_B, baseline, normalize=config.normalize)
    advantages_B = clip_advantages(advantages_B, *config.advantage_range)
    samples = build_samples(rollouts, shaped, advantages_B)
    return samples, rollout_metrics(rollouts, shaped, baseline, samples)


def test_advantages_are_those_of_leave_one_out():
    rollouts = [group("a", [sample() for _ in range(4)]), group("b", [sample() for _ in range(4)])]
    samples, metrics = train_on(rollouts, [[1.0, 0.0, 0.0, 1.0], [3.3] * 4], config())
    advantages = [one.advantage for one in samples]
    assert advantages[:4] == pytest.approx([1.154698, -1.154699, -1.154699, 1.154698], abs=1e-5)
    assert advantages[4:] == [0.0] * 4
    assert metrics["hacking/zero_std_groups"] == 0.5
    assert count_flat_steps(config(), 1, metrics, before=2) == 0


def test_too_many_steps_without_a_difference_end_the_run():
    rollouts = [group("a", [sample() for _ in range(4)]), group("b", [sample() for _ in range(4)])]
    _, metrics = train_on(rollouts, [[1.0] * 4, [3.3] * 4], config())
    assert count_flat_steps(config(), 1, metrics, before=1) == 2
    with pytest.raises(StepFailed, match="for 3 steps"):
        count_flat_steps(config(), 3, metrics, before=2)


def test_a_group_that_was_not_judged_takes_part_in_nothing():
    rollouts = [group("a", [sample() for _ in range(4)]), group("b", [sample() for _ in range(4)])]
    samples, metrics = train_on(rollouts, [[1.0, 0.0, 0.0, 1.0], None], config())
    assert [one.mask for one in samples] == [1.0] * 4 + [0.0] * 4
    assert metrics["reward"] == 0.5
    assert count_batch(samples).sequences == 4
    samples, metrics = train_on(rollouts, [None, None], config())
    assert count_flat_steps(config(), 1, metrics, before=2) == 0
    assert count_batch(samples).tokens == 0
    assert list(split_batches(samples, 4)) == []


def test_a_sample_without_a_log_prob_leaves_its_group():
    samples = [sample(), sample(log_prob=math.nan), sample(), sample()]
    rollouts = [group("a", samples), group("b", [sample() for _ in range(4)])]
    samples, metrics = train_on(rollouts, [[1.0, 99.0, 0.0, 0.0], [2.0] * 4], config())
    assert [one.mask for one in samples][:4] == [1.0, 0.0, 1.0, 1.0]
    assert metrics["total_reward/max"] == 2.0


def test_a_sample_with_an_id_of_no_token_is_not_trained_on_and_counted():
    samples = [sample(), sample(known=False), sample(), sample()]
    rollouts = [group("a", samples), group("b", [sample() for _ in range(4)])]
    samples, metrics = train_on(rollouts, [[1.0, 99.0, 0.0, 0.0], [2.0] * 4], config())
    assert [one.mask for one in samples][:4] == [1.0, 0.0, 1.0, 1.0]
    assert metrics["total_reward/max"] == 2.0
    assert metrics["num_unknown_id_samples"] == 1
    without, _ = train_on(
        [group("a", [sample() for _ in range(3)]), rollouts[1]],
        [[1.0, 0.0, 0.0], [2.0] * 4],
        config(),
    )
    kept = [one.advantage for one in samples if one.mask]
    assert kept == [one.advantage for one in without]  # as if it had never been


def test_a_truncated_sample_is_masked_and_compared_all_the_same():
    samples = [sample(truncated=True), sample(), sample(), sample()]
    rollouts = [group("a", samples), group("b", [sample() for _ in range(4)])]
    rewards = [[4.0, 0.0, 0.0, 0.0], [1.0, 2.0, 3.0, 4.0]]
    masked, _ = train_on(rollouts, rewards, config(overlong_filtering=True))
    plain, _ = train_on(rollouts, rewards, config())
    assert [one.mask for one in masked][:4] == [0.0, 1.0, 1.0, 1.0]
    assert [one.advantage for one in masked] == [one.advantage for one in plain]


def test_rewards_are_scaled_then_shaped_and_advantages_clipped():
    scaling = {
        "enabled": True,
        "source_min": 1.0,
        "source_max": 5.0,
        "target_min": -1.0,
        "target_max": 1.0,
    }
    shaping = {
        "enabled": True,
        "max_response_length": 16,
        "overlong_buffer_length": 4,
        "overlong_buffer_penalty": 1.0,
    }
    settings = config(
        reward_scaling=scaling,
        reward_shaping=shaping,
        advantage_clip_low=-0.5,
        normalize_rewards=False,
    )
    rollouts = [
        group("a", [sample(8), sample(12), sample(14), sample(16)]),
        group("b", [sample() for _ in range(4)]),
    ]
    samples, _ = train_on(rollouts, [[6.0, 5.0, 3.0, 2.0], [3.0] * 4], settings)
    assert [one.reward for one in samples][:4] == pytest.approx([1.0, 1.0, -0.5, -1.5])
    assert min(one.advantage for one in samples) == -0.5


def test_samples_of_a_prompt_share_a_group():
    initialize(seed=1)
    samples = [
        TrainSample(group, [1], [2] * length, torch.zeros(length))
        for group, length in ((0, 3), (1, 2), (0, 4), (1, 9), (2, 1))
    ]
    groups = group_samples(samples)
    assert [group.indices for group in groups] == [[0, 2], [1, 3], [4]]
    for size in (1, 2, 4):
        plan = plan_microbatches(groups, max_responses=size)
        indices = [packed_indices(batch, groups) for batch in plan]
        assert sorted(index for each in indices for index in each) == [0, 1, 2, 3, 4]
        assert all(len(each) <= size for each in indices)
    assert [0, 2, 1, 3] in indices


CALM = {
    "start_tokens": 10.0,
    "mean_gen_tokens_per_sample": 12.0,
    "hacking/reward_std_in_group": 1.0,
    "hacking/zero_std_groups": 0.2,
    "hacking/kl_to_start": 0.1,
    "judge/parse_failure_rate": 0.05,
}


@pytest.mark.parametrize(
    ("change", "names"),
    [
        ({}, []),
        ({"mean_gen_tokens_per_sample": 21.0}, ["length"]),
        ({"mean_gen_tokens_per_sample": 4.9}, ["length"]),
        ({"hacking/kl_to_start": 0.31}, ["kl"]),
        ({"judge/parse_failure_rate": 0.11}, ["unreadable"]),
        (
            {"hacking/reward_std_in_group": 0.0, "hacking/zero_std_groups": 1.0},
            ["saturated", "flat"],
        ),
    ],
)
def test_alerts_are_raised_where_their_metrics_say_so(change, names):
    assert [alert.name for alert in find_alerts(CALM | change)] == names


def validated(config):
    """The steps of ten after which the run validates."""
    return [step for step in range(11) if plan_schedule(config, 10).validates(step)]


def test_validation_comes_when_it_is_asked_for():
    assert validated(config(val_period=4, val_at_end=True)) == [4, 8, 10]
    assert validated(config(val_period=0, val_at_start=True)) == [0]
    assert validated(config(val_period=4, val_start_at=8)) == [8]


def test_both_orders_decide_who_wins():
    prompts = [Prompt((USER,), [1])] * 2
    start = Answers(0, [["old"], ["old"]], 1.0)
    now = Answers(3, [["new"], ["new"]], 1.0)
    groups = pair_answers(start, now, prompts, name="v")
    assert [one.prompt for one in groups] == ["v/0/0", "v/1/0"]
    assert [answer.text for answer in groups[0].answers] == ["old", "new"]
    verdicts = [
        [(Pair(0, 1), Verdict(2, 4, 5)), (Pair(1, 0), Verdict(4, 2, 2))],  # new, twice
        [(Pair(0, 1), Verdict(3, 3, 3.5)), (Pair(1, 0), Verdict(2, 4, 5))],  # even, then old
    ]
    judged = JudgedGroups([[2.0, 4.0], [3.5, 2.5]], [], {}, verdicts)
    metrics = judge_metrics(judged, samples=1)
    assert metrics["validation/judge_win_rate"] == pytest.approx((1 + 0.25) / 2)
    assert metrics["validation/total_reward/mean"] == 3.25
    assert judge_metrics(JudgedGroups([None, None], [], {}, verdicts), samples=1) == {}


def test_held_out_answers_are_written_with_what_the_judge_and_the_truth_say():
    truth = Truth(nouns={"owl": "bird"}, classes={"bird": ("shy",), "lake": ("deep",)}, contexts=())
    asked = {"role": "user", "content": "Describe the owl here."}
    good, bad = Verdict(5, 1, 1, words="first"), Verdict(2, 4, 5, words="second")
    verdicts = [
        [(Pair(1, 0), good), (Pair(0, 1), bad)],
        [(Pair(0, 1), JudgeFailure(("v",), ("empty",), ""))],
    ]
    rows = validation_rows(
        [["The owl is deep.", "old"]],
        [["The owl is shy.", "new"]],
        [Prompt((asked,), [1])],
        judged=JudgedGroups([[1.0, 5.0], None], [], {}, verdicts),
        truth=truth,
    )
    (row,) = rows  # the pair without a verdict is left out
    assert (row["before"], row["after"]) == ("The owl is deep.", "The owl is shy.")
    assert row["margin"] == 3
    assert [each["scores"] for each in row["judged"]] == [[5, 1], [4, 2]]
    assert [each["shown"] for each in row["judged"]] == ["first", "second"]
    assert [each["words"] for each in row["judged"]] == ["first", "second"]
    assert [each["helpfulness"] for each in row["truth"]] == [0, 4]


def test_a_sample_is_written_with_the_answers_it_met_and_the_judges_words():
    texts = [Sample([1], [-1.0], Answer(text), truncated=False) for text in ("a", "b", "c")]
    rollouts = [group("one", texts), group("masked", texts)]
    said = [(Pair(0, 1), Verdict(2, 4, 5, words="b it is")), (Pair(1, 2), Verdict(3, 3, 3.5))]
    judged = JudgedGroups([[2.0, 3.5, 3.0], None], [], {}, [said, []])
    samples = [TrainSample(0, [1], [1], torch.zeros(1), advantage=float(at)) for at in range(6)]
    rows = sample_rows(rollouts, judged, samples)
    assert [(row["answer"], row["reward"], row["advantage"]) for row in rows] == [
        ("a", 2.0, 0.0),
        ("b", 3.5, 1.0),
        ("c", 3.0, 2.0),
    ]
    assert rows[0]["verdicts"] == [[0, 1, 2, 4, 5]]
    (met, other) = rows[1]["judged"]
    assert (met["against"], met["scores"], met["preference"]) == ("a", [4, 2], 2)
    assert (met["shown"], met["words"]) == ("second", "b it is")
    assert (other["against"], other["words"]) == ("c", "")


def test_the_truth_counts_ties_as_one_half():
    truth = Truth(
        nouns={"owl": "bird"}, classes={"bird": ("shy", "tame"), "lake": ("deep",)}, contexts=("",)
    )
    question = "Describe the owl here."
    start = Answers(0, [["The owl is shy.", "The owl is deep."]], 5.0)
    now = Answers(3, [["The owl is tame.", "The owl is shy."]], 5.0)
    metrics = truth_metrics(truth, start, now, [question])
    assert metrics["validation/truth_before"] == 2
    assert metrics["validation/truth"] == 4
    assert metrics["validation/truth_win_rate"] == 0.75


def test_samples_of_a_prompt_are_one_cluster():
    same = clustered_rate([1.0] * 10 + [0.0] * 10, samples=10)
    apart = clustered_rate([1.0, 0.0] * 10, samples=10)
    assert same[0] == apart[0] == 0.5
    assert same[2] - same[1] > apart[2] - apart[1]
    assert clustered_rate([None, 1.0, 1.0, None], samples=2)[0] == 1.0
    assert math.isnan(clustered_rate([None], samples=1)[0])
