"""What a look takes in: steps whose lines and metrics come in pieces."""

from __future__ import annotations

from pathlib import Path

import pytest

from nemotron_style.runtime.step.context import StepContext
from nemotron_style.steps.rl.rlhf.nemo_rl.job.event_folder import EventFolder
from nemotron_style.steps.rl.rlhf.nemo_rl.job.log_reader import LogReader
from nemotron_style.steps.rl.rlhf.nemo_rl.job.settings import Settings
from nemotron_style.steps.rl.rlhf.nemo_rl.job.watch import Watch

FAILED = "(NemoGym pid=9) [GenRM] Parse failed for pair (0, 1) after 4 attempts"


class WatchedRun:
    """A watch whose log and events a test writes."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch, *, tensorboard: bool) -> None:
        self.events: dict[int, dict[str, float]] = {}
        monkeypatch.setattr(EventFolder, "read", lambda _: self.events)
        self.log = LogReader()
        self.ctx = StepContext(run_dir=folder, inputs={}, outputs=())
        text = f"{{logger: {{tensorboard_enabled: {tensorboard}}},"
        text += " env: {should_use_nemo_gym: true}}"
        self.watch = Watch(
            self.ctx,
            Settings.parse(text),
            EventFolder(folder),
            self.log,
            steps=2,
            notes=folder / "notes.json",
        )

    def look(self, *lines: str, last: bool = False, events: dict[int, dict[str, float]]) -> None:
        for line in lines:
            self.log.feed(line)
        self.events = events
        self.watch.look(last=last)

    def metric(self, name: str) -> dict[int, float]:
        lines = self.ctx.metrics.history()
        return {line["step"]: line[name] for line in lines if name in line}


def test_figures_of_the_log_that_a_look_cuts_in_two_belong_to_their_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = WatchedRun(tmp_path, monkeypatch, tensorboard=False)
    run.look("📊 Training Results:", events={})
    run.look("  • Loss: 0.5", events={})
    run.look("  • Avg Reward: 2.0", "📊 Training Results:", "  • Loss: 0.25", events={})
    run.look("  • Avg Reward: 3.0", last=True, events={})
    assert run.metric("loss") == {1: 0.5, 2: 0.25}
    assert run.metric("reward") == {1: 2.0, 2: 3.0}


def test_steps_between_two_looks_are_all_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = WatchedRun(tmp_path, monkeypatch, tensorboard=False)
    lines = ["📊 Training Results:", "  • Loss: 0.5", "📊 Training Results:", "  • Loss: 0.25"]
    run.look(*lines, last=True, events={})
    assert run.metric("loss") == {1: 0.5, 2: 0.25}


def test_failures_of_the_judge_that_are_read_after_the_metrics_of_their_step_are_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = WatchedRun(tmp_path, monkeypatch, tensorboard=True)
    name = "mean_gen_tokens_per_sample"
    run.look(events={1: {name: 9.0}, 2: {name: 9.0}})  # two steps at once, before their lines
    run.look(FAILED, "📊 Training Results:", FAILED, FAILED, events={})
    assert run.metric("judge/given_up_unparseable") == {1: 1.0, 2: 2.0}
