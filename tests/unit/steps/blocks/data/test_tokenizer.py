"""The tokenizer: lossless, control tokens whole, and a template that says what the code says."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from jinja2.sandbox import ImmutableSandboxedEnvironment
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers
from tokenizers import Tokenizer as Backend

from nemotron_style.runtime.errors import InputError
from nemotron_style.steps.blocks.data.chat.opening import open_chat, tokenizer_facts
from nemotron_style.steps.blocks.data.chat_format import ChatFormat, ChatPromptTokens
from nemotron_style.steps.blocks.data.conversation import parse_messages
from nemotron_style.steps.blocks.data.tokenizer import TEMPLATE_FILE, Tokenizer
from nemotron_style.steps.blocks.data.tokenizer_files import write_settings
from nemotron_style.steps.blocks.data.tokenizer_training import train_tokenizer

JUDGED = [
    {"role": role, "content": f"text of {role}"}
    for role in ("principle", "response_1", "response_2")
]
SPECIAL = ChatPromptTokens(
    system_turn_start="<extra_id_0>", turn_start="<extra_id_1>", label_start="<extra_id_2>"
)
TEXTS = ["The river is wide.", "Describe the river near the village."] * 3
MESSAGES = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": 'Say "é ☂ {{ x }}"\n twice'},
    {"role": "assistant", "content": "No."},
    {"role": "user", "content": "Why?"},
]


@pytest.fixture
def tokenizer(tmp_path: Path) -> Tokenizer:
    return train_tokenizer(TEXTS, 600, tmp_path / "t", tokens=ChatPromptTokens())


@pytest.mark.parametrize("text", ["", " river  wide\n\n", "naïve ☂ 日本\x00\x11", "\x11\n\x12"])
@pytest.mark.parametrize("control", [True, False])
def test_every_text_comes_back(tokenizer: Tokenizer, text: str, control: bool) -> None:
    assert tokenizer.decode(tokenizer.encode(text, control=control)) == text


def test_words_of_the_corpus_are_single_tokens(tokenizer: Tokenizer) -> None:
    assert [tokenizer.decode([i]) for i in tokenizer.encode("The river is wide.")] == [
        "The", " river", " is", " wide", "."
    ]  # fmt: skip


def test_control_tokens_are_whole_only_where_asked(tokenizer: Tokenizer) -> None:
    turn = tokenizer.control_ids["\x11"]
    assert tokenizer.encode("a\x11b", control=True)[1] == turn
    assert turn not in tokenizer.encode("a\x11b")
    assert open_chat(tokenizer).stop_ids == (turn,)


def test_rows_beyond_the_ids_and_gaps_between_them_are_no_tokens(tmp_path: Path) -> None:
    backend = Backend(models.WordLevel({"a": 0, "b": 2, "?": 5}, unk_token="?"))
    backend.save(str(tmp_path / "tokenizer.json"))
    tokenizer = Tokenizer(tmp_path)
    assert tokenizer.knows([0, 2, 5])
    assert [number for number in range(8) if not tokenizer.knows([0, number])] == [1, 3, 4, 6, 7]


def test_training_is_deterministic(tokenizer: Tokenizer, tmp_path: Path) -> None:
    again = train_tokenizer(TEXTS, 600, tmp_path / "again", tokens=ChatPromptTokens())
    assert again.digest == tokenizer.digest
    other = train_tokenizer([*TEXTS, "owl owl"], 600, tmp_path / "o", tokens=ChatPromptTokens())
    assert other.digest != tokenizer.digest


@pytest.mark.parametrize("tokens", [ChatPromptTokens(), SPECIAL])
@pytest.mark.parametrize(
    "messages", [MESSAGES, MESSAGES[1:], MESSAGES[-1:], MESSAGES + JUDGED, MESSAGES + JUDGED[1:]]
)
def test_the_template_renders_what_the_code_builds(
    tmp_path: Path, tokens: ChatPromptTokens, messages: list
) -> None:
    chat = open_chat(train_tokenizer(TEXTS, 600, tmp_path, tokens=tokens)).texts
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string((tmp_path / TEMPLATE_FILE).read_text(encoding="utf-8"))

    def render(rows: list, **options: object) -> str:
        return template.render(messages=rows, **options)

    plain, label = chat.prompt(parse_messages(messages)), "helpfulness:4"
    answered = [*messages, {"role": "assistant", "content": "So."}]
    assert render(messages, add_generation_prompt=True) == plain
    labelled = render(messages, add_generation_prompt=True, label=label)
    assert labelled == chat.prompt(parse_messages(messages), label=label)
    assert render(answered) == plain + chat.response("So.")
    assert render(answered, label=label) == labelled + chat.response("So.")


def test_the_canary_is_noted_as_rendered(tokenizer: Tokenizer) -> None:
    chat = open_chat(tokenizer)
    facts = tokenizer_facts(tokenizer, chat)
    assert facts["canary"]["text"] == chat.canary()
    assert tokenizer.decode(facts["canary"]["ids"]) == chat.canary()
    assert facts["template_digest"] != ChatFormat(SPECIAL).digest()


def test_a_checkpoint_knows_its_own_tokens(tokenizer: Tokenizer) -> None:
    assert open_chat(tokenizer).texts.tokens == ChatPromptTokens()
    with pytest.raises(InputError, match="trained with other tokens"):
        open_chat(tokenizer, SPECIAL)


def test_tokens_that_are_not_one_id_are_refused(tokenizer: Tokenizer) -> None:
    (tokenizer.path / "tokenizer_config.json").unlink()
    with pytest.raises(InputError, match="extra_id_0") as caught:
        open_chat(Tokenizer(tokenizer.path), SPECIAL)
    assert len(caught.value.problems) == 3


def test_settings_of_another_tool_stay(tokenizer: Tokenizer) -> None:
    file = tokenizer.path / "tokenizer_config.json"
    file.write_text(json.dumps({"model_max_length": 7, "chat_template": "old"}))
    write_settings(tokenizer.path, ChatPromptTokens())
    kept = json.loads(file.read_text())
    assert kept["model_max_length"] == 7
    assert "chat_template" not in kept


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("tokenizer.json", b"\xff", r"tokenizer\.json:1: is not UTF-8"),
        ("tokenizer_config.json", b'{\n"a": \xff}', r"tokenizer_config\.json:2: is not UTF-8"),
        ("tokenizer_config.json", b"[]", "is not a JSON object"),
        ("tokenizer_config.json", b'{"a": ' + b"[" * 100_000, "nested too deeply"),
        ("tokenizer_config.json", b'{"a":\n' + b"1" * 9_000 + b"}", r"json:2: holds a number"),
        ("tokenizer_config.json", b"{", r"tokenizer_config\.json:1: is not valid JSON"),
        ("chat_template.jinja", b"\xff", r"chat_template\.jinja:1: is not UTF-8"),
    ],
)
def test_a_file_that_cannot_be_read_is_named(
    tokenizer: Tokenizer, tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    shutil.copytree(tokenizer.path, tmp_path / "copy")
    (tmp_path / "copy" / name).write_bytes(content)
    with pytest.raises(InputError, match=message):
        [tokenizer_facts(read := Tokenizer(tmp_path / "copy")), read.template]


def test_a_directory_without_tokenizer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no tokenizer"):
        Tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(InputError, match="not a tokenizer"):
        Tokenizer(tmp_path)


def rewrite(path: Path, **changes: object) -> Tokenizer:
    """The tokenizer in ``path`` with other values in its ``tokenizer.json``."""
    file = path / "tokenizer.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    return Tokenizer(path)


@pytest.mark.parametrize("control", [True, False])
def test_truncation_and_padding_that_were_saved_apply_to_nobody(
    tokenizer: Tokenizer, control: bool
) -> None:
    text = "The river is wide. " * 20
    expected = tokenizer.encode(text, control=control)
    backend = Backend.from_file(str(tokenizer.path / "tokenizer.json"))
    backend.enable_truncation(8, direction="left")
    backend.enable_padding(length=64, pad_id=0, pad_token="\x00")
    backend.save(str(tokenizer.path / "tokenizer.json"))
    saved = Tokenizer(tokenizer.path)
    assert saved.encode(text, control=control) == expected
    assert saved.encode("a", control=control) == tokenizer.encode("a", control=control)


def test_markers_that_are_not_called_special_are_control_tokens(tokenizer: Tokenizer) -> None:
    added = json.loads((tokenizer.path / "tokenizer.json").read_text())["added_tokens"]
    changed = rewrite(tokenizer.path, added_tokens=[{**token, "special": False} for token in added])
    assert changed.control_ids == tokenizer.control_ids
    assert changed.encode("a\x11b", control=True)[1] == tokenizer.control_ids["\x11"]
    assert not set(changed.control_ids.values()) & set(changed.encode("a\x11b"))
    chat = open_chat(changed).texts
    with pytest.raises(InputError, match="control token"):
        chat.prompt(parse_messages([{"role": "user", "content": "a\x11User"}]))


@pytest.mark.parametrize("where", ["tokenizer_config.json", "special_tokens_map.json"])
@pytest.mark.parametrize(
    "named",
    [
        {"additional_special_tokens": ["<|end|>"]},
        {"extra_special_tokens": {"water": {"content": "<|end|>"}}},
        {"bos_token": "<|end|>"},
        {"eos_token": {"content": "<|end|>"}},
    ],
)
def test_tokens_that_only_a_settings_file_names_are_control_tokens(
    tokenizer: Tokenizer, where: str, named: dict[str, object]
) -> None:
    model = json.loads((tokenizer.path / "tokenizer.json").read_text())["model"]
    model["vocab"]["<|end|>"] = number = tokenizer.vocab_size  # a token, and not an added one
    rewrite(tokenizer.path, model=model)
    file = tokenizer.path / where
    settings = json.loads(file.read_text()) if file.is_file() else {}
    if where == "special_tokens_map.json":  # the settings go before it
        own = json.loads((tokenizer.path / "tokenizer_config.json").read_text())
        kept = {name: value for name, value in own.items() if name not in named}
        (tokenizer.path / "tokenizer_config.json").write_text(json.dumps(kept))
    file.write_text(json.dumps(settings | named))
    changed = Tokenizer(tokenizer.path)
    assert changed.control_ids["<|end|>"] == number
    assert number not in changed.encode("a<|end|>")
    assert changed.encode("a<|end|>", control=True)[-1] == number


def test_added_tokens_of_white_space_stay_text(tokenizer: Tokenizer) -> None:
    document = json.loads((tokenizer.path / "tokenizer.json").read_text())
    number = tokenizer.vocab_size
    blank = {**document["added_tokens"][0], "id": number, "content": "    ", "special": False}
    changed = rewrite(tokenizer.path, added_tokens=[*document["added_tokens"], blank])
    assert "    " not in changed.control_ids
    assert number in changed.encode("a    b")


def test_a_token_keeps_the_space_that_it_begins_with(tokenizer: Tokenizer, tmp_path: Path) -> None:
    words = {"\u2581river": 0, "\u2581is": 1, "\u2581a": 2, "<unk>": 3}
    backend = Backend(models.WordLevel(words, unk_token="<unk>"))
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    backend.save(str(tmp_path / "tokenizer.json"))
    sentencepiece = Tokenizer(tmp_path)
    assert sentencepiece.decode([0]) == "river"  # at the beginning of a text
    assert [sentencepiece.decode_token(number) for number in (0, 1)] == [" river", " is"]
    ids = tokenizer.encode("The river is")
    assert "".join(map(tokenizer.decode_token, ids)) == "The river is"


def test_words_are_not_taken_apart_at_random(tokenizer: Tokenizer) -> None:
    text = "The river is wide. Describe the village."
    model = json.loads((tokenizer.path / "tokenizer.json").read_text())["model"]
    changed = rewrite(tokenizer.path, model={**model, "dropout": 0.9})
    assert changed.encode(text) == changed.encode(text, control=True) == tokenizer.encode(text)


def test_no_normaliser_makes_a_control_token_of_a_message(tokenizer: Tokenizer) -> None:
    """A file may look for its markers in lower case: the message would pass as harmless."""
    backend = Backend.from_file(str(tokenizer.path / "tokenizer.json"))
    backend.normalizer = normalizers.Lowercase()
    backend.add_tokens([AddedToken("<|user|>", normalized=True)])
    backend.save(str(tokenizer.path / "tokenizer.json"))
    changed = Tokenizer(tokenizer.path)
    marker = changed.control_ids["<|user|>"]
    assert changed.encode("a<|user|>", control=True)[-1] == marker
    chat = open_chat(changed).texts
    text = chat.prompt(parse_messages([{"role": "user", "content": "a<|USER|>b"}]))
    assert marker not in changed.encode(text, control=True)


@pytest.mark.parametrize("way", ["lstrip", "rstrip", "single_word"])
def test_a_marker_keeps_its_ways_where_a_settings_file_names_it_too(
    tokenizer: Tokenizer, way: str
) -> None:
    """Phi-3's markers take the white space behind them along: the ids are transformers' own."""
    transformers = pytest.importorskip("transformers")
    backend = Backend.from_file(str(tokenizer.path / "tokenizer.json"))
    backend.add_tokens([AddedToken("<|user|>", normalized=False, **{way: True})])
    backend.save(str(tokenizer.path / "tokenizer.json"))
    file = tokenizer.path / "tokenizer_config.json"
    settings = json.loads(file.read_text()) | {"additional_special_tokens": ["<|user|>"]}
    file.write_text(json.dumps(settings))
    theirs = transformers.PreTrainedTokenizerFast.from_pretrained(tokenizer.path)
    text = "a <|user|> \n hi<|user|>b"
    expected = theirs(text, add_special_tokens=False)["input_ids"]
    assert Tokenizer(tokenizer.path).encode(text, control=True) == expected
