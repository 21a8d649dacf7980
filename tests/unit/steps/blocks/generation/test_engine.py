"""The engine says what the model says: same tokens, same log-probs, the right distribution."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from card import card
from nemotron_style.runtime.errors import InputError, StepFailed
from nemotron_style.steps.blocks.checkpoint.hf_config import build_settings
from nemotron_style.steps.blocks.checkpoint.hf_weights import export_weights
from nemotron_style.steps.blocks.checkpoint.model_checkpoint import full_weights
from nemotron_style.steps.blocks.generation.engine import Engine, Sample
from nemotron_style.steps.blocks.generation.sampling_params import SamplingParams
from nemotron_style.steps.blocks.model.language_model import build_model, unwrap
from nemotron_style.steps.blocks.model.logprob import response_logprobs
from nemotron_style.steps.blocks.model.parallel import initialize
from nemotron_style.steps.blocks.model.prefix_packing import Group, pack
from nemotron_style.steps.blocks.settings.model_config import ModelConfig

CONFIG = ModelConfig(
    num_layers=2,
    hidden_size=32,
    ffn_hidden_size=64,
    num_attention_heads=4,
    num_query_groups=2,
    vocab_size=24,
    max_sequence_length=48,
)
PROMPTS = [[3, 4, 5], [6, 7, 8, 9, 10], [11, 12, 13], [14]]
STOP = 2


@pytest.fixture(scope="module")
def model() -> torch.nn.Module:
    initialize(seed=1)
    model = build_model(CONFIG, ddp=False)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(4.0 if parameter.dim() > 1 else 1.0)  # far from uniform
    return model


@pytest.fixture
def engine(model: torch.nn.Module) -> Engine:
    return Engine(model, CONFIG)


def flat(groups: list[list[Sample]]) -> list[Sample]:
    return [sample for group in groups for sample in group]


@torch.no_grad()
def next_logprobs(model: torch.nn.Module, tokens: list[int]) -> torch.Tensor:
    """Log-probs of every token that may follow, by one plain forward of the whole text."""
    packed = pack([Group(tokens[:-1], [[tokens[-1], 0]])])  # the 0 is never fed
    states = unwrap(model).hidden(packed)
    return torch.log_softmax(unwrap(model).head(states[len(tokens) - 1, 0]).float(), -1)


def test_greedy_is_a_plain_forward_token_by_token(model: torch.nn.Module, engine: Engine) -> None:
    prompts = PROMPTS[:3]
    drawn = engine.generate(
        prompts,
        SamplingParams(max_new_tokens=9, temperature=0.0, stop_ids=[STOP]),
        samples_per_prompt=2,
        seed=1,
    )
    for prompt, (sample, twin) in zip(prompts, drawn, strict=True):
        assert sample.tokens == twin.tokens
        tokens, total = list(prompt), 0.0
        for token in sample.tokens:
            logprobs = next_logprobs(model, tokens)
            assert token == logprobs.argmax().item()
            total += logprobs[token].item()
            tokens.append(token)
        assert sample.logprob == pytest.approx(total, abs=1e-4)


def test_greedy_is_hugging_face_over_64_tokens() -> None:
    """Prompts of different lengths, decoded side by side in few slots."""
    transformers = pytest.importorskip("transformers")
    initialize(seed=1)
    config = CONFIG.model_copy(
        update={"num_layers": 3, "hidden_size": 48, "vocab_size": 300, "max_sequence_length": 80}
    )
    model = build_model(config, ddp=False)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(6.0 if parameter.dim() > 1 else 1.0)
    settings = build_settings(config, dtype="float32", token_ids={})
    other = transformers.LlamaForCausalLM(transformers.LlamaConfig(**settings)).eval()
    weights = export_weights(full_weights(model), config)
    other.load_state_dict({name: part for parts in weights for name, part in parts.items()})
    other.generation_config.eos_token_id = None
    drawn = Engine(model, config, max_rows=3).generate(
        PROMPTS, SamplingParams(max_new_tokens=64, temperature=0.0), seed=0
    )
    for prompt, [sample] in zip(PROMPTS, drawn, strict=True):
        given = torch.tensor([prompt])
        options = {"do_sample": False, "max_new_tokens": 64, "pad_token_id": 0}
        found = other.generate(given, attention_mask=torch.ones_like(given), **options)
        assert sample.tokens == found[0, len(prompt) :].tolist()
        assert len(set(sample.tokens)) > 5


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_log_probs_are_those_of_training(
    model: torch.nn.Module, engine: Engine, temperature: float
) -> None:
    sampling = SamplingParams(max_new_tokens=12, temperature=temperature, stop_ids=[STOP])
    drawn = engine.generate(PROMPTS, sampling, samples_per_prompt=5, seed=5)
    packed = pack(
        [
            Group(prompt, [sample.tokens for sample in samples])
            for prompt, samples in zip(PROMPTS, drawn, strict=True)
        ]
    )
    with torch.no_grad():
        trained = response_logprobs(model, packed, temperature=temperature)
    for row, samples in zip(trained.tolist(), drawn, strict=True):
        for wanted, sample in zip(row, samples, strict=True):
            assert len(sample.log_probs) == len(sample.tokens)
            assert sample.log_probs == pytest.approx(wanted[: len(sample.tokens)], abs=1e-5)
            assert sample.logprob == pytest.approx(sum(wanted), abs=1e-4)


def test_a_sample_ends_with_its_first_stop_token_or_is_unfinished(engine: Engine) -> None:
    drawn = engine.generate(
        PROMPTS, SamplingParams(max_new_tokens=8, stop_ids=[STOP, 5]), samples_per_prompt=16, seed=3
    )
    samples = [sample for group in drawn for sample in group]
    assert {sample.finish for sample in samples} == {"stop", "length"}
    for sample in samples:
        stops = [token in (STOP, 5) for token in sample.tokens]
        assert sum(stops) == int(sample.finished)
        assert stops[-1] == sample.finished
        assert len(sample.tokens) == 8 or sample.finished


SETTINGS = {
    "plain": {},
    "filtered": {"temperature": 0.8, "top_k": 12, "top_p": 0.9, "repetition_penalty": 1.3},
    "short and long": {"min_new_tokens": 4, "temperature": 1.5},
}


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
@pytest.mark.parametrize("slots", [1, 2, 3, 5, 64])
def test_samples_do_not_depend_on_their_neighbours(
    model: torch.nn.Module, slots: int, settings: dict[str, Any]
) -> None:
    """The same tokens, and log-probs to 1e-5, whatever is decoded beside a row and in whose slot.

    With few slots rows of different lengths stand side by side, in slots that others left.
    """
    sampling = SamplingParams(**{"max_new_tokens": 10, "stop_ids": [STOP, 5], **settings})
    seeds = [101, 202, 303, 404]
    alone = [
        Engine(model, CONFIG).generate([prompt], sampling, samples_per_prompt=7, seed=[seed])[0]
        for prompt, seed in zip(PROMPTS, seeds, strict=True)
    ]
    engine = Engine(model, CONFIG, max_rows=slots)
    beside = engine.generate(PROMPTS[::-1], sampling, samples_per_prompt=7, seed=seeds[::-1])[::-1]
    for one, other in zip(flat(alone), flat(beside), strict=True):
        assert one.tokens == other.tokens
        assert one.finish == other.finish
        assert one.log_probs == pytest.approx(other.log_probs, abs=1e-5)
    fewer = engine.generate(PROMPTS[1:2], sampling, samples_per_prompt=2, seed=seeds[1:2])
    assert [s.tokens for s in fewer[0]] == [s.tokens for s in alone[1][:2]]


def test_a_freed_slot_is_used_at_once(model: torch.nn.Module) -> None:
    """As many steps as a perfect packing of the rows needs, not one round per longest row."""
    sampling = SamplingParams(max_new_tokens=30, stop_ids=[STOP, 5, 7])
    engine = Engine(model, CONFIG, max_rows=4)
    live: list[int] = []
    advance = engine.decoder.advance

    def counted(tokens: list[int], *rest: Any) -> torch.Tensor:
        live.append(len(tokens))
        return advance(tokens, *rest)

    engine.decoder.advance = counted  # type: ignore[method-assign]
    drawn = engine.generate([[3, 4]], sampling, samples_per_prompt=40, seed=1)
    fed = sum(len(sample.tokens) - 1 for sample in drawn[0])
    assert sum(live) == fed
    assert set(live[:-30]) == {4}


def test_each_prompt_is_computed_once(model: torch.nn.Module) -> None:
    engine = Engine(model, CONFIG, max_rows=3)
    seen: list[list[int]] = []
    prefill = engine.decoder.prefill

    def counted(tokens: torch.Tensor) -> Any:
        seen.extend(tokens.tolist())
        return prefill(tokens)

    engine.decoder.prefill = counted  # type: ignore[method-assign]
    engine.generate(PROMPTS, SamplingParams(max_new_tokens=4), samples_per_prompt=5, seed=1)
    assert sorted(seen) == sorted(PROMPTS)


def test_the_seed_names_the_samples(engine: Engine) -> None:
    def draw(seed: int) -> list[list[int]]:
        same = [PROMPTS[0], PROMPTS[0]]
        sampling = SamplingParams(max_new_tokens=10, stop_ids=[STOP])
        drawn = engine.generate(same, sampling, samples_per_prompt=4, seed=seed)
        return [sample.tokens for group in drawn for sample in group]

    assert draw(1) == draw(1)
    assert draw(1) != draw(2)
    assert draw(1)[:4] != draw(1)[4:]


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_first_tokens_follow_the_softmax(
    model: torch.nn.Module, engine: Engine, temperature: float
) -> None:
    count = 20_000
    sampling = SamplingParams(max_new_tokens=1, temperature=temperature)
    drawn = engine.generate([PROMPTS[0]], sampling, samples_per_prompt=count, seed=9)
    observed = torch.bincount(
        torch.tensor([sample.tokens[0] for sample in drawn[0]]), minlength=CONFIG.vocab_size
    )
    logprobs = next_logprobs(model, PROMPTS[0])
    expected = torch.softmax(logprobs / temperature, -1) * count
    common = expected >= 5
    statistic = ((observed - expected) ** 2 / expected)[common].sum().item()
    freedom = int(common.sum()) - 1
    # The mean of chi-square is its freedom, its deviation sqrt(2 freedom): four of them is 1e-4.
    assert abs(statistic - freedom) < 4 * (2 * freedom) ** 0.5
    assert freedom > 5


def test_weights_are_read_as_they_are_now(model: torch.nn.Module) -> None:
    engine = Engine(model, CONFIG)
    greedy = SamplingParams(max_new_tokens=1, temperature=0.0)
    before = engine.generate([[3, 4]], greedy, seed=0)[0][0].tokens[0]
    wanted = (before + 1) % CONFIG.vocab_size
    head = unwrap(model).output_layer.weight
    kept = head.detach().clone()
    with torch.no_grad():
        head[[before, wanted]] = head[[wanted, before]]
        after = engine.generate([[3, 4]], greedy, seed=0)[0][0].tokens[0]
        head.copy_(kept)
    assert after == wanted


def test_tied_embeddings_are_the_head() -> None:
    initialize(seed=1)
    config = CONFIG.model_copy(update={"tie_embeddings": True})
    model = build_model(config, ddp=False)
    sampling = SamplingParams(max_new_tokens=6)
    [[sample]] = Engine(model, config).generate([[3, 4, 5]], sampling, seed=4)
    with torch.no_grad():
        trained = response_logprobs(model, pack([Group([3, 4, 5], [sample.tokens])])).sum().item()
    assert sample.logprob == pytest.approx(trained, abs=1e-4)


def test_every_prompt_that_does_not_fit_is_named(engine: Engine) -> None:
    with pytest.raises(InputError) as caught:
        engine.generate([[3] * 40, [3], [], [4] * 41], SamplingParams(max_new_tokens=9), seed=1)
    problems = caught.value.problems
    assert [problem.where for problem in problems] == ["prompt 0", "prompt 2", "prompt 3"]
    assert problems[0].got == "40 prompt tokens + 9 new ones"
    assert problems[2].got == "41 prompt tokens + 9 new ones"
    full = engine.generate([[3] * 39], SamplingParams(max_new_tokens=9), seed=1)
    assert len(full[0][0].tokens) == 9


def test_no_prompts_give_no_samples(engine: Engine) -> None:
    assert engine.generate([], SamplingParams(max_new_tokens=3), seed=1) == []


def test_broken_weights_are_told(model: torch.nn.Module, engine: Engine) -> None:
    norm = unwrap(model).decoder.final_layernorm.weight
    kept = norm.detach().clone()
    with torch.no_grad():
        norm.fill_(float("nan"))
        with pytest.raises(StepFailed, match="not finite"):
            engine.generate([[3]], SamplingParams(max_new_tokens=2), seed=1)
        norm.copy_(kept)


def test_no_row_stops_before_its_minimum(engine: Engine) -> None:
    sampling = SamplingParams(
        max_new_tokens=9, min_new_tokens=5, stop_ids=[STOP, 5, 7], temperature=2.0
    )
    drawn = engine.generate(PROMPTS, sampling, samples_per_prompt=20, seed=2)
    lengths = [len(sample.tokens) for group in drawn for sample in group]
    assert min(lengths) == 6  # five tokens, and then the stop token
    assert max(lengths) == 9


def test_end_strings_are_found_across_tokens(model: torch.nn.Module) -> None:
    """Every token is a piece of text; "ab" may be one token, or the end of one and the next."""
    pieces = ["", "a", "b", "ab", "cab", "bc", "\u00e9a", "c"] + ["x", "ya", "bz", "a a"] * 4

    def text(ids: list[int]) -> str:
        return "".join(pieces[i] for i in ids)

    engine = Engine(model, CONFIG, decode=text)
    sampling = SamplingParams(max_new_tokens=12, end_strings=["ab", "zx"], temperature=1.5)
    free = SamplingParams(max_new_tokens=12, temperature=1.5)
    options: dict[str, Any] = {"samples_per_prompt": 40, "seed": 8}
    ended = flat(engine.generate(PROMPTS, sampling, **options))
    whole = flat(engine.generate(PROMPTS, free, **options))
    assert {sample.finish for sample in ended} == {"stop", "length"}
    across = 0
    for sample, other in zip(ended, whole, strict=True):
        assert sample.tokens == other.tokens[: len(sample.tokens)]
        before, after = text(sample.tokens[:-1]), text(sample.tokens)
        assert not any(end in before for end in sampling.end_strings)
        assert any(end in after for end in sampling.end_strings) == sample.finished
        across += sample.finished and not any(
            end in pieces[sample.tokens[-1]] for end in sampling.end_strings
        )
    assert across > 10


def test_an_end_string_counts_from_the_minimum_on(model: torch.nn.Module) -> None:
    engine = Engine(model, CONFIG, decode=lambda ids: "." * len(ids))
    sampling = SamplingParams(max_new_tokens=9, min_new_tokens=4, end_strings=["."])
    [[sample]] = engine.generate([[3]], sampling, seed=1)
    assert (len(sample.tokens), sample.finish) == (4, "stop")


def test_bfloat16_decodes_with_the_rounded_weights(model: torch.nn.Module) -> None:
    half = Engine(model, CONFIG, dtype=torch.bfloat16)
    drawn = half.generate(PROMPTS, SamplingParams(max_new_tokens=12), samples_per_prompt=8, seed=4)
    groups = [
        Group(prompt, [sample.tokens for sample in samples])
        for prompt, samples in zip(PROMPTS, drawn, strict=True)
    ]
    with torch.no_grad():
        wide = response_logprobs(model, pack(groups))
    found = torch.tensor([[sample.log_probs for sample in samples] for samples in drawn])
    assert (found - wide).abs().mean() < 0.1
    assert (found - wide).abs().max() > 1e-4
    assert next(model.parameters()).dtype is torch.float32


@pytest.mark.parametrize(
    "sampling",
    [
        SamplingParams(max_new_tokens=9, temperature=0.0, stop_ids=[STOP]),
        SamplingParams(
            max_new_tokens=9,
            min_new_tokens=4,
            temperature=0.7,
            top_k=9,
            top_p=0.9,
            repetition_penalty=1.2,
            stop_ids=[STOP],
        ),
    ],
    ids=["greedy", "every setting"],
)
def test_on_a_card_the_samples_are_those_of_the_cpu(
    model: torch.nn.Module, sampling: SamplingParams
) -> None:
    plain = flat(Engine(model, CONFIG).generate(PROMPTS, sampling, samples_per_prompt=3, seed=1))
    with card():
        there = build_model(CONFIG, ddp=False)
        with torch.no_grad():
            for weight, plain_weight in zip(there.parameters(), model.parameters(), strict=True):
                weight.copy_(plain_weight)
        samples = flat(
            Engine(there, CONFIG, max_rows=5).generate(
                PROMPTS, sampling, samples_per_prompt=3, seed=1
            )
        )
    assert [one.tokens for one in samples] == [one.tokens for one in plain]
    for one, other in zip(samples, plain, strict=True):
        assert one.log_probs == pytest.approx(other.log_probs, abs=1e-5)
