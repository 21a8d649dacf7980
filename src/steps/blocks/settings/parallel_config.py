"""How a model is divided over the processes of a job; readable without torch."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from nemotron_style.runtime.config.model import Section, cosmetic

Size = Annotated[int, Field(ge=1)]


class DividedModel(Section):
    """Sizes of model parallelism, with the names of NeMo and NeMo-RL; the other processes are data
    parallel.

    They are no part of what a run is: a run that is started with another division goes on.
    """

    tensor_model_parallel_size: Size = cosmetic(default=1)
    pipeline_model_parallel_size: Size = cosmetic(default=1)

    @property
    def is_divided(self) -> bool:
        """Whether no process holds the whole model."""
        return self.tensor_model_parallel_size * self.pipeline_model_parallel_size > 1
