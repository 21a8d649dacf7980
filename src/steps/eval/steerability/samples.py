"""The responses themselves: every one as a row, and some of each label as a table to read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from nemotron_style.steps.blocks.generation.chat_sampler import Request
from nemotron_style.steps.eval.steerability.metrics import JOINT, Outcome


def sample_rows(
    requests: Sequence[Request], outcomes: Mapping[str, Sequence[Outcome]]
) -> list[dict[str, Any]]:
    """One row a request: what was asked, and for every model what it said and what that is."""
    rows = []
    for place, request in enumerate(requests):
        asked = request.conversation
        turns = [{"from": turn.speaker, "value": turn.value} for turn in asked.turns]
        row: dict[str, Any] = {"system": asked.system, "turns": turns, "label": request.label}
        for slot, found in outcomes.items():
            outcome = found[place]
            got = None if outcome.got is None else dict(outcome.got)
            row[slot] = {"value": outcome.text, "attributes": got, "hit": outcome.hit(JOINT)}
        rows.append(row)
    return rows


def sample_table(rows: Sequence[Mapping[str, Any]], *, slots: Sequence[str], shown: int) -> str:
    """The first ``shown`` rows of each label as a Markdown table, ordered by label."""
    heads = ["label", "prompt", *slots]
    lines = ["# Samples", "", _line(heads), _line(["---"] * len(heads))]
    seen: Counter[str] = Counter()
    chosen = []
    for row in rows:
        seen[row["label"]] += 1
        if seen[row["label"]] <= shown:
            chosen.append(row)
    for row in sorted(chosen, key=lambda row: row["label"]):
        cells = [_said(row[slot]) for slot in slots]
        lines.append(_line([row["label"], row["turns"][-1]["value"], *cells]))
    return "\n".join(lines) + "\n"


def _said(answer: Mapping[str, Any]) -> str:
    if answer["value"] is None:
        return "✗ (did not finish)"
    mark = "✓" if answer["hit"] else "✗"
    got = ",".join(f"{name}:{value}" for name, value in answer["attributes"].items())
    return f"{mark} {answer['value']} ({got})"


def _line(cells: Sequence[str]) -> str:
    safe = [cell.replace("|", "\\|").replace("\n", " ") for cell in cells]
    return "| " + " | ".join(safe) + " |"
