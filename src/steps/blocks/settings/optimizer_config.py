"""How a model is optimised: learning rate, schedule, Adam; readable without torch."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from nemotron_style.runtime.config.model import Section


class SchedConfig(Section):
    """Learning rate over steps, with the names of NeMo's ``model.optim.sched``."""

    name: Literal["CosineAnnealing"] = "CosineAnnealing"
    warmup_steps: int = Field(default=0, ge=0)
    constant_steps: int = Field(default=0, ge=0)
    min_lr: float = Field(default=0.0, ge=0)


class OptimConfig(Section):
    """AdamW, with the names of NeMo's ``model.optim``.

    The three names are one algorithm. ``distributed_fused_adam`` also spreads the optimizer's
    state over data ranks, where there are CUDA devices.
    """

    name: Literal["adamw", "distributed_fused_adam", "fused_adam"] = "adamw"
    lr: float = Field(default=1e-4, gt=0)
    weight_decay: float = Field(default=0.01, ge=0)
    betas: Annotated[tuple[float, float], Field(strict=False)] = (0.9, 0.98)
    eps: float = Field(default=1e-8, gt=0)
    sched: SchedConfig = SchedConfig()
    max_skipped_updates: int = Field(
        default=0, ge=0, description="updates in a row that may be skipped for not being finite"
    )

    @property
    def distributed(self) -> bool:
        """Whether data ranks share the optimizer's state among them, where there is CUDA."""
        return self.name == "distributed_fused_adam"

    @model_validator(mode="after")
    def _rates_fit(self) -> OptimConfig:
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"betas must lie in [0, 1), got {self.betas}")
        if self.sched.min_lr > self.lr:
            raise ValueError(f"sched.min_lr {self.sched.min_lr} is above lr {self.lr}")
        return self
