"""The truth of the toy: it cannot be talked into a high score."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path

import pytest

from nemotron_style.runtime.errors import InputError
from nemotron_style.steps.blocks.data.toy_truth import Truth, load_truth

TRUTH = Truth(
    nouns={"river": "water", "horse": "animal"},
    classes={
        "water": ("wide", "calm", "deep", "clear", "cold", "muddy"),
        "animal": ("tame", "shy", "hungry", "loyal", "swift", "gentle"),
    },
    contexts=("near the village",),
)
PROMPT = "Describe the river near the village."


@pytest.mark.parametrize(
    ("response", "helpfulness", "verbosity"),
    [
        ("The river is wide.", 4, 0),
        ("The river is tame.", 0, 0),
        ("The river is wide and calm and deep and clear and muddy.", 4, 4),
        ("The river is wide and tame.", 2, 1),
        ("The river is wide and tame and shy.", 1, 2),
        ("The river is wide and calm and deep and tame.", 3, 3),
        ("The river is wide and wide.", 4, 1),
        ("The river is wide and wide and tame and tame.", 2, 3),
        ("The horse is wide and calm.", 0, 1),
        ("The river is wide and calm", 0, 0),
        ("The river is wide, calm.", 0, 0),
        ("The river is wide and and calm.", 0, 0),
        ("The river is wide and river.", 0, 0),
        ("wide calm deep", 0, 0),
        ("The river is wide. The river is calm.", 0, 0),
        ("", 0, 0),
        ("\x00\x11 ☂", 0, 0),
    ],
)
def test_scores(response: str, helpfulness: int, verbosity: int) -> None:
    label = {"helpfulness": helpfulness, "verbosity": verbosity}
    assert TRUTH.score(PROMPT, response) == label


def test_more_than_five_adjectives_are_no_more_than_five() -> None:
    words = list(TRUTH.fitting("river"))
    label = TRUTH.score(PROMPT, TRUTH.response("river", words))
    assert label == {"helpfulness": 4, "verbosity": 4}


def test_reachable_labels_are_those_that_answers_have() -> None:
    words = [*TRUTH.fitting("river")[:5], *TRUTH.fitting("horse")[:5]]
    answers = [list(said) for count in range(1, 6) for said in combinations(words, count)]
    found = {TRUTH.format(TRUTH.score(PROMPT, TRUTH.response("river", said))) for said in answers}
    assert {TRUTH.format(label) for label in TRUTH.reachable_labels()} == found
    assert len(found) == 19


def test_labels_read_back() -> None:
    for label in TRUTH.reachable_labels():
        assert TRUTH.parse(TRUTH.format(label)) == label
    assert TRUTH.parse("helpfulness:5,verbosity:0") is None
    assert TRUTH.parse("verbosity:0") is None


def test_a_foreign_prompt_is_refused() -> None:
    with pytest.raises(InputError, match="knows nothing"):
        TRUTH.score("Describe the moon near the village.", "The moon is wide.")


def test_a_truth_reads_back(tmp_path: Path) -> None:
    (tmp_path / "truth.json").write_text(TRUTH.model_dump_json())
    assert load_truth(tmp_path) == load_truth(tmp_path / "truth.json") == TRUTH


@pytest.mark.parametrize(
    "text", ["{", '{"nouns": {"a": "x"}, "classes": {}, "contexts": []}', '{"nouns": {}}']
)
def test_a_broken_truth_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(InputError):
        load_truth(tmp_path)
    (tmp_path / "truth.json").write_text(text)
    with pytest.raises(InputError):
        load_truth(tmp_path)
