"""The model at the smallest validation distance: kept while the run goes on, and then produced.

Of a run that trains adapters these alone are kept.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

import torch.distributed as dist
from torch import nn

from nemotron_style.runtime.errors import StepFailed
from nemotron_style.runtime.step.checkpoint import MARKER, Checkpoints
from nemotron_style.runtime.step.context import Output, StepContext
from nemotron_style.steps.blocks.checkpoint.model_checkpoint import (
    CONFIG,
    TOKENIZER,
    WEIGHTS,
    save_model,
    written_digest,
)
from nemotron_style.steps.blocks.settings.model_config import ModelConfig
from nemotron_style.steps.blocks.training.trained_model import Adaptation


@dataclass(frozen=True)
class BestModel:
    """What of ``model`` is kept, by the number of updates after which it was the best."""

    ctx: StepContext
    model: nn.Module
    sizes: ModelConfig
    adaptation: Adaptation | None
    tokenizer: Path

    @property
    def _kept(self) -> Checkpoints:
        return self.ctx.checkpoints.beside("best")

    def keep(self, step: int) -> None:
        """Keep the model as it is after ``step`` updates, and the one before it.

        The state that was saved last may still name that one.
        """
        path = self._kept.stage(step)
        if self.adaptation:
            self.adaptation.save(self.model, path, tokenizer=self.tokenizer)
        else:
            save_model(self.model, path, config=self.sizes, tokenizer=self.tokenizer)
        dist.barrier()
        self._kept.commit(step)
        dist.barrier()

    def keep_start(self) -> None:
        """Keep the adapters of the start; a start that is a model is an input of the run."""
        if self.adaptation:
            self.keep(0)

    def produce(self, step: int) -> Output:
        """The output, which is written here: what was kept after ``step`` updates, 0 the start.

        Raises StepFailed when that is damaged. Every rank calls it.
        """
        kept = self._kept.at(step)
        if kept is None and (step or self.adaptation):
            raise StepFailed(f"the kept model of step {step} is damaged; run again with --fresh")
        source = kept.path if kept else self.ctx.input("model").path
        output = self.ctx.output("adapter" if self.adaptation else "model")
        if self.ctx.is_first:
            copy_parts(source, output.path, adapter=self.adaptation is not None)
        dist.barrier()
        if self.adaptation:
            output.note(**self.adaptation.facts)
        else:
            output.note(weights_digest=written_digest(output.path))
        return output


def copy_parts(source: Path, target: Path, *, adapter: bool) -> None:
    """Copy the parts of a checkpoint or an adapter, and no record or marker beside them."""
    if adapter:
        shutil.copytree(source, target, ignore=shutil.ignore_patterns(MARKER), dirs_exist_ok=True)
        return
    shutil.copyfile(source / CONFIG, target / CONFIG)
    for part in (WEIGHTS, TOKENIZER):
        shutil.copytree(source / part, target / part)
