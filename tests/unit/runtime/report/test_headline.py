"""A headline says how much better something is, as far as the intervals say so, or that it is not
known."""

from __future__ import annotations

import pytest

from nemotron_style.runtime.report.headline import write_headline
from nemotron_style.runtime.report.subject import describe_artifact
from nemotron_style.runtime.report.verdict import find_verdict
from nemotron_style.runtime.store.store import Store
from report_world import commit, commit_evaluation


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path)


def headline(store, made, *, can_be_evaluated=True):
    verdict, problems = find_verdict(store, made)
    assert problems == []
    subject = describe_artifact(store, made)
    return write_headline(subject, verdict, can_be_evaluated=can_be_evaluated)


def make_pair(store, **metrics):
    base = commit(store, "base", {"weights": "1"}, step="sft/chat")
    tuned = commit(
        store, "tuned", {"weights": "2"}, step="rs/actor", inputs=[("model", base)], metrics=metrics
    )
    return base, tuned


def gain(name, value, low, high):
    ends = {f"{name}_before": 1.0, f"{name}_after": 1.0 + value}
    return ends | {f"{name}_gain": value, f"{name}_gain_low": low, f"{name}_gain_high": high}


def test_an_evaluation_says_by_how_much_and_against_what(store):
    base, tuned = make_pair(store)
    arena = commit_evaluation(store, tuned, base, "")
    found = headline(store, tuned)
    assert (found.text, found.conclusion) == ("Better than base:v1.", "better")
    assert found.sentences == (
        "Preferred by the judge: 70% of matches against base:v1 (95% interval 60% to 80%).",
    )
    assert headline(store, arena).text == "tuned:v1 is better than base:v1."


def test_what_came_out_the_same_again_is_evaluated_with_it_and_counts_once(store):
    base, tuned = make_pair(store)
    arena = commit_evaluation(store, tuned, base, "")
    twin = commit(store, "tuned.rerun", {"weights": "2"}, step="rs/actor", inputs=[("model", base)])
    again = commit_evaluation(store, twin, base, "", name="arena.rerun")
    assert (twin.digest, again.digest) == (tuned.digest, arena.digest)
    for made in (tuned, twin):
        assert headline(store, made).text == "Better than base:v1."
        verdict, _ = find_verdict(store, made)
        assert [each.ref for each in verdict.evaluations] == ["arena:v1"]


def test_a_gain_of_the_run_itself_is_held_to_what_it_started_from(store):
    _, tuned = make_pair(store, **gain("reward", 0.5, 0.25, 0.75))
    found = headline(store, tuned)
    assert found.text == "Better than base:v1."
    assert found.sentences == (
        "Reward: +0.5 over base:v1 (95% interval +0.25 to +0.75; 1.5 against 1).",
    )


def test_what_was_trained_on_does_not_hide_what_the_truth_cannot_say(store):
    gains = gain("reward", 0.5, 0.2, 0.8) | gain("truth_helpfulness", 0.1, -0.1, 0.3)
    gains |= gain("truth_verbosity", -0.7, -0.9, -0.5)  # less of it is neither better nor worse
    _, tuned = make_pair(store, **gains)
    found = headline(store, tuned)
    assert found.text == "Better than base:v1 by reward; by true helpfulness that is not known."
    assert len(found.sentences) == 2


def test_a_loss_and_a_contradiction_are_said(store):
    _, tuned = make_pair(store, **gain("reward", -0.5, -0.8, -0.2))
    assert headline(store, tuned).text == "Worse than base:v1."
    other = commit(
        store,
        "other",
        {"weights": "3"},
        step="rs/actor",
        inputs=[("model", tuned)],
        metrics=gain("reward", 0.5, 0.2, 0.8) | gain("truth_helpfulness", -0.5, -0.8, -0.2),
    )
    assert headline(store, other).text == "Better by one measure, worse by another."


def test_what_is_not_known_is_said(store):
    base, tuned = make_pair(store)
    found = headline(store, tuned)
    assert found.text == "Not evaluated."
    assert found.sentences == ("Whether it is better than base:v1 is not known.",)
    assert headline(store, base).sentences == ()
    data = commit(store, "rows", {"rows.jsonl": "{}"}, kind="training_jsonl", step="data/toy")
    found = headline(store, data, can_be_evaluated=False)
    assert found.text == "How good it is cannot be said."
    assert found.sentences[0].startswith("No step here evaluates training_jsonl; ")
    judge = commit(
        store,
        "judge",
        {"weights": "4"},
        kind="judge_model",
        step="judge/card",
        inputs=[("model", tuned)],
        metrics={"accuracy": 0.9, "accuracy_low": 0.8, "accuracy_high": 0.95},
    )
    found = headline(store, judge, can_be_evaluated=False)
    assert found.text == "Measured, but compared with nothing."
    assert found.sentences == (
        "Accuracy: 90% (95% interval 80% to 95%).",
        "Whether it is better than tuned:v1 is not known.",
    )
