"""Settings that both conversions have; readable without torch."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from nemotron_style.runtime.config.model import StepConfig

WeightType = Literal["float32", "float16", "bfloat16"]


class ConversionConfig(StepConfig):
    """How closely the logits of both sides must agree, and on which random rows."""

    max_logit_difference: float = Field(
        default=1e-4, ge=0, description="in float64, for logits up to 10"
    )
    sample_rows: int = Field(default=4, ge=1)
    sample_tokens: int = Field(default=64, ge=1, description="tokens of a sample row")
