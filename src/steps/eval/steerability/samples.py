"""The responses themselves: every one as a row, and some of each label as a table to read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from nemotron_style.steps.blocks.data.markdown_table import markdown_table
from nemotron_style.steps.blocks.generation.chat_sampler import Request
from nemotron_style.steps.eval.steerability.metrics import JOINT, Outcome


def sample_rows(
    requests: Sequence[Request], outcomes: Mapping[str, Sequence[Outcome]]
) -> list[dict[str, Any]]:
    """One row a request: prompt and label, and for every model its response and what that has."""
    rows = []
    for index, request in enumerate(requests):
        prompt = request.conversation
        turns = [{"from": turn.speaker, "value": turn.value} for turn in prompt.turns]
        row: dict[str, Any] = {
            "system": prompt.system or "",
            "turns": turns,
            "label": request.label,
        }
        for slot, own in outcomes.items():
            outcome = own[index]
            actual = None if outcome.actual is None else dict(outcome.actual)
            row[slot] = {"value": outcome.text, "attributes": actual, "hit": outcome.hit(JOINT)}
        rows.append(row)
    return rows


def sample_table(rows: Sequence[Mapping[str, Any]], *, slots: Sequence[str], shown: int) -> str:
    """The first ``shown`` rows of each label as a Markdown table, ordered by label."""
    seen: Counter[str] = Counter()
    chosen = []
    for row in rows:
        seen[row["label"]] += 1
        if seen[row["label"]] <= shown:
            chosen.append(row)
    cells = [
        [row["label"], row["turns"][-1]["value"], *(_response(row[slot]) for slot in slots)]
        for row in sorted(chosen, key=lambda row: row["label"])
    ]
    lines = ["# Samples", "", *markdown_table(["label", "prompt", *slots], cells)]
    return "\n".join(lines) + "\n"


def _response(response: Mapping[str, Any]) -> str:
    if response["value"] is None:
        return "✗ (did not finish)"
    mark = "✓" if response["hit"] else "✗"
    attributes = ",".join(f"{name}:{value}" for name, value in response["attributes"].items())
    return f"{mark} {response['value']} ({attributes})"
