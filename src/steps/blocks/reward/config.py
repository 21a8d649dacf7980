"""``reward_config.json`` of a reward model: what its outputs are called and how they are scaled.

The head's outputs are standardised: ``output * std + mean`` is in the units of the data. The
score is the sum of those, each times its weight.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from nemotron_style.runtime.errors import Problem
from nemotron_style.steps.blocks.data.chat_format import ChatPromptTokens
from nemotron_style.steps.blocks.reward.types import RewardScore
from nemotron_style.steps.blocks.settings.json_model import read_json_model

REWARD_FILE = "reward_config.json"


class Scale(BaseModel):
    """Mean and standard deviation of an attribute in the data that were trained on."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    mean: float = 0.0
    std: float = Field(default=1.0, gt=0)


class RewardConfig(BaseModel):
    """The file; ``outputs`` are in the order of the rows of ``score.weight``."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    schema_version: int = Field(default=1, ge=1, le=1)
    outputs: Annotated[tuple[str, ...], Field(min_length=1)]
    weights: dict[str, float]
    scale: dict[str, Scale]
    max_sequence_length: int = Field(ge=1)
    chat: ChatPromptTokens | None = Field(
        default=None, description="null: the chat template beside the tokenizer"
    )

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        names = set(self.outputs)
        if len(names) < len(self.outputs) or names != set(self.weights) or names != set(self.scale):
            raise ValueError("weights and scale must have one entry for each output")
        return self

    def rate(self, outputs: Sequence[float]) -> RewardScore:
        """The attributes and the score that the head's ``outputs`` stand for."""
        scaled = zip(self.outputs, outputs, strict=True)
        attributes = {
            name: value * self.scale[name].std + self.scale[name].mean for name, value in scaled
        }
        score = math.fsum(self.weights[name] * value for name, value in attributes.items())
        return RewardScore(score, attributes)

    def write(self, path: Path) -> None:
        """Write the file into the folder ``path``."""
        text = json.dumps(self.model_dump(mode="json"), indent=2, ensure_ascii=False)
        (path / REWARD_FILE).write_text(text + "\n", encoding="utf-8", newline="\n")


def read_reward_config(path: Path) -> RewardConfig:
    """The file of the folder ``path``. Raises InputError when there is none to be used."""
    what = "is no reward model: there is no reward_config.json"
    absent = Problem(where=str(path), what=what)
    return read_json_model(RewardConfig, path / REWARD_FILE, absent=absent)


def merged(
    names: Sequence[str], weights: Mapping[str, float], scale: Mapping[str, Scale]
) -> tuple[list[float], Scale]:
    """How much of each output one output that is the score takes, and its own scale.

    ``sum_k w_k (s_k z_k + m_k) = s z + m`` with ``s^2 = sum_k (w_k s_k)^2``.
    """
    parts = [weights[name] * scale[name].std for name in names]
    std = math.sqrt(math.fsum(part * part for part in parts))
    mean = math.fsum(weights[name] * scale[name].mean for name in names)
    return [part / std for part in parts], Scale(mean=mean, std=std)
