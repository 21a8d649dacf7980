"""A report says what is known, and what is not; no text in it is anything but text."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser

import pytest

from nemotron_style.runtime.control_characters import CONTROL
from nemotron_style.runtime.errors import RefError
from nemotron_style.runtime.report.collect import collect_facts
from nemotron_style.runtime.report.document import MOST_DIFFERENCES, render_report
from nemotron_style.runtime.report.subject import find_subject
from nemotron_style.runtime.store.store import Store
from plans import build_plan
from report_world import EVIL, LOCAL, commit, commit_evaluation, make_run, make_store

VOID = {"meta", "input", "br", "img", "link"}


class Outline(HTMLParser):
    """The tags of a page, whether they are balanced, and its visible text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.handlers: list[str] = []
        self.open: list[str] = []
        self.words: list[str] = []
        self.feed(page)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.handlers += [name for name, _ in attrs if name.startswith("on") or name == "style"]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if not {"script", "style"} & set(self.open):
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


def report_on(store: Store, word: str) -> str:
    return render_report(collect_facts(store, find_subject(store, word)))


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    store, _ = make_store(tmp_path_factory.mktemp("store"))
    return store, report_on(store, "tuned")


def test_the_verdict_stands_first_with_its_interval_and_what_it_is_held_to(world):
    text = Outline(world[1]).text
    verdict = text.index("Better than base:v1.")
    assert verdict < text.index("70% of matches against base:v1 (95% interval 60% to 80%)")
    assert verdict < text.index("preferred by the judge , better 70% 60% to 80%")
    assert "2 wins, 0 ties, 1 losses" in text
    assert verdict < text.index("Answers side by side") < text.index("loss training")
    assert "distance 0.75 0.25" in text
    assert text.index("Made by sft/chat from base:v1.") < verdict
    assert "made from base:v1 model rows:v1 data" in text


def test_no_text_of_a_store_is_anything_but_text(world):
    page = world[1]
    outline = Outline(page)
    assert outline.tags.count("script") == 2
    assert not {"img", "link", "iframe", "a:href", "base", "object"} & set(outline.tags)
    assert outline.handlers == []
    assert not CONTROL.search(page)
    assert page.count("<!--") == 0
    assert "\\x1b[2J\\u202e" in outline.text
    assert not re.search(r'(src|href)="(?!#)', page)


def test_answers_stand_side_by_side_with_verdict_reward_and_advantage(world):
    text = Outline(world[1]).text
    assert text.index("old answer 0") < text.index("new answer 0")
    assert "model preferred +2 and +1 in the two orders" in text
    assert "baseline preferred -1 and -3 in the two orders" in text
    assert "reward 5 · advantage -1.5 · 7 tokens" in text
    assert "a | b" in text


def test_an_ancestor_is_compared_key_by_key(world):
    text = Outline(world[1]).text
    assert "as base:v1 , an ancestor of the same step" in text
    assert "config lr 0.1 0.2" in text
    assert "config only 1 (absent)" in text
    assert "1 file differs." in text


def test_where_there_is_no_room_for_all_keys_those_that_both_have_stay(tmp_path):
    store = Store(tmp_path)
    many = {f"a{number:03}": number for number in range(2 * MOST_DIFFERENCES)}
    old = commit(store, "old", {"weights": "1"}, step="sft/chat", config={**many, "zero": 1})
    inputs = [("model", old)]
    commit(store, "new", {"weights": "2"}, step="sft/chat", config={"zero": 2}, inputs=inputs)
    text = Outline(report_on(store, "new")).text
    assert "config zero 1 2" in text
    assert "keys that differ: config 1" in text


def test_a_number_that_is_none_leaves_a_gap_and_is_said(world):
    assert "training: 1 value is not finite." in Outline(world[1]).text


def test_the_same_store_gives_the_same_report(world):
    assert report_on(world[0], "tuned") == world[1]


def test_a_store_in_a_bucket_has_reports_too(tmp_path):
    store, tuned = make_store("memory://of-a-report", scratch=tmp_path)
    page = report_on(store, "latest")
    assert "Better than base:v1." in Outline(page).text
    assert tuned.digest in page


def test_what_was_not_evaluated_says_so_and_how_it_would_be(tmp_path):
    store = Store(tmp_path)
    model = commit(store, "alone", {"weights": "1"}, step="sft/chat")
    facts = collect_facts(store, find_subject(store, "alone"))
    page = render_report(facts, suggestions=[("eval/arena", "nemotron-style steps run eval/arena")])
    text = Outline(page).text
    assert "Not evaluated." in text
    assert "This would make one: nemotron-style steps run eval/arena" in text
    assert model.digest in text


def test_the_report_of_a_judge_shows_what_it_was_asked_and_what_is_true(tmp_path):
    store = Store(tmp_path)
    row = {
        "messages": [{"role": "user", "content": "why?"}],
        "response_1": "so",
        "response_2": "no",
        "truth": [5, 2],
        "judgement": "The second is better.",
        "verdict": {"score_1": 1.0, "score_2": 4.0, "ranking": 5.0},
        "sort": "wrong",
    }
    files = {"samples.jsonl": json.dumps(row) + "\n"}
    commit(store, "judge", files, kind="judge_model", step="judge/card")
    text = Outline(report_on(store, "judge")).text
    assert "why? so judged 1 · truly 5 no judged 4 · truly 2 wrong" in text
    assert "The second is better." in text


def test_an_evaluation_that_was_changed_is_named_and_not_quoted(tmp_path):
    store, _ = make_store(tmp_path)
    path = store.resolve("arena:v1").path / "results.json"
    path.chmod(0o644)
    path.write_text(path.read_text().replace("0.7", "0.9"))
    text = Outline(report_on(store, "tuned")).text
    assert "arena:v1: results.json: was changed after it was committed" in text
    assert "90%" not in text
    assert "measured by the run itself, on held-out rows" in text


def test_a_verdict_needs_the_whole_interval_on_one_side(tmp_path):
    store, tuned = make_store(tmp_path)
    base = store.resolve("base:v1")
    commit_evaluation(store, base, tuned, "", name="second", low=0.4)
    text = Outline(report_on(store, "base")).text
    assert "Better" not in text
    assert "Neither better nor worse than tuned:v1, as far as was measured." in text


def test_a_failed_run_says_where_it_stopped(tmp_path):
    store = Store(tmp_path)
    run = make_run(store, build_plan(LOCAL, store=str(tmp_path)), EVIL)
    text = Outline(report_on(store, run.run_id)).text
    assert "Its run ended as FAILED with exit code 3: out of memory" in text
    assert "runs rerun" not in text  # which only a complete run has
    assert "11 steps are on record." in text
    assert "the last line" in text
    assert "Nothing was made, so there is nothing to judge." in text
    assert report_on(store, "latest") == report_on(store, run.run_id)


def test_a_removed_artifact_has_a_report_of_what_its_record_says(tmp_path):
    store, _ = make_store(tmp_path)
    arena = store.resolve("arena:v1")
    store.remove([arena.record], find_in_use=dict)
    text = Outline(report_on(store, "arena:v1")).text
    assert "Its content was removed by" in text
    assert arena.digest in text


def test_a_name_that_is_neither_artifact_nor_run_is_refused_as_both(tmp_path):
    with pytest.raises(RefError, match=r"no such artifact(.|\n)*no such run"):
        find_subject(Store(tmp_path), "nothing")
