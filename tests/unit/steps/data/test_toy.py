"""The toy corpus: true labels, a real split, and the same bytes for the same seed."""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from pathlib import Path

import pytest

from nemotron_style.runtime.step.context import StepContext
from nemotron_style.runtime.store.digest import digest_tree
from nemotron_style.steps.blocks.data.conversation import parse_conversation, parse_prompt
from nemotron_style.steps.blocks.data.jsonl import read_rows
from nemotron_style.steps.blocks.data.toy_truth import Truth, load_truth
from nemotron_style.steps.blocks.judge.verdict import read_verdict
from nemotron_style.steps.data.toy.comparison import EVEN, LEAST, MARKS, MOST, rank
from nemotron_style.steps.data.toy.config import Config, Rows
from nemotron_style.steps.data.toy.recipe import run
from nemotron_style.steps.judge.card.row import parse_comparison

SLOTS = (
    *("train", "validation", "prompts", "heldout", "truth", "rated", "rated_heldout"),
    *("comparisons", "comparisons_heldout"),
)
ROWS = {"train": 3000, "validation": 300, "comparisons": 1000, "comparisons_heldout": 200}
# What these slots held before there were comparisons; tables in the documentation rest on it.
DIGESTS = {
    "train": "6951320df3884817",
    "validation": "10c05f7b1b957778",
    "prompts": "7898559678d71a98",
    "heldout": "89d479129b6a9de2",
    "truth": "093ba39e4dbb8127",
    "rated": "c7f9b3b87f415bcd",
    "rated_heldout": "f3c7f47a7aabc3e5",
}


def make(path: Path, **settings: object) -> Path:
    context = StepContext(run_dir=path, inputs={}, outputs=SLOTS)
    run(Config(rows=Rows(**ROWS), **settings), context)
    return context.staging


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp("toy"))


def rows_of(corpus: Path, slot: str) -> list[dict]:
    return [json.loads(line) for line in (corpus / slot / f"{slot}.jsonl").open()]


def is_true(row: dict, truth: Truth) -> bool:
    question, answer = (message["content"] for message in row["messages"])
    return row["label"] == truth.format(truth.score(question, answer))


def test_labels_of_judged_answers_are_true_and_a_known_share_of_the_others_is_not(
    corpus: Path,
) -> None:
    truth, rows = load_truth(corpus / "truth"), rows_of(corpus, "train")
    judged = [row for row in rows if row.get("type") == "TEXT_TO_VALUE"]
    asked = [row for row in rows if row.get("type") == "VALUE_TO_TEXT"]
    assert judged
    assert all(is_true(row, truth) for row in judged)
    # a label that is drawn anew is right by chance now and then
    right = sum(is_true(row, truth) for row in asked) / len(asked)
    assert right == pytest.approx(0.75 + 0.25 / 19, abs=0.12)


def test_only_reachable_labels_are_asked_for(corpus: Path) -> None:
    truth = load_truth(corpus / "truth")
    reachable = {truth.format(label) for label in truth.reachable_labels()}
    rows = rows_of(corpus, "train")
    assert {row["label"] for row in rows if row.get("type") == "VALUE_TO_TEXT"} <= reachable


def test_held_out_prompts_are_in_no_training_row(corpus: Path) -> None:
    truth = load_truth(corpus / "truth")
    prompts, heldout = (
        {row["messages"][0]["content"] for row in rows_of(corpus, slot)}
        for slot in ("prompts", "heldout")
    )
    trained = {row["messages"][0]["content"] for row in rows_of(corpus, "train")}
    assert not trained & heldout
    assert not prompts & heldout
    assert len(prompts) + len(heldout) == len(truth.nouns) * len(truth.contexts)
    nouns = set(truth.nouns)
    assert {truth.noun_of(text) for text in prompts} == nouns
    assert {truth.noun_of(text) for text in heldout} == nouns


def test_files_are_what_the_other_steps_read(corpus: Path) -> None:
    assert len(read_rows(corpus / "train", parse_conversation)) == 3000
    for slot in ("prompts", "heldout"):
        assert len(read_rows(corpus / slot, parse_prompt)) == len(rows_of(corpus, slot)) > 0


def test_shares_are_kept(corpus: Path) -> None:
    settings = Config().rows
    counts = Counter(row.get("type") for row in rows_of(corpus, "train"))
    assert counts["TEXT_TO_VALUE"] / 3000 == pytest.approx(settings.scoring_share, abs=0.04)
    assert counts["VALUE_TO_TEXT"] / 3000 == pytest.approx(settings.labelled_share, abs=0.02)


def test_what_was_there_stays_as_it_was(corpus: Path) -> None:
    for slot, digest in DIGESTS.items():
        [file] = (corpus / slot).iterdir()
        assert hashlib.sha256(file.read_bytes()).hexdigest().startswith(digest), slot


def test_judgements_end_in_the_verdict_that_the_truth_gives(corpus: Path) -> None:
    truth, rows = load_truth(corpus / "truth"), rows_of(corpus, "comparisons")
    assert len(read_rows(corpus / "comparisons", parse_conversation)) == len(rows) == 1000
    ties = 0
    for row in rows:
        question, *answers, judgement = (message["content"] for message in row["messages"])
        scores = [truth.score(question, answer)["helpfulness"] + 1 for answer in answers]
        verdict = read_verdict(judgement)
        assert [verdict.score_1, verdict.score_2] == scores
        assert LEAST <= verdict.ranking <= MOST
        assert (verdict.ranking < EVEN, verdict.ranking > EVEN) == (
            scores[0] > scores[1],
            scores[0] < scores[1],
        )
        ties += verdict.preference == 0
    assert 0.1 < ties / len(rows) < 0.4


def test_a_judgement_goes_through_every_word(corpus: Path) -> None:
    truth = load_truth(corpus / "truth")
    for row in rows_of(corpus, "comparisons"):
        question, *answers, judgement = (message["content"] for message in row["messages"])
        noun = truth.noun_of(question)
        parts = re.fullmatch(r"First: (.*)\. Second: (.*)\. \{.*\}", judgement)
        assert parts
        for answer, part, (_, good, bad) in zip(answers, parts.groups(), MARKS, strict=True):
            said = re.fullmatch(r"The (\w+) is (.*)\.", answer)
            assert said
            assert said[1] == noun
            fits = [(word, word in truth.fitting(noun)) for word in said[2].split(" and ")]
            assert part == " ".join(f"{word} {good if fit else bad}" for word, fit in fits)


def test_held_out_comparisons_are_what_a_card_is_made_from(corpus: Path) -> None:
    truth = load_truth(corpus / "truth")
    found = read_rows(corpus / "comparisons_heldout", parse_comparison)
    assert len(found) == 200
    heldout = {row["messages"][0]["content"] for row in rows_of(corpus, "heldout")}
    for one in found:
        asked = one.question.history[-1]["content"]
        assert asked in heldout
        answers = (one.question.response_1, one.question.response_2)
        assert one.truth == tuple(truth.score(asked, text)["helpfulness"] + 1 for text in answers)


@pytest.mark.parametrize(("lead", "ranking"), [(0, 3.5), (1, 3), (2, 2), (3, 1), (4, 1)])
def test_a_ranking_is_the_mirror_of_the_other_order(lead: int, ranking: float) -> None:
    assert rank(1 + lead, 1) == ranking
    assert rank(1, 1 + lead) == 7 - ranking


def test_the_seed_decides(corpus: Path, tmp_path: Path) -> None:
    same, other = make(tmp_path / "a"), make(tmp_path / "b", seed=5)
    assert digest_tree(same)[0] == digest_tree(corpus)[0] != digest_tree(other)[0]


def test_the_number_of_rows_leaves_the_other_side_be(tmp_path: Path, corpus: Path) -> None:
    context = StepContext(run_dir=tmp_path, inputs={}, outputs=SLOTS)
    run(Config(rows=Rows(**ROWS | {"train": 10, "comparisons": 10})), context)
    assert rows_of(context.staging, "comparisons_heldout") == rows_of(corpus, "comparisons_heldout")
    assert rows_of(context.staging, "validation") == rows_of(corpus, "validation")
