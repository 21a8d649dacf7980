"""What the model gives for a few held-out conversations before and after training, as a table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import nn

from nemotron_style.runtime.step.context import StepContext
from nemotron_style.steps.blocks.data.chat.interface import Chat
from nemotron_style.steps.blocks.reward.config import RewardConfig
from nemotron_style.steps.blocks.training.sample_table import SampleFile, shorten_prompt
from nemotron_style.steps.reward.regression.batch import predict
from nemotron_style.steps.reward.regression.row import EncodedRow


@dataclass(frozen=True)
class RatedSamples:
    """The ratings that a model gives to the conversations of ``rows``; ``size`` rows in a pass."""

    ctx: StepContext
    chat: Chat
    rows: Sequence[EncodedRow]
    reward: RewardConfig
    size: int

    def take(self, model: nn.Module, step: int) -> None:
        """Keep the ratings of ``model``, which has made ``step`` updates. All ranks call it."""
        if not self.rows:
            return
        outputs = predict(model, self.rows, outputs=len(self.reward.outputs), size=self.size)
        given = [self.reward.rate(each) for texts in outputs for each in texts.tolist()]
        if self.ctx.is_first:
            texts = [f"{one.score:.2f} ({_describe(one.attributes)})" for one in given]
            self._file.keep(step, texts)

    def write(self, *, after: int) -> None:
        """Write the ratings of the start beside those of the model after ``after`` updates."""
        if not (self.rows and self.ctx.is_first):
            return
        kept = self._file.read()
        texts = [text for row in self.rows for text in row.texts]
        columns = {
            "conversation": [shorten_prompt(self.chat.visible_text(text)) for text in texts],
            "in the data": [each for row in self.rows for each in _describe_target(row)],
            "before": kept.get(0),
            f"after {after} steps": kept.get(after),
        }
        shown = {head: cells for head, cells in columns.items() if cells}
        self._file.write_table(list(shown), list(zip(*shown.values(), strict=True)))

    @property
    def _file(self) -> SampleFile:
        return SampleFile(self.ctx.run_dir, "ratings")


def _describe_target(row: EncodedRow) -> list[str]:
    return ["better", "worse"] if row.is_pair else [_describe(row.ratings)]


def _describe(attributes: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {value:.2f}" for name, value in attributes.items())
