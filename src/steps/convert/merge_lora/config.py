"""Settings of ``convert/merge_lora``; readable without torch."""

from __future__ import annotations

from pydantic import Field

from nemotron_style.runtime.config.model import Section
from nemotron_style.steps.blocks.settings.conversion_config import ConversionConfig, WeightType


class Adapter(Section):
    """``model.peft``: the adapter to merge."""

    restore_from_path: str | None = None


class Model(Section):
    """``model``: the base that the adapter was trained on."""

    restore_from_path: str | None = None
    peft: Adapter = Adapter()


class Config(ConversionConfig):
    """``convert/merge_lora``: the adapter becomes a part of the weights, and a proof."""

    model: Model = Model()
    dtype: WeightType | None = Field(
        default=None, description="null: that of the base; the sum is rounded to it once"
    )
