"""Settings of ``data/inspect``."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from nemotron_style.runtime.config.model import Section, StepConfig
from nemotron_style.steps.blocks.data.chat_format import ModelData
from nemotron_style.steps.blocks.data.conversation import TrainOn


class Model(Section):
    """``model``: whose tokens are counted and shown."""

    restore_from_path: str | None = None
    data: ModelData = ModelData()


class Data(Section):
    """``data``: the rows, and what they are looked at for."""

    file_path: str | None = None
    use: Literal["training", "prompts", "ratings", "comparisons"] | None = Field(
        default=None, description="null: the first of these that the rows can be read for"
    )
    layout: str | None = Field(default=None, description="null: recognised")
    train_on: TrainOn = "all"


class Config(StepConfig):
    """``data/inspect``: what a file of rows holds."""

    model: Model = Model()
    data: Data = Data()
    max_tokens: int | None = Field(
        default=None, ge=1, description="longer rows are counted; null: as long as the model reads"
    )
    shown_rows: int = Field(default=3, ge=0, description="rows that are shown whole")
