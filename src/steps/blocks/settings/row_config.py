"""How rows are read: keys that every section of data shares."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from nemotron_style.runtime.config.model import Section


class RowReading(Section):
    """What is done with rows of a known layout, of several, and with those that are bad.

    ``max_bad_rows`` bounds what ``on_bad_row: skip`` leaves out.
    """

    layout: str | None = Field(
        default=None, description="null: recognised; else the name of the one that is meant"
    )
    on_bad_row: Literal["stop", "skip"] = "stop"
    max_bad_rows: float = Field(
        default=0.05, ge=0, description="below 1 a share of the rows, else a number of them"
    )

    def row_budget(self, rows: int) -> int:
        """How many of ``rows`` may be bad."""
        return int(self.max_bad_rows * rows if self.max_bad_rows < 1 else self.max_bad_rows)


class LongRowReading(RowReading):
    """The same, of rows that must fit into a model.

    Rows that are too long are not bad: ``truncate_prompt`` leaves out the first turns of a
    conversation until the rest fits; an answer is never cut.
    """

    long_rows: Literal["stop", "skip", "truncate_prompt"] = "stop"
