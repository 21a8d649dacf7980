"""Tokenizer files as other people write them: roles as tables, templates inside settings."""

from __future__ import annotations

import hashlib
import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from nemotron_style.runtime.errors import InputError
from nemotron_style.steps.blocks.data.chat.opening import tokenizer_facts
from nemotron_style.steps.blocks.data.chat_format import ChatPromptTokens
from nemotron_style.steps.blocks.data.tokenizer import Tokenizer
from nemotron_style.steps.blocks.data.tokenizer_files import (
    export_tokenizer,
    import_tokenizer,
    token_ids,
)
from nemotron_style.steps.blocks.data.tokenizer_training import train_tokenizer


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return train_tokenizer(
        ["The river is wide."] * 9, 300, tmp_path / "t", tokens=ChatPromptTokens()
    ).path


def settle(folder: Path, **settings: object) -> Tokenizer:
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return Tokenizer(folder)


def test_roles_are_read_as_texts_or_as_tables(folder: Path) -> None:
    table = {"__type": "AddedToken", "content": "\x12", "special": True, "lstrip": False}
    tokenizer = settle(folder, bos_token=table, eos_token="\x11", pad_token=None, unk_token="no id")
    assert tokenizer.special_tokens == {
        "bos_token": "\x12",
        "eos_token": "\x11",
        "unk_token": "no id",
    }
    ids = tokenizer.control_ids
    assert token_ids(tokenizer) == {
        "bos_token_id": ids["\x12"],
        "eos_token_id": ids["\x11"],
        "pad_token_id": None,
    }


def test_a_role_that_is_no_single_id_has_none(folder: Path) -> None:
    assert token_ids(settle(folder, eos_token="<|end|>"))["eos_token_id"] is None


def test_what_is_derived_is_written_beside_what_is_carried(folder: Path, tmp_path: Path) -> None:
    export_tokenizer(folder, tmp_path / "out")
    number = Tokenizer(folder).control_ids["\x11"]
    read = {name: json.loads((tmp_path / "out" / name).read_text()) for name in DERIVED}
    assert read["generation_config.json"] == {"eos_token_id": number, "pad_token_id": number}
    assert read["special_tokens_map.json"] == {"eos_token": "\x11", "pad_token": "\x11"}
    for one in folder.iterdir():
        assert (tmp_path / "out" / one.name).read_bytes() == one.read_bytes()


DERIVED = ("generation_config.json", "special_tokens_map.json")


def test_a_map_of_special_tokens_that_came_along_stays(folder: Path, tmp_path: Path) -> None:
    (folder / "special_tokens_map.json").write_text('{"additional_special_tokens": ["\\u0012"]}')
    export_tokenizer(folder, tmp_path / "out")
    told = (tmp_path / "out" / "special_tokens_map.json").read_text()
    assert told == (folder / "special_tokens_map.json").read_text()


@pytest.mark.parametrize("place", ["settings", "file", "nowhere"])
def test_a_template_is_told_by_its_digest_and_never_rendered(folder: Path, place: str) -> None:
    trap = "{{ ''.__class__.__mro__ }}{% for x in range(10**12) %}{% endfor %}"
    (folder / "chat_template.jinja").unlink()
    if place == "file":
        (folder / "chat_template.jinja").write_text(trap)
    tokenizer = settle(folder, **({"chat_template": trap} if place == "settings" else {}))
    wanted = "sha256:" + hashlib.sha256(trap.encode()).hexdigest()
    facts = tokenizer_facts(tokenizer)
    assert facts["template_digest"] == (None if place == "nowhere" else wanted)
    assert facts["tokenizer_digest"] == tokenizer.digest
    assert tokenizer.decode(facts["canary"]["ids"]) == facts["canary"]["text"]


def test_several_templates_in_the_settings_have_one_digest(folder: Path) -> None:
    """Older tools write a list of named templates."""
    (folder / "chat_template.jinja").unlink()
    named = [{"name": "default", "template": "a"}, {"name": "tool_use", "template": "b"}]
    one = tokenizer_facts(settle(folder, chat_template=named))["template_digest"]
    named[1]["template"] = "c"
    assert one.startswith("sha256:")
    assert tokenizer_facts(settle(folder, chat_template=named))["template_digest"] != one


def test_a_folder_without_tokenizer_json_says_how_to_get_it(folder: Path, tmp_path: Path) -> None:
    (folder / "tokenizer.json").rename(folder / "tokenizer.model")
    with pytest.raises(InputError, match=r"there is no tokenizer\.json; save it with transformers"):
        import_tokenizer(folder, tmp_path / "out", tokens=None)


@pytest.mark.parametrize("copy", [export_tokenizer, partial(import_tokenizer, tokens=None)])
def test_settings_that_name_code_are_not_handed_on(folder: Path, tmp_path: Path, copy: Any) -> None:
    settle(folder, auto_map={"AutoTokenizer": ["org/words--tokenizer.Words", None]})
    with pytest.raises(InputError, match="auto_map: can have code fetched or run"):
        copy(folder, tmp_path / "copy")
    assert not (tmp_path / "copy").exists()


def write(folder: Path, name: str, **content: object) -> None:
    (folder / name).write_text(json.dumps(content))


def read(folder: Path, name: str) -> Any:
    return json.loads((folder / name).read_text())


@pytest.mark.parametrize("where", ["config.json", "generation_config.json"])
def test_several_ends_and_a_beginning_survive_a_round_trip(
    folder: Path, tmp_path: Path, where: str
) -> None:
    ids = {"eos_token_id": [1, 5, 7], "bos_token_id": 2}
    write(folder, where, **ids, temperature=0.6)
    (folder / "merges.txt").write_text("a b")
    tokenizer = import_tokenizer(folder, tmp_path / "in", tokens=None)
    assert token_ids(tokenizer) | ids == token_ids(tokenizer)
    exported = export_tokenizer(tmp_path / "in", tmp_path / "out")
    assert exported["eos_token_id"] == [1, 5, 7]
    generation = read(tmp_path / "out", "generation_config.json")
    assert generation | ids == generation
    assert ("temperature" in generation) == (where == "generation_config.json")
    again = import_tokenizer(tmp_path / "out", tmp_path / "again", tokens=None)
    assert token_ids(again) == token_ids(tokenizer)
    assert (tmp_path / "again" / "merges.txt").read_text() == "a b"


def test_after_a_change_of_turn_tokens_every_file_names_the_new_end(
    folder: Path, tmp_path: Path
) -> None:
    write(folder, "generation_config.json", eos_token_id=[3, 4], temperature=0.6)
    write(folder, "special_tokens_map.json", eos_token="\x12", bos_token="\x12")
    settings = read(folder, "tokenizer_config.json")
    del settings["chat_prompt_tokens"]
    write(folder, "tokenizer_config.json", **settings)
    tokenizer = import_tokenizer(folder, tmp_path / "in", tokens=ChatPromptTokens())
    end = tokenizer.control_ids["\x11"]
    assert token_ids(tokenizer)["eos_token_id"] == end
    export_tokenizer(tmp_path / "in", tmp_path / "out")
    generation = {"eos_token_id": end, "temperature": 0.6}
    assert read(tmp_path / "out", "generation_config.json") == generation
    special = {"eos_token": "\x11", "bos_token": "\x12"}
    assert read(tmp_path / "out", "special_tokens_map.json") == special


def test_a_generation_config_that_names_code_is_not_handed_on(folder: Path, tmp_path: Path) -> None:
    write(folder, "generation_config.json", custom_generate="org/decoding")
    with pytest.raises(InputError, match="custom_generate: can have code fetched or run"):
        import_tokenizer(folder, tmp_path / "copy", tokens=None)


def test_every_file_of_templates_is_carried_and_gives_way_to_chat_tokens(
    folder: Path, tmp_path: Path
) -> None:
    (folder / "chat_template.jinja").unlink()
    write(folder, "tokenizer_config.json", eos_token="\x11")
    write(folder, "chat_template.json", chat_template="{{ messages }}")
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "tool_use.jinja").write_text("{{ tools }}")
    assert Tokenizer(folder).template == "{{ messages }}"
    named = Path("additional_chat_templates/tool_use.jinja")
    kept = import_tokenizer(folder, tmp_path / "kept", tokens=None)
    export_tokenizer(kept.path, tmp_path / "out")
    for name in ("chat_template.json", named):
        assert (tmp_path / "out" / name).read_bytes() == (folder / name).read_bytes()
    changed = import_tokenizer(folder, tmp_path / "changed", tokens=ChatPromptTokens())
    assert "messages" in changed.template
    assert changed.template != "{{ messages }}"
    assert not any((changed.path / name).exists() for name in ("chat_template.json", named))


def test_a_list_of_named_templates_is_carried_as_it_is(folder: Path, tmp_path: Path) -> None:
    (folder / "chat_template.jinja").unlink()
    listed = [{"name": name, "template": f"{{{{ {name} }}}}"} for name in ("default", "rag")]
    write(folder, "tokenizer_config.json", chat_template=listed)
    kept = import_tokenizer(folder, tmp_path / "kept", tokens=None)
    export_tokenizer(kept.path, tmp_path / "out")
    assert Tokenizer(tmp_path / "out").template == listed
