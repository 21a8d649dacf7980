"""What of an evaluation's many answers is shown, and what its judge and the truth say of them."""

from __future__ import annotations

import json

from nemotron_style.runtime.report.answers.evaluation import (
    choose_judged,
    choose_labelled,
    choose_matches,
    read_evaluation_answers,
    show_labelled,
    show_match,
)
from nemotron_style.runtime.report.answers.table import SHOWN
from report_world import make_store


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
    assert note == "One answer for 10 of 40 labels, of 120 rows."


def test_of_a_label_the_answer_in_which_the_models_differ_is_shown():
    def row(label, model, baseline):
        return {"label": label, "model": {"hit": model}, "baseline": {"hit": baseline}}

    rows = [row("a", True, True), row("a", True, False), row("b", False, False)]
    chosen, note = choose_labelled(rows, "3")
    assert chosen == rows[1:]
    assert "one model got right and the other wrong" in note


def test_a_match_says_who_was_preferred_and_whether_the_truth_agrees():
    row = match(2, 1.0) | {
        "messages": [{"role": "user", "content": "why?"}],
        "model": "new",
        "baseline": None,
        "helpfulness": {"model": 4, "baseline": 1},
        "words": ["the first is better", ""],
    }
    shown = show_match(row)
    assert (shown.verdict, shown.tone) == ("model preferred", "better")
    assert shown.detail == "+2 and +2 in the two orders; the truth agrees"
    assert [cell.text for cell in shown.cells] == ["(did not finish)", "new"]
    assert [each.words for each in shown.remarks] == ["the first is better"]
    other = show_match(row | {"score": 0.0, "helpfulness": {"model": 4, "baseline": 4}})
    assert (other.verdict, other.tone) == ("baseline preferred", "worse")
    assert other.detail.endswith("by the truth they are equal")
    failed = show_match(row | {"decided": "failed", "score": None, "margins": []})
    assert (failed.verdict, failed.tone, failed.detail) == ("failed", "", "")
    equal = show_match(row | {"decided": "equal", "score": 0.5, "margins": [0, 0]})
    assert (equal.verdict, equal.detail) == ("tie (equal)", "")


def test_an_answer_to_a_label_has_what_it_truly_is():
    row = {
        "label": "helpfulness:4,verbosity:1",
        "turns": [{"value": "why?"}],
        "model": {"value": "so", "hit": True, "attributes": {"helpfulness": 4, "verbosity": 1}},
        "baseline": {"value": None, "hit": False},
    }
    shown = show_labelled(row, ("baseline", "model"))
    assert shown.prompt == "why?\nasked for helpfulness:4, verbosity:1"
    assert [cell.tone for cell in shown.cells] == ["worse", "better"]
    assert [cell.notes for cell in shown.cells] == [
        ("✗",),
        ("✓ as asked: helpfulness 4, verbosity 1",),
    ]


def test_of_a_judge_some_of_what_it_got_right_and_wrong_is_shown():
    rows = [{"sort": "right"}] * 50 + [{"sort": "wrong"}] * 2
    chosen, note = choose_judged(rows, "52")
    assert [row["sort"] for row in chosen] == ["right"] * 6 + ["wrong"] * 2
    assert note == "The first of each sort, of 52 questions: 50 right, 2 wrong."


def test_the_words_of_a_judge_are_those_of_the_same_matches_or_none(tmp_path):
    store, _ = make_store(tmp_path)
    arena = store.resolve("arena")
    folder = store.layout.runs / arena.record.producer.run_id / "samples"
    folder.mkdir(parents=True)

    def remarks(lines):
        (folder / "words.jsonl").write_text("".join(json.dumps(each) + "\n" for each in lines))
        (table,) = read_evaluation_answers(store, arena)
        assert table.heads == ("base:v1 (baseline)", "tuned:v1 (model)")
        return [[each.words for each in row.remarks] for row in table.rows]

    said = [{"words": [f"a{number}", f"b{number}"]} for number in range(3)]
    assert remarks(said) == [["a0", "b0"], ["a1", "b1"], ["a2", "b2"]]
    assert remarks(said[:2]) == [[], [], []]  # of other matches: none is better than a wrong one
