"""What a sampler does to logits is what Hugging Face's processors do, and log-probs say so."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from nemotron_style.runtime.errors import InputError
from nemotron_style.steps.blocks.generation.random_stream import sample_keys, uniforms
from nemotron_style.steps.blocks.generation.sampling_params import (
    SamplingParams,
    adjust_logits,
    sample_tokens,
)

ROWS, VOCABULARY = 6, 3000


def logits(rows: int = ROWS) -> torch.Tensor:
    return 4 * torch.randn(rows, VOCABULARY, generator=torch.Generator().manual_seed(2))


def processors(sampling: SamplingParams, prompt_width: int) -> Any:
    """The list that transformers' ``generate`` would make, in its order."""
    process = pytest.importorskip("transformers.generation.logits_process")
    chosen = []
    if sampling.repetition_penalty != 1:
        chosen.append(process.RepetitionPenaltyLogitsProcessor(sampling.repetition_penalty))
    if sampling.min_new_tokens:
        stops = list(sampling.stop_ids)
        chosen.append(
            process.MinNewTokensLengthLogitsProcessor(prompt_width, sampling.min_new_tokens, stops)
        )
    if sampling.temperature != 1:
        chosen.append(process.TemperatureLogitsWarper(sampling.temperature))
    if sampling.top_k:
        chosen.append(process.TopKLogitsWarper(sampling.top_k))
    if sampling.top_p < 1:
        chosen.append(process.TopPLogitsWarper(sampling.top_p))
    return process.LogitsProcessorList(chosen)


SETTINGS: dict[str, dict[str, Any]] = {
    "temperature": {"temperature": 0.6},
    "top_k": {"top_k": 50},
    "top_k beyond": {"top_k": 2 * VOCABULARY},
    "top_p": {"top_p": 0.9},
    "top_p of one token": {"top_p": 1e-6},
    "penalty": {"repetition_penalty": 1.7},
    "reward of repetition": {"repetition_penalty": 0.5},
    "minimum": {"min_new_tokens": 3, "stop_ids": (4, 5)},
    "all": {
        "temperature": 1.4,
        "top_k": 300,
        "top_p": 0.8,
        "repetition_penalty": 1.2,
        "min_new_tokens": 3,
        "stop_ids": (4, 5),
    },
}


@pytest.mark.parametrize("new_tokens", [2, 3])
@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_logits_are_those_of_hugging_face(settings: dict[str, Any], new_tokens: int) -> None:
    sampling = SamplingParams(max_new_tokens=9, **settings)
    given = torch.randint(VOCABULARY, (ROWS, 40), generator=torch.Generator().manual_seed(3))
    theirs = processors(sampling, prompt_width=40 - new_tokens)(given, logits())
    seen = torch.zeros(ROWS, VOCABULARY, dtype=torch.bool).scatter_(1, given, True)
    penal = sampling.repetition_penalty != 1
    short = torch.full((ROWS,), new_tokens < sampling.min_new_tokens)
    untouched = logits()
    ours = adjust_logits(untouched, sampling, seen_BV=seen if penal else None, short_B=short)
    assert torch.equal(untouched, logits())
    assert torch.equal(ours, theirs)


def test_equal_logits_are_cut_as_hugging_face_cuts_them() -> None:
    """16-bit logits have many ties; a nucleus may end in the middle of one."""
    coarse = (logits() / 2).round()
    sampling = SamplingParams(max_new_tokens=1, top_p=0.7)
    ours = adjust_logits(coarse, sampling, seen_BV=None, short_B=None)
    theirs = processors(sampling, 0)(torch.zeros(ROWS, 1, dtype=torch.long), coarse)
    assert torch.equal(ours.isinf().sum(1), theirs.isinf().sum(1))
    assert torch.equal(ours.sort().values, theirs.sort().values)


def test_only_short_rows_are_kept_from_stopping() -> None:
    sampling = SamplingParams(max_new_tokens=9, min_new_tokens=3, stop_ids=(4,))
    short = torch.tensor([True, False] * 3)
    adjusted = adjust_logits(logits(), sampling, seen_BV=None, short_B=short)
    assert adjusted[:, 4].isinf().tolist() == short.tolist()
    assert adjusted.isinf().sum() == 3


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_log_probs_are_those_of_the_distribution_drawn_from(settings: dict[str, Any]) -> None:
    sampling = SamplingParams(max_new_tokens=9, **settings)
    seen = torch.zeros(ROWS, VOCABULARY, dtype=torch.bool)
    seen[:, ::7] = True
    adjusted = adjust_logits(logits(), sampling, seen_BV=seen, short_B=None)
    numbers = uniforms(sample_keys(1, ROWS, 1).flatten(), 0)
    tokens, log_probs = sample_tokens(adjusted, sampling, numbers)
    wanted = adjusted.double().log_softmax(-1).gather(1, tokens[:, None])[:, 0]
    torch.testing.assert_close(log_probs, wanted, atol=1e-5, rtol=0)
    assert log_probs.isfinite().all()


def test_temperature_zero_takes_the_likeliest_and_the_smallest_id_of_equals() -> None:
    sampling = SamplingParams(max_new_tokens=1, temperature=0.0)
    given = logits()
    given[:, [17, 900]] = 100.0
    tokens, log_probs = sample_tokens(
        given, sampling, torch.full((ROWS,), 0.9, dtype=torch.float64)
    )
    assert tokens.tolist() == [17] * ROWS
    assert log_probs.tolist() == pytest.approx([-0.6931472] * ROWS)


def test_every_setting_out_of_range_is_named() -> None:
    with pytest.raises(InputError) as caught:
        SamplingParams(
            max_new_tokens=0, min_new_tokens=1, temperature=-1.0, top_k=-1, top_p=0.0,
            repetition_penalty=0.0, end_strings=["a", ""],
        )  # fmt: skip
    assert [problem.key for problem in caught.value.problems] == [
        "max_new_tokens",
        "min_new_tokens",
        "temperature",
        "top_k",
        "top_p",
        "repetition_penalty",
        "end_strings",
    ]
