"""Settings of the wheel."""

from nemotron_style.runtime.config.model import StepConfig


class Config(StepConfig):
    grain: str | None = None
    load: float = 0.0
    speed: int = 1
    break_at: str = ""
