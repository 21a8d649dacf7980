"""Rows of ``steerlm2_jsonl`` from sampled and scored groups, and what is counted on the way."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

import torch

from nemotron_style.steps.blocks.data.steerlm2_row import LOG_FIELDS
from nemotron_style.steps.blocks.generation.chat_sampler import Request, Response
from nemotron_style.steps.blocks.loss.steerlm2 import effective_sample_size, target_weights

DIGITS = 7

Scores = Sequence[Sequence[float]]
"""A number for each response of each group."""


@dataclass
class GroupCounts:
    """Counts over groups; those of shards add up to that of the whole."""

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
            total = getattr(self, field.name) + getattr(other, field.name)
            setattr(self, field.name, total)

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


def count_groups(
    groups: Sequence[Sequence[Response]], log_p_a: Scores, log_p_y: Scores, log_q: Scores
) -> GroupCounts:
    """The counts of complete groups with their scores."""
    if not groups:
        return GroupCounts()
    scores = torch.tensor([log_p_a, log_p_y, log_q], dtype=torch.float64)
    weights_PG = target_weights(*scores)
    responses = [response for group in groups for response in group]
    return GroupCounts(
        groups=len(groups),
        responses=len(responses),
        redrawn=sum(response.attempts > 1 for response in responses),
        retokenised=sum(response.retokenised for response in responses),
        duplicates=sum(len(group) - len({one.text for one in group}) for group in groups),
        effective=effective_sample_size(weights_PG).sum().item(),
    )


def make_row(
    request: Request,
    responses: Sequence[Response],
    log_p_a: Sequence[float],
    log_p_y: Sequence[float],
    log_q: Sequence[float],
) -> dict[str, Any]:
    """One row of the file: the request, and every response with its three log-probs."""
    conversation = request.conversation
    return {
        "system": conversation.system or "",
        "prompt_turns": [{"from": t.speaker, "value": t.value} for t in conversation.turns],
        "label": request.label,
        "responses": [
            {"from": "Assistant", "value": response.text, **_log_fields(scores)}
            for response, *scores in zip(responses, log_p_a, log_p_y, log_q, strict=True)
        ],
    }


def _log_fields(scores: Sequence[float]) -> dict[str, float]:
    # A log-prob is never above 0; only rounding in the softmax could make it so.
    values = [round(min(0.0, score), DIGITS) for score in scores]
    return dict(zip(LOG_FIELDS, values, strict=True))
