"""What a look at a file of prompts finds, in our form and in that of NeMo-Gym."""

import json
from pathlib import Path
from typing import Any

from nemotron_style.steps.rl.rlhf.nemo_rl.rules.facts import FileRows, SamePrompt
from nemotron_style.steps.rl.rlhf.nemo_rl.rules.rows import SHOWN, read_file_rows, read_row_facts


def write(folder: Path, *lines: Any) -> Path:
    path = folder / "rows.jsonl"
    texts = [line if isinstance(line, str) else json.dumps(line) for line in lines]
    path.write_text("".join(f"{text}\n" for text in texts))
    return path


def look(folder: Path, *lines: Any) -> FileRows:
    found = read_file_rows(write(folder, *lines))
    assert found is not None
    return found


def gym_row(text: str, **more: Any) -> dict[str, Any]:
    params = {"input": [{"role": "user", "content": text}], "max_output_tokens": 64}
    agent = {"type": "responses_api_agents", "name": "genrm_simple_agent"}
    return {"responses_create_params": params, "agent_ref": agent, **more}


def test_rows_of_nemo_gym_lack_nothing(tmp_path: Path) -> None:
    found = look(tmp_path, gym_row("one"), gym_row("three"))
    expected = FileRows(
        path=str(tmp_path / "rows.jsonl"),
        rows=2,
        agents={"genrm_simple_agent": 1},
        longest=(5, 2),
    )
    assert found == expected


def test_rows_of_our_own_form_have_a_prompt_and_lack_what_nemo_gym_asks(tmp_path: Path) -> None:
    messages = [{"role": "user", "content": "two"}]
    found = look(tmp_path, {"messages": messages}, {"prompt": "one"}, {"question": "why"})
    assert found.without_params == found.without_agent == (1, 2, 3)
    assert found.without_prompt == ()


def test_lines_that_are_no_rows_are_named(tmp_path: Path) -> None:
    found = look(tmp_path, gym_row("one"), "", "{", "[1]", {"dataset": "hs3"})
    assert (found.blank, found.broken, found.without_prompt) == ((2,), (3, 4), (5,))
    assert found.rows == 4


def test_a_prompt_that_stands_twice_is_found_in_whichever_form(tmp_path: Path) -> None:
    turns = [{"from": "human", "value": "one"}]
    found = look(tmp_path, gym_row("one"), gym_row("two"), {"messages": turns})
    assert found.same_prompts == (SamePrompt((1, 3)),)
    assert found.copies is None


def test_another_principle_is_another_prompt(tmp_path: Path) -> None:
    found = look(tmp_path, gym_row("one"), gym_row("one", principle="be brief"))
    assert found.same_prompts == ()


def test_ids_tell_equal_prompts_apart(tmp_path: Path) -> None:
    found = look(tmp_path, gym_row("one", prompt_id="a"), gym_row("one", prompt_id="b"))
    assert found.same_prompts == (SamePrompt((1, 2), have_ids=True),)
    assert (found.copies, found.copies_of_ids, found.all_have_ids) == (2, 1, True)


def test_input_that_the_judge_would_see_empty_is_named(tmp_path: Path) -> None:
    text = {"responses_create_params": {"input": "one"}}
    part = {"role": "user", "content": [{"type": "input_text", "text": "two"}]}
    parts = {"responses_create_params": {"input": [part]}}
    found = look(tmp_path, gym_row("three"), text, parts)
    assert found.flat_input == (2, 3)
    assert found.without_limit == 2


def test_of_many_lines_the_first_are_kept(tmp_path: Path) -> None:
    found = look(tmp_path, *["{"] * 50)
    assert found.broken == tuple(range(1, SHOWN + 1))
    assert found.rows == 50


def test_a_file_that_cannot_be_read_is_no_fact(tmp_path: Path) -> None:
    assert read_row_facts(tmp_path / "none.jsonl", write(tmp_path, gym_row("one"))).train is None
