"""Micro-batches through megatron-core's pipeline schedules, with exact gradients.

The caller's loss is its share of the *global* loss: the gradient that lands in ``main_grad`` is
that of the sum of the losses of all micro-batches on all data ranks, whatever their number, size
and distribution. So a mean is made by dividing by a count that was taken over the whole batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, TypeVar

import torch
from megatron.core.distributed import DistributedDataParallel
from megatron.core.pipeline_parallel import get_forward_backward_func
from torch import Tensor, nn

from nemotron_style.runtime.errors import Problem, StepFailed
from nemotron_style.steps.blocks.model.language_model import finish_gradients
from nemotron_style.steps.blocks.model.logprob import response_logprobs
from nemotron_style.steps.blocks.model.parallel import (
    any_rank,
    data_world,
    from_last_stage,
    is_last_stage,
    sum_over_data,
)
from nemotron_style.steps.blocks.model.prefix_packing import PackedBatch, Row
from nemotron_style.steps.blocks.training.microbatch_plan import (
    MicroBatch,
    Prompted,
    plan_microbatches,
    plan_sequences,
)

Facts = TypeVar("Facts")


def accumulate_gradients(
    model: DistributedDataParallel,
    microbatches: Sequence[tuple[PackedBatch, Facts]],
    loss: Callable[[Tensor, Facts], tuple[Tensor, Any]],
    *,
    temperature: float = 1.0,
) -> list[Any]:
    """Gradients of the global loss into ``main_grad``, from zero; what each micro-batch reports.

    ``loss(logprobs_BNR, facts)`` gives this micro-batch's share of the global loss (a scalar) and
    what it reports; it is called on the last pipeline stage only, and so the list is
    empty elsewhere. The log-probs are on the model's device: a loss that brings them to the CPU
    makes a GPU wait, once for each micro-batch, until its backward pass is queued.
    Ranks may have different numbers of micro-batches, none among them.
    """
    model.zero_grad_buffer()
    model.nonfinite_losses = 0  # of this rank; see UpdateGuard
    if not microbatches:
        finish_gradients([model])  # the other data ranks wait for this one
        return []
    # The schedule divides by the number of micro-batches, DDP by that of data ranks.
    scale = len(microbatches) * data_world()

    def finish(facts: Facts, logprobs: Tensor) -> tuple[Tensor, Any]:
        share, report = loss(logprobs, facts)
        model.nonfinite_losses = model.nonfinite_losses + ~share.detach().isfinite()
        return share * scale, report

    return _run(model, microbatches, finish, temperature=temperature, forward_only=False)


def accumulate_nll(
    model: DistributedDataParallel,
    groups: Sequence[Prompted],
    *,
    max_responses: int,
    max_tokens: int | None = None,
) -> float:
    """Gradients of the mean ``-log p`` of a response token into ``main_grad``; the sum of them.

    ``groups`` are a whole global batch, so it has one denominator. The sum, on every rank, is
    over all response tokens of the batch. A pass has ``max_responses``, padded; or with
    ``max_tokens`` so many tokens without padding, of groups with one response each.
    """
    tokens = count_tokens(groups)
    assert tokens > 0, "a batch without a response token has no loss"

    def loss(logprobs_BNR: Tensor, _facts: None) -> tuple[Tensor, Tensor]:
        nll = -logprobs_BNR.sum()  # a log-prob is 0 where there is no token
        return nll / tokens, nll.detach().double()

    plan = _plan(groups, max_responses, max_tokens)
    parts = accumulate_gradients(model, [(batch.pack(groups), None) for batch in plan], loss)
    return float(sum_over_ranks(parts, torch.zeros((), dtype=torch.float64)))


def score_responses(
    model: nn.Module,
    groups: Sequence[Prompted],
    *,
    max_responses: int,
    max_tokens: int | None = None,
) -> Tensor:
    """``log p(response | prompt)_PN`` of all responses, float64, on every rank; no gradient.

    All ``groups`` have the same number of responses. A pass is as large as that of
    :func:`accumulate_nll`.
    """
    plan = _plan(groups, max_responses, max_tokens)
    logprobs = score(model, [batch.pack(groups) for batch in plan])
    table_PN = torch.zeros(len(groups), len(groups[0].responses_ids), dtype=torch.float64)
    for batch, logprobs_BNR in zip(plan, logprobs, strict=True):
        table_PN[batch.index] = logprobs_BNR.double().sum(-1)
    return sum_over_data(table_PN)


def _plan(
    groups: Sequence[Prompted], max_responses: int, max_tokens: int | None
) -> list[MicroBatch]:
    if max_tokens is not None:
        return plan_sequences(groups, max_tokens=max_tokens)
    return plan_microbatches(groups, max_responses=max_responses)


def count_tokens(groups: Sequence[Prompted]) -> int:
    """Response tokens of ``groups``; of a row those that count."""
    return sum(
        sum(group.counts) if isinstance(group, Row) else sum(map(len, group.responses_ids))
        for group in groups
    )


def sum_over_ranks(values: Sequence[Tensor], zero: Tensor) -> Tensor:
    """The sum of what the micro-batches of all data ranks report, on every rank.

    ``values`` are those of this rank; before the last pipeline stage there are none.
    """
    return sum_over_data(from_last_stage(sum(values, zero)))


@torch.no_grad()
def score(
    model: nn.Module,
    batches: Sequence[PackedBatch],
    *,
    temperature: float = 1.0,
    width: int | None = None,
) -> list[Tensor]:
    """Log-probs ``[B, N, R]`` of each batch, without gradients, on the CPU of every stage.

    ``width`` is R for a model that gives something else than log-probs of its response tokens.
    Every data rank calls it. Raises StepFailed, on all of them, for numbers that are not finite.
    """
    training = model.training
    model.eval()  # adapters may have dropout
    logprobs = _score(model, batches, temperature=temperature, width=width) if batches else []
    model.train(training)
    if any_rank(not all(each.isfinite().all() for each in logprobs)):
        raise StepFailed(
            Problem(
                what="the model's outputs are not finite",
                fix="its weights ran away, or an activation is too large for their type: go back "
                "to an earlier state with a lower learning rate",
            )
        )
    return logprobs


def _score(
    model: nn.Module, batches: Sequence[PackedBatch], *, temperature: float, width: int | None
) -> list[Tensor]:
    def finish(_facts: None, logprobs: Tensor) -> tuple[Tensor, Tensor]:
        return logprobs.new_zeros(()), logprobs.cpu()

    pairs = [(batch, None) for batch in batches]
    logprobs = _run(model, pairs, finish, temperature=temperature, forward_only=True)
    if not is_last_stage():
        like = next(model.parameters())
        dtype = torch.float64 if like.dtype is torch.float64 else torch.float32
        shapes = [
            (*batch.mask_BNR.shape[:2], width or batch.mask_BNR.shape[2]) for batch in batches
        ]
        logprobs = [torch.empty(shape, dtype=dtype) for shape in shapes]
    return [from_last_stage(each) for each in logprobs]


def _run(
    model: nn.Module,
    microbatches: Sequence[tuple[PackedBatch, Any]],
    finish: Callable[[Any, Tensor], tuple[Tensor, Any]],
    *,
    temperature: float,
    forward_only: bool,
) -> list[Any]:
    def forward(pairs: Iterator[tuple[PackedBatch, Any]], stage: nn.Module) -> tuple[Tensor, Any]:
        packed, facts = next(pairs)
        output = response_logprobs(stage, packed, temperature=temperature)
        return output, partial(finish, facts)

    first = microbatches[0][0].tokens_BS
    return get_forward_backward_func()(
        forward_step_func=forward,
        data_iterator=iter(microbatches),
        model=[model],
        num_microbatches=len(microbatches),
        # the shape of the first; pipeline stages send each other those of the others
        seq_length=first.shape[1],
        micro_batch_size=first.shape[0],
        forward_only=forward_only,
    )
