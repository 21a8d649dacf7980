"""The text of a conversation as a model reads and writes it: NeMo-Aligner's chat format.

``chat_prompt_tokens`` fills in the control tokens (line breaks only for the eye)::

    {system_turn_start}System{end_of_name}{system}{end_of_turn}
    {turn_start}{from}{end_of_name}{value}{end_of_turn}          for every turn
    {turn_start}Assistant{end_of_name}                           P(y|x) continues here
    {label_start}{label}{end_of_turn}                            Q(y|a,x) continues here

A response is ``{value}{end_of_turn}{turn_start}``: generation stops at the start of the next
turn. The attribute model P(a|x,y) reads the finished response and ``{label_start}``, and writes
``{label}{end_of_turn}``.

Prompt and target are two strings and are tokenised apart wherever they are used, so the loss
mask is exact by construction. NeMo-Aligner tokenises the prompt a second time to find the mask,
which shifts it when a token spans the seam.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from nemotron_style.runtime.config.model import Section
from nemotron_style.steps.blocks.data.conversation import ROLES, TYPES, Conversation, Turn
from nemotron_style.steps.blocks.data.jsonl import brief, refuse


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
        """The tokens that must be one id each and may not stand in a value.

        An end that is only white space (the default) is ordinary text, so a response may have
        several lines: what ends it is the start of the next turn.
        """
        ends = [end for end in (self.end_of_turn, self.end_of_name) if end.strip()]
        return tuple(dict.fromkeys([*self.starts, *ends]))


class ModelData(Section):
    """``model.data``: how a conversation is written as text; null: as the checkpoint says."""

    chat_prompt_tokens: ChatPromptTokens | None = None


class Example(NamedTuple):
    """A training text: what the model is given, and what it is trained to write after it."""

    prompt: str
    target: str


@dataclass(frozen=True)
class ChatFormat:
    """Builds every text that a model reads or writes. Values are checked, never escaped.

    ``reserved`` are further control tokens of the tokenizer that may not stand in a value.
    All methods raise :class:`InputError` for a value with a control token in it.
    """

    tokens: ChatPromptTokens = field(default_factory=ChatPromptTokens)
    reserved: tuple[str, ...] = ()

    def prompt(
        self, conversation: Conversation, *, label: str | None = None, speaker: str = "Assistant"
    ) -> str:
        """The prompt of P(y|x) for the turns of a conversation, or with ``label`` of Q(y|a,x)."""
        t = self.tokens
        parts = [t.system_turn_start, "System", t.end_of_name]
        parts += [self._value(conversation.system or "", "system"), t.end_of_turn]
        for index, turn in enumerate(conversation.turns):
            parts += [t.turn_start, self._name(turn.speaker, f"turns[{index}]"), t.end_of_name]
            parts += [self._value(turn.value, f"turns[{index}]"), t.end_of_turn]
        parts += [t.turn_start, self._name(speaker, "response"), t.end_of_name]
        if label is not None:
            parts += [t.label_start, self.label_text(label)]
        return "".join(parts)

    def attribute_prompt(self, conversation: Conversation, response: str) -> str:
        """The prompt of P(a|x,y): the conversation with ``response``, asking for its label."""
        answered = self.prompt(conversation) + self._value(response, "response")
        return f"{answered}{self.tokens.end_of_turn}{self.tokens.label_start}"

    def response(self, text: str) -> str:
        """A response as the model writes it, with the stop token."""
        return f"{self._value(text, 'response')}{self.tokens.end_of_turn}{self.tokens.turn_start}"

    def label_text(self, label: str) -> str:
        """A label as the attribute model writes it."""
        if self.tokens.end_of_turn in label:
            refuse("a label may not hold the end of a turn", key="label", got=brief(label))
        return f"{self._value(label, 'label')}{self.tokens.end_of_turn}"

    def read_response(self, text: str) -> str:
        """The response in a generated text: the inverse of :meth:`response`."""
        return text.removesuffix(self.tokens.turn_start).removesuffix(self.tokens.end_of_turn)

    def example(self, row: Conversation) -> Example:
        """Prompt and target of a training row, by its type."""
        assert row.response is not None, "a prompt row has nothing to train on"
        if row.type == "TEXT_TO_VALUE":
            prompt = self.attribute_prompt(row, row.response)
            return Example(prompt, self.label_text(row.label or ""))
        label = row.label if row.type == "VALUE_TO_TEXT" else None
        return Example(self.prompt(row, label=label), self.response(row.response))

    def marked(self, row: Conversation, trained: Sequence[bool]) -> list[tuple[str, bool]]:
        """The texts that a training row is made of, and whether each is trained.

        ``trained`` has a mark for each answer (:meth:`Conversation.trained_answers`). An answer
        ends with the start of the next turn, since there generation stops.
        """
        prompt, target = self.example(row)
        parts, done = [], 0
        for index, counts in zip(row.answers, trained, strict=False):
            if counts:
                start = len(self.prompt(Conversation(row.system, row.turns[:index])))
                end = start + len(self.response(row.turns[index].value))
                parts += [(prompt[done:start], False), (prompt[start:end], True)]
                done = end
        return [*parts, (prompt[done:], False), (target, row.type == TYPES[1] or trained[-1])]

    def template(self) -> str:
        """A Jinja chat template that renders what this class renders (``label=`` is optional).

        Without ``add_generation_prompt`` a conversation that ends with the assistant ends with
        the stop token, as training texts do.
        """
        # JSON strings are Jinja literals; their escapes keep control characters out of the source.
        dumped = self.tokens.model_dump().items()
        literals = {name: json.dumps(token, ensure_ascii=False) for name, token in dumped}
        return _TEMPLATE.format(roles=json.dumps(ROLES), **literals)

    def canary(self) -> str:
        """The text of a fixed conversation; it changes whenever the format does."""
        turns = (
            Turn("User", "Name a river."),
            Turn("Assistant", "The Rhine.\nOr the Nile."),
            Turn("User", "Another, é ☂?"),
        )
        prompt = self.prompt(Conversation("Be brief.", turns), label="helpfulness:4,verbosity:0")
        return prompt + self.response("The Amazon.")

    def digest(self) -> str:
        """``sha256:…`` of the chat template."""
        return "sha256:" + hashlib.sha256(self.template().encode()).hexdigest()

    @cached_property
    def _forbidden(self) -> tuple[str, ...]:
        """What may not stand in a value."""
        return (*self.tokens.atomic, *self.reserved)

    def _value(self, text: str, key: str) -> str:
        for token in self._forbidden:
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
