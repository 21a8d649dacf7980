"""What a run wrote down about its training is shown; what is old or damaged shows nothing."""

from __future__ import annotations

import json

import pytest

from nemotron_style.runtime.report.answers.training import read_run_answers
from nemotron_style.runtime.run.folder import RunFolder


@pytest.fixture
def samples(tmp_path):
    folder = tmp_path / "samples"
    folder.mkdir()
    return folder


def read(samples):
    return read_run_answers(RunFolder(samples.parent))


def write_rows(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_rows_show_what_the_loss_counts_and_a_damaged_file_shows_nothing(samples):
    path = samples / "loss_mask.json"
    path.write_text(json.dumps([[["a question", False], ["an answer", True]]]))
    (table,) = read(samples)
    assert table.rows[0].cells[0].pieces == (("a question", False), ("an answer", True))
    for damaged in ("{", "[1]", "[[1]]", '{"a": 1}', "null"):
        path.write_text(damaged)
        assert read(samples) == []


def test_held_out_answers_stand_beside_those_of_the_start_with_the_judges_words(samples):
    said = {"scores": [5.0, 1.0], "preference": 4.0, "shown": "second", "words": "the later one"}
    row = {"prompt": "why?", "before": "old", "after": "new", "margin": 4.0, "judged": [said]}
    row["truth"] = [{"helpfulness": 0}, {"helpfulness": 4}]
    write_rows(samples / "validation-00000004.jsonl", [{**row, "after": "stale"}])
    write_rows(samples / "validation-00000012.jsonl", [row, {**row, "margin": -1.0}, {"x": 1}])
    (table,) = read(samples)
    assert table.heads == ("at the start", "after 12 steps")
    won, lost = table.rows
    assert (won.verdict, won.tone, lost.verdict, lost.tone) == (
        "later preferred",
        "better",
        "earlier preferred",
        "worse",
    )
    assert won.cells[1].notes == ("truly helpfulness 4",)
    assert won.remarks[0].words == "the later one"
    assert won.remarks[0].head == "later 5, earlier 1; the earlier one was shown first"


def test_held_out_answers_have_their_rewards(samples):
    row = {"prompt": "why?", "before": "old", "after": "new", "rewards": [2.0, 1.5]}
    write_rows(samples / "validation-00000002.jsonl", [row])
    (table,) = read(samples)
    (shown,) = table.rows
    assert (shown.verdict, shown.detail) == ("reward fell", "-0.5")
    assert [cell.notes for cell in shown.cells] == [("reward 2",), ("reward 1.5",)]


def test_weights_of_a_group_are_the_target_and_the_model_before_and_after(samples):
    group = {"prompt": "why?", "responses": ["light", "heavy"], "weights": [0.1, 0.9]}
    kept = {"groups": [group], "shares": {"0": [[0.5, 0.5]], "9": [[0.2, 0.8]], "10": [[0.3, 0.7]]}}
    path = samples / "weights.json"
    path.write_text(json.dumps(kept))
    (table,) = read(samples)
    assert table.prompt == "why?"
    heavy, light = table.rows
    assert (heavy.prompt, light.prompt) == ("+0.400", "-0.400")
    assert (heavy.cells[0].strength, light.cells[0].strength) == (3, -3)
    assert [share.value for share in heavy.cells[0].shares] == [0.9, 0.5, 0.7]  # the tenth is last
    for damaged in (
        "[]",
        '{"groups": 1, "shares": {}}',
        '{"groups": [{}], "shares": {"0": [[1]]}}',
    ):
        path.write_text(damaged)
        assert read(samples) == []


def step_row(number, **more):
    return {"reward": 5.0 - number, "group": 0, "sample": number, "prompt": "why?"} | more


def test_a_group_of_a_step_stands_with_its_advantages_and_what_the_judge_said(samples):
    judged = [{"against": "other", "scores": [4.0, 5.0], "words": "worse than the other"}]
    rows = [
        step_row(0, answer="best", advantage=1.0),
        step_row(1, answer="worst", advantage=-2.0, judged=judged),
    ]
    write_rows(
        samples / "step-00000003.jsonl", [*rows, *({**row, "whole_group": 2} for row in rows)]
    )
    group, ranked = read(samples)
    assert (group.title, ranked.title) == (
        "A group of the first step (3)",
        "Sampled at the first step (3)",
    )
    assert group.prompt == "why?"
    assert "All 2 samples" in group.note
    best, worst = group.rows
    assert (best.prompt, worst.prompt) == ("5", "4")
    assert (best.cells[0].strength, worst.cells[0].strength) == (2, -3)
    assert worst.cells[0].remarks[0].head == "4 against 5 for “other”"
    assert worst.cells[0].remarks[0].words == "worse than the other"
    assert ranked.rows[0].prompt == "why?"


def test_what_rejection_sampling_kept_is_what_the_loss_counts(samples):
    rows = [step_row(0, response="kept", kept=True), step_row(1, response="left", kept=False)]
    write_rows(samples / "step-00000001.jsonl", [{**row, "whole_group": 9} for row in rows])
    (group,) = read(samples)
    assert [row.cells[0].pieces for row in group.rows] == [(("kept", True),), (("left", False),)]
    assert "The best and the worst of 9" in group.note
    assert "1 kept: it is trained on that one alone." in group.note


def test_the_samples_of_an_earlier_version_are_shown_as_they_are(samples):
    rows = [{"reward": 5.0, "prompt": "why?", "answer": "so", "verdicts": [[0, 1, 5.0, 5.0, 3.5]]}]
    write_rows(samples / "step-00000001.jsonl", rows)
    write_rows(samples / "step-00000002.jsonl", [{**rows[0], "reward": "damaged"}])
    last, first = read(samples)
    assert (last.title, first.title) == (
        "Sampled at the last step (2)",
        "Sampled at the first step (1)",
    )
    assert first.rows[0].cells[0].notes == ("reward 5",)
    assert last.rows[0].cells[0].notes == ("reward 0",)
