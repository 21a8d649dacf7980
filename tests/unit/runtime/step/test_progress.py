"""How far a run is, how fast it goes, and what a line says of it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from nemotron_style.runtime.step.context import StepContext
from nemotron_style.runtime.step.progress import Pace, format_progress


def test_a_pace_counts_from_the_first_report_of_a_phase() -> None:
    pace = Pace()
    assert pace.update(11, 100, 5.0) is None  # resumed at 10: what came before has another pace
    assert pace.update(31, 100, 15.0) == 2.0
    assert pace.update(1, 100, 16.0) is None
    assert pace.update(5, 100, 17.0) == 4.0
    assert pace.update(6, 40, 18.0) is None


def test_a_line_shows_what_fits_the_last_validation_first() -> None:
    report = {
        "done": 50,
        "total": 100,
        "per_second": 0.5,
        "seconds_left": 100.0,
        "figures": {"loss": 0.48, "grad_norm": 1.23456},
        "validation": {"step": 40, "validation/tokens": 7, "validation/reward": 0.25},
    }
    whole = "50/100  2.0s each  1m 40s left  validation/reward=0.25 (step 40)  loss=0.48"
    assert format_progress(report) == f"{whole}  grad_norm=1.235"
    assert format_progress(report, room=len(whole)) == whole
    assert format_progress(report, room=50) == "50/100  2.0s each  1m 40s left  loss=0.48"
    old = {"done": 5, "total": 10, "figures": {}}  # as it was written before
    assert format_progress(old) == "5/10"


def test_progress_holds_rate_time_left_and_the_last_validation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = [100.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    context = StepContext(run_dir=tmp_path, inputs={}, outputs=())
    context.metrics.log(1, train_loss=2.0)
    context.progress(1, 11, loss=2.0)
    context.metrics.log(1, validation_loss=3.0)
    now[0] += 10
    context.progress(6, 11, loss=1.0)
    report = json.loads((tmp_path / "attempts/1/progress.json").read_text())
    assert report == {
        "done": 6,
        "total": 11,
        "figures": {"loss": 1.0},
        "per_second": 0.5,
        "seconds_left": 10.0,
        "validation": {"step": 1, "validation_loss": 3.0},
    }
    assert capsys.readouterr().out == "1/11  loss=2\n6/11  2.0s each  10s left  loss=1\n"


def test_a_resumed_run_knows_the_last_validation(tmp_path: Path) -> None:
    first = StepContext(run_dir=tmp_path, inputs={}, outputs=())
    for step in (2, 4):
        first.metrics.log(step, validation_loss=float(step))
    first.metrics.close()
    resumed = StepContext(run_dir=tmp_path, inputs={}, outputs=())
    resumed.metrics.rewind(3)
    assert resumed.metrics.last_validation == {"step": 2, "validation_loss": 2.0}
