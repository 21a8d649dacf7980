"""The bouts themselves: every one as a row, and the clearest wins and losses as a table to read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from nemotron_style.steps.eval.arena.match import Bout, Ruling
from nemotron_style.steps.eval.arena.metrics import Levels

Row = dict[str, Any]


def sample_rows(
    bouts: Sequence[Bout], rulings: Sequence[Ruling], levels: Sequence[Levels] | None
) -> list[Row]:
    """One row a bout: what was asked and said, and who was preferred by how much.

    ``margins`` are the model's in both orders, in the judge's points; ``score`` is its share of
    the win, null where the judge failed.
    """
    rows = []
    for place, (bout, ruling) in enumerate(zip(bouts, rulings, strict=True)):
        row: Row = {
            "messages": [dict(message) for message in bout.history],
            "number": bout.number,
            "model": bout.model,
            "baseline": bout.baseline,
            "decided": ruling.how,
            "margins": list(ruling.margins),
            "score": ruling.score if ruling.margins else None,
        }
        if levels is not None:
            row["helpfulness"] = dict(zip(("model", "baseline"), levels[place], strict=True))
        rows.append(row)
    return rows


def sample_table(rows: Sequence[Row], *, shown: int) -> str:
    """The ``shown`` wins and losses of the widest mean margin, as Markdown."""
    judged = [row for row in rows if row["decided"] == "judged"]
    wins = sorted((row for row in judged if row["score"] > 0.5), key=_margin, reverse=True)
    losses = sorted((row for row in judged if row["score"] < 0.5), key=_margin)
    parts = ["# Samples"]
    for title, found in (("Best wins", wins), ("Worst losses", losses)):
        parts += ["", f"## {title} ({len(found)} in all)", "", *_table(found[:shown])]
    return "\n".join(parts) + "\n"


def _margin(row: Mapping[str, Any]) -> float:
    return float(sum(row["margins"]))


def _table(rows: Sequence[Row]) -> list[str]:
    heads = ["margins", "prompt", "model", "baseline"]
    lines = [_line(heads), _line(["---"] * len(heads))]
    for row in rows:
        margins = ", ".join(f"{margin:+g}" for margin in row["margins"])
        said = [_said(row, slot) for slot in ("model", "baseline")]
        lines.append(_line([margins, row["messages"][-1]["content"], *said]))
    return lines


def _said(row: Row, slot: str) -> str:
    level = row.get("helpfulness", {}).get(slot)
    return f"{row[slot]} (helpfulness {level})" if level is not None else str(row[slot])


def _line(cells: Sequence[str]) -> str:
    safe = [cell.replace("|", "\\|").replace("\n", " ") for cell in cells]
    return "| " + " | ".join(safe) + " |"
