"""The gradient of one global batch, written as a checkpoint."""

from __future__ import annotations

import json
import random
from dataclasses import asdict
from pathlib import Path

import torch

from nemotron_style.steps.blocks.checkpoint.model_checkpoint import save_model
from nemotron_style.steps.blocks.data.steerlm2_row import EncodedGroup
from nemotron_style.steps.blocks.model.language_model import build_model
from nemotron_style.steps.blocks.model.parallel import Parallel, finish, initialize
from nemotron_style.steps.blocks.model.rank_zero import is_rank_zero
from nemotron_style.steps.blocks.settings.model_config import ModelConfig
from nemotron_style.steps.blocks.training.microbatch import score_responses
from nemotron_style.steps.sft.steerlm2.batch import Batch, accumulate
from nemotron_style.steps.sft.steerlm2.config import SteerLM2
from nemotron_style.steps.sft.steerlm2.validation import measure

MODEL = ModelConfig(
    num_layers=2,
    hidden_size=32,
    ffn_hidden_size=64,
    num_attention_heads=4,
    num_query_groups=2,
    vocab_size=48,
    max_sequence_length=64,
)
GROUPS, WIDTH = 5, 4


def sizes_of(micro: int, forward: int) -> SteerLM2:
    """How many responses a pass holds, with and without gradient."""
    return SteerLM2(micro_batch_size=micro, forward_micro_batch_size=forward)


DIVISIONS = {
    "data2": (Parallel(), sizes_of(8, 8)),
    "tensor2": (Parallel(tensor=2), sizes_of(8, 8)),
    "pipeline2": (Parallel(pipeline=2), sizes_of(4, 4)),
    "pipeline2-parts": (Parallel(pipeline=2), sizes_of(3, 2)),
}


def groups(seed: int = 0) -> list[EncodedGroup]:
    """Groups of random tokens with numbers that make neither weight uniform."""
    draw = random.Random(seed)

    def ids(low: int, high: int) -> tuple[int, ...]:
        return tuple(draw.randrange(48) for _ in range(draw.randint(low, high)))

    def numbers(scale: float, around: float) -> tuple[float, ...]:
        return tuple(around - scale * draw.random() for _ in range(WIDTH))

    return [
        EncodedGroup(
            ids(3, 9),
            tuple(ids(1, 7) for _ in range(WIDTH)),
            log_p_a=numbers(4, 0),
            log_p_y=numbers(2, -15),
            log_q=numbers(2, -15),
        )
        for _ in range(GROUPS)
    ]


def gradient(parallel: Parallel, sizes: SteerLM2, target: Path) -> dict[str, float]:
    """Write the gradient where weights would stand, and return the metrics of the batch."""
    initialize(parallel, seed=1)
    model = build_model(MODEL, seed=3)
    batch = Batch.of(groups())
    size = sizes.forward_micro_batch_size
    scored = score_responses(model, batch.groups, max_responses=size)
    log_q_theta = accumulate(model, batch, sizes)
    torch.testing.assert_close(log_q_theta, scored, atol=1e-4, rtol=0)
    metrics, _ = measure(model, batch, max_responses=size)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter.main_grad)
    tokenizer = target / "no-tokenizer"
    tokenizer.mkdir(parents=True, exist_ok=True)
    save_model(model, target, config=MODEL, tokenizer=tokenizer)
    return asdict(metrics)


def main(out: Path) -> None:
    """What a rank does."""
    for name, (parallel, sizes) in DIVISIONS.items():
        figures = gradient(parallel, sizes, out / name)
        if is_rank_zero():
            (out / name / "figures.json").write_text(json.dumps(figures))
    finish()
