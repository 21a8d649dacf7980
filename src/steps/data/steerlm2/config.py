"""Settings of ``data/steerlm2``; readable without torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Self

from pydantic import Field, model_validator

from nemotron_style.runtime.config.model import Section, StepConfig, Tracker
from nemotron_style.steps.blocks.data.chat_format import ModelData
from nemotron_style.steps.blocks.settings.row_config import RowReading
from nemotron_style.steps.blocks.settings.tracker_config import find_trackers
from nemotron_style.steps.blocks.settings.training_config import CheckpointPath, TrackedPrecision


class Trainer(TrackedPrecision):
    """``trainer.precision`` must be that of the training that will read the log-probs."""


class Models(Section):
    """Q'(y|a,x) that is sampled, P(y|x) and P(a|x,y); the latter two default to the sampler."""

    sampler: CheckpointPath = CheckpointPath()
    base: CheckpointPath = CheckpointPath()
    attribute: CheckpointPath = CheckpointPath()
    data: ModelData = ModelData()


class Data(RowReading):
    """Which prompts and labels are combined, and how many groups are made of them."""

    prompts: str | None = None
    truth: str | None = None
    validation_prompts: int = Field(ge=1, description="prompts set apart for validation")
    train_groups: int | None = Field(
        default=None, ge=1, description="null: one for every prompt that is not set apart"
    )
    validation_groups: int | None = Field(
        default=None, ge=1, description="null: one for every prompt set apart"
    )
    iteration: int = Field(
        default=1, ge=1, description="another number draws other labels for the same prompts"
    )
    labels: tuple[str, ...] = Field(
        default=(),
        strict=False,
        description="labels to draw from; empty: those the truth can reach, else the prompts' own",
    )


class Sampling(Section):
    """How responses are drawn. The temperature is 1: the weights are right for no other."""

    num_responses: int = Field(ge=2, description="responses of a group (n)")
    max_new_tokens: int = Field(ge=1)
    max_attempts: int = Field(default=4, ge=1, description="times an unfinished one is drawn")
    max_dropped: float = Field(
        default=0.02, ge=0, le=1, description="share of groups that may stay incomplete"
    )
    max_rows: int = Field(default=512, ge=1, description="responses decoded side by side")


class Scoring(Section):
    """How log-probs are computed."""

    micro_batch_tokens: int = Field(default=16384, ge=1, description="padded tokens of a pass")


class AttributeCheck(Section):
    """The attribute model is measured on sampled responses before it is used."""

    num_samples: int = Field(default=256, ge=0, description="0: do not measure")
    floor: float = Field(default=0.9, ge=0, le=1, description="accuracy below which to warn")


class Config(StepConfig):
    """``data/steerlm2``: sample groups, and score them for SteerLM 2.0."""

    trainer: Trainer = Trainer()
    model: Models = Models()
    data: Data
    sampling: Sampling
    scoring: Scoring = Scoring()
    attribute_check: AttributeCheck = AttributeCheck()
    shard_groups: int = Field(default=128, ge=1, description="groups between two checkpoints")

    def trackers(self) -> Mapping[str, Tracker]:
        return find_trackers({"trainer.logger": self.trainer.logger})

    @model_validator(mode="after")
    def _labels_differ(self) -> Self:
        if len(set(self.data.labels)) < len(self.data.labels):
            raise ValueError("data.labels: a label is given twice; each is drawn as often")
        return self
