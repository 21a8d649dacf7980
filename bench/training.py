"""Cost of training steps, as ratios of CPU time taken in one process.

    OMP_NUM_THREADS=1 python bench/training.py [step] [group] [smoke]

``step``: forward, backward and AdamW on plain rows, against Hugging Face's Llama of the same size
with the same attention kernel and the same fused AdamW.

``group``: SteerLM 2.0's gradient for one prompt with N responses. Ours is one packed pass. The
other side is the usual two-phase form on rows ``[prompt, response]``: a forward pass without
gradients over all rows, which fixes the weights, and then forward and backward, with logits at
all positions; on megatron-core's local attention and on a fused kernel; the group at once and
with micro-batches of one row.

The local attention of a whole group allocates score matrices of tens of megabytes, which glibc
maps afresh from the kernel every time. With MALLOC_MMAP_THRESHOLD_ and MALLOC_TRIM_THRESHOLD_ set
high it keeps them, and that variant takes about as long as one row at a time.

Variants take turns within a round and ratios are taken per round, so a busy machine disturbs
them little; the median over rounds is printed, with the extremes.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Callable

import torch
import torch.nn.functional as F
from measure import SMOKE, compare
from torch import Tensor, nn

from nemotron_style.steps.blocks.checkpoint.hf_config import build_settings
from nemotron_style.steps.blocks.model import parallel
from nemotron_style.steps.blocks.model.language_model import build_model
from nemotron_style.steps.blocks.model.megatron_config import megatron_config
from nemotron_style.steps.blocks.model.prefix_packing import (
    Group,
    PackedBatch,
    Row,
    pack,
    pack_rows,
    pack_sequence,
)
from nemotron_style.steps.blocks.settings.model_config import ModelConfig
from nemotron_style.steps.blocks.settings.optimizer_config import OptimConfig
from nemotron_style.steps.blocks.training.microbatch import accumulate_gradients
from nemotron_style.steps.blocks.training.optimizer import build_optimizer

CONFIG = ModelConfig(
    num_layers=4,
    hidden_size=128,
    ffn_hidden_size=352,
    num_attention_heads=4,
    num_query_groups=2,
    vocab_size=1024,
    max_sequence_length=4096,
)


def ids(length: int) -> list[int]:
    return [random.randrange(3, CONFIG.vocab_size) for _ in range(length)]


def bench_step(batch: int, length: int) -> None:
    """Ours against Hugging Face on rows of equal length, every token trained on."""
    rows = [ids(length) for _ in range(batch)]
    counts = [False] + [True] * (length - 1)
    packed = pack_sequence([Row(row, counts) for row in rows])
    model = build_model(CONFIG)
    optimizer = build_optimizer(model, OptimConfig(lr=1e-4))

    def mean_nll(logprobs: Tensor, batch: PackedBatch) -> tuple[Tensor, Tensor]:
        loss = -logprobs.sum() / batch.label_tokens
        return loss, loss.detach()

    def ours() -> None:
        accumulate_gradients(model, [(packed, packed)], mean_nll)
        optimizer.step(1e-4, step=1, loss=1.0)

    other = hugging_face()
    adam = torch.optim.AdamW(other.parameters(), lr=1e-4, fused=True)
    tokens = torch.tensor(rows)

    def theirs() -> None:
        other(input_ids=tokens, labels=tokens).loss.backward()
        adam.step()
        adam.zero_grad()

    title = f"one training step, {batch} rows of {length} tokens"
    compare(title, {"Hugging Face Llama": theirs, "ours": ours}, rounds=15)


def hugging_face() -> nn.Module:
    from transformers import LlamaConfig, LlamaForCausalLM

    settings = build_settings(CONFIG, dtype="float32", token_ids={})
    more = {"attn_implementation": "sdpa", "use_cache": False}
    return LlamaForCausalLM(LlamaConfig(**settings, **more))


def bench_group(prompt: int, response: int, count: int) -> None:
    """One packed pass against two phases over padded rows."""
    group = Group(ids(prompt), [ids(response) for _ in range(count)])
    sampler = torch.randn(count) * 5 - 7.0 * response
    weights = torch.softmax(torch.randn(count), dim=0)
    packed = pack([group])
    model = build_model(CONFIG)

    def one_pass(logprobs: Tensor, _facts: None) -> tuple[Tensor, Tensor]:
        sums = logprobs[0].sum(dim=1)
        shares = torch.softmax(sums.detach() - sampler, dim=0)
        loss = -((weights - shares) * sums).sum() / response
        return loss, loss.detach()

    rows = torch.tensor([[*group.prompt_ids, *ids] for ids in group.responses_ids])

    def two_phases(nll: Callable[[Tensor], Tensor], module: nn.Module, size: int) -> None:
        module.zero_grad()
        with torch.no_grad():
            sums = torch.cat([-nll(part).sum(dim=1) for part in rows.split(size)])
        shares = weights - torch.softmax(sums - sampler, dim=0)
        for part, share in zip(rows.split(size), shares.split(size), strict=True):
            (share * nll(part).sum(dim=1)).sum().div(response).backward()

    local = stock_model()
    local_nll = local_attention(local, prompt=prompt)
    fused = hugging_face()
    fused_nll = fused_attention(fused, prompt=prompt)
    placed = build_model(CONFIG, ddp=False)
    placed_nll = padded_ours(placed, prompt=prompt)
    variants = {
        "ours: one packed pass": lambda: accumulate_gradients(model, [(packed, None)], one_pass),
        "two phases, SDPA (ours, padded)": lambda: two_phases(placed_nll, placed, count),
        "two phases, SDPA (Hugging Face)": lambda: two_phases(fused_nll, fused, count),
        "two phases, local attention": lambda: two_phases(local_nll, local, count),
        "two phases, SDPA (ours), one row at a time": lambda: two_phases(placed_nll, placed, 1),
        "two phases, local, one row at a time": lambda: two_phases(local_nll, local, 1),
    }
    compare(f"SteerLM 2.0, prompt {prompt}, {count} x {response}", variants, rounds=5)


def stock_model() -> nn.Module:
    """megatron-core's GPTModel with its own local attention and rotary embedding."""
    from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec
    from megatron.core.models.gpt.gpt_model import GPTModel

    config = megatron_config(CONFIG, parallel=parallel.Parallel(), dtype=torch.float32)
    config.perform_initialization = True
    return GPTModel(
        config,
        get_gpt_layer_local_spec(normalization="RMSNorm"),
        vocab_size=CONFIG.vocab_size,
        max_sequence_length=CONFIG.max_sequence_length,
        position_embedding_type="rope",
    )


def local_attention(model: nn.Module, *, prompt: int) -> Callable[[Tensor], Tensor]:
    def nll(rows: Tensor) -> Tensor:
        width = rows.shape[1] - 1
        hidden = torch.ones(1, 1, width, width, dtype=torch.bool).triu(1)
        positions = torch.arange(width).expand(len(rows), -1)
        return model(rows[:, :-1], positions, hidden, labels=rows[:, 1:])[:, prompt - 1 :]

    return nll


def fused_attention(model: nn.Module, *, prompt: int) -> Callable[[Tensor], Tensor]:
    def nll(rows: Tensor) -> Tensor:
        return _nll(model(input_ids=rows[:, :-1]).logits, rows, prompt)

    return nll


def padded_ours(model: nn.Module, *, prompt: int) -> Callable[[Tensor], Tensor]:
    def nll(rows: Tensor) -> Tensor:
        plain = pack_rows([Row(row, [False] * len(row)) for row in rows.tolist()])
        logits = model.head(model.hidden(plain)).transpose(0, 1)
        return _nll(logits[:, : rows.shape[1] - 1], rows, prompt)

    return nll


def _nll(logits: Tensor, rows: Tensor, prompt: int) -> Tensor:
    by_class = logits.float().transpose(1, 2)
    return F.cross_entropy(by_class, rows[:, 1:], reduction="none")[:, prompt - 1 :]


def main() -> None:
    wanted = [word for word in sys.argv[1:] if word != "smoke"] or ["step", "group"]
    random.seed(0)
    torch.set_num_threads(1)
    parallel.initialize(seed=0)
    if "step" in wanted:
        for batch, length in ((8, 32),) if SMOKE else ((8, 32), (8, 128), (4, 512)):
            bench_step(batch, length)
    if "group" in wanted:
        for sizes in ((16, 8, 4),) if SMOKE else ((512, 128, 8), (64, 64, 8)):
            bench_group(*sizes)


if __name__ == "__main__":
    main()
