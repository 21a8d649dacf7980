"""How far the work of a run is, how fast it goes, and how long it will take."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from nemotron_style.runtime.units import format_duration, format_number, format_rate

# The figure of a validation to show is the first whose name has one of these words.
HEADLINES = ("reward", "loss", "distance", "accuracy")


@dataclass
class Pace:
    """How fast the work goes, since its first report in this attempt.

    Work that has several phases starts anew with each: the total changes, or ``done`` falls.
    """

    total: int = 0
    first: int = 0
    since: float = 0.0
    done: int = 0

    def update(self, done: int, total: int, now: float) -> float | None:
        """Take in a report; returns units of work per second, None at the first of a phase."""
        if total != self.total or done < self.done:
            self.total, self.first, self.since = total, done, now
        self.done = done
        elapsed = now - self.since
        return (done - self.first) / elapsed if done > self.first and elapsed > 0 else None


def format_progress(report: Mapping[str, Any], *, room: int = sys.maxsize) -> str:
    """``50/100  2.5/s  20s left  validation_loss=0.45 (step 40)  loss=0.48``, as far as it fits.

    ``report`` is what ``progress.json`` holds, ``room`` a number of characters.
    """
    parts = [f"{report['done']}/{report['total']}"]
    if "per_second" in report:
        left = format_duration(report["seconds_left"])
        parts += [format_rate(report["per_second"]), f"{left} left"]
    figures = [f"{name}={format_number(value)}" for name, value in report["figures"].items()]
    validation = dict(report.get("validation", {}))
    if step := validation.pop("step", None):
        headlines = [name for name in validation if any(word in name for word in HEADLINES)]
        name = next(iter([*headlines, *validation]))
        figures.insert(0, f"{name}={format_number(validation[name])} (step {step})")
    for figure in figures:
        if len("  ".join([*parts, figure])) <= room:
            parts.append(figure)
    return "  ".join(parts)
