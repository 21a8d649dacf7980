"""Texts of conversations: NeMo-Aligner's, letter by letter, and nothing speaks for another."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from nemotron_style.runtime.errors import InputError
from nemotron_style.steps.blocks.data.chat_format import ChatFormat, ChatPromptTokens
from nemotron_style.steps.blocks.data.conversation import (
    parse_conversation,
    parse_messages,
    parse_prompt,
)

CHAT = ChatFormat()
USER = {"role": "user", "content": "Hi\nthere"}
ANSWER = {"role": "assistant", "content": "Yes."}
LABEL = "helpfulness:3,verbosity:1"
PLAIN = "\x00System\n\n\x11User\nHi\nthere\n\x11Assistant\n"


def test_prompts_are_nemo_aligners() -> None:
    assert CHAT.prompt(parse_messages([USER])) == PLAIN
    assert CHAT.prompt(parse_messages([USER]), label=LABEL) == f"{PLAIN}\x12{LABEL}\n"
    assert CHAT.attribute_prompt(parse_messages([USER]), "Yes.") == f"{PLAIN}Yes.\n\x12"
    system = {"role": "system", "content": "Be brief."}
    assert CHAT.prompt(parse_messages([system, USER])).startswith(
        "\x00System\nBe brief.\n\x11User\n"
    )
    assert CHAT.prompt(parse_messages([USER, ANSWER, USER])) == (
        "\x00System\n\n\x11User\nHi\nthere\n\x11Assistant\nYes.\n"
        "\x11User\nHi\nthere\n\x11Assistant\n"
    )


def test_a_judge_is_asked_in_roles_of_their_own() -> None:
    rule, *pair = (
        {"role": role, "content": text}
        for role, text in (("principle", "Be true."), ("response_1", "A"), ("response_2", "B"))
    )
    asked = "\x00System\n\n\x11User\nHi\nthere\n"
    told = "\x11Response 1\nA\n\x11Response 2\nB\n\x11Assistant\n"
    assert CHAT.prompt(parse_messages([USER, *pair])) == asked + told
    assert (
        CHAT.prompt(parse_messages([USER, rule, *pair]))
        == f"{asked}\x11Principle\nBe true.\n{told}"
    )
    row = parse_conversation({"messages": [USER, *pair, ANSWER]})
    assert CHAT.example(row) == (asked + told, "Yes.\n\x11")


@pytest.mark.parametrize(
    "roles",
    [
        ("response_1", "response_2"),
        ("user", "response_1"),
        ("user", "response_2", "response_1"),
        ("user", "principle"),
        ("user", "assistant", "response_1", "response_2"),
        ("user", "response_1", "response_2", "user"),
        ("user", "response_1", "response_2", "response_1", "response_2"),
        ("principle", "user", "response_1", "response_2"),
    ],
)
def test_what_is_judged_stands_behind_the_user_and_whole(roles: tuple[str, ...]) -> None:
    messages = [{"role": role, "content": "a"} for role in roles]
    with pytest.raises(InputError, match="alternate"):
        CHAT.prompt(parse_messages(messages))


def test_a_response_ends_with_the_stop_token_and_reads_back() -> None:
    assert CHAT.response("a\nb") == "a\nb\n\x11"
    assert CHAT.read_response(CHAT.response("a\nb")) == "a\nb"


@pytest.mark.parametrize(
    ("extra", "prompt", "target"),
    [
        ({}, PLAIN, "Yes.\n\x11"),
        ({"label": LABEL, "type": "VALUE_TO_TEXT"}, f"{PLAIN}\x12{LABEL}\n", "Yes.\n\x11"),
        ({"label": LABEL, "type": "TEXT_TO_VALUE"}, f"{PLAIN}Yes.\n\x12", f"{LABEL}\n"),
    ],
)
def test_what_a_row_teaches(extra: dict, prompt: str, target: str) -> None:
    row = parse_conversation({"messages": [USER, ANSWER], **extra})
    assert CHAT.example(row) == (prompt, target)


@pytest.mark.parametrize("token", ["\x00", "\x11", "\x12", "<eos>"])
def test_a_value_may_not_hold_a_control_token(token: str) -> None:
    chat = ChatFormat(reserved=("<eos>",))
    texts = [
        lambda: chat.prompt(parse_messages([{"role": "user", "content": f"a{token}b"}])),
        lambda: chat.response(f"a{token}"),
        lambda: chat.label_text(f"{token}a"),
        lambda: chat.prompt(parse_messages([{"role": "system", "content": token}, USER])),
    ]
    for text in texts:
        with pytest.raises(InputError, match="control token"):
            text()


def test_ends_that_are_tokens_may_not_stand_in_a_value() -> None:
    tokens = ChatPromptTokens(
        system_turn_start="<s>", turn_start="<t>", label_start="<l>", end_of_turn="</t>"
    )
    with pytest.raises(InputError, match="control token"):
        ChatFormat(tokens).response("a</t>b")


@pytest.mark.parametrize(
    "tokens", [{"turn_start": "\x00"}, {"label_start": "\n"}, {"end_of_name": ""}]
)
def test_tokens_that_cannot_be_told_apart_are_refused(tokens: dict) -> None:
    with pytest.raises(ValidationError):
        ChatPromptTokens(**tokens)


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({}, "needs messages"),
        ({"messages": [USER]}, "question and its answer"),
        ({"messages": [USER, USER]}, "assistant's"),
        ({"messages": [ANSWER, ANSWER]}, "alternate"),
        ({"messages": [USER, ANSWER], "label": LABEL}, "together"),
        ({"messages": [USER, ANSWER], "type": "TEXT_TO_VALUE"}, "together"),
        ({"messages": [USER, ANSWER], "label": LABEL, "type": "x"}, "unknown type"),
        ({"messages": [USER, ANSWER], "lable": LABEL}, "unknown key"),
        ({"messages": [{"role": "bot", "content": "a"}, ANSWER]}, "unknown role"),
        ({"messages": [{"role": ["user"], "content": "a"}, ANSWER]}, "unknown role"),
        ({"messages": [{"role": "user", "content": ""}, ANSWER]}, "not empty"),
        ({"messages": ["a", ANSWER]}, "role and content"),
    ],
)
def test_malformed_rows_are_refused(row: dict, said: str) -> None:
    with pytest.raises(InputError, match=said):
        parse_conversation(row)


def test_prompt_rows_end_with_the_user() -> None:
    assert parse_prompt({"messages": [USER]}).response is None
    with pytest.raises(InputError, match="alternate"):
        parse_prompt({"messages": [USER, ANSWER]})
