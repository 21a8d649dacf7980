"""The blocks of one GRPO step, in the order in which a recipe calls them."""

from __future__ import annotations

import json

import pytest
import torch

from nemotron_style.steps.blocks.http.client import Fault
from nemotron_style.steps.blocks.http.retry import RetryPolicy
from nemotron_style.steps.blocks.judge.aggregation import Aggregation, Answer
from nemotron_style.steps.blocks.judge.client import JudgeClient
from nemotron_style.steps.blocks.judge.group_judge import AnswerGroup, judge_groups
from nemotron_style.steps.blocks.judge.pairing import ComparisonPlan
from nemotron_style.steps.blocks.judge.prompt import split_reasoning
from nemotron_style.steps.blocks.loss.advantage import group_advantages, group_baseline
from nemotron_style.steps.blocks.loss.clipped_pg import PolicyBatch, clipped_pg_loss
from nemotron_style.steps.blocks.loss.clipped_pg_config import ClippedPGConfig
from nemotron_style.steps.blocks.loss.loss_metrics import loss_metrics, merge_metrics
from nemotron_style.steps.blocks.loss.masked_mean import Counts
from nemotron_style.steps.blocks.loss.reward_shaping import RewardScaling, scale_reward
from nemotron_style.steps.blocks.loss.sample_mask import mask_flagged

GROUP, WIDTH = 4, 6
OPTIONS = ClippedPGConfig(
    use_on_policy_kl_approximation=True,
    use_importance_sampling_correction=True,
    truncated_importance_sampling_type="tis",
    truncated_importance_sampling_ratio=5.0,
    force_on_policy_ratio=True,
)


class FakeJudge:
    """Prefers the longer answer; has no word for the prompt ``broken``; sees no reasoning."""

    async def request(self, method, path, body, *, timeout):
        told = {message["role"]: message["content"] for message in body["messages"]}
        assert "secret" not in str(body)
        if told["user"] == "broken":
            raise Fault("http_500", "it is broken")
        scores = [min(5, len(told[name])) for name in ("response_1", "response_2")]
        content = json.dumps({"score_1": scores[0], "score_2": scores[1], "ranking": 3.5})
        return {"choices": [{"message": {"content": content}, "finish_reason": "stop"}]}

    async def aclose(self):
        pass


def judge(prompts):
    contests = [
        AnswerGroup(
            prompt,
            ({"role": "user", "content": prompt},),
            [
                Answer(*reversed(split_reasoning(f"<think>secret</think>{'a' * length}")))
                for length in (1, 2, 4, 5)
            ],
        )
        for prompt in prompts
    ]
    with JudgeClient(
        "http://127.0.0.1:1", form="genrm", retry_policy=RetryPolicy(tries=1)
    ) as client:
        client._http = FakeJudge()
        plan = ComparisonPlan(failure_budget=0.5)
        return judge_groups(client, contests, step=0, plan=plan, aggregation=Aggregation())


def logprobs(prompts):
    """The same numbers for a prompt whatever else is in the batch."""
    rows = []
    for prompt in prompts:
        drawn = torch.Generator().manual_seed(len(prompt))
        rows.append(-torch.rand(4, GROUP, WIDTH, generator=drawn, dtype=torch.float64))
    return torch.cat(rows, 1)


def step(prompts, *, cuts=1, lost=()):
    """Loss, gradient by prompt, metrics; the generation log-probs of rows ``lost`` are missing."""
    judged = judge(prompts)
    rewards = [r for group in judged.rewards for r in (group or [float("nan")] * GROUP)]
    judged_B = torch.tensor([group is not None for group in judged.rewards for _ in range(GROUP)])
    scaling = RewardScaling(enabled=True, source_min=1, source_max=5)
    rewards_B = torch.tensor([scale_reward(reward, scaling) for reward in rewards])
    groups = [index for index in range(len(prompts)) for _ in range(GROUP)]

    current_BT, previous_BT, generation_BT, reference_BT = logprobs(prompts)
    generation_BT[list(lost)] = float("nan")
    token_mask_BT = (torch.arange(WIDTH) < 4).double().expand(len(groups), -1)
    valid_B = judged_B & (generation_BT.isfinite() | (token_mask_BT == 0)).all(-1)

    baseline = group_baseline(rewards_B, groups, valid_B=valid_B)
    advantages_B = group_advantages(rewards_B, baseline, valid_B=valid_B)
    sample_mask_B = mask_flagged(torch.ones(len(groups)), ~valid_B)
    counts = Counts.of(token_mask_BT, sample_mask_B)

    current_BT.requires_grad_()
    loss, metrics, local = 0.0, [], Counts(0, 0)
    for rows in torch.arange(len(groups)).chunk(cuts):
        batch = PolicyBatch(
            current_BT=current_BT[rows],
            previous_BT=previous_BT[rows],
            generation_BT=generation_BT[rows],
            reference_BT=reference_BT[rows],
            advantages_BT=advantages_B[rows, None].expand(-1, WIDTH),
            token_mask_BT=token_mask_BT[rows],
            sample_mask_B=sample_mask_B[rows],
        )
        local = local + Counts.of(batch.token_mask_BT, batch.sample_mask_B)
        done = clipped_pg_loss(batch, OPTIONS, counts)
        done.loss.backward()
        loss += done.loss.item()
        metrics.append(loss_metrics(done, OPTIONS, counts))
    assert local == counts
    grads = dict(zip(prompts, current_BT.grad.view(-1, GROUP, WIDTH), strict=True))
    return loss, grads, merge_metrics(metrics), judged


def test_a_group_whose_judgement_failed_is_as_if_it_had_never_been():
    loss, grads, metrics, judged = step(["one", "broken", "other"])
    assert judged.rewards[1] is None
    assert {failure.name[1] for failure in judged.failures} == {"broken"}
    assert not grads["broken"].any()
    plain_loss, plain_grads, plain_metrics, _ = step(["one", "other"])
    assert abs(loss - plain_loss) < 1e-12
    assert all(torch.allclose(grads[name], plain_grads[name]) for name in plain_grads)
    assert metrics == pytest.approx(plain_metrics, abs=1e-12)
    assert metrics["num_valid_samples"] == 8


def test_micro_batches_and_ranks_sum_to_the_same_step():
    whole = step(["one", "broken", "other"])
    for cuts in (2, 3, 5, 12):
        parts = step(["one", "broken", "other"], cuts=cuts)
        assert abs(whole[0] - parts[0]) < 1e-9
        assert all(torch.allclose(whole[1][name], parts[1][name]) for name in whole[1])


def test_a_sample_without_its_logprobs_is_left_out_of_its_group():
    loss, grads, metrics, _ = step(["one", "other"], lost=[1])
    assert torch.isfinite(torch.tensor(loss))
    assert not grads["one"][1].any()
    assert grads["one"][[0, 2, 3], :4].any()
    assert metrics["num_valid_samples"] == 7


def test_the_better_answers_become_likelier():
    _, grads, _, _ = step(["one"])
    pushed = -grads["one"][:, :4].sum(-1)  # downhill
    assert pushed[0] < 0 < pushed[3]
