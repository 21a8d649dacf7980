"""The engine says what the model says: same tokens, same log-probs, the right distribution."""

from __future__ import annotations

import pytest
import torch

from nemotron_style.runtime.errors import InputError, StepFailed
from nemotron_style.steps.blocks.architecture import ModelConfig
from nemotron_style.steps.blocks.draw import choose, sample_keys, uniforms
from nemotron_style.steps.blocks.generate import Engine
from nemotron_style.steps.blocks.logprob import response_logprobs
from nemotron_style.steps.blocks.model import build_model, unwrap
from nemotron_style.steps.blocks.packing import Group, pack
from nemotron_style.steps.blocks.parallel import initialize

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


@torch.no_grad()
def next_logprobs(model: torch.nn.Module, tokens: list[int]) -> torch.Tensor:
    """Log-probs of every token that may follow, by one plain forward of the whole text."""
    packed = pack([Group(tokens[:-1], [[tokens[-1], 0]])])  # the 0 is never fed
    states = unwrap(model).hidden(packed)
    return torch.log_softmax(unwrap(model).head(states[len(tokens) - 1, 0]).float(), -1)


def test_greedy_is_a_plain_forward_token_by_token(model: torch.nn.Module, engine: Engine) -> None:
    prompts = PROMPTS[:3]
    drawn = engine.generate(
        prompts, samples_per_prompt=2, max_new_tokens=9, temperature=0.0, stop_ids=[STOP], seed=1
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


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_logprob_is_that_of_training_at_temperature_one(
    model: torch.nn.Module, engine: Engine, temperature: float
) -> None:
    drawn = engine.generate(
        PROMPTS, samples_per_prompt=5, max_new_tokens=12, temperature=temperature,
        stop_ids=[STOP], seed=5,
    )  # fmt: skip
    groups = [
        Group(prompt, [sample.tokens for sample in samples])
        for prompt, samples in zip(PROMPTS, drawn, strict=True)
    ]
    with torch.no_grad():
        trained = response_logprobs(model, pack(groups)).double().sum(-1)
    sampled = torch.tensor([[sample.logprob for sample in samples] for samples in drawn])
    torch.testing.assert_close(sampled.double(), trained, atol=1e-4, rtol=0)


def test_a_sample_ends_with_its_first_stop_token_or_is_unfinished(engine: Engine) -> None:
    drawn = engine.generate(
        PROMPTS, samples_per_prompt=16, max_new_tokens=8, stop_ids=[STOP, 5], seed=3
    )
    samples = [sample for group in drawn for sample in group]
    assert {sample.finished for sample in samples} == {True, False}
    for sample in samples:
        stops = [token in (STOP, 5) for token in sample.tokens]
        assert sum(stops) == int(sample.finished)
        assert stops[-1] == sample.finished
        assert len(sample.tokens) == 8 or sample.finished


def test_samples_do_not_depend_on_their_batch(model: torch.nn.Module) -> None:
    options = {"samples_per_prompt": 3, "max_new_tokens": 10, "stop_ids": [STOP]}
    seeds = [101, 202, 303, 404]
    together = Engine(model, CONFIG).generate(PROMPTS, seed=seeds, **options)
    one_by_one = Engine(model, CONFIG, max_rows=1)
    assert [[s.tokens for s in group] for group in together] == [
        [s.tokens for s in group]
        for group in one_by_one.generate(PROMPTS[::-1], seed=seeds[::-1], **options)[::-1]
    ]
    fewer = Engine(model, CONFIG).generate(
        PROMPTS[1:2], seed=seeds[1:2], **{**options, "samples_per_prompt": 2}
    )
    assert [s.tokens for s in fewer[0]] == [s.tokens for s in together[1][:2]]


def test_the_seed_names_the_samples(engine: Engine) -> None:
    def draw(seed: int) -> list[list[int]]:
        same = [PROMPTS[0], PROMPTS[0]]
        drawn = engine.generate(
            same, samples_per_prompt=4, max_new_tokens=10, stop_ids=[STOP], seed=seed
        )
        return [sample.tokens for group in drawn for sample in group]

    assert draw(1) == draw(1)
    assert draw(1) != draw(2)
    assert draw(1)[:4] != draw(1)[4:]


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_first_tokens_follow_the_softmax(
    model: torch.nn.Module, engine: Engine, temperature: float
) -> None:
    count = 20_000
    drawn = engine.generate(
        [PROMPTS[0]], samples_per_prompt=count, max_new_tokens=1, temperature=temperature,
        stop_ids=[STOP], seed=9,
    )  # fmt: skip
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
    options = {"samples_per_prompt": 1, "max_new_tokens": 1, "temperature": 0.0, "stop_ids": []}
    before = engine.generate([[3, 4]], seed=0, **options)[0][0].tokens[0]
    wanted = (before + 1) % CONFIG.vocab_size
    head = unwrap(model).output_layer.weight
    kept = head.detach().clone()
    with torch.no_grad():
        head[[before, wanted]] = head[[wanted, before]]
        after = engine.generate([[3, 4]], seed=0, **options)[0][0].tokens[0]
        head.copy_(kept)
    assert after == wanted


def test_tied_embeddings_are_the_head() -> None:
    initialize(seed=1)
    config = CONFIG.model_copy(update={"tie_embeddings": True})
    model = build_model(config, ddp=False)
    sample = Engine(model, config).generate(
        [[3, 4, 5]], samples_per_prompt=1, max_new_tokens=6, stop_ids=[], seed=4
    )[0][0]
    with torch.no_grad():
        trained = response_logprobs(model, pack([Group([3, 4, 5], [sample.tokens])])).sum().item()
    assert sample.logprob == pytest.approx(trained, abs=1e-4)


def test_refuses_what_does_not_fit(engine: Engine) -> None:
    options = {"samples_per_prompt": 1, "stop_ids": [STOP], "seed": 1}
    with pytest.raises(InputError, match="40 prompt tokens \\+ 9 new ones"):
        engine.generate([[3] * 40], max_new_tokens=9, **options)
    with pytest.raises(InputError, match="without tokens"):
        engine.generate([[3], []], max_new_tokens=9, **options)


def test_broken_weights_are_told(model: torch.nn.Module, engine: Engine) -> None:
    norm = unwrap(model).decoder.final_layernorm.weight
    kept = norm.detach().clone()
    with torch.no_grad():
        norm.fill_(float("nan"))
        with pytest.raises(StepFailed, match="not finite"):
            engine.generate([[3]], samples_per_prompt=1, max_new_tokens=2, stop_ids=[], seed=1)
        norm.copy_(kept)


def test_uniforms_are_uniform_and_unrelated() -> None:
    keys = sample_keys(7, 50_000, 1).flatten()
    numbers = torch.stack([uniforms(keys, position) for position in range(3)])
    assert numbers.min() >= 0
    assert numbers.max() < 1
    assert numbers.mean().item() == pytest.approx(0.5, abs=0.005)
    assert numbers.var().item() == pytest.approx(1 / 12, abs=0.002)
    related = torch.corrcoef(torch.cat([numbers, numbers[:1].roll(1, 1)])) - torch.eye(4)
    assert related.abs().max().item() < 0.02


def test_no_token_without_probability_is_drawn() -> None:
    logits = torch.full((5000, 6), float("-inf"))
    logits[:, 2], logits[:, 4] = 0.0, 1.0
    chosen = choose(logits, sample_keys(1, 5000, 1).flatten(), 0, temperature=1.0)
    assert set(chosen.tolist()) == {2, 4}
    assert (chosen == 4).double().mean().item() == pytest.approx(0.731, abs=0.03)
