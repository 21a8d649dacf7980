"""What two processes compute with models of every family, for each way of dividing."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors.torch import save_file
from torch import Tensor, nn

from gradient import full_gradient
from nemotron_style.steps.blocks.checkpoint.hf_config import read_sizes
from nemotron_style.steps.blocks.checkpoint.hf_weights import (
    check_tensors,
    export_weights,
    fill_model,
    import_weights,
)
from nemotron_style.steps.blocks.checkpoint.model_checkpoint import full_weights
from nemotron_style.steps.blocks.checkpoint.safetensors_folder import TensorFolder
from nemotron_style.steps.blocks.generation.kv_decoder import Decoder
from nemotron_style.steps.blocks.model import parallel
from nemotron_style.steps.blocks.model.language_model import build_model
from nemotron_style.steps.blocks.model.parallel import Parallel
from nemotron_style.steps.blocks.model.prefix_packing import Group, pack
from nemotron_style.steps.blocks.settings.model_config import ModelConfig
from nemotron_style.steps.blocks.settings.optimizer_config import OptimConfig
from nemotron_style.steps.blocks.training.microbatch import accumulate_gradients, score
from nemotron_style.steps.blocks.training.optimizer import build_optimizer

DIVISIONS = {"tensor": Parallel(tensor=2), "pipeline": Parallel(pipeline=2)}


def groups(count: int = 3) -> list[Group]:
    """Prompts with ``count`` responses each; the same on every rank and in the test."""
    draw = random.Random(5)

    def ids(length: int) -> list[int]:
        return [draw.randrange(3, 64) for _ in range(length)]

    return [Group(ids(n), [ids(draw.randrange(1, 9)) for _ in range(count)]) for n in (9, 4, 12)]


@torch.inference_mode()
def next_logits(model: nn.Module, sizes: ModelConfig) -> Tensor:
    """What a sampler takes the first token of a response from."""
    decoder = Decoder(model, sizes)
    decoder.read_weights()
    logits = decoder.prefill(torch.tensor([groups()[0].prompt_ids])).logits_PV.clone()
    decoder.forget_copies()
    return logits


def measure(folder: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Scores, gradients, and weights as Hugging Face has them; the norm of the gradient."""
    sizes, tensors = read_sizes(folder), TensorFolder(folder)
    check_tensors(tensors, sizes)
    model = build_model(sizes, initial=None)
    fill_model(model, import_weights(tensors.read, sizes))
    packed = pack(groups())
    found = {"scores": torch.cat([part.flatten() for part in score(model, [packed])])}
    found["sampled from"] = next_logits(model, sizes)
    accumulate_gradients(model, [(packed, None)], lambda logprobs, _: (-logprobs.mean(), None))
    found |= {f"gradient/{name}": whole for name, whole in full_gradient(model).items()}
    for unit in export_weights(full_weights(model), sizes):
        found |= {f"weight/{name}": whole for name, whole in unit.items()}
    optimizer = build_optimizer(model, OptimConfig(), gradient_clip=None)
    return found, {"norm": optimizer.step(0.0, step=1, loss=1.0)}


def main(models: dict[str, Path], out: Path) -> None:
    """What a rank does."""
    torch.set_num_threads(1)
    for division, sizes in DIVISIONS.items():
        parallel.initialize(sizes, seed=1)
        for name, folder in models.items():
            found, facts = measure(folder)
            if dist.get_rank() == 0:
                into = out / division / name
                into.mkdir(parents=True)
                save_file({key: one.contiguous() for key, one in found.items()}, into / "tensors")
                (into / "facts.json").write_text(json.dumps(facts))
    parallel.finish()
