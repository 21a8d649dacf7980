"""How a model is divided over the processes of a job, and what they keep of activations.

Readable without torch. None of these choices changes what is computed.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field

from nemotron_style.runtime.config.model import Section, cosmetic
from nemotron_style.runtime.errors import Problem

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


Method = Literal["uniform", "block"]


@dataclass(frozen=True)
class Activations:
    """How memory of activations is saved, in megatron-core's terms.

    With ``sequence_parallel`` tensor ranks keep a part of every row where they would keep the
    same. ``recompute_method`` computes layers again in the backward pass: ``uniform`` keeps what
    goes into every ``recompute_num_layers`` layers, ``block`` recomputes the first
    ``recompute_num_layers`` of a pipeline stage one by one; None keeps everything.
    """

    sequence_parallel: bool = False
    recompute_method: Method | None = None
    recompute_num_layers: int = 1

    def recomputed(self, layers: int) -> int:
        """How many of a stage's ``layers`` are computed again."""
        if self.recompute_method is None:
            return 0
        return layers if self.recompute_method == "uniform" else self.recompute_num_layers

    def find_problems(
        self, *, tensor: int, layers: int | None, keys: tuple[str, str]
    ) -> Iterator[Problem]:
        """What does not fit ``tensor`` ranks and a pipeline stage of ``layers``, where known.

        ``keys`` are those of sequence parallelism and of the number of layers.
        """
        if self.sequence_parallel and tensor == 1:
            yield Problem(
                key=keys[0],
                what="rows are divided among tensor ranks, of which there is one",
                got="true with a tensor parallel size of 1",
                fix="set it to false, or divide the model over more tensor ranks",
            )
        count = self.recompute_num_layers
        if layers is None:
            return
        if self.recompute_method == "uniform" and layers % count:
            what = "layers are recomputed in groups that do not divide those of a pipeline stage"
            allowed = f"a number that divides {layers}, such as 1"
            yield Problem(key=keys[1], what=what, got=str(count), allowed=allowed)
        if self.recompute_method == "block" and count > layers:
            what = "more layers are to be recomputed than a pipeline stage has"
            yield Problem(key=keys[1], what=what, got=str(count), allowed=f"1 to {layers}")


KEEP_ALL = Activations()
ALIGNER_KEYS = ("model.sequence_parallel", "model.activations_checkpoint_num_layers")
NEMO_RL_KEYS = (
    "policy.megatron_cfg.sequence_parallel",
    "policy.megatron_cfg.activation_checkpointing",
)
