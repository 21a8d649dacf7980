"""A few held-out groups with what each response weighs: ``samples/weights.json`` of the run.

The loss raises a response in proportion to ``w - b``: its target weight, less the share that the
model gives it. So what a reader wants to see of training is ``b`` moving to ``w``.

Shapes: ``_P`` groups, ``_G`` responses of a group.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import Tensor

from nemotron_style.steps.blocks.data.chat.interface import Chat
from nemotron_style.steps.blocks.training.sample_table import FOLDER, replace_samples
from nemotron_style.steps.sft.steerlm2.batch import Batch

SHOWN = 4
"""Groups that are written down, the first ones."""
MOST_RESPONSES = 16


@dataclass
class WeightSamples:
    """Groups by their texts, with the target weights, and the model's shares by the step.

    ``{"groups": [{"prompt", "responses": [...], "weights": [...]}], "shares": {"0": [[...]]}}``;
    an attempt that continues adds its steps to those of the one before.
    """

    run_dir: Path
    batch: Batch
    chat: Chat
    shares: dict[str, list[list[float]]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        try:
            self.shares = json.loads(self.path.read_text(encoding="utf-8"))["shares"]
        except (OSError, ValueError, KeyError):
            self.shares = {}

    @property
    def path(self) -> Path:
        """The file in the run's folder."""
        return self.run_dir / FOLDER / "weights.json"

    def keep(self, step: int, b_PG: Tensor) -> None:
        """Write down the shares after ``step`` updates."""
        self.shares[str(step)] = _round(b_PG)
        text = json.dumps({"groups": self._groups, "shares": self.shares}, ensure_ascii=False)
        replace_samples(self.path, text + "\n")

    @cached_property
    def _groups(self) -> list[Mapping[str, Any]]:
        weights = _round(self.batch.w_PG)
        return [
            {
                "prompt": self.chat.visible_text(group.prompt_ids),
                "responses": [
                    self.chat.visible_text(ids) for ids in group.responses_ids[:MOST_RESPONSES]
                ],
                "weights": own,
            }
            for group, own in zip(self.batch.groups, weights, strict=False)
        ]


def _round(shares_PG: Tensor) -> list[list[float]]:
    """Shares of the first groups, to five digits: they are looked at, not computed with."""
    rows: list[list[float]] = shares_PG[:SHOWN, :MOST_RESPONSES].tolist()
    return [[round(share, 5) for share in row] for row in rows]
