"""Findings as rows of a table: value, interval in words and drawn, and what was counted."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from nemotron_style.runtime.report.drawing.intervals import (
    Interval,
    draw_interval,
    draw_scale,
    fit_scale,
)
from nemotron_style.runtime.report.headline import show_interval, show_value
from nemotron_style.runtime.report.verdict import BETTER, OPEN, WORSE, Finding

_MARKS = {BETTER: "▲", WORSE: "▼", OPEN: "◆"}
_MEANINGS = {0.5: "as good", 0.0: "no difference"}


def draw_findings(title: str, findings: Sequence[Finding]) -> dict[str, Any]:
    """A group of findings that are held to the same reference, all drawn on one scale."""
    reference, is_share = findings[0].reference, findings[0].is_share
    factor = 100 if is_share else 1
    drawn = [Interval(*(factor * n for n in (one.value, one.low, one.high))) for one in findings]
    scale = fit_scale(drawn, None if reference is None else factor * reference)
    meaning = "" if reference is None else _MEANINGS.get(reference, "")
    unit = "%" if is_share and reference != 0.0 else ""
    return {
        "title": title,
        "rows": [
            {
                "measure": one.measure,
                "value": show_value(one),
                "interval": show_interval(one),
                "detail": one.detail,
                "conclusion": one.conclusion,
                "mark": _MARKS.get(one.conclusion, "·"),
                "drawing": draw_interval(each, scale),
            }
            for one, each in zip(findings, drawn, strict=True)
        ],
        "scale": draw_scale(scale, meaning, unit=unit),
    }
