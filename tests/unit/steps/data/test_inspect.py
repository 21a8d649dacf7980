"""A look at rows: what it counts, what it marks as trained, and what it says is refused."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from nemotron_style.runtime.errors import InputError
from nemotron_style.runtime.step.context import StepContext
from nemotron_style.steps.blocks.data.chat.opening import open_chat
from nemotron_style.steps.blocks.data.chat_format import ChatPromptTokens
from nemotron_style.steps.blocks.data.tokenizer_training import train_tokenizer
from nemotron_style.steps.data.inspect.config import Config, Data
from nemotron_style.steps.data.inspect.inspection import find_uses, inspect_rows, percentiles
from nemotron_style.steps.data.inspect.recipe import run
from nemotron_style.steps.data.inspect.rendering import mark

Q, A = "Name a river.", "The Rhine."
SHAREGPT = {"conversations": [{"from": "human", "value": Q}, {"from": "gpt", "value": A}]}
ALPACA = {"instruction": "Translate.", "input": Q, "output": A}
HELPSTEER2 = {
    "prompt": f"{Q}\n<extra_id_1>Assistant\n{A}\n<extra_id_1>User\nAnother?",
    "response": "The Nile.",
    "helpfulness": 4,
}
ANTHROPIC = {side: f"\n\nHuman: {Q}\n\nAssistant: {side}" for side in ("chosen", "rejected")}
GYM = {"responses_create_params": {"input": [{"role": "user", "content": Q}]}}


@dataclass
class Input:
    """An artifact, as far as the recipe looks at it."""

    path: Path

    def check_unchanged(self) -> None:
        """It is not changed."""


def write(tmp_path: Path, *rows: dict[str, Any]) -> Path:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def look(path: Path, **settings: Any) -> str:
    """The page about a file."""
    data = Input(path)
    ctx = StepContext(run_dir=path.parent / "run", inputs={"data": data}, outputs=("report",))  # type: ignore[dict-item]
    run(Config(data=Data(**settings)), ctx)
    return (ctx.output("report").path / "report.md").read_text()


@pytest.mark.parametrize(
    ("row", "layout", "use", "shown"),
    [
        (SHAREGPT, "sharegpt", "training", f"User: {Q}\nAssistant: ⟦{A}⟧"),
        (ALPACA, "alpaca", "training", f"User: Translate.\n\n{Q}\nAssistant: ⟦{A}⟧"),
        (
            HELPSTEER2,
            "prompt_response",
            "training",
            f"⟦{A}⟧\nUser: Another?\nAssistant: ⟦The Nile.⟧",
        ),
        (ANTHROPIC, "pairs", "ratings", f"Row 1, rejected\n\n```\nUser: {Q}\nAssistant: rejected"),
        (GYM, "nemo_gym", "prompts", f"```\nUser: {Q}\n```"),
    ],
)
def test_the_page_shows_layout_and_what_is_trained(
    tmp_path: Path, row: dict[str, Any], layout: str, use: str, shown: str
) -> None:
    page = look(write(tmp_path, row))
    assert f"* layout: {layout}, read for {use}" in page
    assert "* rows: 1; 1 are read, 0 are refused" in page
    assert shown in page


def test_refused_and_repeated_rows_are_named(tmp_path: Path) -> None:
    other = {"conversations": [SHAREGPT["conversations"][0], {"from": "gpt", "value": "Po."}]}
    path = write(tmp_path, SHAREGPT, {"conversations": []}, SHAREGPT, other, {"n": 1})
    page = look(path)
    assert "* rows: 5; 3 are read, 2 are refused" in page
    assert f"* {path}:2: conversations: must be a list of turns" in page
    assert f"* {path}:5: no layout of training has these columns" in page
    assert "* row 3 is row 1" in page
    assert "* repeated rows: 1; other rows with a repeated prompt: 1" in page


def test_the_same_as_figures(tmp_path: Path) -> None:
    look(write(tmp_path, ALPACA, ALPACA))
    [report] = (tmp_path / "run").rglob("report.json")
    facts = json.loads(report.read_text())
    assert (facts["rows"], facts["layouts"], facts["repeated_rows"]) == (2, {"alpaca": 2}, 1)
    assert facts["turns"]["50"] == 2


def test_tokens_are_counted_and_those_that_are_trained_are_marked(tmp_path: Path) -> None:
    tokenizer = train_tokenizer([Q, A], 320, tmp_path / "tokenizer", tokens=ChatPromptTokens())
    chat = open_chat(tokenizer)
    path = write(tmp_path, SHAREGPT)
    found = inspect_rows(path, Data(), chat=chat, limit=5, shown=1)
    trained = chat.response_ids(A)
    assert found.trained == [len(trained)]
    assert found.tokens[0] > len(trained)
    assert found.too_long == [1]
    [[asked, answered]] = found.shown[0]
    assert (asked.trained, answered.trained) == (False, True)
    assert answered.text == tokenizer.decode(trained)
    assert mark([asked, answered]).endswith(f"␑Assistant\n⟦{A}\n␑⟧")


def test_only_the_last_answer_is_marked_where_it_alone_is_trained(tmp_path: Path) -> None:
    page = look(write(tmp_path, HELPSTEER2), train_on="last")
    assert f"Assistant: {A}\nUser: Another?\nAssistant: ⟦The Nile.⟧" in page


def test_labels_are_shown_where_they_stand(tmp_path: Path) -> None:
    turns = [{"role": "user", "content": Q}, {"role": "assistant", "content": A}]
    rows = [
        {"messages": turns, "label": "a:1", "type": f"{kind}"}
        for kind in ("VALUE_TO_TEXT", "TEXT_TO_VALUE")
    ]
    page = look(write(tmp_path, *rows))
    assert f"User: {Q}\nLabel: a:1\nAssistant: ⟦{A}⟧" in page
    assert f"User: {Q}\nAssistant: {A}\nLabel: ⟦a:1⟧" in page


def test_a_file_without_a_layout_is_refused_with_its_first_row(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"rows\.jsonl:1: no layout of training has these"):
        look(write(tmp_path, {"a": 1}))


def test_a_file_may_be_looked_at_for_another_use(tmp_path: Path) -> None:
    path = write(tmp_path, HELPSTEER2)
    assert find_uses(path, None) == ["training", "ratings", "prompts"]
    assert "read for ratings" in look(path, use="ratings")


def test_percentiles_are_numbers_of_the_list() -> None:
    found = percentiles([1, 2, 3, 4, 100])
    assert (found["0"], found["50"], found["100"]) == (1, 3, 100)
    assert percentiles([]) == {}
