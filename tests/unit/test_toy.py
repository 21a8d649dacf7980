"""The toy corpus: true labels, a real split, and the same bytes for the same seed."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

from nemotron_style.runtime.context import StepContext
from nemotron_style.runtime.digest import digest_tree
from nemotron_style.steps.blocks.chat import parse_conversation, parse_prompt
from nemotron_style.steps.blocks.jsonl import read_rows
from nemotron_style.steps.blocks.truth import Truth, load_truth
from nemotron_style.steps.data.toy.config import Config, Rows
from nemotron_style.steps.data.toy.recipe import run

SLOTS = ("train", "validation", "prompts", "heldout", "truth", "rated", "rated_heldout")


def make(path: Path, **settings: object) -> Path:
    context = StepContext(run_dir=path, inputs={}, outputs=SLOTS)
    run(Config(rows=Rows(train=3000, validation=300), **settings), context)
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


def test_the_seed_decides(corpus: Path, tmp_path: Path) -> None:
    same, other = make(tmp_path / "a"), make(tmp_path / "b", seed=5)
    assert digest_tree(same)[0] == digest_tree(corpus)[0] != digest_tree(other)[0]


def test_the_number_of_rows_leaves_the_other_side_be(tmp_path: Path, corpus: Path) -> None:
    context = StepContext(run_dir=tmp_path, inputs={}, outputs=SLOTS)
    run(Config(rows=Rows(train=10, validation=300)), context)
    assert rows_of(context.staging, "validation") == rows_of(corpus, "validation")
