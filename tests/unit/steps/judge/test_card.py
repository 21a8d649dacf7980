"""A judge's card: rows that are read, judgements that are counted, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from nemotron_style.runtime.errors import InputError
from nemotron_style.steps.blocks.data.jsonl import read_rows
from nemotron_style.steps.blocks.judge.prompt import Question, ask_messages
from nemotron_style.steps.blocks.stats.confidence_interval import clustered_interval
from nemotron_style.steps.judge.card.metrics import Judgement, count_card, read_judgement
from nemotron_style.steps.judge.card.row import Comparison, parse_comparison
from nemotron_style.steps.judge.card.samples import sample_rows, sample_table

USER = {"role": "user", "content": "Q?"}
FIRST, SECOND = ({"role": f"response_{n}", "content": text} for n, text in ((1, "A|"), (2, "B")))
TRUTH = {"score_1": 5, "score_2": 1}


def row(*messages: dict, **changes: object) -> dict:
    return {"messages": list(messages) or [USER, FIRST, SECOND], "truth": TRUTH, **changes}


def test_a_row_is_asked_as_a_training_run_asks() -> None:
    system, principle = (
        {"role": "system", "content": "Be brief."},
        {"role": "principle", "content": "Truth."},
    )
    judged = {"role": "assistant", "content": "whatever"}
    plain = parse_comparison(row())
    assert plain == Comparison(Question((USER,), "A|", "B"), (5.0, 1.0))
    assert ask_messages(plain.question, form="genrm") == [USER, FIRST, SECOND]
    full = parse_comparison(row(system, USER, principle, FIRST, SECOND, judged))
    assert ask_messages(full.question, form="genrm") == [system, USER, principle, FIRST, SECOND]
    assert plain.swapped == Comparison(Question((USER,), "B", "A|"), (1.0, 5.0))
    assert plain.swapped.lead == -plain.lead == -4


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        ({"messages": [USER, FIRST, SECOND]}, "has messages and truth"),
        ({}, "has messages and truth"),
        (row(USER), "nothing is compared"),
        (row(USER, SECOND, FIRST), "alternate"),
        (row(FIRST, SECOND), "alternate"),
        (row(messages=[]), "not empty"),
        (row(messages="x"), "not empty"),
        (row(messages=[1]), "role and content"),
        (row(truth=3), "score for each response"),
        (row(truth={"score_1": 3}), "score for each response"),
        (row(truth={"score_1": True, "score_2": 1}), "finite number"),
        (row(truth={"score_1": "5", "score_2": 1}), "finite number"),
        (row(extra=1), "unknown key"),
    ],
)
def test_malformed_rows_are_refused(bad: dict, said: str, tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text(json.dumps(row()) + "\n" + json.dumps(bad) + "\n")
    with pytest.raises(InputError, match=rf"rows\.jsonl:2.*{said}"):
        read_rows(file, parse_comparison)


def say(first: float, second: float, ranking: float) -> str:
    verdict = {"score_1": first, "score_2": second, "ranking": ranking}
    return f"First ... Second ... {json.dumps(verdict)}"


def judged(truth: tuple[float, float], given: str, swapped: str) -> tuple[Judgement, Judgement]:
    asked = Comparison(Question((USER,), "A|", "B"), truth)
    return (
        read_judgement(asked, given, finished=True),
        read_judgement(asked.swapped, swapped, finished=True),
    )


BETTER, WORSE, EVEN = say(5, 1, 1), say(1, 5, 6), say(3, 3, 3.5)


def test_the_card_of_known_judgements() -> None:
    pairs = [
        judged((5, 1), BETTER, WORSE),  # right in both orders
        judged((5, 1), BETTER, BETTER),  # the first is preferred whatever it is
        judged((1, 5), "no verdict", BETTER),  # unreadable as given, right when swapped
        judged((2, 2), EVEN, EVEN),  # rightly even
        judged((2, 2), EVEN, say(3, 3, 2)),  # the ranking decides between equal scores
    ]
    card = count_card(pairs)
    assert card["accuracy"] == pytest.approx(4 / 6)
    assert (card["accuracy_as_given"], card["accuracy_swapped"]) == pytest.approx((2 / 3, 2 / 3))
    assert card["accuracy_interval"] == list(clustered_interval([[1, 1], [1, 0], [0, 1]]))
    assert card["swap_agreement"] == pytest.approx(2 / 4)
    assert card["parse_rate"] == pytest.approx(9 / 10)
    assert card["first_preference"] == pytest.approx(5 / 6)
    assert card["ties"] == pytest.approx(3 / 9)
    assert card["even_pairs_called_even"] == pytest.approx(3 / 4)
    assert (card["pairs"], card["pairs_of_different_worth"]) == (5, 3)


def test_a_judge_that_says_nothing_has_a_card_of_nothing() -> None:
    card = count_card([judged((5, 1), "", "{}")])
    assert (card["accuracy"], card["parse_rate"]) == (0.0, 0.0)
    assert card["swap_agreement"] is card["first_preference"] is card["ties"] is None


@pytest.mark.parametrize(
    ("text", "finished", "problem"),
    [
        (BETTER, False, "did not end"),
        ('{"score_1": 9, "score_2": 1, "ranking": 1}', True, "9"),
        (f"<think>{BETTER}", True, "no JSON"),
    ],
)
def test_what_is_no_verdict_is_never_right(text: str, finished: bool, problem: str) -> None:
    found = read_judgement(judged((5, 1), "", "")[0].comparison, text, finished=finished)
    assert found.verdict is None
    assert not found.is_right
    assert problem in found.problem


def test_samples_show_the_worst_first_and_break_no_table() -> None:
    pairs = [judged((5, 1), "a\nb", WORSE), judged((5, 1), BETTER, BETTER)]
    table = sample_table(pairs, shown=1)
    places = [table.index(f"## {sort}") for sort in ("unreadable", "wrong", "right")]
    assert places == sorted(places)
    assert "(2 of 4)" in table
    lines = [line for line in table.splitlines() if line.startswith("|")]
    assert {line.replace("\\|", "").count("|") for line in lines} == {6}
    assert len(lines) == 3 * 3
    rows = sample_rows(pairs)
    assert [each["sort"] for each in rows] == ["unreadable", "right", "right", "wrong"]
    assert [each["pair"] for each in rows] == [0, 0, 1, 1]
    json.dumps(rows)
