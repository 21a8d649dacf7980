"""NeMo-Aligner's chat format on tokens: the texts of :class:`ChatFormat`, tokenised."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from nemotron_style.runtime.errors import InputError
from nemotron_style.steps.blocks.data.chat.interface import NO_LABEL, Chat, Example
from nemotron_style.steps.blocks.data.chat_format import ChatFormat, ChatPromptTokens
from nemotron_style.steps.blocks.data.conversation import Conversation, TrainOn
from nemotron_style.steps.blocks.data.tokenizer import Tokenizer


@dataclass(frozen=True)
class NemoChat(Chat):
    """The format of ``chat_prompt_tokens``; prompt and response are tokenised apart."""

    tokenizer: Tokenizer
    texts: ChatFormat

    @property
    def tokens(self) -> ChatPromptTokens:
        return self.texts.tokens

    @cached_property
    def stop_ids(self) -> tuple[int, ...]:
        """The start of the next turn."""
        return tuple(self._encode(self.texts.tokens.turn_start))

    @cached_property
    def label_stop_ids(self) -> tuple[int, ...]:
        return (self._encode(self.texts.tokens.end_of_turn)[-1],)

    def prompt_ids(
        self, conversation: Conversation, label: str | None = None, *, speaker: str = "Assistant"
    ) -> list[int]:
        return self._encode(self.texts.prompt(conversation, label=label, speaker=speaker))

    def response_ids(self, text: str) -> list[int]:
        return self._encode(self.texts.response(text))

    def attribute_ids(self, conversation: Conversation, response: str) -> list[int]:
        return self._encode(self.texts.attribute_prompt(conversation, response))

    def label_ids(self, label: str) -> list[int]:
        return self._encode(self.texts.label_text(label))

    def example(self, row: Conversation, train_on: TrainOn = "all") -> Example:
        ids: list[int] = []
        counts: list[bool] = []
        for text, trained in self.texts.marked(row, row.trained_answers(train_on)):
            part = self._encode(text)
            ids += part
            counts += [trained] * len(part)
        return Example(ids, counts)

    def conversation_ids(self, row: Conversation) -> list[int]:
        """Its last token is the ``turn_start`` behind the assistant's last turn."""
        return self._encode("".join(self.texts.example(row)))

    def read_response(
        self, ids: Sequence[int], *, whole: bool = False, end_strings: Sequence[str] = ()
    ) -> str | None:
        if not self.tokenizer.knows(ids):
            return None
        generated = self.tokenizer.decode(ids)
        for end in end_strings:
            generated = generated.partition(end)[0]
        text = self.texts.read_response(generated)
        try:
            written = self.texts.response(text)
        except InputError:  # a control token in the middle
            return None
        return (text or None) if written == generated or not whole else None

    def visible_text(self, ids: Sequence[int]) -> str:
        text = self.texts.read_response(self.tokenizer.decode(ids))
        for token in self.tokenizer.control_ids:
            text = text.replace(token, "") if token.strip() else text
        return text

    def read_label(self, ids: Sequence[int]) -> str:
        if not self.tokenizer.knows(ids):
            return NO_LABEL
        return self.tokenizer.decode(ids).removesuffix(self.texts.tokens.end_of_turn)

    def template(self) -> str:
        return self.texts.template()

    def canary(self) -> str:
        return self.texts.canary()

    def _encode(self, text: str) -> list[int]:
        return self.tokenizer.encode(text, control=True)
