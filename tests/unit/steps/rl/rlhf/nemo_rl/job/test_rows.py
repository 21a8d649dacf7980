"""Prompts as NeMo-Gym takes them: every form of a row, equal prompts, names that follow content."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from nemotron_style.runtime.errors import InputError
from nemotron_style.steps.rl.rlhf.nemo_rl.job.rows import (
    AGENT,
    PreparedRows,
    normalise_row,
    prepare_rows,
    prepare_texts,
)
from nemotron_style.steps.rl.rlhf.nemo_rl.version import Version

ASKED = [{"role": "user", "content": "why?"}]
REFERENCE = {"type": "responses_api_agents", "name": AGENT}


def prepare(folder: Path, *rows: Any, version: Version = Version.V0_6_0) -> PreparedRows:
    file = folder / "rows.jsonl"
    file.write_text("".join(f"{json.dumps(row) if row else ''}\n" for row in rows))
    return prepare_rows(file, folder / "data", slot="prompts", version=version, agent=AGENT)


def read(prepared: PreparedRows) -> list[dict[str, Any]]:
    return [json.loads(line) for line in prepared.path.read_text().splitlines()]


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "why?"},
        {"question": "why?"},
        {"messages": [{"from": "human", "value": "why?"}]},
        {"responses_create_params": {"input": "why?"}},
        {"extra_env_info": {"responses_create_params": {"input": ASKED}}},
        {
            "responses_create_params": {
                "input": [{"role": "user", "content": [{"type": "input_text", "text": "why?"}]}]
            }
        },
    ],
)
def test_every_form_of_a_row_has_the_same_messages(row: dict[str, Any]) -> None:
    normal = normalise_row(row, AGENT)
    assert normal["responses_create_params"]["input"] == ASKED
    assert normal["agent_ref"] == REFERENCE


def test_what_a_row_says_itself_stays() -> None:
    params = {"input": ASKED, "tools": [{"name": "look"}], "max_output_tokens": 9}
    agent = {"type": "responses_api_agents", "name": "mine"}
    row = {"responses_create_params": params, "agent_ref": agent, "dataset": "hs3"}
    assert normalise_row(row, AGENT) == row
    assert normalise_row({"prompt": "why?"}, agent)["agent_ref"] == agent
    assert normalise_row({"prompt": "why?", "tools": [1]}, AGENT)["responses_create_params"] == {
        "input": ASKED,
        "tools": [1],
    }


@pytest.mark.parametrize(
    ("row", "key"),
    [
        ({"answer": "because"}, "responses_create_params"),
        ({"responses_create_params": {"input": []}}, "input"),
        ({"responses_create_params": []}, "responses_create_params"),
        ({"responses_create_params": {"input": ["why?"]}}, "input"),
        ({"responses_create_params": {"input": [{"role": "assistant", "content": "x"}]}}, "input"),
        ({"responses_create_params": {"input": [{"role": "user", "content": [1]}]}}, "content"),
        ({"messages": [{"role": "user", "content": "a"}, {"role": "model", "content": "b"}]}, "in"),
    ],
)
def test_a_row_without_a_prompt_is_refused_with_its_line(
    tmp_path: Path, row: dict[str, Any], key: str
) -> None:
    with pytest.raises(InputError) as error:
        prepare(tmp_path, {"prompt": "why?"}, row)
    (problem,) = error.value.problems
    assert problem.where.endswith("rows.jsonl:2")
    assert key in problem.key


def test_a_file_that_is_right_already_is_passed_on(tmp_path: Path) -> None:
    row = {"responses_create_params": {"input": ASKED}, "agent_ref": REFERENCE}
    assert prepare(tmp_path, row).path == tmp_path / "rows.jsonl"
    blank = prepare(tmp_path, row, None)
    assert blank.path.parent == tmp_path / "data"  # a blank line is no JSON to NeMo-RL
    assert read(blank) == [row]


def test_what_is_written_is_named_by_its_content(tmp_path: Path) -> None:
    first = prepare(tmp_path, {"prompt": "why?"})
    assert first.path == prepare(tmp_path, {"prompt": "why?"}).path
    assert first.digest.removeprefix("sha256:")[:16] in first.path.name
    assert prepare(tmp_path, {"prompt": "how?"}).path != first.path
    assert len(list((tmp_path / "data").iterdir())) == 2


@pytest.mark.parametrize("version", [Version.V0_6_0, Version.V0_7_0])
def test_equal_prompts_are_named_and_told_apart_where_gym_can(
    tmp_path: Path, version: Version
) -> None:
    same = {"prompt": "why?"}
    rows = (same, {"prompt": "how?"}, same, same | {"principle": "be brief"}, same)
    prepared = prepare(tmp_path, *rows, version=version)
    (note,) = prepared.notes
    assert note.startswith("prompts: rows 1, 3, 5 have the same prompt")
    ids = [row.get("prompt_id") for row in read(prepared)]
    if version < Version.V0_7_0:
        assert "v0.6.0 mixes their answers" in note
        assert ids == [None] * 5
    else:
        assert len(set(ids)) == 5
        assert ids[2] == f"{ids[0]}-2"


def test_many_equal_prompts_are_counted(tmp_path: Path) -> None:
    prepared = prepare(tmp_path, *({"prompt": f"{n // 2}"} for n in range(30)))
    assert len(prepared.notes) == 11
    assert prepared.notes[-1] == "prompts: 15 prompts stand in several rows, 10 shown"


@pytest.mark.parametrize("version", Version)
def test_rows_limit_responses_where_nothing_else_does(tmp_path: Path, version: Version) -> None:
    own = {"responses_create_params": {"input": ASKED, "max_output_tokens": 9}}
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in ({"prompt": "how?"}, own)))
    found = prepare_rows(
        file, tmp_path, slot="prompts", version=version, agent=AGENT, most_tokens=64
    )
    limits = [row["responses_create_params"].get("max_output_tokens") for row in read(found)]
    assert limits == [64 if version == Version.V0_6_0 else None, 9]


def test_without_gym_a_row_is_one_text_and_its_file_is_named_by_its_content(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    rows = [json.dumps({"prompt": "why?", "answer": "so"}), "", json.dumps({"messages": ASKED})]
    file.write_text("\n".join(rows))
    first, again = (prepare_texts(file, tmp_path / "data", slot="prompts") for _ in range(2))
    assert read(first) == [{"input": "why?", "output": ""}] * 2
    assert first == again
    assert first.path.name == f"prompts-{first.digest.removeprefix('sha256:')[:16]}.jsonl"


def test_without_gym_a_conversation_is_refused_since_its_first_text_alone_would_be_asked(
    tmp_path: Path,
) -> None:
    file = tmp_path / "rows.jsonl"
    system = {"role": "system", "content": "be brief"}
    file.write_text(json.dumps({"messages": [system, *ASKED]}) + "\n")
    with pytest.raises(InputError, match="got system, user; allowed: one message of the user"):
        prepare_texts(file, tmp_path / "data", slot="prompts")
