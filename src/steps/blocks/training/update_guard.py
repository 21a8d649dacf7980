"""Whether an update may reach the weights: nothing that is not finite does."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from torch import nn

from nemotron_style.runtime.errors import Problem, StepFailed
from nemotron_style.steps.blocks.model.rank_zero import gather, is_rank_zero


@dataclass
class UpdateGuard:
    """Refuses updates whose loss or gradient is not finite, and counts those that it let go by.

    ``model`` knows how many of this rank's micro-batches had a loss that is not finite.
    ``most_in_row`` updates in a row may be left out, as ``max_skipped_updates`` says; ``in_row``
    have been since the last one that was made, ``skipped`` in all.
    """

    model: nn.Module
    most_in_row: int = 0
    in_row: int = 0
    skipped: int = 0

    def allows(self, *, step: int, loss: float, grad_norm: float) -> bool:
        """Whether to make the update of ``step``; False to leave it out and go on.

        ``loss`` and ``grad_norm`` are those of the global batch, the same on every rank; every
        rank calls it. Raises StepFailed where no more updates may be left out.
        """
        if math.isfinite(loss) and math.isfinite(grad_norm):
            self.in_row = 0
            return True
        facts = f"loss {loss:.4g}, gradient norm {grad_norm:.4g}"
        counts = enumerate(gather(int(getattr(self.model, "nonfinite_losses", 0))))
        if ranks := [str(rank) for rank, count in counts if count]:
            facts += f"; the loss is not finite on rank {', '.join(ranks)}"
        if self.in_row >= self.most_in_row:
            raise StepFailed(self._problem(step, facts))
        self.in_row += 1
        self.skipped += 1
        if is_rank_zero():
            print(
                f"step {step}: the update is not finite and was skipped ({facts}); "
                f"{self.in_row} in a row, {self.most_in_row} allowed",
                flush=True,
            )
        return False

    def stored(self) -> dict[str, Any]:
        """The counts, as a state keeps them."""
        return {"in_row": self.in_row, "skipped": self.skipped}

    def load(self, stored: dict[str, Any]) -> None:
        """Take over the counts that a state keeps."""
        self.in_row, self.skipped = stored.get("in_row", 0), stored.get("skipped", 0)

    def _problem(self, step: int, facts: str) -> Problem:
        skipped = f" after {self.in_row} skipped in a row" if self.in_row else ""
        return Problem(
            where=f"step {step}",
            what=f"the update is not finite{skipped}, and was not applied",
            got=facts,
            allowed="finite numbers",
            fix="lower the learning rate, lengthen its warm-up or look at the rows of this step; "
            "the same command goes on from the last saved state",
        )
