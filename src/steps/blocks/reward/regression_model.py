"""A model with a regression head: a few numbers for a conversation instead of words after it.

The trunk is that of :class:`LanguageModel`. In place of the output layer a linear head without a
bias reads the hidden state of the last token, in float32. It starts at zero: on standardised
targets that is the mean of each, the best guess without reading.

The head's weights have the type of the trunk's, since megatron-core's optimizer cannot save a model
of two types; like these they are trained on a float32 copy.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from megatron.core.transformer.module import MegatronModule
from torch import Tensor, nn

from nemotron_style.steps.blocks.checkpoint.hf_config import check_family
from nemotron_style.steps.blocks.checkpoint.model_checkpoint import WEIGHTS, check_checkpoint
from nemotron_style.steps.blocks.checkpoint.torch_dist import read
from nemotron_style.steps.blocks.model.device import prepare_device
from nemotron_style.steps.blocks.model.language_model import LanguageModel, construct, wrap
from nemotron_style.steps.blocks.model.norm import widen
from nemotron_style.steps.blocks.model.prefix_packing import PAD, Group, PackedBatch, pack
from nemotron_style.steps.blocks.model.sharded_tensor import sharded_weights
from nemotron_style.steps.blocks.settings.model_config import ModelConfig
from nemotron_style.steps.blocks.settings.parallel_config import KEEP_ALL, Activations

HEAD = "score.weight"


class RegressionModel(LanguageModel):
    """A LanguageModel whose last stage gives ``outputs`` numbers for each row."""

    def __init__(self, *args: Any, outputs: int, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if self.post_process:
            del self.output_layer
            self.score = nn.Linear(self.config.hidden_size, outputs, bias=False)
            nn.init.zeros_(self.score.weight)

    def forward(self, packed: PackedBatch, *, temperature: float = 1.0) -> Tensor:
        """``[B, 1, outputs]`` in float32 of rows of :func:`pack_conversations`.

        Hidden states before the last stage. ``temperature`` has no meaning here.
        """
        states = self.hidden(packed)
        if not self.post_process:
            return states
        last = states.flatten(0, 1).index_select(0, packed.predictors_T)
        return F.linear(widen(last), widen(self.score.weight))[:, None]

    def sharded_state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """megatron-core's description of the weights; GPTModel's own asks for an output layer."""
        return MegatronModule.sharded_state_dict(self, *args, **kwargs)


def pack_conversations(rows: Sequence[Sequence[int]]) -> PackedBatch:
    """Token ids of conversations as a batch whose predictors are the last tokens."""
    return pack([Group(ids, [[PAD]]) for ids in rows])


def load_trunk(
    path: Path,
    *,
    outputs: int,
    dtype: torch.dtype = torch.float32,
    distributed_optimizer: bool = False,
    activations: Activations = KEEP_ALL,
) -> tuple[nn.Module, ModelConfig]:
    """A checkpoint's model with a new head for ``outputs`` numbers, in DDP, and its sizes.

    What the checkpoint has for an output layer is left aside. Raises InputError as
    :func:`checkpoint.load_model` does.
    """
    config = check_checkpoint(path).model_copy(update={"tie_embeddings": False})
    check_family(config)  # what is trained will be written as Hugging Face has it
    model = construct(
        RegressionModel, config, dtype=dtype, activations=activations, outputs=outputs
    )
    model.to(device=prepare_device(), dtype=dtype)
    wanted = {name: part for name, part in sharded_weights(model).items() if name != HEAD}
    model.load_state_dict(read(wanted, path / WEIGHTS), strict=False)
    return wrap(model, distributed_optimizer=distributed_optimizer), config
