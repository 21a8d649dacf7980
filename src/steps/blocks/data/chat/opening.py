"""Which chat format a checkpoint has, and the facts that show a change of it."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from pydantic import ValidationError

from nemotron_style.runtime.errors import InputError, Problem, raise_all
from nemotron_style.steps.blocks.data.chat.interface import Chat
from nemotron_style.steps.blocks.data.chat.nemo_chat import NemoChat
from nemotron_style.steps.blocks.data.chat.template_chat import TemplateChat
from nemotron_style.steps.blocks.data.chat_format import ChatFormat, ChatPromptTokens
from nemotron_style.steps.blocks.data.chat_template import read_template
from nemotron_style.steps.blocks.data.tokenizer import TEMPLATE_FILE, Tokenizer

_CANARY = "Name a river.\n\tThe Rhine. 1234 é ☂ 日本"


def open_chat(tokenizer: Tokenizer, tokens: ChatPromptTokens | None = None) -> Chat:
    """The chat format of a checkpoint's tokenizer.

    It is NeMo-Aligner's where ``tokens`` are given by a config or stored with the tokenizer, else
    that of the chat template that came with it.

    Raises:
        InputError: ``tokens`` differ from those stored with the tokenizer, or one of them is not
            a single id of it; there are neither tokens nor a template, or the template ends no
            answer.
    """
    stored = _stored_tokens(tokenizer)
    chosen = tokens or stored
    if chosen is None:
        return _open_template(tokenizer)
    if stored and chosen != stored:
        raise InputError(
            Problem(
                where=str(tokenizer.path),
                key="model.data.chat_prompt_tokens",
                what="the model was trained with other tokens",
                got=json.dumps(chosen.model_dump()),
                allowed=json.dumps(stored.model_dump()),
                fix="remove the key from the config: the checkpoint knows its own",
            )
        )
    problems = [
        Problem(
            where=str(tokenizer.path),
            key="model.data.chat_prompt_tokens",
            what="a control token must be one id of the tokenizer",
            got=json.dumps(token),
            allowed=", ".join(map(json.dumps, tokenizer.control_ids)),
            fix="choose tokens that the tokenizer marks as special, or add this one to it",
        )
        for token in chosen.atomic
        if len(tokenizer.encode(token, control=True)) != 1
    ]
    raise_all(InputError, problems)
    others = [token for token in tokenizer.control_ids if token not in chosen.atomic]
    reserved = tuple(token for token in others if token.strip())
    return NemoChat(tokenizer, ChatFormat(chosen, reserved))


def _open_template(tokenizer: Tokenizer) -> TemplateChat:
    """The format of the tokenizer's own template."""
    if not tokenizer.template:
        raise InputError(
            Problem(
                where=str(tokenizer.path),
                key="model.data.chat_prompt_tokens",
                what="the checkpoint has neither chat prompt tokens nor a chat template, so "
                "nothing says how a conversation is written for it",
                fix="give three of its special tokens as model.data.chat_prompt_tokens, or "
                f"convert the model again with a {TEMPLATE_FILE} beside its tokenizer.json",
            )
        )
    template = read_template(tokenizer)
    template.check()
    chat = TemplateChat(template)
    assert chat.stop_ids  # asks the template for an answer, which it may refuse
    return chat


def tokenizer_facts(tokenizer: Tokenizer, chat: Chat | None = None) -> dict[str, Any]:
    """The facts for a checkpoint's record that show a change of tokenizer or chat format.

    ``chat`` is the format that the checkpoint is used with; None stands for the one stored with
    the tokenizer. Where none is stored either, they are the digest of the tokenizer's own chat
    template and the ids of a fixed text. That template is not rendered: it is a program that came
    from elsewhere.
    """
    if chat is None and "chat_prompt_tokens" in tokenizer.settings:
        chat = open_chat(tokenizer)
    text = chat.canary() if chat else _CANARY
    named = {} if chat is None else {"chat_format": _name_format(chat)}
    return named | {
        "tokenizer_digest": tokenizer.digest,
        "template_digest": chat.digest() if chat else _template_digest(tokenizer),
        "canary": {"text": text, "ids": tokenizer.encode(text, control=chat is not None)},
    }


def _name_format(chat: Chat) -> str:
    return "chat_prompt_tokens" if chat.tokens else "chat_template"


def _template_digest(tokenizer: Tokenizer) -> str | None:
    template = tokenizer.template
    source = template if isinstance(template, str) else json.dumps(template)
    return f"sha256:{hashlib.sha256(source.encode()).hexdigest()}" if template else None


def _stored_tokens(tokenizer: Tokenizer) -> ChatPromptTokens | None:
    stored = tokenizer.settings.get("chat_prompt_tokens")
    try:
        return None if stored is None else ChatPromptTokens.model_validate(stored)
    except ValidationError as error:
        raise InputError(
            Problem(
                where=str(tokenizer.path / "tokenizer_config.json"),
                key="chat_prompt_tokens",
                what="these are not chat prompt tokens",
                got=str(error.errors()[0]["msg"]),
            )
        ) from error
