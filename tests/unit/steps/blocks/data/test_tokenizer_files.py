"""Tokenizer files as other people write them: roles as tables, templates inside settings."""

from __future__ import annotations

import hashlib
import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from nemotron_style.runtime.errors import InputError
from nemotron_style.steps.blocks.data.chat_format import ChatPromptTokens
from nemotron_style.steps.blocks.data.tokenizer import Tokenizer, tokenizer_facts, train_tokenizer
from nemotron_style.steps.blocks.data.tokenizer_files import (
    export_tokenizer,
    import_tokenizer,
    token_ids,
)


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
