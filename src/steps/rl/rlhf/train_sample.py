"""Samples of a step as the policy is trained on them: log-probs, rewards, advantages, masks.

The samples of a prompt share its computation (:mod:`prefix_packing`).  Groups are dealt out to
data ranks.  Neither the number of ranks nor the size of micro-batches changes losses and
gradients, because every part is divided by the counts of the whole global batch.

Shape legend: ``_B`` groups of a micro-batch, ``_N`` samples of a group, ``_R`` tokens; for the
loss the samples are rows ``_B`` of ``_T`` tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import torch
from megatron.core.distributed import DistributedDataParallel
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from nemotron_style.steps.blocks.loss.clipped_pg import PolicyBatch, clipped_pg_loss
from nemotron_style.steps.blocks.loss.loss_metrics import loss_metrics, merge_metrics
from nemotron_style.steps.blocks.loss.masked_mean import Counts
from nemotron_style.steps.blocks.loss.sample_mask import (
    mask_by_logprob_error,
    sequence_logprob_errors,
)
from nemotron_style.steps.blocks.model.parallel import speaks_for_copy
from nemotron_style.steps.blocks.model.prefix_packing import PackedBatch
from nemotron_style.steps.blocks.model.rank_zero import gather
from nemotron_style.steps.blocks.training.microbatch import accumulate_gradients, score
from nemotron_style.steps.blocks.training.microbatch_plan import MicroBatch, plan_microbatches
from nemotron_style.steps.rl.rlhf.config import Config
from nemotron_style.steps.rl.rlhf.grpo_config import Policy
from nemotron_style.steps.rl.rlhf.rollout import Rollout


@dataclass(frozen=True)
class TrainSample:
    """One sample of a step; ``group`` is the index of its prompt in the step.

    The log-probs of its tokens are those it was sampled with (``generation_T``), those of the
    policy before the first update of the step (``previous_T``), and those of the frozen reference
    (``reference_T``); the last two are None where the loss does not need them.  ``mask`` is 1
    where the sample is trained on, else 0.
    """

    group: int
    prompt_ids: Sequence[int]
    tokens: Sequence[int]
    generation_T: Tensor
    reward: float = 0.0
    advantage: float = 0.0
    mask: float = 1.0
    previous_T: Tensor | None = None
    reference_T: Tensor | None = None


def to_samples(rollouts: Sequence[Rollout]) -> list[TrainSample]:
    """The samples of all groups in their order, with neither reward nor advantage yet."""
    return [
        TrainSample(group, rollout.prompt.ids, sample.tokens, torch.tensor(sample.log_probs))
        for group, rollout in enumerate(rollouts)
        for sample in rollout.samples
    ]


def compute_logprobs(
    model: nn.Module, samples: Sequence[TrainSample], policy: Policy
) -> list[Tensor]:
    """The log-probs of each sample's tokens under ``model``, float32 ``[T]``, on every rank."""
    groups, temperature = group_samples(samples), policy.generation.temperature
    plan = plan_microbatches(groups, max_responses=policy.logprob_batch_size)
    scored = score(model, [batch.pack(groups) for batch in plan], temperature=temperature)
    own = {
        index: logprobs_R[: len(samples[index].tokens)].clone()
        for batch, logprobs_BNR in zip(plan, scored, strict=True)
        for index, logprobs_R in zip(
            packed_indices(batch, groups), logprobs_BNR.flatten(0, 1), strict=True
        )
    }
    logprobs = {index: logprobs_T for part in gather(own) for index, logprobs_T in part.items()}
    return [logprobs[index] for index in range(len(samples))]


def accumulate_policy_loss(
    model: DistributedDataParallel, samples: Sequence[TrainSample], config: Config
) -> dict[str, float]:
    """Gradients of the loss of a global batch into ``main_grad``; its metrics, on every rank."""
    counts, policy = count_batch(samples), config.policy

    def loss(logprobs_BNR: Tensor, batch: PolicyBatch) -> tuple[Tensor, dict[str, float]]:
        result = clipped_pg_loss(
            replace(batch, current_BT=logprobs_BNR.flatten(0, 1).cpu()), config.loss_fn, counts
        )
        return result.loss, loss_metrics(result, config.loss_fn, counts)

    groups, micro_batches = group_samples(samples), []
    for batch in plan_microbatches(groups, max_responses=policy.train_micro_batch_size):
        packed = batch.pack(groups)
        rows = [samples[index] for index in packed_indices(batch, groups)]
        micro_batches.append((packed, _to_batch(packed, rows)))
    temperature = policy.generation.temperature
    metrics = accumulate_gradients(model, micro_batches, loss, temperature=temperature)
    # The ranks of one copy of the model that see its losses all report the same.
    own = metrics if speaks_for_copy() else []
    return merge_metrics([one for part in gather(own) for one in part])


def split_batches(
    samples: Sequence[TrainSample], size: int
) -> Iterator[tuple[int, Sequence[TrainSample]]]:
    """The global batches of a step's updates, with their numbers from 0.

    A batch in which every sample is masked is left out: there is nothing to divide its loss by.
    """
    for number, first in enumerate(range(0, len(samples), size)):
        batch = samples[first : first + size]
        if count_batch(batch).tokens:
            yield number, batch


def count_batch(samples: Sequence[TrainSample]) -> Counts:
    """The denominators of the loss of a global batch."""
    return Counts(
        tokens=sum(one.mask * len(one.tokens) for one in samples),
        sequences=sum(one.mask for one in samples),
        positive_tokens=sum(one.mask * len(one.tokens) for one in samples if one.reward > 0),
    )


def add_previous(samples: Sequence[TrainSample], logprobs: Sequence[Tensor]) -> list[TrainSample]:
    """The samples with the log-probs of the policy before the first update of the step."""
    return [replace(one, previous_T=own_T) for one, own_T in zip(samples, logprobs, strict=True)]


def add_reference(samples: Sequence[TrainSample], logprobs: Sequence[Tensor]) -> list[TrainSample]:
    """The samples with the log-probs of the frozen reference."""
    return [replace(one, reference_T=own_T) for one, own_T in zip(samples, logprobs, strict=True)]


def mask_wide_gaps(
    samples: Sequence[TrainSample], threshold: float | None
) -> tuple[list[TrainSample], dict[str, float]]:
    """The samples, masked where sampler and trainer are not one policy; metrics.

    They are not where the mean of ``e^|generation - previous|`` over a sample's tokens is above
    ``threshold``; None masks nothing. Without log-probs of the trainer nothing can be compared.
    """
    previous = [one.previous_T for one in samples if one.previous_T is not None]
    if not previous:
        return [*samples], {}
    mask_B = torch.tensor([one.mask for one in samples])
    errors = sequence_logprob_errors(
        pad_sequence(previous, batch_first=True),
        pad_sequence([one.generation_T for one in samples], batch_first=True),
        pad_sequence([torch.ones(len(one.tokens)) for one in samples], batch_first=True),
        mask_B,
    )
    rewards_B = torch.tensor([one.reward for one in samples])
    mask_B, metrics = mask_by_logprob_error(
        mask_B, errors, threshold=threshold, rewards_B=rewards_B
    )
    masked = zip(samples, mask_B.tolist(), strict=True)
    return [replace(one, mask=mask) for one, mask in masked], metrics


@dataclass(frozen=True)
class SampleGroup:
    """Samples of one prompt that share its computation; ``indices`` says which of the batch."""

    prompt_ids: Sequence[int]
    responses_ids: list[Sequence[int]] = field(default_factory=list)
    indices: list[int] = field(default_factory=list)


def group_samples(samples: Sequence[TrainSample]) -> list[SampleGroup]:
    """The samples of a batch by prompt."""
    groups: dict[int, SampleGroup] = {}
    for index, sample in enumerate(samples):
        group = groups.setdefault(sample.group, SampleGroup(sample.prompt_ids))
        group.responses_ids.append(sample.tokens)
        group.indices.append(index)
    return list(groups.values())


def packed_indices(batch: MicroBatch, groups: Sequence[SampleGroup]) -> list[int]:
    """The indices of a micro-batch's samples in the order of its rows ``[B, N]``, flattened."""
    return [groups[part.group].indices[number] for part in batch.parts for number in part.responses]


def _to_batch(packed: PackedBatch, samples: Sequence[TrainSample]) -> PolicyBatch:
    """What the loss needs to know of a micro-batch; the log-probs of now are put in later."""
    mask_BT = packed.mask_BNR.flatten(0, 1)
    generation_BT = _rows([one.generation_T for one in samples], mask_BT)
    previous = [one.previous_T for one in samples if one.previous_T is not None]
    reference = [one.reference_T for one in samples if one.reference_T is not None]
    advantages_B = torch.tensor([one.advantage for one in samples])
    return PolicyBatch(
        current_BT=generation_BT,  # a placeholder until the forward pass is done
        previous_BT=_rows(previous, mask_BT) if previous else generation_BT,
        generation_BT=generation_BT,
        advantages_BT=advantages_B[:, None].expand(mask_BT.shape),
        token_mask_BT=mask_BT.float(),
        sample_mask_B=torch.tensor([one.mask for one in samples]),
        reference_BT=_rows(reference, mask_BT) if reference else None,
        rewards_B=torch.tensor([one.reward for one in samples]),
    )


def _rows(values: Sequence[Tensor], mask_BT: Tensor) -> Tensor:
    rows_BT = torch.zeros(mask_BT.shape, dtype=values[0].dtype)
    rows_BT[mask_BT] = torch.cat([each.flatten() for each in values])
    return rows_BT
