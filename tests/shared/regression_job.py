"""Gradients and predictions of a reward model for each way of dividing."""

import json
import random

import torch
import torch.distributed as dist
from safetensors.torch import save_file

from gradient import full_gradient
from nemotron_style.steps.blocks.checkpoint.model_checkpoint import weights_digest
from nemotron_style.steps.blocks.data.chat_format import ChatPromptTokens
from nemotron_style.steps.blocks.model import parallel
from nemotron_style.steps.blocks.model.language_model import unwrap
from nemotron_style.steps.blocks.model.parallel import Parallel
from nemotron_style.steps.blocks.reward.config import RewardConfig, Scale
from nemotron_style.steps.blocks.reward.regression_model import load_trunk
from nemotron_style.steps.blocks.settings.model_config import ModelConfig
from nemotron_style.steps.blocks.settings.optimizer_config import OptimConfig
from nemotron_style.steps.blocks.training.optimizer import build_optimizer
from nemotron_style.steps.blocks.training.training_state import load_state, save_state
from nemotron_style.steps.reward.regression.batch import (
    Targets,
    accumulate,
    mean_squared_error,
    predict,
    ranking_loss,
)
from nemotron_style.steps.reward.regression.row import EncodedRow

SIZES = ModelConfig(
    num_layers=2,
    hidden_size=32,
    ffn_hidden_size=48,
    num_attention_heads=4,
    num_query_groups=2,
    vocab_size=64,
    max_sequence_length=64,
    tie_embeddings=True,
)
REWARD = RewardConfig(
    outputs=("good", "long"),
    weights={"good": 1.0, "long": -0.5},
    scale={"good": Scale(mean=2.0, std=1.5), "long": Scale(mean=1.0, std=0.5)},
    max_sequence_length=64,
    chat=ChatPromptTokens(),
)
DIVISIONS = {"data": Parallel(), "tensor": Parallel(tensor=2), "pipeline": Parallel(pipeline=2)}


def rows():
    """Rated rows, some of one attribute, and pairs; of many lengths."""
    draw = random.Random(5)

    def text():
        return [draw.randrange(SIZES.vocab_size) for _ in range(draw.randrange(3, 30))]

    rated = [{"good": 4.0, "long": 0.0}, {"good": 1.0}, {"long": 2.0}, {"good": 0.0, "long": 1.0}]
    made = [EncodedRow((text(),), ratings) for ratings in rated * 2]
    return made + [EncodedRow((text(), text()), {}, margin=0.5 * n) for n in range(3)]


def load(start):
    """The model with a head that is not zero, so that the trunk has a gradient."""
    model, _ = load_trunk(start, outputs=2)
    if hasattr(unwrap(model), "score"):
        draw = torch.Generator().manual_seed(3)
        unwrap(model).score.weight.data.normal_(generator=draw)
    return model


def losses(prediction):
    """The two parts of the loss."""
    target = Targets.of(rows(), REWARD)
    ranking = ranking_loss(prediction, target, config=REWARD, over=target)
    return [float(mean_squared_error(prediction, target, over=target)), float(ranking)]


def measure(start, out, *, sizes=(1, 3, 16)):
    """Gradients and losses for several micro-batch sizes, predictions, updates and a resume."""
    model, tensors, facts = load(start), {}, {"losses": {}}
    for size in sizes:
        facts["losses"][str(size)] = losses(accumulate(model, rows(), config=REWARD, size=size))
        tensors |= {f"{size}/{name}": grad for name, grad in full_gradient(model).items()}
    tensors["outputs"] = torch.cat(predict(model, rows(), outputs=2, size=3))
    optimizer = build_optimizer(model, OptimConfig(), gradient_clip=0.5)
    facts["norms"] = [optimizer.step(1e-2, step=1, loss=1.0)]
    save_state(out / "state", model, optimizer, extra={})
    facts["norms"] += update(model, optimizer)
    facts["last"] = weights_digest(model)
    other = load(start)
    resumed = build_optimizer(other, OptimConfig(), gradient_clip=0.5)
    load_state(out / "state", other, resumed)
    facts["resumed"] = update(other, resumed)
    facts["resumed_last"] = weights_digest(other)
    if dist.get_rank() == 0:
        (out / "facts.json").write_text(json.dumps(facts))
        save_file({name: value.contiguous() for name, value in tensors.items()}, out / "tensors")


def update(model, optimizer):
    norms = []
    for _ in range(2):
        accumulate(model, rows(), config=REWARD, size=3)
        norms.append(optimizer.step(1e-2, step=1, loss=1.0))
    return norms


def main(start, out):
    """What a rank does."""
    for name, division in DIVISIONS.items():
        parallel.initialize(division, seed=1)
        (out / name).mkdir(parents=True, exist_ok=True)
        measure(start, out / name)
    parallel.finish()
