"""Gradients with fewer activations kept, for each way of dividing."""

from __future__ import annotations

import random
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors.torch import save_file
from torch import Tensor

from gradient import full_gradient
from nemotron_style.steps.blocks.model import logprob, parallel
from nemotron_style.steps.blocks.model.language_model import build_model, unwrap, wrap
from nemotron_style.steps.blocks.model.lora import apply_lora
from nemotron_style.steps.blocks.model.parallel import Parallel
from nemotron_style.steps.blocks.model.prefix_packing import Group, Row
from nemotron_style.steps.blocks.settings.model_config import ModelConfig
from nemotron_style.steps.blocks.settings.parallel_config import KEEP_ALL, Activations
from nemotron_style.steps.blocks.settings.peft_config import LoraTuning
from nemotron_style.steps.blocks.training.microbatch import accumulate_nll

CONFIG = ModelConfig(
    num_layers=4,
    hidden_size=32,
    ffn_hidden_size=48,
    num_attention_heads=4,
    num_query_groups=2,
    vocab_size=64,
    max_sequence_length=64,
    norm_placement="both",
    normalization="layernorm",
    qk_norm="head",
    qkv_bias=True,
    sliding_window=5,
    full_attention_every=2,
    tie_embeddings=True,
)
LORA = LoraTuning(
    target_modules=["all"], adapter_dim=4, row_init_method="normal", adapter_dropout=0.3
)
EACH, PAIRS = Activations(recompute_method="uniform"), Activations(False, "uniform", 2)
FIRST = Activations(recompute_method="block")
DIVIDED = Activations(sequence_parallel=True)
BOTH = Activations(True, "uniform", 2)
WAYS = {
    "all": Parallel(),
    "tensor": Parallel(tensor=2),
    "pipeline": Parallel(pipeline=2),
    "data": Parallel(),
}
DIVISIONS = {
    "tensor": {
        "all": KEEP_ALL,
        "chunks": KEEP_ALL,
        "first": FIRST,
        "divided": DIVIDED,
        "both": BOTH,
    },
    "pipeline": {"all": KEEP_ALL, "pairs": PAIRS},
    "data": {"all": KEEP_ALL},
}


def rows() -> list[Row]:
    """Rows of differing lengths.

    Padded, they have an odd number of tokens, which tensor ranks cannot share evenly. Packed, they
    have even ones: a token more would be given random numbers for dropout too.
    """
    draw = random.Random(5)
    lengths = (22, 15, 15, 10, 7, 3)
    return [
        Row(
            [draw.randrange(64) for _ in range(length)],
            [place > 0 and draw.random() < 0.7 for place in range(length)],
        )
        for length in lengths
    ]


def groups() -> list[Group]:
    """Prompts with three responses each."""
    draw = random.Random(6)

    def ids(length: int) -> list[int]:
        return [draw.randrange(64) for _ in range(length)]

    return [Group(ids(n), [ids(draw.randrange(1, 9)) for _ in range(3)]) for n in (9, 4, 1, 6)]


def gradients(kept: Activations, *, adapted: bool) -> dict[str, Tensor]:
    """Gradients of padded, packed and shared rows; with adapters of packed rows alone."""
    model = build_model(CONFIG, seed=3, ddp=False, activations=kept)
    if adapted:
        apply_lora(model, LORA, seed=4)
    model, found = wrap(model), {}
    assert unwrap(model).config.sequence_parallel == kept.sequence_parallel
    batches = {
        "padded": (rows(), None),
        "packed": (rows(), 40),
        "shared": (groups(), None),
    }
    for name, (batch, most) in batches.items():
        if adapted and name != "packed":
            continue
        parallel.seed_everything(7)
        loss = accumulate_nll(model, batch, max_responses=6, max_tokens=most)
        found |= {f"{name}/{key}": value for key, value in full_gradient(model).items()}
        found[f"{name}/loss"] = torch.tensor(loss, dtype=torch.float64)
    return found


def measure(out: Path, division: str) -> None:
    """Write the gradients of a division, by what is kept."""
    for name, kept in DIVISIONS[division].items():
        # a few tokens at a time for the head, whose vocabulary is divided
        logprob.CHUNK_LOGITS = 200 if name == "chunks" else 2**26
        for adapted in (False, True) if division == "tensor" else (False,):
            tensors = gradients(kept, adapted=adapted)
            if dist.get_rank() == 0:
                file = out / f"{division} {name}{' lora' if adapted else ''}"
                save_file({key: one.contiguous() for key, one in tensors.items()}, file)


def main(out: Path) -> None:
    """What a rank does."""
    for division in DIVISIONS:
        parallel.initialize(WAYS[division], seed=1)
        measure(out, division)
    parallel.finish()
