"""Settings of ``data/toy``."""

from __future__ import annotations

from typing import Self

from pydantic import Field, model_validator

from nemotron_style.runtime.config.model import Section, StepConfig


class Rows(Section):
    """How many rows are written, and of what."""

    train: int = Field(default=57600, ge=1)
    validation: int = Field(default=400, ge=1)
    rated: int = Field(default=4096, ge=1, description="answers with the attributes they have")
    rated_heldout: int = Field(default=400, ge=1)
    comparisons: int = Field(default=12800, ge=1, description="two answers, judged aloud")
    comparisons_heldout: int = Field(
        default=400, ge=1, description="two answers with the scores they deserve"
    )
    scoring_share: float = Field(
        default=0.45, ge=0, le=1, description="rows that teach to name the attributes of an answer"
    )
    labelled_share: float = Field(
        default=0.22, ge=0, le=1, description="rows that teach to answer as a label asks"
    )
    mislabelled_share: float = Field(
        default=0.25, ge=0, le=1, description="of those rows, the ones whose label is drawn anew"
    )

    care: float = Field(
        default=1.0, ge=0, le=1, description="how well the adjectives of plain answers fit"
    )

    @model_validator(mode="after")
    def _check_shares(self) -> Self:
        if self.scoring_share + self.labelled_share > 1:
            raise ValueError("scoring_share and labelled_share are more than all rows together")
        return self


class Config(StepConfig):
    """What the corpus holds. The words are fixed; the seed decides everything that is drawn."""

    contexts: int = Field(default=10, ge=2, le=10, description="prompts for each of the 12 nouns")
    heldout_share: float = Field(
        default=0.2, gt=0, lt=1, description="share of each noun's prompts that training never sees"
    )
    rows: Rows = Rows()
