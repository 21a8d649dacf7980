"""eval/arena's rules, counted by hand: matches, decisions, rates, prompts and settings."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from nemotron_style.runtime.catalog.catalog import load_catalog
from nemotron_style.runtime.errors import InputError, StepFailed
from nemotron_style.runtime.planning.planner import compile_pipeline
from nemotron_style.runtime.planning.request import PlanContext, RunRequest
from nemotron_style.runtime.profiles.model import Profile
from nemotron_style.runtime.run.plan import Plan
from nemotron_style.runtime.store.store import Store
from nemotron_style.steps.blocks.data.chat.nemo_chat import NemoChat
from nemotron_style.steps.blocks.data.chat_format import ChatFormat
from nemotron_style.steps.blocks.data.conversation import parse_prompt
from nemotron_style.steps.blocks.data.layouts.reader import RowReader
from nemotron_style.steps.blocks.data.toy_truth import Truth
from nemotron_style.steps.blocks.judge.client import JudgeFailure
from nemotron_style.steps.blocks.judge.verdict import Verdict
from nemotron_style.steps.blocks.stats.confidence_interval import wilson_interval
from nemotron_style.steps.eval.arena.answer import final_answer
from nemotron_style.steps.eval.arena.config import Config
from nemotron_style.steps.eval.arena.judging import refuse_undecided
from nemotron_style.steps.eval.arena.match import Decision, Match, decide, true_helpfulness
from nemotron_style.steps.eval.arena.metrics import (
    conclude,
    count_answers,
    count_judge,
    count_truth,
    win_rate,
)
from nemotron_style.steps.eval.arena.prompt import (
    PromptLimit,
    as_messages,
    parse_prompt_row,
    read_prompts,
)
from nemotron_style.steps.eval.arena.samples import sample_rows, sample_table, write_words

TRUTH = Truth(
    nouns={"river": "wet"}, classes={"wet": ("deep",), "hot": ("red",)}, contexts=("now",)
)
ASKED = "Describe the river now."
HISTORY = ({"role": "user", "content": ASKED},)
FIRST, SECOND, TIED = Verdict(4, 2, 3.5), Verdict(2, 4, 3.5), Verdict(3, 3, 3.5)
FAILURE = JudgeFailure(("arena",), ("http_500", "unparseable"), "no verdict")


def match_of(
    model: str | None = "long answer", baseline: str | None = "short", prompt: int = 0
) -> Match:
    return Match(prompt, 0, HISTORY, model, baseline)


@pytest.mark.parametrize(
    ("found", "score", "consistent", "contradictory"),
    [
        ((FIRST, SECOND), 1.0, True, False),  # the model, wherever it stands
        ((SECOND, FIRST), 0.0, True, False),
        ((TIED, TIED), 0.5, True, False),
        ((FIRST, FIRST), 0.5, False, True),  # the place, whoever stands there
        ((SECOND, SECOND), 0.5, False, True),
        ((FIRST, TIED), 0.75, False, False),
        ((TIED, FIRST), 0.25, False, False),
        ((Verdict(3, 3, 1), Verdict(3, 3, 6)), 1.0, True, False),  # the ranking decides
    ],
)
def test_both_orders_make_one_decision(
    found: Any, score: float, consistent: bool, contradictory: bool
) -> None:
    decision = decide(match_of(), found)
    assert decision.how == "judged"
    assert decision.score == score
    assert decision.is_consistent == consistent
    assert decision.is_contradictory == contradictory


def test_margins_are_the_models_in_both_orders() -> None:
    assert decide(match_of(), (Verdict(5, 2, 3.5), Verdict(1, 4.5, 3.5))).margins == (3.0, 3.5)


@pytest.mark.parametrize("found", [(FIRST, FAILURE), (FAILURE, SECOND), (FAILURE, FAILURE)])
def test_a_failed_order_leaves_no_decision(found: Any) -> None:
    assert decide(match_of(), found) == Decision("failed", ())


@pytest.mark.parametrize(
    ("model", "baseline", "how", "score"),
    [
        ("same", "same", "equal", 0.5),
        (None, "said", "unfinished", 0.0),
        ("said", None, "unfinished", 1.0),
        (None, None, "unfinished", 0.5),
    ],
)
def test_what_needs_no_judge_is_not_asked(
    model: Any, baseline: Any, how: str, score: float
) -> None:
    one = match_of(model, baseline)
    assert one.pairs(seed=1) == []
    assert (decide(one, ()).how, decide(one, ()).score) == (how, score)


def test_a_pair_is_asked_in_both_orders_under_names_of_their_own() -> None:
    first, second = match_of().pairs(seed=7)
    assert (first.question.response_1, first.question.response_2) == ("long answer", "short")
    assert (second.question.response_1, second.question.response_2) == ("short", "long answer")
    assert first.question.history == second.question.history == HISTORY
    assert first.name != second.name
    assert not {first.name, second.name} & {
        asked.name for asked in match_of(prompt=1).pairs(seed=7)
    }


def test_reasoning_is_no_part_of_an_answer() -> None:
    assert final_answer("<think>so</think>It is deep.") == "It is deep."
    assert final_answer("plain") == "plain"
    assert final_answer("<think>never closed") is None
    assert final_answer(None) is None


def test_a_win_rate_counts_ties_as_halves_and_prompts_as_clusters() -> None:
    found = win_rate([(0, 1.0), (1, 1.0), (2, 0.5), (3, 0.0)])
    assert (found["rate"], found["wins"], found["ties"], found["losses"]) == (0.625, 2, 1, 1)
    same = win_rate([(prompt, score) for prompt, score in enumerate([1.0, 0.0] * 20)])
    thrice = win_rate([(prompt, score) for prompt, score in enumerate([1.0, 0.0] * 20)] * 3)
    assert (same["pairs"], thrice["pairs"], thrice["prompts"]) == (40, 120, 40)
    assert (same["low"], same["high"]) == pytest.approx((thrice["low"], thrice["high"]))
    nothing = win_rate([])
    assert (nothing["rate"], nothing["low"], nothing["high"]) == (None, 0.0, 1.0)


def test_the_conclusion_needs_the_whole_interval() -> None:
    assert conclude({"low": 0.501, "high": 0.7}) == "better"
    assert conclude({"low": 0.3, "high": 0.499}) == "worse"
    assert conclude({"low": 0.49, "high": 0.9}) == "open"


def test_the_judges_figures_by_hand() -> None:
    matches = [
        match_of("longer", "short", 0),
        match_of("short", "longer", 1),
        match_of("abc", "xyz", 2),
        match_of("same", "same", 3),
        match_of(None, "said", 4),
        match_of("lost", "to a failure", 5),
    ]
    decisions = [
        decide(matches[0], (FIRST, SECOND)),
        decide(matches[1], (SECOND, FIRST)),
        decide(matches[2], (FIRST, FIRST)),
        decide(matches[3], ()),
        decide(matches[4], ()),
        decide(matches[5], (FIRST, FAILURE)),
    ]
    found = count_judge(matches, decisions, [FAILURE])
    total = found["win_rate"]
    assert total["rate"] == pytest.approx((1 + 0 + 0.5 + 0.5 + 0) / 5)  # without the failed one
    assert (total["wins"], total["ties"], total["losses"]) == (1, 2, 2)
    assert found["decided"] == {"judged": 3, "equal": 1, "unfinished": 1, "failed": 1}
    assert found["by_order"] == pytest.approx({"model_first": 2 / 3, "baseline_first": 1 / 3})
    assert found["order_consistency"] == pytest.approx(2 / 3)
    assert found["contradictions"] == 1
    rates = {name: part["rate"] for name, part in found["by_length"].items()}
    assert rates == {"model_longer": 1.0, "model_shorter": 0.0, "same_length": 0.5}
    assert found["failures"] == {"judgements": 1, "kinds": {"unparseable": 1}}
    told = count_answers(matches)
    assert told["unfinished"] == {"model": 1, "baseline": 0}
    assert told["lengths"]["model"] == pytest.approx((6 + 5 + 3 + 4 + 4) / 5)


def test_the_truth_decides_every_match_and_marks_the_judge() -> None:
    good, bad = "The river is deep.", "The river is red."
    matches = [
        match_of(good, bad, 0),
        match_of(bad, good, 1),
        match_of(bad, None, 2),
        match_of(good, "no", 3),
    ]
    decisions = [
        decide(matches[0], (FIRST, SECOND)),  # right
        decide(matches[1], (FIRST, FIRST)),  # undecided
        decide(matches[2], ()),  # not asked
        decide(matches[3], (FAILURE, FAILURE)),
    ]
    levels = [true_helpfulness(TRUTH, one) for one in matches]
    assert levels == [(4, 0), (0, 4), (0, None), (4, 0)]
    found = count_truth(matches, decisions, levels)
    assert found["win_rate"]["rate"] == 0.75
    assert found["helpfulness"] == {"model": 2.0, "baseline": pytest.approx(4 / 3)}
    agreement = found["judge_agreement"]
    assert (agreement["right"], agreement["undecided"], agreement["wrong"]) == (1, 1, 0)
    assert agreement["rate"] == 0.75


def test_the_interval_is_wilsons_of_the_effective_number() -> None:
    found = win_rate([(place, float(place < 30)) for place in range(40)])
    size = found["effective_pairs"]
    assert 36 < size < 39
    assert (found["low"], found["high"]) == pytest.approx(wilson_interval(0.75 * size, size))


@pytest.mark.parametrize(
    ("found", "told"),
    [
        ((TIED, TIED), "2 ties, 0 times the same position"),
        ((FIRST, FIRST), "0 ties, 2 times the same position"),
        ((FAILURE, FIRST), "none of 0 pairs.*1 failed"),
    ],
)
def test_a_judge_that_decides_nothing_is_refused(found: Any, told: str) -> None:
    failures = [one for one in found if isinstance(one, JudgeFailure)]
    with pytest.raises(StepFailed, match=told):
        refuse_undecided([decide(match_of(), found)] * 2, failures)
    refuse_undecided([decide(match_of(), found), decide(match_of(), (FIRST, SECOND))], failures)
    refuse_undecided([decide(match_of("same", "same"), ())], [])  # nothing was asked of it


def test_the_table_shows_the_clearest_first() -> None:
    matches = [match_of(f"answer {n}", "a | b\nc", n) for n in range(4)]
    wide, narrow = (Verdict(5, 1, 3.5), Verdict(1, 5, 3.5)), (FIRST, SECOND)
    decisions = [
        decide(one, found)
        for one, found in zip(matches, [narrow, wide, narrow[::-1], (TIED, TIED)], strict=True)
    ]
    rows = sample_rows(matches, decisions, [(4, None)] * 4)
    assert [row["score"] for row in rows] == [1.0, 1.0, 0.0, 0.5]
    table = sample_table(rows, shown=1)
    assert "## Best wins (2 in all)" in table
    assert "## Worst losses (1 in all)" in table
    assert "| +4, +4 | Describe the river now. | answer 1 (helpfulness 4) | a \\| b c |" in table
    assert "| -2, -2 |" in table
    assert "answer 0" not in table
    assert "answer 3" not in table


def test_the_judges_words_lie_beside_the_results(tmp_path: Path) -> None:
    said = Verdict(4, 2, 1, words="because")
    write_words(tmp_path, [(said, JudgeFailure(("v",), ("empty",), "")), ()])
    text = (tmp_path / "samples" / "words.jsonl").read_text()
    said_of_each = [json.loads(line)["words"] for line in text.splitlines()]
    assert said_of_each == [["because"], []]


class Words:
    """As many tokens as there are words."""

    def encode(self, text: str, *, control: bool) -> list[int]:
        return list(range(len(text.split())))


def test_every_row_that_cannot_be_asked_is_named_with_its_line(tmp_path: Path) -> None:
    user = {"role": "user", "content": ASKED}
    rows: list[Any] = [
        {"messages": [user]},
        {"messages": [{"role": "assistant", "content": "I begin."}]},
        {"text": "no messages"},
        {"messages": [{**user, "content": "many " * 40}]},
        {"messages": [{**user, "content": "a\x11b"}]},
        {"messages": [{**user, "content": "Describe the moon."}]},
        {"messages": [user, {"role": "assistant", "content": "It is."}], "label": "x"},
    ]
    file = tmp_path / "prompts.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    reader = PromptLimit("model", NemoChat(Words(), ChatFormat()), room=30)  # type: ignore[arg-type]
    with pytest.raises(InputError) as caught:
        read_prompts(file, [reader], truth=TRUTH, reader=RowReader("prompts"))
    told = {
        int(problem.where.rpartition(":")[2]): str(problem) for problem in caught.value.problems
    }
    assert set(told) == {2, 3, 4, 5, 6, 7}
    assert "a question and its answer" in told[2]
    assert "have one layout; got nemo_text" in told[3]
    assert "leaves model no room" in told[4]
    assert "allowed: 30" in told[4]
    assert "control token" in told[5]
    assert "knows nothing about the prompt" in told[6]
    assert "label and type" in told[7]


def test_prompts_are_asked_once_and_answers_left_out(tmp_path: Path) -> None:
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": ASKED}]
    answered = [*messages, {"role": "assistant", "content": "It is deep."}]
    file = tmp_path / "prompts.jsonl"
    file.write_text("".join(json.dumps({"messages": m}) + "\n" for m in (messages, answered)))
    (asked,) = read_prompts(file, [], truth=TRUTH, reader=RowReader("prompts"))
    assert asked == parse_prompt({"messages": messages}) == parse_prompt_row({"messages": answered})
    assert list(as_messages(asked)) == messages


def test_settings_that_make_no_sense_are_refused() -> None:
    Config.model_validate({"sampling": {"max_new_tokens": 8}})
    with pytest.raises(ValidationError, match="must be 1 at temperature 0"):
        Config.model_validate(
            {"sampling": {"max_new_tokens": 8, "num_samples": 2, "temperature": 0}}
        )
    with pytest.raises(ValidationError, match="neither a host nor an http"):
        Config.model_validate(
            {"sampling": {"max_new_tokens": 8}, "judge": {"url": "ftp://somewhere:1"}}
        )


def test_the_tiny_arena_measures_what_the_tiny_rlhf_gained(tmp_path: Path) -> None:
    """Its baseline is the start of the run that made its model, and that run's judge judges."""
    context = PlanContext(load_catalog(), Store(tmp_path), Profile(name="local"), workdir=tmp_path)
    runs = compile_pipeline(RunRequest("eval/arena", config="tiny"), context=context).runs
    arena, trained = runs[-1].plan, runs[-2].plan
    assert isinstance(arena, Plan)
    assert isinstance(trained, Plan)
    filled, given = ({one.slot: one.source for one in each.inputs} for each in (arena, trained))
    assert filled["model"] == f"run:{trained.run_id}/model"
    assert filled["baseline"] == given["model"]
    assert filled["judge.model"] == given["judge.model"]
    assert filled["prompts"] == given["validation"]
