"""A checkpoint's own chat template as a chat format: what it was trained with is what it is asked.

A training row is rendered whole. What is trained of an answer begins where the generation prompt
of the same messages ends, and goes on to the end of what the template writes for the turn: the
token that ends it, and mostly a line break, as in TRL's training templates. A template that marks
answers itself, with ``{% generation %}``, decides that: transformers and TRL use the same marks.

A label is asked for in words, so that no new control token is needed: Q(y|a,x) has it in the last
message of the user, P(a|x,y) is one more question about the answer.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from nemotron_style.runtime.errors import InputError, Problem
from nemotron_style.steps.blocks.data.chat.interface import NO_LABEL, Chat, Example
from nemotron_style.steps.blocks.data.chat_template import ChatTemplate, Rendering
from nemotron_style.steps.blocks.data.conversation import TYPES, Conversation, TrainOn
from nemotron_style.steps.blocks.data.jsonl import brief, refuse
from nemotron_style.steps.blocks.data.tokenizer import Tokenizer

LABEL_LINE = "Attributes of the answer: {label}"
"""Stands behind the last message of the user, after an empty line, where a label is asked for."""
LABEL_QUESTION = "Name the attributes of the answer above."
"""What the user says where the label of an answer is asked for."""

_ASKED = {"role": "user", "content": "message0"}
_ANSWERED = {"role": "assistant", "content": "message1"}


class Frame(NamedTuple):
    """What a template writes around an answer.

    ``prompt`` is what the answer to a short question continues. ``lead`` is what stands before an
    answer (a space, or an empty block of reasoning), ``end`` what follows up to the token that
    ends a turn, ``rest`` what the template writes behind that.
    """

    prompt: str
    lead: str
    end: str
    rest: str


@dataclass(frozen=True)
class TemplateChat(Chat):
    """The format of a template that came with a checkpoint."""

    source: ChatTemplate

    @property
    def tokenizer(self) -> Tokenizer:
        return self.source.tokenizer

    @cached_property
    def stop_ids(self) -> tuple[int, ...]:
        """The token that ends a turn, and every id that the checkpoint says an answer ends with."""
        return tuple(dict.fromkeys([*self._encode(self.frame.end)[-1:], *self.tokenizer.eos_ids]))

    @property
    def label_stop_ids(self) -> tuple[int, ...]:
        return self.stop_ids

    @cached_property
    def frame(self) -> Frame:
        """What stands around an answer. Raises InputError for a template that ends none."""
        prompt = self.source.render([_ASKED])
        whole = self.source.render([_ASKED, _ANSWERED], prompt=False)
        _, found, tail = whole.partition(_ANSWERED["content"])
        controls = sorted(filter(str.strip, self.tokenizer.control_ids), key=len, reverse=True)
        control = re.search("|".join(map(re.escape, controls)), tail) if controls else None
        if not found or control is None:
            raise InputError(
                Problem(
                    where=str(self.tokenizer.path),
                    key="chat_template",
                    what="the chat template writes no token that ends an answer, so a model that "
                    "is trained with it would not stop",
                    got=brief(whole),
                    fix="give model.data.chat_prompt_tokens, or write a template that ends the "
                    "assistant's turns with a special token",
                )
            )
        before = whole[len(prompt) :].partition(_ANSWERED["content"])[0]
        lead = before if whole.startswith(prompt) else ""
        return Frame(prompt, lead, tail[: control.end()], tail[control.end() :])

    def prompt_ids(
        self, conversation: Conversation, label: str | None = None, *, speaker: str = "Assistant"
    ) -> list[int]:
        if speaker != "Assistant":
            refuse("the template answers as the assistant", key="responses", got=brief(speaker))
        return self.source.encode(_ask_label(conversation.messages(), label))

    def response_ids(self, text: str) -> list[int]:
        return self._response_ids(text, self._space)

    def _response_ids(self, text: str, lead: str) -> list[int]:
        frame, prompt = self.frame, self._frame_ids
        # Tokenised behind a prompt: some tokenizers write a text otherwise where it stands alone.
        written = frame.prompt + lead + text + frame.end
        ids, spans = self.tokenizer.encode_spans(written, control=True)
        parts = [(lead, True), *self.source.split_spoken(text), (frame.end, True)]
        apart = [number for part, control in parts for number in self._encode(part, control)]
        seam = len(prompt) < len(ids) and spans[len(prompt)][0] == len(frame.prompt)
        if ids[: len(prompt)] == prompt and seam and self._same_controls(ids[len(prompt) :], apart):
            return ids[len(prompt) :]
        return apart  # a control token in the text, or one that would span the seam

    def attribute_ids(self, conversation: Conversation, response: str) -> list[int]:
        answered = [*conversation.messages(), {"role": "assistant", "content": response}]
        return self.source.encode([*answered, {"role": "user", "content": LABEL_QUESTION}])

    def label_ids(self, label: str) -> list[int]:
        return self._response_ids(label, self.frame.lead)  # a label has no reasoning before it

    def example(self, row: Conversation, train_on: TrainOn = "all") -> Example:
        messages = row.messages()
        trained = [number for number, one in enumerate(messages) if one["role"] == "assistant"]
        marks = row.trained_answers(train_on)
        trained = [number for number, counts in zip(trained, marks, strict=True) if counts]
        if row.type == TYPES[0]:
            messages[:-1] = _ask_label(messages[:-1], row.label)
        elif row.type == TYPES[1]:
            messages += [
                {"role": "user", "content": LABEL_QUESTION},
                {"role": "assistant", "content": row.label or ""},
            ]
            trained = [len(messages) - 1]
        whole = self.source.tokenize(messages, prompt=False)
        spans = [self._span(messages, number, whole.text) for number in trained]
        if any(whole.is_cut_at(start) for start, _ in spans):  # the model is asked with whole ones
            seams = [start for start, _ in spans]
            whole = self.source.tokenize(messages, prompt=False, seams=seams)
        if whole.marks:
            spans = [own for own in whole.marks if any(_meet(own, span) for span in spans)]
        return Example(whole.ids, _count(whole, spans))

    def _span(self, messages: Sequence[dict[str, str]], number: int, text: str) -> tuple[int, int]:
        """Where in ``text`` the answer ``messages[number]`` is trained.

        Raises InputError where the template does not write the answer behind the prompt that asks
        for it, or writes it otherwise in a conversation that goes on.
        """
        prompt, rest = self.source.render(messages[:number]), self.frame.rest
        last = number + 1 == len(messages)
        written = text if last else self.source.render(messages[: number + 1], prompt=False)
        end = len(written) - len(rest)
        if not (written.startswith(prompt) and written.endswith(self.frame.end + rest)):
            refuse(
                "the chat template does not write this turn behind the prompt that asks for it",
                key=f"messages[{number}]",
                got=brief(written[len(prompt) - 40 :]),
                allowed=f"a text that begins with {brief(prompt[-40:])} and ends with "
                f"{brief(self.frame.end)}",
                fix="use a chat template for training that writes answers as they are asked for",
            )
        if not text.startswith(written[:end]):
            refuse(
                "the chat template writes this turn in other words once the conversation goes on",
                key=f"messages[{number}]",
                got=brief(written[len(prompt) : end]),
                fix="train the last answer alone (model.data.train_on=last), make a row of each "
                "answer, or use a chat template that keeps earlier turns as they are",
            )
        if not last:  # Phi ends what is whole with one more token
            rest = rest[: len(rest) - len(rest.lstrip())]
        return len(prompt), end + len(rest) * text.startswith(rest, end)

    def conversation_ids(self, row: Conversation) -> list[int]:
        return self.source.tokenize(row.messages(), prompt=False).ids

    def read_response(
        self, ids: Sequence[int], *, whole: bool = False, end_strings: Sequence[str] = ()
    ) -> str | None:
        ended = bool(ids) and ids[-1] in self.stop_ids
        body = ids[:-1] if ended else ids
        if (whole and not ended) or not self.tokenizer.knows(body) or self._controls_of(body):
            return None
        text = self._decode(body)
        for end in end_strings:
            text = text.partition(end)[0]
        return self._strip(text, ended) or None

    def visible_text(self, ids: Sequence[int]) -> str:
        hidden = set(self._controls_of(ids)) | set(self.stop_ids)
        text = self._decode([number for number in ids if number not in hidden])
        return self._strip(text, bool(ids) and ids[-1] in self.stop_ids)

    def read_label(self, ids: Sequence[int]) -> str:
        if not self.tokenizer.knows(ids):
            return NO_LABEL
        return self.visible_text(ids).removeprefix(self.frame.lead).strip()

    def template(self) -> str:
        return self.source.source

    def canary(self) -> str:
        return f"{self.frame.prompt}{self.frame.lead}The Rhine. é ☂{self.frame.end}"

    @property
    def _space(self) -> str:
        """The white space before an answer. What else stands there belongs to the answer."""
        return "" if self.frame.lead.strip() else self.frame.lead

    @cached_property
    def _frame_ids(self) -> list[int]:
        return self._encode(self.frame.prompt)

    @cached_property
    def _frame_text(self) -> str:
        return self.tokenizer.decode(self._frame_ids)

    def _decode(self, ids: Sequence[int]) -> str:
        """The text that ``ids`` add to a prompt: some decoders drop a space that begins a text."""
        if not ids:
            return ""
        return self.tokenizer.decode([*self._frame_ids, *ids]).removeprefix(self._frame_text)

    def _strip(self, text: str, ended: bool) -> str:
        """An answer without the white space that the template writes around it."""
        text = text.removeprefix(self._space)
        spoken = self.frame.end[: len(self.frame.end) - len(self.frame.end.lstrip())]
        return text.removesuffix(spoken) if ended and spoken else text

    def _encode(self, text: str, control: bool = True) -> list[int]:
        return self.tokenizer.encode(text, control=control)

    def _controls_of(self, ids: Sequence[int]) -> list[int]:
        """Control tokens that no answer holds."""
        allowed = self.source.spoken.values()
        return [
            number for number in ids if number in self.source.controls and number not in allowed
        ]

    def _same_controls(self, ids: Sequence[int], others: Sequence[int]) -> bool:
        return self._controls_of(ids) == self._controls_of(others)


def _ask_label(messages: list[dict[str, str]], label: str | None) -> list[dict[str, str]]:
    """``messages`` with a label asked for in the last one, which is the user's."""
    if label is None:
        return messages
    *before, last = messages
    if last["role"] != "user":
        refuse("a label is asked for in a message of the user", key="messages", got=last["role"])
    asked = f"{last['content']}\n\n{LABEL_LINE.format(label=label)}"
    return [*before, {**last, "content": asked}]


def _meet(span: tuple[int, int], other: tuple[int, int]) -> bool:
    return span[0] < other[1] and other[0] < span[1]


def _count(whole: Rendering, spans: Sequence[tuple[int, int]]) -> list[bool]:
    """Which tokens begin in one of ``spans``."""
    counts = [False] * len(whole.ids)
    for start, end in spans:
        first, last = whole.count_before(start), whole.count_before(end)
        counts[first:last] = [True] * (last - first)
    return counts
