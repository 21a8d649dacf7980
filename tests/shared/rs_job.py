"""Losses, gradients and rollouts of rs/actor for each number of processes."""

import json
import random
from types import SimpleNamespace

import torch
import torch.distributed as dist
from safetensors.torch import save_file

from gradient import full_gradient
from nemotron_style.steps.blocks.data.chat.nemo_chat import NemoChat
from nemotron_style.steps.blocks.data.prompt import Prompt
from nemotron_style.steps.blocks.generation.engine import Engine
from nemotron_style.steps.blocks.generation.sampling_params import SamplingParams
from nemotron_style.steps.blocks.model import parallel
from nemotron_style.steps.blocks.model.language_model import (
    LanguageModel,
    build_model,
    construct,
    wrap,
)
from nemotron_style.steps.blocks.model.parallel import Parallel
from nemotron_style.steps.blocks.model.prefix_packing import Group
from nemotron_style.steps.blocks.reward.client import RewardUnavailable
from nemotron_style.steps.blocks.reward.types import RewardScore
from nemotron_style.steps.blocks.settings.model_config import ModelConfig
from nemotron_style.steps.blocks.training.microbatch import accumulate_nll, count_tokens
from nemotron_style.steps.blocks.training.start_policy import StartPolicy
from nemotron_style.steps.rs.actor.metrics import measure_kl
from nemotron_style.steps.rs.actor.reward_pool import RewardPool
from nemotron_style.steps.rs.actor.rollout import RolloutSampler, seed_prompts

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


class FixedNll(LanguageModel):
    """Gives every response token the nll of the token that its row begins with; if ``by_label``,
    of itself. The nll are weights, so that there is something to take a gradient of.
    """

    by_label = False

    def forward(self, packed, *, temperature=1.0):
        nll = self.embedding.word_embeddings.weight[:, 0]
        rows = nll[packed.tokens_BS[:, 0]][:, None, None]
        each = nll[packed.labels_BNR] if self.by_label else rows.expand(packed.mask_BNR.shape)
        return torch.where(packed.mask_BNR, -each, 0.0)


def fixed_nll(by_label):
    model = construct(FixedNll, SIZES, dtype=torch.float32)
    model.by_label = by_label
    with torch.no_grad():
        for token, nll in NLL.items():
            model.embedding.word_embeddings.weight[token, 0] = nll
    return wrap(model)


def mean_nll(model, groups, size):
    """The loss of a global batch of ``groups``, with its gradients in ``main_grad``."""
    return accumulate_nll(model, groups, max_responses=size) / count_tokens(groups)


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
        model = fixed_nll(by_label)
        losses[name] = [mean_nll(model, groups, size) for size in PASSES]
        weight = model.module.embedding.word_embeddings.weight
        losses[f"{name}: gradient"] = [float(weight.main_grad[token, 0]) for token in NLL]
    return losses


def groups():
    """Groups of one to three kept responses, of many lengths."""
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


def sample(model, pool):
    """Two samples of seven prompts, of which two are the same."""
    tokenizer = SimpleNamespace(
        vocab_size=60,
        eos_ids=(),
        knows=lambda ids: all(one < 60 for one in ids),
        decode=lambda ids: " ".join(map(str, ids)),
    )
    chat = NemoChat(tokenizer, SimpleNamespace(read_response=str, response=str))
    draw = random.Random(3)
    prompts = [
        Prompt(({"role": "user", "content": str(n)},), [draw.randrange(60) for _ in range(n + 2)])
        for n in range(6)
    ]
    params = SamplingParams(max_new_tokens=9, stop_ids=[4])
    sampler = RolloutSampler(Engine(model, SIZES), pool, chat, params)
    seeded = seed_prompts(prompts, [0, 1, 2, 3, 4, 5, 2], "rollout", 1)
    return sampler.collect_scores(seeded, sampler.sample(seeded, samples=2, lot=2))


class Gone(Counts):
    """A reward model that is there no more."""

    def score(self, conversations):
        raise RewardUnavailable("nothing answers")


def count_failed_ranks(model):
    """On how many ranks the error of rank zero's reward model is raised."""
    with RewardPool(Gone() if dist.get_rank() == 0 else None) as pool:
        try:
            sample(model, pool)
        except RewardUnavailable as error:
            failed = torch.tensor(int(str(error) == "nothing answers"))
    dist.all_reduce(failed)
    return int(failed)


def measure(out):
    # its losses are those of a model that no rank divides
    facts = {"golden": golden() if parallel.current_parallel().model == 1 else {}}
    with RewardPool(Counts() if dist.get_rank() == 0 else None) as pool:
        model = build_model(SIZES, seed=11)
        other = build_model(SIZES, seed=12, ddp=False)
        rollouts = sample(model, pool)
        facts["tokens"] = [[one.tokens for one in each.responses] for each in rollouts]
        facts["rewards"] = [each.rewards for each in rollouts]
        samples = [each.group() for each in rollouts]
        facts["kl"] = [
            measure_kl(model, StartPolicy(model, copy=other), samples, max_responses=n)
            for n in PASSES
        ]
        facts["failed ranks"] = count_failed_ranks(model)
        facts["no kl"] = measure_kl(model, StartPolicy(model, copy=model), samples, max_responses=3)
    tensors = {}
    for size in PASSES:
        model = build_model(SIZES, seed=11)
        facts.setdefault("losses", []).append(mean_nll(model, groups(), size))
        tensors |= {f"{size}/{name}": grad for name, grad in full_gradient(model).items()}
    if dist.get_rank() == 0:
        (out / "facts.json").write_text(json.dumps(facts))
        save_file({name: value.contiguous() for name, value in tensors.items()}, out / "tensors")


DIVISIONS = {"data": Parallel(), "tensor": Parallel(tensor=2), "pipeline": Parallel(pipeline=2)}


def main(out):
    """What a rank does."""
    for name, division in DIVISIONS.items():
        parallel.initialize(division, seed=1)
        (out / name).mkdir(parents=True, exist_ok=True)
        measure(out / name)
    parallel.finish()
