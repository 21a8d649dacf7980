"""Settings of ``eval/steerability``; readable without torch."""

from __future__ import annotations

from collections.abc import Mapping

from pydantic import Field

from nemotron_style.runtime.config.model import Section, StepConfig, Tracker
from nemotron_style.steps.blocks.data.chat_format import ModelData
from nemotron_style.steps.blocks.settings.row_config import RowReading
from nemotron_style.steps.blocks.settings.tracker_config import find_trackers
from nemotron_style.steps.blocks.settings.training_config import CheckpointPath, TrackedPrecision


class Models(Section):
    """The model in question; a baseline to compare with; a model that names attributes."""

    restore_from_path: str | None = None
    baseline: CheckpointPath = CheckpointPath()
    attribute: CheckpointPath = CheckpointPath()
    data: ModelData = ModelData()


class Data(RowReading):
    """Held-out prompts, and what is asked of the responses to them."""

    prompts: str | None = None
    truth: str | None = None
    max_prompts: int | None = Field(default=None, ge=1, description="null: all of them")
    labels: tuple[str, ...] = Field(
        default=(), strict=False, description="labels to ask for; empty: those the truth can reach"
    )


class Sampling(Section):
    """How responses are drawn."""

    num_samples: int = Field(default=1, ge=1, description="responses to a prompt with a label")
    max_new_tokens: int = Field(ge=1)
    temperature: float = Field(default=1.0, ge=0)
    max_rows: int = Field(default=512, ge=1, description="responses decoded side by side")


class Config(StepConfig):
    """``eval/steerability``: how often a response has the attributes that were asked for."""

    trainer: TrackedPrecision = TrackedPrecision()
    model: Models = Models()
    data: Data
    sampling: Sampling
    shown_samples: int = Field(default=3, ge=0, description="responses a label shows in samples.md")

    def trackers(self) -> Mapping[str, Tracker]:
        return find_trackers({"trainer.logger": self.trainer.logger})
