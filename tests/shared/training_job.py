"""What two processes compute, for each way of dividing."""

import json
import random

import torch
import torch.distributed as dist
from safetensors.torch import save_file

from family_job import next_logits
from gradient import full_gradient
from nemotron_style.steps.blocks.checkpoint.model_checkpoint import (
    WeightsDigest,
    full_weights,
    save_model,
    weights_digest,
)
from nemotron_style.steps.blocks.model import parallel
from nemotron_style.steps.blocks.model.language_model import build_model, wrap
from nemotron_style.steps.blocks.model.lora import apply_lora
from nemotron_style.steps.blocks.model.parallel import Parallel
from nemotron_style.steps.blocks.model.prefix_packing import Group, pack
from nemotron_style.steps.blocks.settings.model_config import ModelConfig
from nemotron_style.steps.blocks.settings.optimizer_config import OptimConfig
from nemotron_style.steps.blocks.settings.parallel_config import KEEP_ALL, Activations
from nemotron_style.steps.blocks.settings.peft_config import LoraTuning
from nemotron_style.steps.blocks.training.microbatch import (
    accumulate_gradients,
    accumulate_nll,
    count_tokens,
    score,
)
from nemotron_style.steps.blocks.training.optimizer import build_optimizer
from nemotron_style.steps.blocks.training.training_state import load_state, save_state

CONFIG = ModelConfig(
    num_layers=2,
    hidden_size=32,
    ffn_hidden_size=48,
    num_attention_heads=4,
    num_query_groups=2,
    vocab_size=64,
    max_sequence_length=64,
)
TIED = CONFIG.model_copy(update={"tie_embeddings": True})
DIVISIONS = {
    "tensor": (CONFIG, Parallel(tensor=2)),
    "data": (CONFIG, Parallel()),
    "pipeline": (CONFIG, Parallel(pipeline=2)),
    "tied": (TIED, Parallel(pipeline=2)),
    "lora tensor": (TIED, Parallel(tensor=2)),
    "lora pipeline": (TIED, Parallel(pipeline=2)),
    "lora sequence": (TIED, Parallel(tensor=2)),
}
SAVING = Activations(sequence_parallel=True, recompute_method="uniform")
ALONE = {"data": CONFIG, "tied": TIED, "lora": TIED}
"""What one process computes; a division is compared with that whose name it begins with."""
# with B drawn too, since with B = 0 the gradient of A would be 0
LORA = LoraTuning(target_modules=["all"], adapter_dim=4, alpha=8, row_init_method="normal")


def sizes_of(division):
    """The micro-batch sizes whose gradients are compared."""
    return (2,) if division.startswith("lora") else (1, 2, 8)


def batch():
    """Groups of differing widths; the same on every rank and in the test."""
    draw = random.Random(5)

    def ids(length):
        return [draw.randrange(CONFIG.vocab_size) for _ in range(length)]

    prompts = (9, 4, 1, 6, 6)
    return [Group(ids(n), [ids(draw.randrange(1, 9)) for _ in range(3)]) for n in prompts]


def gradient_of(model, groups, *, size):
    """Gradient of the mean nll of all groups; this rank takes every n-th micro-batch."""
    total = pack(groups).label_tokens
    packs = [pack(groups[start : start + size]) for start in range(0, len(groups), size)]
    mine = packs[parallel.data_rank() :: parallel.data_world()]
    accumulate_gradients(model, [(p, None) for p in mine], lambda lp, _: (-lp.sum() / total, None))


def make(config, seed, *, lora, activations=KEEP_ALL):
    """The model, or a base that is always the same with adapters drawn by ``seed``."""
    if not lora:
        return build_model(config, seed=seed)
    model = build_model(config, seed=1, ddp=False, activations=activations)
    apply_lora(model, LORA, seed=seed)
    return wrap(model)


def digest(model, *, lora):
    """The digest of all that is trained."""
    digest = WeightsDigest()
    for _ in digest.track(full_weights(model, adapters=lora)):
        pass
    return digest.text


def measure(config, out, *, sizes=(1, 2, 8), lora=False, activations=KEEP_ALL):
    """Gradients for several micro-batch sizes, scores, updates, a resume after the first."""
    model = make(config, 11, lora=lora, activations=activations)
    facts = {"first": digest(model, lora=lora)}
    tensors = {"scores": torch.cat([s.flatten() for s in score(model, [pack(batch())])])}
    tensors["sampled from"] = next_logits(model, config)
    for size in sizes:
        gradient_of(model, batch(), size=size)
        tensors |= {f"{size}/{name}": grad for name, grad in full_gradient(model).items()}
    optimizer = build_optimizer(model, OptimConfig(weight_decay=0.1), gradient_clip=0.5)
    gradient_of(model, batch(), size=2)
    facts["norms"] = [optimizer.step(1e-2, step=1, loss=1.0)]
    save_state(out / "state", model, optimizer, extra={})
    facts["norms"] += update(model, optimizer)
    facts["last"] = digest(model, lora=lora)

    other = make(config, 12, lora=lora, activations=activations)
    resumed = build_optimizer(other, OptimConfig(weight_decay=0.1), gradient_clip=0.5)
    load_state(out / "state", other, resumed)
    facts["resumed"] = update(other, resumed)
    facts["resumed_last"] = digest(other, lora=lora)
    facts["model"] = weights_digest(model)
    facts["losses"] = train(other, resumed)
    words = out / "words"
    words.mkdir(exist_ok=True)
    (words / "tokenizer.json").write_text("{}")
    save_model(model, out / "model", config=config, tokenizer=words)
    if dist.get_rank() == 0:
        (out / "facts.json").write_text(json.dumps(facts))
        save_file({name: value.contiguous() for name, value in tensors.items()}, out / "tensors")


def update(model, optimizer):
    norms = []
    for _ in range(2):
        gradient_of(model, batch(), size=2)
        norms.append(optimizer.step(1e-2, step=1, loss=1.0))
    return norms


def train(model, optimizer):
    """The loss before each of five updates."""
    losses = []
    for step in range(5):
        losses.append(accumulate_nll(model, batch(), max_responses=6) / count_tokens(batch()))
        optimizer.step(1e-2, step=step, loss=losses[-1])
    return losses


def main(out):
    """What a rank does."""
    for name, (config, division) in DIVISIONS.items():
        parallel.initialize(division, seed=1)
        (out / name).mkdir(parents=True, exist_ok=True)
        is_lora = name.startswith("lora")
        saved = SAVING if name == "lora sequence" else KEEP_ALL
        measure(config, out / name, sizes=sizes_of(name), lora=is_lora, activations=saved)
    parallel.finish()
