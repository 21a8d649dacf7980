"""Losses, gradients and rollouts of rs/actor for each number of processes."""

import json
import random
from types import SimpleNamespace

import torch
import torch.distributed as dist
from safetensors.torch import save_file

from gradient import full_gradient
from nemotron_style.steps.blocks.generation.engine import Engine
from nemotron_style.steps.blocks.generation.sampling_params import SamplingParams
from nemotron_style.steps.blocks.model import parallel
from nemotron_style.steps.blocks.model.language_model import (
    LanguageModel,
    build_model,
    construct,
    wrap,
)
from nemotron_style.steps.blocks.model.prefix_packing import Group
from nemotron_style.steps.blocks.reward.client import RewardUnavailable
from nemotron_style.steps.blocks.reward.types import RewardScore
from nemotron_style.steps.blocks.settings.model_config import ModelConfig
from nemotron_style.steps.rs.actor.batch import accumulate, measure_kl
from nemotron_style.steps.rs.actor.prompt import Prompt
from nemotron_style.steps.rs.actor.reward_pool import Judge
from nemotron_style.steps.rs.actor.rollout import Roller, name_groups

SIZES = ModelConfig(
    num_layers=2,
    hidden_size=32,
    ffn_hidden_size=48,
    num_attention_heads=4,
    num_query_groups=2,
    vocab_size=64,
    max_sequence_length=64,
)
PASSES = (1, 2, 3, 16)
NLL = {1: 1.0, 3: 3.0}


class Told(LanguageModel):
    """Gives every response token the nll of the token that its row begins with; if ``by_label``,
    of itself. The nll are weights, so that there is something to take a gradient of.
    """

    by_label = False

    def forward(self, packed, *, temperature=1.0):
        nll = self.embedding.word_embeddings.weight[:, 0]
        rows = nll[packed.tokens_BS[:, 0]][:, None, None]
        each = nll[packed.labels_BNR] if self.by_label else rows.expand(packed.mask_BNR.shape)
        return torch.where(packed.mask_BNR, -each, 0.0)


def told(by_label):
    model = construct(Told, SIZES, dtype=torch.float32)
    model.by_label = by_label
    with torch.no_grad():
        for token, nll in NLL.items():
            model.embedding.word_embeddings.weight[token, 0] = nll
    return wrap(model)


def golden():
    """The losses of the rules, for every size of a pass."""
    cases = {
        "long": (False, [Group([1], [[5] * 10]), Group([3], [[5] * 1000])]),
        "one prompt": (True, [Group([7, 8], [[1] * 10, [3] * 1000])]),
        "padding, eos 0": (False, [Group([1], [[5, 5, 0]]), Group([3], [[5] * 7 + [0]])]),
        "padding, eos 2": (False, [Group([1], [[5, 5, 2]]), Group([3], [[5] * 7 + [2]])]),
    }
    losses = {}
    for name, (by_label, groups) in cases.items():
        model = told(by_label)
        losses[name] = [accumulate(model, groups, size=size) for size in PASSES]
        weight = model.module.embedding.word_embeddings.weight
        losses[f"{name}: gradient"] = [float(weight.main_grad[token, 0]) for token in NLL]
    return losses


def groups():
    """Groups of one to three kept responses, of many lengths; of one group none is kept."""
    draw = random.Random(5)

    def text(most):
        return [draw.randrange(SIZES.vocab_size) for _ in range(draw.randint(1, most))]

    return [Group(text(9), [text(20) for _ in range(n)]) for n in (1, 3, 2, 3, 1, 3, 2)]


class Counts:
    """Stands in for the client: a score is how much a text holds."""

    def __init__(self):
        self.counts, self.stopping = {}, lambda: False

    def score(self, conversations):
        return [RewardScore(float(len(one[-1]["content"])), {}) for one in conversations]

    def close(self):
        """Nothing is open."""


def roll(model, judge):
    """Two samples of seven prompts, of which two are the same."""
    tokenizer = SimpleNamespace(vocab_size=60, decode=lambda ids: " ".join(map(str, ids)))
    chat = SimpleNamespace(read_response=str, response=str)
    draw = random.Random(3)
    prompts = [
        Prompt(({"role": "user", "content": str(n)},), [draw.randrange(60) for _ in range(n + 2)])
        for n in range(6)
    ]
    roller = Roller(
        Engine(model, SIZES), judge, tokenizer, chat, SamplingParams(max_new_tokens=9, stop_ids=[4])
    )
    asked = name_groups(prompts, [0, 1, 2, 3, 4, 5, 2], "rollout", 1)
    rollouts, _ = roller.roll(asked, samples=2, size=2)
    return rollouts


class Gone(Counts):
    """A reward model that is there no more."""

    def score(self, conversations):
        raise RewardUnavailable("nothing answers")


def hear_of_the_end(model):
    """On how many ranks it is heard that the first one's reward model is gone."""
    with Judge(Gone() if dist.get_rank() == 0 else None) as judge:
        try:
            roll(model, judge)
        except RewardUnavailable as error:
            heard = torch.tensor(int(str(error) == "nothing answers"))
    dist.all_reduce(heard)
    return int(heard)


def measure(out):
    facts = {"golden": golden()}
    with Judge(Counts() if dist.get_rank() == 0 else None) as judge:
        model = build_model(SIZES, seed=11)
        other = build_model(SIZES, seed=12, ddp=False)
        rollouts = roll(model, judge)
        facts["said"] = [[one.tokens for one in each.responses] for each in rollouts]
        facts["rewards"] = [each.rewards for each in rollouts]
        samples = [each.group(range(2)) for each in rollouts]
        facts["kl"] = [measure_kl(model, other, samples, size=size) for size in PASSES]
        facts["heard"] = hear_of_the_end(model)
        facts["no kl"] = measure_kl(model, model, samples, size=3)
    tensors = {}
    for size in PASSES:
        model = build_model(SIZES, seed=11)
        facts.setdefault("losses", []).append(accumulate(model, groups(), size=size))
        tensors |= {f"{size}/{name}": grad for name, grad in full_gradient(model).items()}
    if dist.get_rank() == 0:
        (out / "facts.json").write_text(json.dumps(facts))
        save_file({name: value.contiguous() for name, value in tensors.items()}, out / "tensors")


def main(out):
    """What a rank does."""
    parallel.initialize(seed=1)
    measure(out)
    parallel.finish()
