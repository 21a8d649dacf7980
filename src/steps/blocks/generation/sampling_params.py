"""From logits to tokens: the adjusted distribution, and a sample from it.

The steps and their order are those of Hugging Face's logits processors: repetition penalty,
minimum length, temperature, top-k, top-p. The log-prob of a token is taken under the distribution
it was sampled from.

Shape legend: ``_B`` rows, ``_V`` vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from nemotron_style.runtime.errors import InputError, Problem, raise_all
from nemotron_style.steps.blocks.generation.random_stream import inverse_cdf


@dataclass(frozen=True, kw_only=True)
class SamplingParams:
    """How responses are sampled, and where they end.

    Temperature 0 takes the likeliest token, the smallest id on a tie; ``top_k`` 0 and ``top_p`` 1
    keep every token. ``repetition_penalty`` divides positive logits of tokens that the prompt or
    the response already holds, and multiplies negative ones. A response ends with a token of
    ``stop_ids``, with a token that completes one of ``end_strings`` in its text, or at
    ``max_new_tokens``; before ``min_new_tokens`` no stop token can be sampled and no end string
    counts. Raises InputError naming every setting out of its range.
    """

    max_new_tokens: int
    min_new_tokens: int = 0
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    repetition_penalty: float = 1.0
    stop_ids: Sequence[int] = ()
    end_strings: Sequence[str] = ()

    def __post_init__(self) -> None:
        ranges = {
            "max_new_tokens": (self.max_new_tokens >= 1, "1 or more"),
            "min_new_tokens": (
                0 <= self.min_new_tokens <= self.max_new_tokens,
                f"0 to max_new_tokens, which is {self.max_new_tokens}",
            ),
            "temperature": (0 <= self.temperature < float("inf"), "0 or more"),
            "top_k": (self.top_k >= 0, "0 (off) or more"),
            "top_p": (0 < self.top_p <= 1, "above 0, up to 1 (off)"),
            "repetition_penalty": (0 < self.repetition_penalty < float("inf"), "above 0"),
            "end_strings": (all(self.end_strings), "strings that are not empty"),
        }
        problems = [
            Problem(key=key, what="out of range", got=repr(getattr(self, key)), allowed=allowed)
            for key, (fits, allowed) in ranges.items()
            if not fits
        ]
        raise_all(InputError, problems)


def adjust_logits(
    logits_BV: Tensor, sampling: SamplingParams, *, seen_BV: Tensor | None, short_B: Tensor | None
) -> Tensor:
    """The logits of the sampling distribution; ``logits_BV`` themselves stay as they are.

    ``seen_BV`` marks the tokens that a penalty applies to, ``short_B`` the rows that may not stop
    yet. At temperature 0 it is the distribution whose likeliest token is taken, at temperature 1.
    """
    if seen_BV is not None:
        logits_BV = _penalise(logits_BV, seen_BV, sampling.repetition_penalty)
    if short_B is not None:
        stops = torch.tensor(list(sampling.stop_ids), dtype=torch.long, device=logits_BV.device)
        # -inf where a row is short and a token stops
        barred = torch.zeros_like(logits_BV, dtype=torch.bool).index_fill_(1, stops, True)
        logits_BV = logits_BV.masked_fill(barred & short_B[:, None], -torch.inf)
    if sampling.temperature == 0:
        return logits_BV
    if sampling.temperature != 1:
        logits_BV = logits_BV / sampling.temperature
    if 0 < sampling.top_k < logits_BV.shape[1]:
        least = logits_BV.topk(sampling.top_k).values[:, -1:]
        logits_BV = logits_BV.masked_fill(logits_BV < least, -torch.inf)
    return _nucleus(logits_BV, sampling.top_p) if sampling.top_p < 1 else logits_BV


def sample_tokens(
    logits_BV: Tensor, sampling: SamplingParams, numbers_B: Tensor, room_BV: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """A token of each row of adjusted logits, and its log-prob (float64), both ``[B]``.

    ``numbers_B`` are uniform in [0, 1). A log-prob that is not finite tells of logits that are
    not numbers. ``room_BV`` is overwritten: malloc hands large pieces back to the system and takes
    them anew page by page, which for 32 rows of 8192 tokens costs 2.7 ms a call where the
    arithmetic costs 0.4.
    """
    largest_B1 = logits_BV.amax(-1, keepdim=True)
    # exp of the largest logit is 1, so neither the weights nor their sum can overflow
    weights_BV = torch.sub(logits_BV, largest_B1, out=room_BV).exp_()
    if sampling.temperature == 0:
        tokens_B1 = logits_BV.argmax(-1, keepdim=True)
        sums_B1 = weights_BV.sum(-1, keepdim=True, dtype=torch.float64)
    else:
        tokens_B1, sums_B1 = inverse_cdf(weights_BV, numbers_B[:, None])
        # logits that are not numbers give an id outside: the log-prob below reports them
        tokens_B1 = tokens_B1.clamp_(max=logits_BV.shape[1] - 1)
    logprobs_B1 = (logits_BV.gather(1, tokens_B1) - largest_B1).double() - sums_B1.log()
    return tokens_B1[:, 0], logprobs_B1[:, 0]


def _penalise(logits_BV: Tensor, seen_BV: Tensor, penalty: float) -> Tensor:
    weaker = torch.where(logits_BV < 0, logits_BV * penalty, logits_BV / penalty)
    return torch.where(seen_BV, weaker, logits_BV)


def _nucleus(logits_BV: Tensor, top_p: float) -> Tensor:
    """Keep the likeliest tokens that reach ``top_p`` together; of equals the larger ids."""
    ascending, order = torch.sort(logits_BV, stable=True)
    unlikely = ascending.softmax(-1).cumsum(-1) <= 1 - top_p
    unlikely[:, -1] = False  # rounding in the sum must not drop the likeliest token
    return logits_BV.masked_fill(unlikely.scatter(1, order, unlikely), -torch.inf)


def check_prompts(prompts: Sequence[Sequence[int]], sampling: SamplingParams, *, room: int) -> None:
    """Raise InputError naming every prompt that is empty, or too long for ``room`` tokens."""
    problems = []
    for number, prompt in enumerate(prompts):
        if not prompt:
            what = "a prompt without tokens cannot be continued"
            problems.append(Problem(where=f"prompt {number}", what=what))
        elif len(prompt) + sampling.max_new_tokens > room:
            problems.append(
                Problem(
                    where=f"prompt {number}",
                    what="prompt and response do not fit the model",
                    got=f"{len(prompt)} prompt tokens + {sampling.max_new_tokens} new ones",
                    allowed=f"max_sequence_length {room}",
                    fix="shorten the prompt or max_new_tokens",
                )
            )
    raise_all(InputError, problems)
