"""Settings of ``data/dedup``; readable without torch."""

from __future__ import annotations

from nemotron_style.runtime.config.model import StepConfig


class Config(StepConfig):
    """Unknown keys and values of another type are refused, because ``StepConfig`` is strict."""

    file_path: str | None = None
    case_sensitive: bool = True
