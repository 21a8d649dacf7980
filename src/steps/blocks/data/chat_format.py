"""Conversations as text: the one place that knows how a chat looks to the model.

The text is NeMo-Aligner's (``chat_prompt_tokens``)::

    {system_turn_start}System{end_of_name}{system}{end_of_turn}
    {turn_start}{from}{end_of_name}{value}{end_of_turn}          for every turn
    {turn_start}Assistant{end_of_name}                           P(y|x) continues here
    {label_start}{label}{end_of_turn}                            Q(y|a,x) continues here

(line breaks only for the eye). A response is ``{value}{end_of_turn}{turn_start}``: the next
turn's start is what generation stops at. The attribute model P(a|x,y) reads the finished answer
and ``{label_start}``, and writes ``{label}{end_of_turn}``.

A generative judge is asked with more turns behind the user's last one: ``principle`` where there
is one, ``response_1`` and ``response_2``. They are written like all turns, and it answers as the
assistant.

Prompt and target are two strings and are tokenised apart wherever they are used, so the loss
mask is exact by construction; NeMo-Aligner tokenises the prompt a second time to find the mask,
which shifts it when a token spans the seam.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from nemotron_style.steps.blocks.data.jsonl import brief, refuse

ROLES = {
    "system": "System",
    "user": "User",
    "assistant": "Assistant",
    "principle": "Principle",
    "response_1": "Response 1",
    "response_2": "Response 2",
}
JUDGED = ["response_1", "response_2"]
"""The roles that end a question to a generative judge; ``principle`` may stand before them."""

TYPES = ("VALUE_TO_TEXT", "TEXT_TO_VALUE")


class ChatPromptTokens(BaseModel):
    """``model.data.chat_prompt_tokens``, with NeMo-Aligner's defaults."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    system_turn_start: str = Field(default="\x00", min_length=1)
    turn_start: str = Field(default="\x11", min_length=1)
    label_start: str = Field(default="\x12", min_length=1)
    end_of_turn: str = Field(default="\n", min_length=1)
    end_of_name: str = Field(default="\n", min_length=1)

    @model_validator(mode="after")
    def _starts_differ(self) -> Self:
        starts = self.starts
        if len(set(starts)) < 3 or {self.end_of_turn, self.end_of_name} & set(starts):
            raise ValueError("the three start tokens must differ from each other and from the ends")
        return self

    @property
    def starts(self) -> tuple[str, str, str]:
        return self.system_turn_start, self.turn_start, self.label_start

    @property
    def atomic(self) -> tuple[str, ...]:
        """Tokens that must be one id each and may not stand in a value.

        An end that is only white space (the default) is ordinary text: what ends an answer is
        the start of the next turn, so an answer may have several lines.
        """
        ends = [end for end in (self.end_of_turn, self.end_of_name) if end.strip()]
        return tuple(dict.fromkeys([*self.starts, *ends]))


@dataclass(frozen=True)
class Turn:
    """One turn before the answer: who speaks (as it stands in the text) and what is said."""

    speaker: str
    value: str


class Example(NamedTuple):
    """What the model is given and what it is trained to write after it."""

    prompt: str
    target: str


@dataclass(frozen=True)
class Conversation:
    """A row of a training file, checked: ``turns`` ends before ``response``.

    ``response`` is None for a prompt row. ``type`` says where the label stands.
    """

    system: str
    turns: tuple[Turn, ...]
    response: str | None = None
    label: str | None = None
    type: Literal["VALUE_TO_TEXT", "TEXT_TO_VALUE"] | None = None


@dataclass(frozen=True)
class ChatFormat:
    """Builds every text that a model reads or writes. Values are checked, never escaped.

    ``reserved`` are further control tokens of the tokenizer that may not stand in a value.
    All methods raise :class:`InputError` for a value with a control token in it.
    """

    tokens: ChatPromptTokens = field(default_factory=ChatPromptTokens)
    reserved: tuple[str, ...] = ()

    def prompt(
        self,
        turns: Sequence[Turn],
        *,
        system: str = "",
        label: str | None = None,
        speaker: str = "Assistant",
    ) -> str:
        """The prompt of P(y|x), or with ``label`` that of Q(y|a,x)."""
        t = self.tokens
        parts = [t.system_turn_start, "System", t.end_of_name]
        parts += [self._value(system, "system"), t.end_of_turn]
        for place, turn in enumerate(turns):
            parts += [t.turn_start, self._name(turn.speaker, f"turns[{place}]"), t.end_of_name]
            parts += [self._value(turn.value, f"turns[{place}]"), t.end_of_turn]
        parts += [t.turn_start, self._name(speaker, "response"), t.end_of_name]
        if label is not None:
            parts += [t.label_start, self.label_text(label)]
        return "".join(parts)

    def plain_prompt(self, messages: Sequence[Mapping[str, str]]) -> str:
        """The prompt of P(y|x) for messages that end with the user or are to be judged."""
        system, turns = split_messages(messages)
        return self.prompt(turns, system=system)

    def labelled_prompt(self, messages: Sequence[Mapping[str, str]], label: str) -> str:
        """The prompt of Q(y|a,x): the answer that follows should have the attributes ``label``."""
        system, turns = split_messages(messages)
        return self.prompt(turns, system=system, label=label)

    def scoring_prompt(self, messages: Sequence[Mapping[str, str]], response: str) -> str:
        """The prompt of P(a|x,y): what follows is the label of ``response``."""
        system, turns = split_messages(messages)
        return self.score(self.prompt(turns, system=system), response)

    def score(self, prompt: str, response: str) -> str:
        """A prompt of P(y|x), answered, and asking for the label of the answer."""
        answer = self._value(response, "response")
        return f"{prompt}{answer}{self.tokens.end_of_turn}{self.tokens.label_start}"

    def response(self, text: str) -> str:
        """An answer as the model writes it, with the stop token."""
        return f"{self._value(text, 'response')}{self.tokens.end_of_turn}{self.tokens.turn_start}"

    def label_text(self, label: str) -> str:
        """A label as the attribute model writes it."""
        if self.tokens.end_of_turn in label:
            refuse("a label may not hold the end of a turn", key="label", got=brief(label))
        return f"{self._value(label, 'label')}{self.tokens.end_of_turn}"

    def read_response(self, text: str) -> str:
        """What was said, from generated text: the inverse of :meth:`response`."""
        text = text.removesuffix(self.tokens.turn_start)
        return text.removesuffix(self.tokens.end_of_turn)

    def example(self, row: Conversation) -> Example:
        """Prompt and target of a training row, by its type."""
        assert row.response is not None, "a prompt row has nothing to train on"
        if row.type == "TEXT_TO_VALUE":
            plain = self.prompt(row.turns, system=row.system)
            return Example(self.score(plain, row.response), self.label_text(row.label or ""))
        label = row.label if row.type == "VALUE_TO_TEXT" else None
        prompt = self.prompt(row.turns, system=row.system, label=label)
        return Example(prompt, self.response(row.response))

    def template(self) -> str:
        """A Jinja chat template that renders what this class renders (``label=`` is optional).

        Without ``add_generation_prompt`` a conversation that ends with the assistant ends with
        the stop token, as training texts do.
        """
        names = {name: _literal(value) for name, value in self.tokens.model_dump().items()}
        return _TEMPLATE.format(roles=json.dumps(ROLES), **names)

    def canary(self) -> str:
        """A fixed conversation, rendered; it changes whenever the format does."""
        messages = [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "Name a river."},
            {"role": "assistant", "content": "The Rhine.\nOr the Nile."},
            {"role": "user", "content": "Another, é ☂?"},
        ]
        prompt = self.labelled_prompt(messages, "helpfulness:4,verbosity:0")
        return prompt + self.response("The Amazon.")

    def digest(self) -> str:
        """``sha256:…`` of the chat template."""
        return "sha256:" + hashlib.sha256(self.template().encode()).hexdigest()

    def _value(self, text: str, key: str) -> str:
        for token in (*self.tokens.atomic, *self.reserved):
            if token in text:
                refuse(
                    "a control token stands inside a value",
                    key=key,
                    got=f"{brief(token)} in {brief(text)}",
                    fix="remove it from the data, or choose other chat_prompt_tokens",
                )
        return text

    def _name(self, name: str, key: str) -> str:
        if not name or self.tokens.end_of_name in name:
            refuse("this cannot be the name of a speaker", key=key, got=brief(name))
        return self._value(name, key)


def split_messages(messages: Sequence[Mapping[str, str]]) -> tuple[str, tuple[Turn, ...]]:
    """System text and the turns of messages (``role``, ``content``) that end with the user.

    A question to a judge goes on behind the user with the roles of :data:`JUDGED`.

    Raises:
        InputError: an unknown role, a system message that is not the first, turns that do not
            alternate from user to user, an empty or missing text.
    """
    if not isinstance(messages, Sequence) or isinstance(messages, str) or not messages:
        refuse("messages must be a list that is not empty", key="messages", got=brief(messages))
    for place, message in enumerate(messages):
        _check_message(message, f"messages[{place}]")
    system = messages[0]["content"] if messages[0]["role"] == "system" else ""
    spoken = messages[1:] if messages[0]["role"] == "system" else messages
    roles = _without_judged([message["role"] for message in spoken])
    wanted = ["user" if place % 2 == 0 else "assistant" for place in range(len(roles))]
    if roles != wanted or not roles or roles[-1] != "user":
        refuse(
            "turns must alternate user, assistant, ..., user",
            key="messages",
            got=", ".join(message["role"] for message in messages),
            allowed="one system message at most, and first; principle, response_1 and response_2 "
            "at the end alone",
        )
    return system, tuple(Turn(ROLES[m["role"]], m["content"]) for m in spoken)


def parse_conversation(row: Mapping[str, Any]) -> Conversation:
    """A row of ``training_jsonl``: messages that end with the assistant, label and type.

    Raises:
        InputError: anything :func:`split_messages` refuses, an answer that is missing or empty,
            a label without type or a type without label, an unknown key.
    """
    prompt = _known(row, {"messages", "label", "type"})
    messages = prompt["messages"]
    if not isinstance(messages, list) or len(messages) < 2:
        refuse("messages must hold a question and its answer", key="messages", got=brief(messages))
    _check_message(messages[-1], f"messages[{len(messages) - 1}]")
    if messages[-1]["role"] != "assistant":
        refuse("the last message must be the assistant's", key="messages", got=messages[-1]["role"])
    label, kind = row.get("label"), row.get("type")
    if kind is not None and kind not in TYPES:
        refuse("unknown type", key="type", got=brief(kind), allowed=" or ".join(TYPES))
    if (label is None) != (kind is None):
        refuse("label and type stand together or not at all", key="label", got=brief(label))
    if label is not None and (not isinstance(label, str) or not label):
        refuse("a label must be a text that is not empty", key="label", got=brief(label))
    system, turns = split_messages(messages[:-1])
    return Conversation(system, turns, messages[-1]["content"], label, kind)


def parse_prompt(row: Mapping[str, Any]) -> Conversation:
    """A row of ``prompts_jsonl``: messages that end with the user."""
    system, turns = split_messages(_known(row, {"messages"})["messages"])
    return Conversation(system, turns)


def _without_judged(roles: list[str]) -> list[str]:
    """The roles of the conversation itself, before what a judge is asked about it."""
    if roles[-2:] != JUDGED:
        return roles
    return roles[:-3] if roles[-3:-2] == ["principle"] else roles[:-2]


def _known(row: Mapping[str, Any], keys: set[str]) -> Mapping[str, Any]:
    if "messages" not in row:
        refuse("a row needs messages", key="messages", got=", ".join(row) or "an empty object")
    if extra := sorted(set(row) - keys):
        refuse("unknown key", key=extra[0], allowed=", ".join(sorted(keys)))
    return row


def _check_message(message: object, key: str) -> None:
    if not isinstance(message, Mapping) or set(message) != {"role", "content"}:
        refuse("a message has role and content", key=key, got=brief(message))
    role = message["role"]
    if not isinstance(role, str) or role not in ROLES:
        refuse("unknown role", key=f"{key}.role", got=brief(role), allowed=", ".join(ROLES))
    text = message["content"]
    if not isinstance(text, str) or not (text or role == "system"):
        refuse("content must be a text that is not empty", key=f"{key}.content", got=brief(text))


def _literal(token: str) -> str:
    """A Jinja string literal; escapes keep control characters out of the template's own text."""
    return json.dumps(token, ensure_ascii=False)


_TEMPLATE = """\
{{%- set names = {roles} -%}}
{{%- if messages[0]["role"] == "system" -%}}
{{%- set system = messages[0]["content"] -%}}{{%- set turns = messages[1:] -%}}
{{%- else -%}}
{{%- set system = "" -%}}{{%- set turns = messages -%}}
{{%- endif -%}}
{{{{- {system_turn_start} ~ "System" ~ {end_of_name} ~ system ~ {end_of_turn} -}}}}
{{%- for turn in turns -%}}
{{{{- {turn_start} ~ names[turn["role"]] ~ {end_of_name} -}}}}
{{%- if loop.last and turn["role"] == "assistant" and label is defined -%}}
{{{{- {label_start} ~ label ~ {end_of_turn} -}}}}
{{%- endif -%}}
{{{{- turn["content"] ~ {end_of_turn} -}}}}
{{%- endfor -%}}
{{%- if add_generation_prompt -%}}
{{{{- {turn_start} ~ "Assistant" ~ {end_of_name} -}}}}
{{%- if label is defined -%}}{{{{- {label_start} ~ label ~ {end_of_turn} -}}}}{{%- endif -%}}
{{%- elif turns[-1]["role"] == "assistant" -%}}
{{{{- {turn_start} -}}}}
{{%- endif -%}}
"""
