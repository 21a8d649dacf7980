"""What every step that reads or writes conversations uses: a chat format on tokens.

Prompt and response are tokenised apart, or so that no token spans the seam between them, so what
is trained is what is sampled and the loss mask is exact.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

from nemotron_style.steps.blocks.data.chat_format import ChatPromptTokens
from nemotron_style.steps.blocks.data.conversation import Conversation, TrainOn
from nemotron_style.steps.blocks.data.tokenizer import Tokenizer

NO_LABEL = "\ufffd"
"""What stands for a predicted label that is none."""


@dataclass(frozen=True)
class Example:
    """A training row: all of its tokens, and which of them are to be predicted."""

    ids: list[int]
    counts: list[bool]


class Chat(ABC):
    """Builds the tokens that a model reads, and reads those that it writes.

    All methods that build raise :class:`InputError` for what cannot be said in this format.
    """

    tokenizer: Tokenizer

    @property
    def tokens(self) -> ChatPromptTokens | None:
        """The tokens of NeMo-Aligner's format; None for another."""
        return None

    @property
    @abstractmethod
    def stop_ids(self) -> tuple[int, ...]:
        """Each of these ends a response."""

    @property
    @abstractmethod
    def label_stop_ids(self) -> tuple[int, ...]:
        """Each of these ends a label."""

    @abstractmethod
    def prompt_ids(
        self, conversation: Conversation, label: str | None = None, *, speaker: str = "Assistant"
    ) -> list[int]:
        """The prompt of P(y|x) for the turns of a conversation, or with ``label`` of Q(y|a,x)."""

    @abstractmethod
    def response_ids(self, text: str) -> list[int]:
        """A response as the model writes it behind a prompt, with what ends it."""

    @abstractmethod
    def attribute_ids(self, conversation: Conversation, response: str) -> list[int]:
        """The prompt of P(a|x,y): the conversation with ``response``, asking for its label."""

    @abstractmethod
    def label_ids(self, label: str) -> list[int]:
        """A label as the attribute model writes it, with what ends it."""

    @abstractmethod
    def example(self, row: Conversation, train_on: TrainOn = "all") -> Example:
        """The tokens of a training row, and which of them are trained."""

    @abstractmethod
    def conversation_ids(self, row: Conversation) -> list[int]:
        """The whole of an answered conversation, as a reward model reads it, in one piece."""

    @abstractmethod
    def read_response(
        self, ids: Sequence[int], *, whole: bool = False, end_strings: Sequence[str] = ()
    ) -> str | None:
        """The response that a model wrote, up to the first of ``end_strings``; None: not usable.

        Not usable is an empty text, a control token inside it, and an id that is no token's. With
        ``whole`` also one that does not end as :meth:`response_ids` ends it.
        """

    @abstractmethod
    def visible_text(self, ids: Sequence[int]) -> str:
        """What a user is shown of generated ids: no control token, and not what ends a turn."""

    @abstractmethod
    def read_label(self, ids: Sequence[int]) -> str:
        """The label that an attribute model wrote; NO_LABEL for one with an id of no token."""

    @abstractmethod
    def template(self) -> str:
        """The Jinja chat template of this format."""

    @abstractmethod
    def canary(self) -> str:
        """The text of a fixed conversation; it changes whenever the format does."""

    def digest(self) -> str:
        """``sha256:…`` of the chat template."""
        return "sha256:" + hashlib.sha256(self.template().encode()).hexdigest()
