"""Curves put training beside held-out rows, what tells most first, and say what was left out."""

from __future__ import annotations

import json

from nemotron_style.runtime.report.drawing.curves import MOST_CHARTS, draw_curves, read_sampled


def test_training_and_held_out_rows_share_a_chart_and_an_interval_is_a_band():
    lines = [
        {"step": 1, "train_loss": 2.0, "timing/seconds": 1.0, "lr": 0.5},
        {"step": 2, "train_loss": 1.0, "timing/seconds": 2.0, "lr": 0.5},
        {"step": 1, "validation_loss": 3.0, "validation_loss_low": 2.0, "validation_loss_high": 4},
        {"step": 2, "validation_loss": 2.5, "validation_loss_low": 2.0, "validation_loss_high": 3},
    ]
    curves = draw_curves(lines)
    loss, timing = curves.charts
    assert "<li>" in loss
    assert "training: 2 at 1" in loss
    assert "held out: 3 at 1" in loss
    assert "band" in loss
    assert "timing" in timing
    assert curves.constant == {"lr": 0.5}


def test_too_many_figures_are_counted_not_drawn():
    lines = [{"step": step, **{f"f{n}": step * n for n in range(1, 100)}} for step in (1, 2)]
    curves = draw_curves(lines)
    assert len(curves.charts) == MOST_CHARTS
    assert len(curves.left_out) == 99 - MOST_CHARTS


def test_of_a_very_large_file_one_line_in_so_many_is_read_and_every_held_out_one(tmp_path):
    path = tmp_path / "metrics.jsonl"
    lines = [{"step": step, "loss": 1.0} for step in range(1000)]
    lines.insert(501, {"step": 500, "validation_loss": 2.0})
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    kept, every = read_sampled(path, most=path.stat().st_size // 10 + 1)
    assert every == 10
    assert 95 < len(kept) < 105
    assert {"step": 500, "validation_loss": 2.0} in kept
    assert read_sampled(tmp_path / "missing") == ([], 1)
