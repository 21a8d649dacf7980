"""Settings of the press."""

from nemotron_style.runtime.config.model import Section, StepConfig


class Power(Section):
    url: str | None = None


class Config(StepConfig):
    power: Power = Power()
    hold: bool = False
    fail: bool = False
