"""One interface to what samples responses: the training process itself, or vLLM beside it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol, TypeVar

import torch
import torch.distributed as dist
from torch import nn

from nemotron_style.steps.blocks.data.tokenizer import Tokenizer
from nemotron_style.steps.blocks.generation.engine import Engine, Sample
from nemotron_style.steps.blocks.generation.sampling_params import SamplingParams
from nemotron_style.steps.blocks.generation.vllm_engine import VllmEngine
from nemotron_style.steps.blocks.model.rank_zero import RankZero
from nemotron_style.steps.blocks.settings.generation_config import EngineName
from nemotron_style.steps.blocks.settings.model_config import ModelConfig

Kept = TypeVar("Kept")


class GenerationEngine(Protocol):
    """Samples from the weights of one model: token ids in, token ids and their log-probs out."""

    def update(self) -> None:
        """Take over the model's weights as they are now; call it after every training step."""

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        sampling: SamplingParams,
        *,
        samples_per_prompt: int = 1,
        seed: int | Sequence[int],
    ) -> list[list[Sample]]:
        """See :meth:`engine.Engine.generate`."""

    def close(self) -> None:
        """Give back what the engine holds beside the model; it samples no more."""


def sample_on_all_ranks(
    engine: GenerationEngine,
    rank_zero: RankZero,
    prompts: Sequence[Sequence[int]],
    sampling: SamplingParams,
    *,
    samples_per_prompt: int,
    seeds: Sequence[int],
    read: Callable[[Sample], Kept],
) -> list[list[Kept]]:
    """What ``read`` keeps of the samples of each prompt. Ranks share the work, and get them all.

    That is so however ranks divide the model: whoever samples holds all weights meanwhile.
    """
    rank, world = dist.get_rank(), dist.get_world_size()
    groups = engine.generate(
        prompts[rank::world],
        sampling,
        samples_per_prompt=samples_per_prompt,
        seed=seeds[rank::world],
    )
    parts = rank_zero.gather([[read(sample) for sample in group] for group in groups])
    return [parts[number % world][number // world] for number in range(len(prompts))]


def open_engine(
    name: EngineName,
    model: nn.Module,
    config: ModelConfig,
    *,
    max_rows: int = 512,
    dtype: torch.dtype | None = None,
    tokenizer: Path | None = None,
) -> GenerationEngine:
    """The engine called ``name`` for a model that is whole on this rank.

    ``max_rows`` bounds the responses decoded side by side, ``dtype`` decodes in another type than
    the weights have, and the ``tokenizer`` (its folder) is needed by end strings alone. Raises
    StepFailed when vLLM is asked for and is not installed.
    """
    if name == "vllm":
        return VllmEngine(model, config, max_rows=max_rows, dtype=dtype, tokenizer=tokenizer)
    decode = Tokenizer(tokenizer).decode if tokenizer else None
    return Engine(model, config, max_rows=max_rows, dtype=dtype, decode=decode)
