"""A checkpoint's own chat template: messages in any role that it knows, as the tokens of a prompt.

This is how transformers and vLLM ask the same checkpoint. A template is a program, so it runs in
Jinja's sandbox, where it can reach nothing but what it is given, in a process with limits
(:mod:`template_process`). It is not told the date, so that the same messages are always the same
prompt.

What a message says never becomes a control token: where it holds one, the message is encoded as
ordinary text, apart from what the template writes around it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NoReturn

from nemotron_style.runtime.errors import InputError, Problem
from nemotron_style.steps.blocks.data.jsonl import brief
from nemotron_style.steps.blocks.data.template_process import TemplateFault, TemplateRenderer
from nemotron_style.steps.blocks.data.tokenizer import TEMPLATE_FILE, Tokenizer

Message = Mapping[str, str]

_ROLES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token")


@dataclass(frozen=True)
class ChatTemplate:
    """A tokenizer with the template that belongs to it."""

    tokenizer: Tokenizer
    source: str

    @cached_property
    def renderer(self) -> TemplateRenderer:
        """What runs it."""
        words = dict.fromkeys(_ROLES, "") | self.tokenizer.special_tokens
        return TemplateRenderer(self.source, words)

    def check(self) -> None:
        """Raise InputError for what is no template."""
        try:
            self.renderer.check()
        except TemplateFault as fault:
            what = "is no chat template"
            where = str(self.tokenizer.path)
            raise InputError(Problem(where=where, what=what, got=str(fault))) from None

    @cached_property
    def controls(self) -> frozenset[int]:
        """Ids of the control tokens."""
        return frozenset(self.tokenizer.control_ids.values())

    def encode(self, messages: Sequence[Message]) -> list[int]:
        """The tokens of the prompt that the assistant's answer to ``messages`` continues.

        Raises InputError for messages that the template refuses or leaves out, and for one that
        holds a control token and is not written as it stands.
        """
        bare, contents = self._render_words(messages)
        text = self._render(messages)
        ids = self.tokenizer.encode(text, control=True)
        if self._controls_of(ids) == self._controls_of(self.tokenizer.encode(bare, control=True)):
            return ids
        return self._encode_apart(messages, bare=bare, contents=contents, text=text)

    def _render_words(self, messages: Sequence[Message]) -> tuple[str, dict[str, str]]:
        """The prompt with a harmless word in the place of each message, and what each stands for.

        An empty message stays: templates ask whether there is a text, and none says nothing.
        Raises InputError for another that the template leaves out.
        """
        width = len(str(len(messages)))  # of one length, so that none is a part of another
        words = {
            number: f"message{number:0{width}d}"
            for number, message in enumerate(messages)
            if message["content"]
        }
        bare = self._render(
            [
                {**message, "content": words.get(number, message["content"])}
                for number, message in enumerate(messages)
            ]
        )
        for number, word in words.items():
            if word not in bare:
                role = messages[number]["role"]
                _refuse(f"messages[{number}]", "the chat template leaves it out", f"role {role}")
        return bare, {word: messages[number]["content"] for number, word in words.items()}

    def _encode_apart(
        self, messages: Sequence[Message], *, bare: str, contents: Mapping[str, str], text: str
    ) -> list[int]:
        """The tokens of what the template writes, and of each message as ordinary text.

        For messages that hold control tokens. Raises InputError where the template writes one of
        them in other words, so that it cannot be told apart.
        """
        parts = re.split(f"({'|'.join(contents)})", bare)
        if "".join(contents.get(part, part) for part in parts) != text:
            self._blame(messages)
        ids: list[int] = []
        for part in parts:
            ids += self.tokenizer.encode(contents.get(part, part), control=part not in contents)
        return ids

    def _render(self, messages: Sequence[Message]) -> str:
        try:
            return self.renderer.render(messages)
        except TemplateFault as fault:
            roles = ", ".join(message["role"] for message in messages)
            what = f"the chat template cannot render these messages: {fault}"
            raise InputError(Problem(key="messages", what=what, got=f"roles {roles}")) from None

    def _controls_of(self, ids: Sequence[int]) -> list[int]:
        return [number for number in ids if number in self.controls]

    def _blame(self, messages: Sequence[Message]) -> NoReturn:
        """Refuse messages whose text would steer the prompt, naming the first that would."""
        for number, message in enumerate(messages):
            for token in self.tokenizer.control_ids:
                if token in message["content"]:
                    what = "a control token stands inside a message"
                    _refuse(f"messages[{number}].content", what, brief(token))
        _refuse("messages", "together they would make a control token of the prompt", "")


def read_template(tokenizer: Tokenizer) -> ChatTemplate:
    """The template beside ``tokenizer.json``, from its own file or from the settings.

    Raises InputError where there is none.
    """
    source: Any = tokenizer.template
    if isinstance(source, list):  # several, by name
        named = [each for each in source if isinstance(each, dict)]
        source = next((one.get("template") for one in named if one.get("name") == "default"), None)
    if isinstance(source, str):
        return ChatTemplate(tokenizer, source)
    what = "the model has no chat template, so it cannot be asked in messages"
    fix = f"write {TEMPLATE_FILE} beside tokenizer.json"
    raise InputError(Problem(where=str(tokenizer.path), what=what, fix=fix))


def _refuse(key: str, what: str, got: str) -> NoReturn:
    raise InputError(Problem(key=key, what=what, got=got))
