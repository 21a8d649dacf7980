"""Settings of ``eval/arena``; readable without torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, Self

from pydantic import Field, field_validator, model_validator

from nemotron_style.runtime.config.model import Section, StepConfig, Tracker, cosmetic
from nemotron_style.steps.blocks.data.chat_format import ModelData
from nemotron_style.steps.blocks.http.endpoint import read_address
from nemotron_style.steps.blocks.http.waiting_config import Waiting
from nemotron_style.steps.blocks.settings.row_config import RowReading
from nemotron_style.steps.blocks.settings.tracker_config import find_trackers
from nemotron_style.steps.blocks.settings.training_config import CheckpointPath, TrackedPrecision


class Models(Section):
    """The model in question, and what it is compared with."""

    restore_from_path: str | None = None
    baseline: CheckpointPath = CheckpointPath()
    data: ModelData = ModelData()


class Data(RowReading):
    """Held-out prompts, and the rule that knows the better answer where there is one."""

    prompts: str | None = None
    truth: str | None = None
    max_prompts: int | None = Field(default=None, ge=1, description="null: all of them")


class Sampling(Section):
    """How answers are drawn, from both models alike."""

    num_samples: int = Field(default=1, ge=1, description="answers of each model to a prompt")
    max_new_tokens: int = Field(ge=1)
    temperature: float = Field(default=1.0, ge=0)
    max_rows: int = Field(default=256, ge=1, description="answers decoded side by side")

    @model_validator(mode="after")
    def _samples_differ(self) -> Self:
        if self.temperature == 0 and self.num_samples > 1:
            raise ValueError("num_samples must be 1 at temperature 0: the others would be the same")
        return self


class JudgeWaiting(Waiting):
    """``judge.waiting``: each try after an answer without a verdict has a seed of its own, so
    that their number changes the results.
    """

    tries: int = Field(default=8, ge=1, description="of each question")


class Judge(Section):
    """Who compares, and how it is asked."""

    url: str | None = Field(
        default=None, description="an OpenAI-compatible endpoint; null: one is started beside"
    )
    model: str = Field(default="judge", description="its name there")
    form: Literal["genrm", "instruct"] | None = Field(
        default=None, description="null: as the judge's card says, or instruct without one"
    )
    temperature: float = Field(default=0.0, ge=0)
    top_p: float = Field(default=1.0, gt=0, le=1)
    max_tokens: int = Field(default=4096, ge=1, description="of an answer with its reasoning")
    failure_budget: float = Field(
        default=0.05, ge=0, le=1, description="share of judgements that may fail"
    )
    at_once: int = cosmetic(default=16, ge=1, le=512, description="questions under way")
    token_env: str | None = cosmetic(
        default=None,
        pattern=r"^[A-Za-z_][A-Za-z0-9_]*$",
        description="environment variable that holds the bearer token",
    )
    waiting: JudgeWaiting = JudgeWaiting()

    @field_validator("url")
    @classmethod
    def _is_address(cls, url: str | None) -> str | None:
        return url if url is None else str(read_address(url, key="url"))


class Config(StepConfig):
    """``eval/arena``: which of two models gives the better answers, by a judge."""

    trainer: TrackedPrecision = TrackedPrecision()
    model: Models = Models()
    data: Data = Data()
    sampling: Sampling
    judge: Judge = Judge()
    shard_prompts: int = Field(default=64, ge=1, description="prompts between two saves")
    shown_samples: int = Field(default=10, ge=0, description="wins, and losses, in samples.md")

    def trackers(self) -> Mapping[str, Tracker]:
        return find_trackers({"trainer.logger": self.trainer.logger})
