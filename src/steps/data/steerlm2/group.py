"""Sampled groups as scored rows of ``steerlm2_jsonl``, and what is counted on the way."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

import torch

from nemotron_style.steps.blocks.data.steerlm2_row import LOG_P_A, LOG_P_Y, LOG_Q
from nemotron_style.steps.blocks.generation.chat_sampler import (
    ChatSampler,
    Request,
    Response,
    without_label,
)
from nemotron_style.steps.blocks.loss.steerlm2 import effective_sample_size, target_weights
from nemotron_style.steps.data.steerlm2.config import Sampling

DIGITS = 7


@dataclass(frozen=True)
class Models:
    """Who plays which part: Q'(y|a,x), P(y|x) and P(a|x,y). One model may play several."""

    sampler: ChatSampler
    base: ChatSampler
    attribute: ChatSampler


@dataclass
class GroupCounts:
    """Counts over groups; tallies of shards add up to that of the whole."""

    groups: int = 0
    dropped_groups: int = 0
    responses: int = 0
    redrawn: int = 0
    retokenised: int = 0
    duplicates: int = 0
    effective: float = 0.0

    def add(self, other: GroupCounts) -> None:
        """Count ``other`` in."""
        for field in fields(self):
            mine, theirs = getattr(self, field.name), getattr(other, field.name)
            setattr(self, field.name, mine + theirs)

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    def shares(self) -> dict[str, float]:
        """Means per group or response, as they are reported."""
        groups, responses = max(1, self.groups), max(1, self.responses)
        return {
            "effective_sample_size": self.effective / groups,
            "duplicates_share": self.duplicates / responses,
            "retokenised_share": self.retokenised / responses,
            "redrawn_share": self.redrawn / responses,
        }


def make_rows(
    requests: Sequence[Request], cast: Models, *, sampling: Sampling
) -> tuple[list[dict[str, Any] | None], GroupCounts]:
    """A row for each request, or None where a group could not be completed.

    A group whose responses do not all finish is left out whole: one that is short of a response,
    or has one cut to length, would have wrong weights.
    """
    answers = cast.sampler.sample(
        requests,
        samples=sampling.num_responses,
        max_new_tokens=sampling.max_new_tokens,
        max_attempts=sampling.max_attempts,
    )
    whole = [place for place, group in enumerate(answers) if None not in group]
    groups = [[answer for answer in answers[place] if answer is not None] for place in whole]
    asked = [requests[place] for place in whole]
    rows: list[dict[str, Any] | None] = [None] * len(requests)
    tally = GroupCounts(dropped_groups=len(requests) - len(whole))
    if whole:
        scores = _score(asked, [[answer.text for answer in group] for group in groups], cast)
        tally.add(_count(groups, scores))
        for place, request, group, numbers in zip(whole, asked, groups, scores, strict=True):
            rows[place] = _row(request, group, numbers)
    return rows, tally


def _score(
    requests: Sequence[Request], texts: Sequence[Sequence[str]], cast: Models
) -> list[list[tuple[float, float, float]]]:
    """For every response of every group: log P(a|x,y), log P(y|x), log Q'(y|a,x)."""
    log_p_a = cast.attribute.score_labels(requests, texts)
    log_p_y = cast.base.score_responses(without_label(requests), texts)
    log_q = cast.sampler.score_responses(requests, texts)
    columns = zip(log_p_a, log_p_y, log_q, strict=True)
    return [list(zip(*column, strict=True)) for column in columns]


def _count(
    groups: Sequence[Sequence[Response]], scores: Sequence[Sequence[tuple[float, float, float]]]
) -> GroupCounts:
    log_p_a, log_p_y, log_q = torch.tensor(scores, dtype=torch.float64).unbind(-1)
    effective = effective_sample_size(target_weights(log_p_a, log_p_y, log_q))
    answers = [answer for group in groups for answer in group]
    return GroupCounts(
        groups=len(groups),
        responses=len(answers),
        redrawn=sum(answer.attempts > 1 for answer in answers),
        retokenised=sum(answer.retokenised for answer in answers),
        duplicates=sum(len(group) - len({answer.text for answer in group}) for group in groups),
        effective=effective.sum().item(),
    )


def _row(
    request: Request, answers: Sequence[Response], scores: Sequence[tuple[float, float, float]]
) -> dict[str, Any]:
    asked = request.conversation
    return {
        "system": asked.system,
        "prompt_turns": [{"from": turn.speaker, "value": turn.value} for turn in asked.turns],
        "label": request.label,
        "responses": [
            {"from": "Assistant", "value": answer.text, **_numbers(score)}
            for answer, score in zip(answers, scores, strict=True)
        ],
    }


def _numbers(score: tuple[float, float, float]) -> dict[str, float]:
    # A log-prob is never above 0; only rounding in the softmax could make it so.
    return {
        name: round(min(0.0, value), DIGITS)
        for name, value in zip((LOG_P_A, LOG_P_Y, LOG_Q), score, strict=True)
    }
