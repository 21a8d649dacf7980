"""Settings of ``judge/card``; readable without torch."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from nemotron_style.runtime.config.model import Section, StepConfig
from nemotron_style.steps.blocks.settings.row_config import RowReading


class Model(Section):
    """``model``: the judge."""

    restore_from_path: str | None = None


class Data(RowReading):
    """Pairs of responses whose true scores are known, and that the judge was not trained on."""

    comparisons: str | None = None
    max_pairs: int | None = Field(
        default=None, ge=1, description="how many, drawn from the seed; null: all of them"
    )


class Sampling(Section):
    """How the judge's answers are drawn, by the names of a request to it."""

    temperature: float = Field(default=0.6, ge=0)
    top_p: float = Field(default=0.95, gt=0, le=1)
    max_tokens: int = Field(default=4096, ge=1, description="of reasoning and verdict together")


class Config(StepConfig):
    """``judge/card``: every pair in both orders, counted."""

    model: Model = Model()
    data: Data = Data()
    form: Literal["genrm", "instruct"] = "genrm"
    sampling: Sampling = Sampling()
    dtype: Literal["float32", "bfloat16"] = Field(
        default="float32", description="the type that the judge computes in"
    )
    batch_tokens: int = Field(  # what is decoded side by side is rounded together
        default=65536, ge=1, description="tokens of questions and answers held side by side"
    )
    pairs_per_checkpoint: int = Field(
        default=256, ge=1, description="pairs that are lost at most when the run is killed"
    )
    shown_samples: int = Field(
        default=10, ge=0, description="judgements of each sort in samples.md"
    )
