"""How the cases of ``golden/grpo.json`` are put to the project's GRPO blocks.

The reference raises AssertionError, ValueError or TypeError, when options are set or when the loss
is called; the project raises ValueError for all of them, as soon as it can. A case that expects
an error passes when the project refuses it, whatever the reference's class and moment.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from nemotron_style.steps.blocks.loss import advantage, kl, sample_mask
from nemotron_style.steps.blocks.loss.clipped_pg import PolicyBatch, clipped_pg_loss
from nemotron_style.steps.blocks.loss.clipped_pg_config import ClippedPGConfig
from nemotron_style.steps.blocks.loss.loss_metrics import loss_metrics
from nemotron_style.steps.blocks.loss.masked_mean import Counts
from nemotron_style.steps.blocks.loss.reward_shaping import (
    RewardScaling,
    RewardShaping,
    scale_reward,
    shape_reward,
)

Case = Mapping[str, Any]
Outcome = dict[str, Any]


def tensor(values: Any) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def run_advantage(case: Case) -> Outcome:
    config, inputs = case["config"], case["inputs"]
    rewards_B = tensor(inputs["rewards"])
    baseline = advantage.group_baseline(
        rewards_B,
        same_rows(inputs["prompt_ids"]),
        leave_one_out=config["use_leave_one_out_baseline"],
        least=1,
    )
    found_B = advantage.group_advantages(rewards_B, baseline, normalize=config["normalize_rewards"])
    return {
        "baseline": baseline.mean_B.tolist(),
        "std": baseline.std_B.tolist(),
        "advantage_per_sample": found_B.tolist(),
        "advantages_shape": list(found_B[:, None].expand(*inputs["mask_shape"]).shape),
    }


def same_rows(rows: Sequence[Sequence[int]]) -> list[int]:
    """Group ids as the reference has them: rows with equal prompts are one group."""
    first: dict[tuple[int, ...], int] = {}
    return [first.setdefault(tuple(row), len(first)) for row in rows]


def run_clip(case: Case) -> Outcome:
    bounds, given = case["config"], tensor(case["inputs"]["advantages"])
    low, high = bounds["advantage_clip_low"], bounds["advantage_clip_high"]
    return {"advantages": advantage.clip_advantages(given, low=low, high=high).tolist()}


def run_scaling(case: Case) -> Outcome:
    scaling = RewardScaling(**case["config"])
    return {"total_reward": [scale_reward(one, scaling) for one in case["inputs"]["total_reward"]]}


def run_shaping(case: Case) -> Outcome:
    inputs = case["inputs"]
    return {
        "total_reward": shaped(inputs, inputs["total_reward"], case["config"]),
        "unshaped_total_reward": inputs["total_reward"],
    }


def shaped(inputs: Case, rewards: Sequence[float], config: Case) -> list[float]:
    shaping, lengths = RewardShaping(**config), inputs["response_lengths"]
    truncated = inputs["truncated"] or [False] * len(rewards)
    return [
        shape_reward(reward, shaping, length=length, truncated=cut)
        for reward, length, cut in zip(rewards, lengths, truncated, strict=True)
    ]


def run_overlong(case: Case) -> Outcome:
    inputs = case["inputs"]
    mask_B = tensor(inputs["loss_multiplier"])
    if case["config"]["overlong_filtering"]:
        mask_B = sample_mask.mask_flagged(mask_B, torch.tensor(inputs["truncated"]))
    return {"sample_mask": mask_B.tolist()}


def run_mask_sample(case: Case) -> Outcome:
    inputs = case["inputs"]
    before_B, flagged_B = tensor(inputs["loss_multiplier"]), torch.tensor(inputs["mask_sample"])
    mask_B = sample_mask.mask_flagged(before_B, flagged_B)
    dropped = int((before_B - mask_B).sum())
    return {"sample_mask": mask_B.tolist(), "num_mask_sample_filtered": dropped}


def run_dynamic_sampling(case: Case) -> Outcome:
    config, inputs = case["config"], case["inputs"]
    rewards_B = tensor(inputs["total_reward"])
    spread_from = inputs["std_rewards"] or inputs["total_reward"]
    baseline = advantage.group_baseline(
        tensor(spread_from),
        inputs["groups"],
        leave_one_out=config["use_leave_one_out_baseline"],
    )
    samples = list(enumerate(rewards_B.tolist()))
    cache: Sequence[tuple[int, float]] = ()
    if inputs["cache_from"] is not None:
        earlier = run_dynamic_sampling(_first_round(case))
        cache = list(zip(earlier["kept_idx"], earlier["filtered_reward"], strict=True))
    filled = sample_mask.fill_batch(
        cache,
        list(zip(samples, baseline.std_B.tolist(), strict=True)),
        size=config["num_prompts_per_step"] * config["num_generations_per_prompt"],
        batch=inputs["num_gen_batches"],
        most_batches=config["dynamic_sampling_max_gen_batches"],
    )
    return {
        "std": baseline.std_B.tolist(),
        "baseline": baseline.mean_B.tolist(),
        "is_batch_complete": filled.complete,
        "kept_idx": [index for index, _ in filled.samples],
        "filtered_reward": [reward for _, reward in filled.samples],
        "metrics": {"dynamic_sampling_num_discarded_valid_samples": filled.discarded},
        "cache_size": filled.cached,
    }


def _first_round(case: Case) -> Case:
    """The case whose cache this one goes on with."""
    return next(
        other
        for other in case["others"]
        if other["kind"] == case["kind"] and other["inputs"]["cache_from"] is None
    )


def run_sequence_error(case: Case) -> Outcome:
    inputs = case["inputs"]
    mask_B = tensor(inputs["sample_mask"])
    errors = sample_mask.sequence_logprob_errors(
        tensor(inputs["prev_logprobs"]),
        tensor(inputs["generation_logprobs"]),
        tensor(inputs["token_mask"]),
        mask_B,
    )
    threshold = case["config"]["seq_logprob_error_threshold"]
    kept_B, metrics = sample_mask.mask_by_logprob_error(
        mask_B, errors, threshold=threshold, rewards_B=tensor(inputs["rewards"])
    )
    return {"sample_mask": kept_B.tolist(), "metrics": metrics}


def run_message_penalty(case: Case) -> Outcome:
    config, inputs = case["config"], case["inputs"]
    messages = [
        advantage.Message(
            message["role"],
            message["num_tokens"],
            message["is_invalid_tool_call"],
            message["has_malformed_thinking"],
        )
        for message in inputs["messages"]
    ]
    (row,) = inputs["advantages"]
    changed = advantage.penalise_messages(
        tensor(row),
        messages,
        invalid_tool_call=config["invalid_tool_call_advantage"],
        malformed_thinking=config["malformed_thinking_advantage"],
    )
    return {"advantages": [changed.tolist()], "metrics": advantage.penalty_metrics(messages)}


def run_kl(case: Case) -> Outcome:
    config, inputs = case["config"], case["inputs"]
    found = kl.estimate_kl(
        tensor(inputs["logprobs"]),
        tensor(inputs["logprobs_reference"]),
        kind=config["kl_type"],
        input_clamp=config["input_clamp_value"],
        output_clamp=config["output_clamp_value"],
    )
    return {"kl": found.tolist()}


def run_loss(case: Case) -> Outcome:
    inputs = case["inputs"]
    options = ClippedPGConfig(**case["config"], compat=case.get("compat", "head"))
    return loss_of(inputs, inputs["sample_mask"], inputs["advantages"], options)


def loss_of(inputs: Case, mask: Any, advantages: Any, options: ClippedPGConfig) -> Outcome:
    """Loss, metrics, gradient; what is ``[B, S]`` loses its first column."""
    current_BT = tensor(inputs["curr_logprobs"]).requires_grad_()
    given = inputs.get("rewards", inputs.get("total_reward"))
    batch = PolicyBatch(
        current_BT=current_BT,
        previous_BT=tensor(inputs["prev_logprobs"])[:, 1:],
        generation_BT=tensor(inputs["generation_logprobs"])[:, 1:],
        reference_BT=tensor(inputs["reference_policy_logprobs"])[:, 1:],
        advantages_BT=tensor(advantages)[:, 1:],
        token_mask_BT=tensor(inputs["token_mask"])[:, 1:],
        sample_mask_B=tensor(mask),
        rewards_B=None if given is None else tensor(given),
    )
    local = Counts.of(batch.token_mask_BT, batch.sample_mask_B, batch.rewards_B)
    counts = Counts(
        inputs.get("global_valid_toks", local.tokens),
        inputs.get("global_valid_seqs", local.sequences),
        local.positive_tokens,
    )
    done = clipped_pg_loss(batch, options, counts)
    done.loss.backward()
    assert current_BT.grad is not None
    return {
        "loss": done.loss.item(),
        "metrics": loss_metrics(done, options, counts),
        "grad_curr_logprobs": current_BT.grad.tolist(),
        "global_valid_seqs": counts.sequences,
        "global_valid_toks": counts.tokens,
    }


def run_pipeline(case: Case) -> Outcome:
    """Steps 3 to 14 of a training step, in the reference's order."""
    config, inputs = case["config"], case["inputs"]
    scaling = RewardScaling(**config["reward_scaling"])
    scaled = [scale_reward(one, scaling) for one in inputs["total_reward"]]
    rewards_B = tensor(shaped(inputs, scaled, config["reward_shaping"]))
    baseline = advantage.group_baseline(
        rewards_B,
        same_rows(inputs["prompt_ids"]),
        leave_one_out=config["use_leave_one_out_baseline"],
    )
    mask_B = torch.ones_like(rewards_B)
    if config["overlong_filtering"]:
        mask_B = sample_mask.mask_flagged(mask_B, torch.tensor(inputs["truncated"]))
    found_B = advantage.group_advantages(rewards_B, baseline, normalize=config["normalize_rewards"])
    low, high = config["advantage_clip_low"], config["advantage_clip_high"]
    found_B = advantage.clip_advantages(found_B, low=low, high=high)
    width = len(inputs["token_mask"][0])
    spread = found_B[:, None].expand(-1, width).tolist()
    options = ClippedPGConfig(**config["loss_fn"])
    return {
        "total_reward_after": rewards_B.tolist(),
        "sample_mask": mask_B.tolist(),
        "advantage_per_sample": found_B.tolist(),
        **loss_of(inputs, mask_B.tolist(), spread, options),
    }


CHECKS: dict[str, Callable[[Case], Outcome]] = {
    "advantage": run_advantage,
    "advantage_clip": run_clip,
    "reward_scaling": run_scaling,
    "reward_shaping": run_shaping,
    "overlong_filtering": run_overlong,
    "mask_sample": run_mask_sample,
    "dynamic_sampling": run_dynamic_sampling,
    "seq_logprob_error": run_sequence_error,
    "message_penalty": run_message_penalty,
    "kl": run_kl,
    "loss": run_loss,
    "pipeline": run_pipeline,
}
