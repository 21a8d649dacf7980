"""The loss over held-out rows."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from nemotron_style.steps.blocks.training.microbatch import count_tokens, score_responses
from nemotron_style.steps.sft.chat.row import EncodedRow


def measure_loss(
    model: nn.Module,
    rows: Sequence[EncodedRow],
    *,
    max_responses: int,
    max_tokens: int | None = None,
) -> dict[str, float]:
    """Mean negative log-likelihood per target token, on every rank.

    ``loss`` is over all rows, ``loss_<type>`` over those of a type. ``max_responses`` are the rows
    of a pass, or ``max_tokens`` its tokens without padding.
    """
    logprobs_P1 = score_responses(model, rows, max_responses=max_responses, max_tokens=max_tokens)
    nll_by_row = (-logprobs_P1[:, 0]).tolist()
    losses = {"loss": sum(nll_by_row) / count_tokens(rows)}
    for kind in sorted({row.type for row in rows}):
        members = [index for index, row in enumerate(rows) if row.type == kind]
        nll = sum(nll_by_row[index] for index in members)
        losses[f"loss_{kind.lower()}"] = nll / count_tokens([rows[index] for index in members])
    return losses
