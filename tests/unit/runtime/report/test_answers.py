"""What of many answers is shown, and that it says so."""

from __future__ import annotations

import json

from nemotron_style.runtime.report.answers import (
    MOST_TEXT,
    SHOWN,
    choose_labelled,
    choose_matches,
    cut_text,
    read_run_answers,
    shade,
)
from nemotron_style.runtime.run.folder import RunFolder


def match(number: int, score: float) -> dict:
    margin = {1.0: number, 0.5: 0, 0.0: -number}[score]
    return {"decided": "judged", "margins": [margin, margin], "score": score, "number": number}


def test_the_clearest_wins_and_losses_are_shown_beside_some_ties():
    rows = [match(number, score) for number in range(1, 21) for score in (1.0, 0.5, 0.0)]
    chosen, note = choose_matches(rows, "60")
    assert len(chosen) == SHOWN
    assert [row["number"] for row in chosen if row["score"] == 1.0] == [20, 19, 18, 17, 16, 15]
    assert [row["number"] for row in chosen if row["score"] == 0.0] == [20, 19, 18, 17]
    assert "20 wins, the clearest of 20 losses and the first of 20 ties, of 60 matches" in note


def test_of_many_labels_some_over_all_of_them_are_shown():
    rows = [{"label": f"a:{number:02}"} for number in range(40) for _ in range(3)]
    chosen, note = choose_labelled(rows, "120")
    assert [row["label"] for row in chosen] == [f"a:{number:02}" for number in range(0, 40, 4)]
    assert note == "The first answer for 10 of 40 labels, of 120 rows."


def test_an_advantage_has_a_shade_by_its_size():
    shades = [shade(value, 6.0) for value in (-6.0, -2.0, 0.0, 0.01, 3.1, 6.0, float("nan"))]
    assert shades == [-3, -1, 0, 1, 2, 3, 0]
    assert shade(1.0, 0.0) == 0


def test_a_long_answer_is_cut_and_a_secret_is_masked(monkeypatch):
    assert len(cut_text("x" * 10_000)) == MOST_TEXT + 4
    monkeypatch.setenv("SOME_API_KEY", "sesame-open-12345")
    assert "sesame" not in cut_text("the key is sesame-open-12345")


def test_rows_show_what_the_loss_counts_and_a_damaged_file_shows_nothing(tmp_path):
    (tmp_path / "samples").mkdir()
    path = tmp_path / "samples" / "loss_mask.json"
    path.write_text(json.dumps([[["a question", False], ["an answer", True]]]))
    (table,) = read_run_answers(RunFolder(tmp_path))
    assert table.rows[0].cells[0].pieces == (("a question", False), ("an answer", True))
    for damaged in ("{", "[1]", "[[1]]", '{"a": 1}', "null"):
        path.write_text(damaged)
        assert read_run_answers(RunFolder(tmp_path)) == []
