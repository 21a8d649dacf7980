"""Only what belongs together stands together; a best value is marked only where there is one."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from nemotron_style.runtime.errors import StepsError
from nemotron_style.runtime.report.comparison.compare import (
    Comparison,
    as_data,
    compare_subjects,
    find_subjects,
    render_comparison,
    tell_verdict,
)
from nemotron_style.runtime.report.comparison.differences import shorten_alike
from nemotron_style.runtime.report.comparison.scores import find_direction
from nemotron_style.runtime.store.record import Artifact, Producer
from nemotron_style.runtime.store.store import Store


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path)


def commit(store: Store, name: str, *, step: str = "sft/chat", **evidence: Any) -> Artifact:
    """An artifact and the folder of its run; ``inputs`` by slot."""
    staged = store.stage("test")
    (staged / "file").write_text(name)
    inputs = evidence.pop("inputs", {})
    producer = Producer(run_id=f"run-{name}", step=step, slot="model")
    edges = [artifact.edge(slot) for slot, artifact in inputs.items()]
    evidence.setdefault("config", {})
    run = store.root / "runs" / f"run-{name}"
    run.mkdir(parents=True)
    (run / "plan.json").write_text("{}")
    return store.commit(
        staged, name=name, kind="rows_jsonl", producer=producer, inputs=edges, **evidence
    )


def log(store: Store, name: str, lines: list[dict[str, Any]]) -> None:
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (store.root / "runs" / f"run-{name}" / "metrics.jsonl").write_text(text)


def answer(store: Store, name: str, answers: dict[str, str]) -> None:
    folder = store.root / "runs" / f"run-{name}" / "samples"
    folder.mkdir()
    rows = [f"| {prompt} | before | {said} |" for prompt, said in answers.items()]
    heads = ["# Samples", "", "| prompt | before | after 5 steps |", "| --- | --- | --- |"]
    (folder / "samples.md").write_text("\n".join([*heads, *rows]) + "\n")


def row(comparison: Comparison, name: str):
    return next(row for row in comparison.scores if row.name == name)


def test_the_best_value_is_marked_where_the_direction_is_known(store: Store):
    commit(store, "a", metrics={"validation_loss": 0.5, "epoch": 1, "accuracy": 0.7})
    commit(store, "b", metrics={"validation_loss": 0.4, "epoch": 2, "accuracy": 0.6})
    comparison = compare_subjects(store, ["a", "b"])
    assert row(comparison, "validation_loss").best == [1]
    assert row(comparison, "accuracy").best == [0]
    assert row(comparison, "epoch").best == []
    assert "not known" in row(comparison, "epoch").note
    assert tell_verdict(comparison)[0] == "By validation loss, B is best."


def test_what_was_measured_on_other_rows_has_no_best(store: Store):
    easy, hard = commit(store, "easy"), commit(store, "hard")
    commit(store, "a", metrics={"validation_loss": 0.5}, inputs={"validation": easy})
    commit(store, "b", metrics={"validation_loss": 0.4}, inputs={"validation": hard})
    commit(store, "c", metrics={"validation_loss": 0.3}, inputs={"validation": hard, "data": easy})
    other = row(compare_subjects(store, ["a", "b"]), "validation_loss")
    assert (other.best, other.note) == ([], "not measured in the same way")
    assert row(compare_subjects(store, ["b", "c"]), "validation_loss").best == [1]
    comparison = compare_subjects(store, ["a", "b", "c"])
    among = row(comparison, "validation_loss")
    assert (among.best, among.apart) == ([2], (0,))
    assert tell_verdict(comparison)[0].endswith(
        "C is best of those measured in the same way (not A)."
    )


def test_an_overlapping_interval_is_said(store: Store):
    ends = {"win_rate_low": 0.5, "win_rate_high": 0.7}
    commit(store, "a", metrics={"win_rate": 0.6, **ends})
    commit(store, "b", metrics={"win_rate": 0.65, **ends})
    commit(store, "c", metrics={"win_rate": 0.9, "win_rate_low": 0.8, "win_rate_high": 0.95})
    assert tell_verdict(compare_subjects(store, ["a", "b"])) == [
        "By win rate, B is best, but its interval overlaps that of A."
    ]
    assert tell_verdict(compare_subjects(store, ["a", "b", "c"])) == ["By win rate, C is best."]


@pytest.mark.parametrize(
    ("name", "step", "direction"),
    [
        ("validation_loss", "sft/chat", "lower"),
        ("validation_loss", "sft/steerlm2", ""),  # its level has no meaning
        ("validation/truth_win_rate", "rl/rlhf", "higher"),
        ("distance_after", "sft/steerlm2", "lower"),
        ("accuracy_low", "judge/card", ""),
        ("tokens_per_second", "sft/chat", ""),
    ],
)
def test_a_direction_is_known_or_not(name: str, step: str, direction: str):
    assert find_direction(name, [step]) == direction


def test_answers_stand_beside_each_other_only_for_the_same_prompt(store: Store):
    commit(store, "a"), commit(store, "b"), commit(store, "c")
    answer(store, "a", {"one": "a says 1", "two": "a says 2", "… end": "of another text"})
    answer(store, "b", {"two": "b says 2", "one": "b says 1"})
    comparison = compare_subjects(store, ["a", "b", "c"])
    texts = [[cell.text if cell else None for cell in each.cells] for each in comparison.answers]
    assert texts == [["a says 1", "b says 1", None], ["a says 2", "b says 2", None]]
    assert comparison.not_shared == {"A": 1}


def test_a_prompt_of_which_the_end_is_kept_is_the_same_one_only_in_the_same_rows(store: Store):
    first, second = commit(store, "first"), commit(store, "second")
    for name, rows in (("a", first), ("b", second), ("c", second)):
        commit(store, name, inputs={"validation": rows})
        answer(store, name, {"… the end": name})
    assert compare_subjects(store, ["a", "b"]).answers == ()
    assert len(compare_subjects(store, ["b", "c"]).answers) == 1


def test_curves_of_one_figure_lie_over_each_other_and_are_told_apart_without_colour(store: Store):
    for name in "ab":
        commit(store, name)
        log(store, name, [{"step": n, "loss": n * len(name), "lr": 1.0} for n in range(5)])
    log(store, "b", [{"step": n, "loss": n, "lr": 1.0, "only_b": n} for n in range(5)])
    comparison = compare_subjects(store, ["a", "b"])
    (chart,) = comparison.charts  # what never changes is not drawn
    assert re.findall(r'class="mark f\d"[^>]*>(\w)<', chart) == ["A", "B"]
    assert comparison.single_curves == {"B": ["only_b"]}


def test_only_differing_keys_are_listed(store: Store):
    commit(store, "a", config={"lr": 1, "same": {"x": 2}}, seeds={"seed": 1})
    commit(store, "b", config={"lr": 1.0, "same": {"x": 2}, "more": None}, seeds={"seed": 1})
    config = compare_subjects(store, ["a", "b"]).differences["Config"]
    assert [(each.key, each.values) for each in config] == [
        ("lr", ("1", "1.0")),
        ("more", (None, "null")),
    ]


def test_long_values_are_cut_where_they_differ():
    same = "x" * 1000
    left, right = shorten_alike([same + "1" + same, same + "2" + same])
    assert left is not None
    assert left != right
    assert left.startswith("…")
    assert len(left) < 200


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["a"], "2 to 8"),
        (["a"] * 9, "2 to 8"),
        (["a", "a:v1"], "named twice"),
        (["a", "none", "nothing"], "none.*nothing"),
        (["a", "../a"], "../a"),
    ],
)
def test_what_cannot_be_compared_is_refused(store: Store, words: list[str], said: str):
    commit(store, "a")
    with pytest.raises(StepsError, match=re.compile(said, re.DOTALL)):
        find_subjects(store, words)


def test_no_text_of_a_sample_becomes_markup(store: Store):
    hostile = "<script>alert(1)</script>\x1b[2J"
    for name in "ab":
        commit(store, name, config={"key": f"{name}{hostile}"}, metrics={f"<b>{name}": 1.0})
        answer(store, name, {"<img src=x onerror=alert(1)>": hostile})
    page = render_comparison(compare_subjects(store, ["a", "b"]))
    assert "<script>alert" not in page
    assert "<img" not in page
    assert "\x1b" not in page
    json.dumps(as_data(compare_subjects(store, ["a", "b"])))


def write_evaluation(store: Store, name: str, model: Artifact, baseline: Artifact, low: float):
    """An arena that ``model`` won by 70%, with two matches; the first prompt was asked twice."""
    files = {"results.json": {"judge": {"win_rate": {"rate": 0.7, "low": low, "high": 0.8}}}}
    files["results.json"]["judge"]["win_rate"] |= {"wins": 2, "ties": 0, "losses": 0}
    rows = [
        {
            "messages": [{"role": "user", "content": asked}],
            "model": f"{model.record.name} to {asked} {number}",
            "baseline": f"{baseline.record.name} to {asked} {number}",
            "decided": "judged",
            "margins": [1, 1],
            "score": 1.0,
        }
        for number, asked in enumerate(("one", "one", "two"))
    ]
    staged = store.stage("test")
    (staged / "results.json").write_text(json.dumps(files["results.json"]))
    (staged / "samples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    producer = Producer(run_id=f"run-{name}", step="eval/arena", slot="results")
    edges = [model.edge("model"), baseline.edge("baseline")]
    store.commit(staged, name=name, kind="eval_results", producer=producer, inputs=edges)


def test_where_two_of_them_met_that_stands_first_with_its_interval(store: Store):
    base = commit(store, "base")
    tuned = commit(store, "tuned", inputs={"model": base})
    write_evaluation(store, "arena", tuned, base, low=0.6)
    comparison = compare_subjects(store, ["base", "tuned"])
    (meeting,) = comparison.meetings
    assert (meeting.letter, meeting.other, meeting.conclusion) == ("B", "A", "better")
    assert tell_verdict(comparison) == [
        "B is better than A. Preferred by the judge: 70% of matches against A "
        "(95% interval 60% to 80%)."
    ]
    assert as_data(comparison)["meetings"][0]["findings"][0]["low"] == 0.6
    page = render_comparison(comparison)
    assert "B against A, measured by arena:v1" in page
    assert page.count('class="whisker') == 1


def test_an_interval_that_holds_a_half_does_not_say_who_is_better(store: Store):
    base, tuned = commit(store, "base"), commit(store, "tuned")
    write_evaluation(store, "arena", tuned, base, low=0.4)
    comparison = compare_subjects(store, ["base", "tuned"])
    assert comparison.meetings[0].conclusion == "open"
    assert tell_verdict(comparison)[0].startswith(
        "B is neither better nor worse than A, as far as was measured. Preferred by the judge: 70%"
    )


def test_answers_of_evaluations_stand_side_by_side_other_prompts_first(store: Store):
    base, first, second = commit(store, "base"), commit(store, "first"), commit(store, "second")
    write_evaluation(store, "one", first, base, low=0.6)
    write_evaluation(store, "two", second, base, low=0.6)
    (table,) = compare_subjects(store, ["second", "first"]).tables
    assert table.title == "Asked by eval/arena"
    texts = [[cell.text if cell else None for cell in each.cells] for each in table.rows]
    assert texts == [
        ["second to one 0", "first to one 0"],
        ["second to two 2", "first to two 2"],
        ["second to one 1", "first to one 1"],
    ]
    (pair,) = compare_subjects(store, ["base", "first"]).tables
    assert pair.places == (0, 1)
    assert pair.rows[0].cells[0].text == "base to one 0"
