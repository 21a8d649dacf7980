"""What an attached command line shows: a line for each step, its log, a bar, and a summary."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TextIO

from nemotron_style.runtime.atomic import read_json
from nemotron_style.runtime.cli.table import render_pairs, render_table
from nemotron_style.runtime.launch.base import JobHandle, attempt_of
from nemotron_style.runtime.planning.dry_run import describe_run
from nemotron_style.runtime.planning.planner import PlannedRun
from nemotron_style.runtime.planning.runner import Outcome, Submission
from nemotron_style.runtime.step.context import show

BAR_FIGURES = 4
SUMMARY_FIGURES = 9
BAR_WIDTH = 30


@dataclass
class Screen:
    """A watcher that writes to ``stream``; the bar only where that is a terminal."""

    stream: TextIO
    bar: str = ""

    def begin(self, run: PlannedRun) -> None:
        plan, decision = run.plan, run.decision
        self._write(f"== {plan.step} ({plan.config_name})  {decision.action}: {decision.reason}\n")
        for note in plan.notes:
            self._write(f"note: {note}\n")

    def follow(self, text: str, handle: JobHandle) -> None:
        if text:
            self._write(text)
        if self.stream.isatty():
            self._draw(handle)

    def warn(self, text: str) -> None:
        self._write(f"{text}\n")

    def _write(self, text: str) -> None:
        self._erase()
        self.stream.write(text)
        self.stream.flush()

    def _draw(self, handle: JobHandle) -> None:
        told = read_json(attempt_of(handle).path / "progress.json")
        bar = render_bar(told) if told and told["done"] < told["total"] else ""
        if bar != self.bar:
            self._erase()
            self.stream.write(bar)
            self.stream.flush()
            self.bar = bar

    def _erase(self) -> None:
        if self.bar:
            self.stream.write("\r\x1b[K")
            self.bar = ""


def render_bar(told: dict[str, Any]) -> str:
    """``[#####-----] 50/100  loss=0.5``."""
    done, total = told["done"], told["total"]
    filled = BAR_WIDTH * done // max(total, 1)
    bar = "#" * filled + "-" * (BAR_WIDTH - filled)
    return "  ".join([f"[{bar}] {done}/{total}", *_figures(told.get("figures", {}))])


def render_summary(outcomes: Sequence[Outcome]) -> str:
    """A row a step: what was decided, how long it took, what it made. Below it, its figures."""
    header = ("STEP", "CONFIG", "DECISION", "SECONDS", "ARTIFACTS")
    table = render_table([_row(outcome) for outcome in outcomes], header=header)
    figures = [
        (outcome.run.plan.step, "  ".join(_figures(outcome.figures, most=SUMMARY_FIGURES)))
        for outcome in outcomes
        if outcome.figures
    ]
    return "\n".join([table, render_pairs(figures)]) if figures else table


def describe_outcomes(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """The same facts as plain data."""
    runs = [
        {
            **describe_run(outcome.run),
            "seconds": outcome.seconds,
            "outputs": outcome.outputs,
            "figures": outcome.figures,
        }
        for outcome in outcomes
    ]
    return {"dry_run": False, "runs": runs}


def render_submissions(submissions: Sequence[Submission]) -> str:
    """A row a run, and the commands that watch, await and end the last one."""
    header = ("STEP", "CONFIG", "DECISION", "RUN", "JOB", "STATE")
    table = render_table([_submitted(each) for each in submissions], header=header)
    last = submissions[-1]
    notes = dict.fromkeys(note for each in submissions for note in each.run.plan.notes)
    table = "".join([*(f"note: {note}\n" for note in notes), table])
    if last.handle is None:
        return table
    run_id = last.run.plan.run_id
    ways = {"watch": "logs -f", "wait": "wait", "end": "cancel"}
    return f"{table}\n" + render_pairs(
        [(way, f"nemotron-style runs {words} {run_id}") for way, words in ways.items()]
    )


def describe_submissions(submissions: Sequence[Submission]) -> dict[str, Any]:
    """The same facts as plain data."""
    runs = [
        {
            **describe_run(each.run),
            "executor": each.handle.executor if each.handle else None,
            "attempt": each.handle.attempt if each.handle else None,
            "job": attempt_of(each.handle).job.get("id") if each.handle else None,
            "state": each.state.state,
            "path": str(each.run.plan.record_dir),
        }
        for each in submissions
    ]
    return {"dry_run": False, "detached": True, "runs": runs}


def _submitted(each: Submission) -> list[str]:
    plan = each.run.plan
    job = str(attempt_of(each.handle).job.get("id", "-")) if each.handle else "-"
    action = each.run.decision.action
    return [plan.step, plan.config_name, action, plan.run_id, job, each.state.state]


def output_stream(*, as_json: bool) -> TextIO:
    """Where people look: standard output belongs to the document when there is one."""
    return sys.stderr if as_json else sys.stdout


def _row(outcome: Outcome) -> list[str]:
    plan = outcome.run.plan
    first, *others = [output["ref"] for output in outcome.outputs.values()] or ["-"]
    refs = f"{first} (+{len(others)})" if others else first
    seconds = f"{outcome.seconds:.1f}" if outcome.seconds else "-"
    action = outcome.run.decision.action
    return [plan.step, plan.config_name, action, seconds, refs]


def _figures(figures: dict[str, Any], *, most: int = BAR_FIGURES) -> list[str]:
    return [f"{name}={show(value)}" for name, value in list(figures.items())[:most]]
