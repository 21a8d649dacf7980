"""Packed batches against one plain forward per sequence, and against Hugging Face's Llama."""

import random

import pytest
import torch
import torch.nn.functional as F

from nemotron_style.steps.blocks.checkpoint.hf_config import build_settings
from nemotron_style.steps.blocks.checkpoint.hf_weights import export_weights
from nemotron_style.steps.blocks.checkpoint.model_checkpoint import full_weights
from nemotron_style.steps.blocks.model import logprob, parallel
from nemotron_style.steps.blocks.model.language_model import build_model, unwrap
from nemotron_style.steps.blocks.model.logprob import label_logprobs, response_logprobs
from nemotron_style.steps.blocks.model.prefix_packing import Group, Row, pack, pack_rows
from nemotron_style.steps.blocks.settings.model_config import ModelConfig
from nemotron_style.steps.blocks.training.microbatch import accumulate_gradients, score

CONFIG = ModelConfig(
    num_layers=2,
    hidden_size=64,
    ffn_hidden_size=96,
    num_attention_heads=4,
    num_query_groups=2,
    vocab_size=97,
    max_sequence_length=128,
)


@pytest.fixture(autouse=True, scope="module")
def _job():
    parallel.initialize(seed=3)


def ids(length):
    return [random.randrange(CONFIG.vocab_size) for _ in range(length)]


def groups_of(prompts, count=3):
    return [
        Group(ids(length), [ids(random.randrange(1, 12)) for _ in range(count)])
        for length in prompts
    ]


def plain_logprobs(model, group, number):
    """A causal forward over prompt + response, with the head on all positions."""
    response = group.responses_ids[number]
    row = [*group.prompt_ids, *response]
    plain = pack_rows([Row(row, [False] * len(row))])
    states = model.hidden(plain)[:, 0]
    logits = F.linear(states, model.output_layer.weight)[len(group.prompt_ids) - 1 :]
    return F.log_softmax(logits, -1).gather(1, torch.tensor(response)[:, None])[:, 0]


def gradient(model):
    return torch.cat([p.grad.flatten() for p in model.parameters()])


@pytest.mark.parametrize("prompts", [[9], [9, 9], [9, 4, 1]], ids=["one", "equal", "unequal"])
def test_shared_prefix_equals_plain_rows(prompts):
    model = build_model(CONFIG, ddp=False)
    groups = groups_of(prompts)
    packed = pack(groups)
    weights = torch.randn(packed.mask_BNR.shape) * packed.mask_BNR

    found = response_logprobs(model, packed)
    (found * weights).sum().backward()
    shared = gradient(model)

    model.zero_grad()
    total = torch.zeros(())
    for row, group in enumerate(groups):
        for number, response in enumerate(group.responses_ids):
            plain = plain_logprobs(model, group, number)
            width = len(response)
            assert (found[row, number, :width] - plain).abs().max() < 2e-6
            assert (found[row, number, width:] == 0).all()
            total = total + (plain * weights[row, number, :width]).sum()
    total.backward()
    assert (shared - gradient(model)).norm() / shared.norm() < 8e-7


def test_hugging_face_llama_with_the_same_weights_agrees():
    transformers = pytest.importorskip("transformers")
    model = build_model(CONFIG, ddp=False)
    settings = build_settings(CONFIG, dtype="float32", token_ids={})
    other = transformers.LlamaForCausalLM(transformers.LlamaConfig(**settings))
    units = export_weights(full_weights(model), CONFIG)
    other.load_state_dict({name: part for unit in units for name, part in unit.items()})
    group = groups_of([7], count=2)[0]
    found = response_logprobs(model, pack([group]))
    for number, response in enumerate(group.responses_ids):
        row = torch.tensor([[*group.prompt_ids, *response]])
        logits = other(input_ids=row).logits[0, len(group.prompt_ids) - 1 : -1]
        theirs = F.log_softmax(logits, -1).gather(1, torch.tensor(response)[:, None])[:, 0]
        assert (found[0, number, : len(response)] - theirs).abs().max() < 2e-6


def test_padding_changes_nothing():
    model = build_model(CONFIG, ddp=False)
    short, long = groups_of([3, 11])
    alone = response_logprobs(model, pack([short]))
    beside = response_logprobs(model, pack([short, long]))
    assert (alone[0] - beside[0, :, : alone.shape[2]]).abs().max() < 2e-6


def test_temperature_divides_logits():
    logits, labels = torch.randn(5, 97, dtype=torch.float64), torch.randint(97, (5,))
    expected = F.log_softmax(logits / 0.7, -1).gather(1, labels[:, None])[:, 0]
    torch.testing.assert_close(label_logprobs(logits, labels, temperature=0.7), expected)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_logits_in_parts_give_the_same_log_probs_and_gradients(monkeypatch, temperature):
    model = build_model(CONFIG, ddp=False)
    packed = pack(groups_of([9, 4, 6]))
    whole = response_logprobs(model, packed, temperature=temperature)
    whole.sum().backward()
    expected = gradient(model)
    model.zero_grad()
    seen = []
    monkeypatch.setattr(logprob, "CHUNK_LOGITS", 5 * CONFIG.vocab_size)
    monkeypatch.setattr(model, "head", lambda states: seen.append(len(states)) or head(states))
    head = type(model).head.__get__(model)
    parts = response_logprobs(model, packed, temperature=temperature)
    once = len(seen)
    assert max(seen) == 5
    assert sum(seen) == packed.label_tokens
    parts.sum().backward()
    assert len(seen) == 2 * once
    torch.testing.assert_close(parts, whole, atol=2e-6, rtol=0)
    assert (gradient(model) - expected).norm() / expected.norm() < 1e-6
    with torch.no_grad():
        scored = response_logprobs(model, packed, temperature=temperature)
    assert torch.equal(scored, parts)


def mean_nll(total):
    def loss(logprobs, _facts):
        return -logprobs.sum() / total, logprobs.detach().sum().item()

    return loss


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("size", [1, 2, 4])
def test_gradients_do_not_depend_on_the_size_of_microbatches(size, dtype):
    model = build_model(CONFIG, dtype=dtype)
    groups = groups_of([9, 4, 1, 6, 6])
    total = pack(groups).label_tokens

    def found(batches):
        figures = accumulate_gradients(model, [(b, None) for b in batches], mean_nll(total))
        whole = torch.cat([p.main_grad.flatten() for p in model.parameters()])
        return whole.clone(), sum(figures)

    whole, expected = found([pack(groups)])
    parts, figures = found([pack(groups[i : i + size]) for i in range(0, 5, size)])
    tolerance = 1e-6 if dtype is torch.float32 else 1e-14
    assert (whole - parts).norm() / whole.norm() < tolerance
    assert figures == pytest.approx(expected, rel=1e-6)


def test_a_microbatch_without_labels_adds_nothing():
    model = build_model(CONFIG)
    groups = groups_of([4])
    pairs = [(pack(groups), None), (pack([Group([1, 2], [[], [], []])]), None)]
    accumulate_gradients(model, pairs[:1], mean_nll(10))
    alone = [p.main_grad.clone() for p in model.parameters()]
    accumulate_gradients(model, pairs, mean_nll(10))
    for parameter, expected in zip(model.parameters(), alone, strict=True):
        torch.testing.assert_close(parameter.main_grad, expected)


def test_scoring_equals_the_forward_of_training_and_leaves_no_graph():
    model = build_model(CONFIG)
    packed = pack(groups_of([5, 8]))
    (scored,) = score(model, [packed])
    assert not scored.requires_grad
    torch.testing.assert_close(scored, response_logprobs(unwrap(model), packed), rtol=0, atol=0)
    assert score(model, []) == []


def test_temperature_divides_logits_of_bfloat16_in_float32():
    logits = torch.randn(64, 50, generator=torch.Generator().manual_seed(3)).mul(8).bfloat16()
    labels = torch.arange(64) % 50
    exact = torch.log_softmax(logits.double() / 0.7, -1)[torch.arange(64), labels]
    torch.testing.assert_close(
        label_logprobs(logits, labels, temperature=0.7).double(), exact, rtol=0, atol=1e-5
    )
