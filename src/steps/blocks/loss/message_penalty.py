"""Fixed advantages for messages with a fault that no reward should make up for.

Source: NeMo-RL's ``invalid_tool_call_advantage`` and ``malformed_thinking_advantage``; they take
the place of the advantage on the message's own tokens, before advantages are clipped.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class SpokenMessage:
    """A message of a rollout: whose, how long, and what is wrong with it."""

    role: str
    tokens: int
    is_invalid_tool_call: bool = False
    has_malformed_thinking: bool = False


def penalise_messages(
    advantages_T: Tensor,
    messages: Sequence[SpokenMessage],
    *,
    invalid_tool_call: float | None,
    malformed_thinking: float | None,
) -> Tensor:
    """The advantages of one row with those of flagged assistant messages replaced.

    The messages lie one after the other from the first token on. None switches a penalty off;
    where both apply, that of malformed thinking stands.
    """
    changed_T, begin = advantages_T.clone(), 0
    for message in messages:
        end = begin + message.tokens
        if message.role == "assistant":
            if message.is_invalid_tool_call and invalid_tool_call is not None:
                changed_T[begin:end] = invalid_tool_call
            if message.has_malformed_thinking and malformed_thinking is not None:
                changed_T[begin:end] = malformed_thinking
        begin = end
    return changed_T


def penalty_metrics(messages: Sequence[SpokenMessage]) -> dict[str, float]:
    """How many assistant messages have each fault, and what share of them."""
    spoken = [message for message in messages if message.role == "assistant"]
    tool_calls = sum(message.is_invalid_tool_call for message in spoken)
    thinking = sum(message.has_malformed_thinking for message in spoken)
    total = max(len(spoken), 1)
    return {
        "invalid_tool_call_rate": tool_calls / total,
        "malformed_thinking_rate": thinking / total,
        "num_invalid_tool_calls": tool_calls,
        "num_malformed_thinking": thinking,
        "num_assistant_messages": len(spoken),
    }
