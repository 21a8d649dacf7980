"""What a run trains: all weights of a model, or adapters beside weights that stay as they are.

The first makes the output ``model``, the second the output ``adapter``.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from nemotron_style.runtime.errors import InputError, raise_all
from nemotron_style.runtime.step.context import StepContext
from nemotron_style.runtime.store.record import Artifact
from nemotron_style.steps.blocks.checkpoint.families.adapters import linear_layers
from nemotron_style.steps.blocks.checkpoint.lora_folder import read_lora, write_lora
from nemotron_style.steps.blocks.checkpoint.model_checkpoint import (
    full_weights,
    load_model,
    read_config,
    recorded_weights_digest,
)
from nemotron_style.steps.blocks.model.language_model import unwrap, wrap
from nemotron_style.steps.blocks.model.lora import apply_lora, load_adapters
from nemotron_style.steps.blocks.model.rank_zero import is_rank_zero, share_from_rank_zero
from nemotron_style.steps.blocks.settings.optimizer_config import OptimConfig
from nemotron_style.steps.blocks.settings.parallel_config import KEEP_ALL, Activations
from nemotron_style.steps.blocks.settings.peft_config import (
    FOREIGN,
    AdapterBase,
    LoraTuning,
    Peft,
    check_adapter_base,
)


@dataclass(frozen=True)
class Adaptation:
    """Adapters of ``lora``, drawn from ``seed`` or taken from ``given``, beside ``base``."""

    lora: LoraTuning
    base: AdapterBase
    seed: int
    given: Artifact | None = None

    @staticmethod
    def of(ctx: StepContext, peft: Peft, *, seed: int) -> Adaptation | None:
        """That of a run with the inputs ``model`` and perhaps ``adapter``; None without LoRA.

        Raises InputError for an adapter of another model. Every rank calls it.
        """
        if peft.lora is None:
            return None
        model, given = ctx.input("model"), ctx.optional_input("adapter")
        digest = share_from_rank_zero(lambda: recorded_weights_digest(model))
        base = AdapterBase(weights_digest=digest, ref=model.ref, sizes=read_config(model.path))
        if given:
            problems = check_adapter_base(
                given.path, digest=digest, sizes=base.sizes, model=model.ref
            )
            raise_all(InputError, problems)
        return Adaptation(peft.lora, base, seed, given)

    def apply(self, model: nn.Module, ctx: StepContext) -> None:
        """Freeze ``model`` and give it the adapters. Raises InputError for ones of another form."""
        apply_lora(model, self.lora, seed=self.seed)
        if self.given is None:
            return
        folder = read_lora(self.given.path, self.base.sizes)
        raise_all(InputError, folder.find_misfits(self.lora, where=self.given.ref))
        if folder.base is None:
            ctx.say(FOREIGN)
        load_adapters(model, folder.tensors)

    def save(self, model: nn.Module, path: Path, *, tokenizer: Path) -> None:
        """Write the adapters into a directory, with a copy of that of the ``tokenizer``.

        Every rank calls it, and none comes back before rank zero has written all of it.
        """
        tensors = dict(full_weights(unwrap(model), adapters=True))
        if is_rank_zero():
            write_lora(path, tensors, lora=self.lora, base=self.base, tokenizer=tokenizer)
        dist.barrier()

    @property
    def facts(self) -> dict[str, Any]:
        """What the record of an adapter says: its base, and what was trained."""
        layers = linear_layers(self.base.sizes).items()
        sides = [sum(shape) for name, shape in layers if name.endswith(self.lora.modules)]
        return {
            "base_weights_digest": self.base.weights_digest,
            "parameters": self.lora.adapter_dim * sum(sides),
            "adapter_dim": self.lora.adapter_dim,
            "target_modules": self.lora.target_modules,
        }


def load_trained_model(
    ctx: StepContext,
    adaptation: Adaptation | None,
    *,
    dtype: torch.dtype,
    optim: OptimConfig,
    activations: Activations = KEEP_ALL,
) -> nn.Module:
    """This rank's part of the input ``model``, in DDP: all of it to be trained, or adapters."""
    path = ctx.input("model").path
    if adaptation is None:
        return load_model(
            path,
            dtype=dtype,
            distributed_optimizer=optim.distributed,
            activations=activations,
        )[0]
    model, _ = load_model(path, dtype=dtype, ddp=False, activations=activations)
    adaptation.apply(model, ctx)
    return wrap(unwrap(model), distributed_optimizer=optim.distributed)
