"""What vLLM is asked for: sampling settings in its words, and what it cannot be asked for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from nemotron_style.runtime.errors import InputError, Problem
from nemotron_style.steps.blocks.generation.random_stream import sample_keys
from nemotron_style.steps.blocks.generation.sampling_params import SamplingParams

LOWEST_TEMPERATURE = 0.01
"""Below it vLLM samples at another temperature than it was told."""


def sampling_settings(sampling: SamplingParams) -> dict[str, Any]:
    """Arguments of vLLM's ``SamplingParams``, without a seed.

    Token ids alone end a response, ``ignore_eos`` sees to that; text is made only where an end
    string has to be found in it. Raises InputError for a temperature that vLLM would change.
    """
    if 0 < sampling.temperature < LOWEST_TEMPERATURE:
        raise InputError(
            Problem(
                key="temperature",
                what="vLLM does not sample at so low a temperature",
                got=repr(sampling.temperature),
                allowed=f"0, or {LOWEST_TEMPERATURE} and more",
                fix="take 0, which draws the likeliest token, or generation=in_process",
            )
        )
    return {
        "max_tokens": sampling.max_new_tokens,
        "min_tokens": sampling.min_new_tokens,
        "temperature": sampling.temperature,
        "top_k": sampling.top_k,
        "top_p": sampling.top_p,
        "repetition_penalty": sampling.repetition_penalty,
        "stop_token_ids": list(sampling.stop_ids),
        "stop": list(sampling.end_strings),
        "ignore_eos": True,
        "logprobs": 0,  # those of the drawn token and of no other
        "detokenize": bool(sampling.end_strings),
        "skip_special_tokens": False,
        "spaces_between_special_tokens": False,
        "include_stop_str_in_output": True,
    }


def sample_seeds(seed: int | Sequence[int], prompts: int, samples: int) -> list[list[int]]:
    """A seed for every sample, ``[prompts][samples]``, from 0 to 2**63 - 1.

    They are the names of the in-process engine's random streams, so what is drawn belongs to the
    sample here too; vLLM makes other numbers of them.
    """
    keys = sample_keys(seed, prompts, samples) & (2**63 - 1)
    return keys.tolist()
