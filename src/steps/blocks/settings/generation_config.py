"""Who samples for a step that trains on its own samples; readable without torch."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from nemotron_style.runtime.errors import Problem

EngineName = Literal["in_process", "vllm"]

LOWEST_VLLM_TEMPERATURE = 0.01
"""Below it vLLM samples at another temperature than it was told."""


def sampler_limit(engine: EngineName, *, half: bool) -> float:
    """The largest ``token_mult_prob_error`` of sampler and trainer that is taken for rounding.

    1.1 is what NeMo-RL accepts of its runs with vLLM, which decode in bfloat16.
    """
    if engine == "vllm":
        return 1.1
    return 1.05 if half else 1.001


def check_temperature(engine: EngineName, temperature: float, *, key: str) -> Iterator[Problem]:
    """A temperature that vLLM would change; 0 draws the likeliest token."""
    if engine == "vllm" and 0 < temperature < LOWEST_VLLM_TEMPERATURE:
        yield Problem(
            key=key,
            what="vLLM does not sample at so low a temperature",
            got=repr(temperature),
            allowed=f"0, or {LOWEST_VLLM_TEMPERATURE} and more",
            fix="raise it, or sample with the engine in_process",
        )
