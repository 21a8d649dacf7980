"""Conversations as rows hold them: ``messages`` with a role and a content each.

A generative judge is asked with more turns behind the user's last one: ``principle`` where there
is one, then ``response_1`` and ``response_2``. It answers as the assistant.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from nemotron_style.steps.blocks.data.jsonl import brief, refuse

ROLES = {
    "system": "System",
    "user": "User",
    "assistant": "Assistant",
    "principle": "Principle",
    "response_1": "Response 1",
    "response_2": "Response 2",
}
"""How each role is called in the text that a model reads."""

PAIR_ROLES = ["response_1", "response_2"]
"""The roles that end a question to a generative judge; ``principle`` may stand before them."""

TYPES = ("VALUE_TO_TEXT", "TEXT_TO_VALUE")

TrainOn = Literal["all", "last"]
"""Which of the assistant's turns are trained."""


@dataclass(frozen=True)
class Turn:
    """One turn before the response: the speaker as the text names it, and what is said."""

    speaker: str
    value: str


@dataclass(frozen=True)
class Conversation:
    """A checked row; ``turns`` ends before ``response``, which is None for a prompt row.

    ``system`` is None where there is no system message. An empty one is something else: many chat
    templates have a text of their own for conversations without.

    ``type`` says whether the label stands before the response (``VALUE_TO_TEXT``) or behind it.
    ``trained`` has a mark for each of the assistant's turns, the response last; None leaves it to
    the step, which trains all of them or the last.
    """

    system: str | None
    turns: tuple[Turn, ...]
    response: str | None = None
    label: str | None = None
    type: Literal["VALUE_TO_TEXT", "TEXT_TO_VALUE"] | None = None
    trained: tuple[bool, ...] | None = None

    @property
    def answers(self) -> list[int]:
        """Which of ``turns`` are the assistant's."""
        return [n for n, turn in enumerate(self.turns) if turn.speaker == ROLES["assistant"]]

    def trained_answers(self, train_on: TrainOn) -> list[bool]:
        """For each of the assistant's turns, the response last, whether it is to be predicted.

        Where a label is predicted from an answer, none of them is.
        """
        earlier = len(self.answers)
        if self.type == "TEXT_TO_VALUE":
            return [False] * (earlier + 1)
        if self.trained is None:
            return [train_on == "all"] * earlier + [True]
        if len(self.trained) != earlier + 1 or not any(self.trained):
            refuse(
                "there must be a mark for each answer, and one that is trained at least",
                key="trained",
                got=brief(self.trained),
                allowed=f"{earlier + 1} marks",
            )
        return list(self.trained)

    def messages(self) -> list[dict[str, str]]:
        """The conversation as messages with a role each, the response among them.

        Raises InputError for a speaker who has no role.
        """
        names = {speaker: role for role, speaker in ROLES.items()}
        for index, turn in enumerate(self.turns):
            if turn.speaker not in names:
                key, allowed = f"turns[{index}]", ", ".join(names)
                refuse("no role has this name", key=key, got=brief(turn.speaker), allowed=allowed)
        turns = [(names[turn.speaker], turn.value) for turn in self.turns]
        if self.system is not None:
            turns.insert(0, ("system", self.system))
        if self.response is not None:
            turns.append(("assistant", self.response))
        return [{"role": role, "content": text} for role, text in turns]


def parse_messages(messages: Sequence[Mapping[str, str]]) -> Conversation:
    """The conversation of messages that end with the user, or with a pair for a judge.

    Raises:
        InputError: an unknown role, a system message that is not the first, turns that do not
            alternate from user to user, an empty or missing text.
    """
    if not isinstance(messages, Sequence) or isinstance(messages, str) or not messages:
        refuse("messages must be a list that is not empty", key="messages", got=brief(messages))
    for index, message in enumerate(messages):
        _check_message(message, f"messages[{index}]")
    system = messages[0]["content"] if messages[0]["role"] == "system" else None
    turns = messages[1:] if messages[0]["role"] == "system" else messages
    roles = _without_pair([message["role"] for message in turns])
    alternating = ["assistant" if index % 2 else "user" for index in range(len(roles))]
    if roles != alternating or len(roles) % 2 == 0:
        refuse(
            "turns must alternate user, assistant, ..., user",
            key="messages",
            got=", ".join(message["role"] for message in messages),
            allowed="one system message at most, and first; principle, response_1 and response_2 "
            "at the end alone",
        )
    return Conversation(system, tuple(Turn(ROLES[m["role"]], m["content"]) for m in turns))


def parse_prompt(row: Mapping[str, Any]) -> Conversation:
    """A row of ``prompts_jsonl``: messages that end with the user."""
    return parse_messages(prompt_messages(row))


def parse_prompt_row(row: Mapping[str, Any]) -> Conversation:
    """The prompt of a row of ``prompts_jsonl``, or of ``training_jsonl`` without its answer.

    The label of an answered row stays with it.
    """
    messages = row.get("messages")
    last = messages[-1] if isinstance(messages, list) and messages else None
    if isinstance(last, Mapping) and last.get("role") == "assistant":
        return replace(parse_conversation(row), response=None)
    return parse_prompt(row)


def prompt_messages(row: Mapping[str, Any]) -> Any:
    """The unchecked messages of a row of ``prompts_jsonl``, which has no other key."""
    return _messages(row, {"messages"})


def parse_conversation(row: Mapping[str, Any]) -> Conversation:
    """A row of ``training_jsonl``: messages that end with the assistant, label and type.

    ``trained``, a mark for each of the assistant's messages, says which of them are trained.

    Raises:
        InputError: anything :func:`parse_messages` refuses, a response that is missing or empty,
            a label without type or a type without label, an unknown key.
    """
    messages = _messages(row, {"messages", "label", "type", "trained"})
    if not isinstance(messages, list) or len(messages) < 2:
        refuse("messages must hold a question and its answer", key="messages", got=brief(messages))
    response = messages[-1]
    _check_message(response, f"messages[{len(messages) - 1}]")
    if response["role"] != "assistant":
        refuse("the last message must be the assistant's", key="messages", got=response["role"])
    label, kind = row.get("label"), row.get("type")
    if kind is not None and kind not in TYPES:
        refuse("unknown type", key="type", got=brief(kind), allowed=" or ".join(TYPES))
    if (label is None) != (kind is None):
        refuse("label and type stand together or not at all", key="label", got=brief(label))
    if label is not None and (not isinstance(label, str) or not label):
        refuse("a label must be a text that is not empty", key="label", got=brief(label))
    question = parse_messages(messages[:-1])
    marks = _read_marks(row.get("trained"), len(question.answers) + 1)
    return replace(question, response=response["content"], label=label, type=kind, trained=marks)


def _read_marks(marks: Any, answers: int) -> tuple[bool, ...] | None:
    if marks is None:
        return None
    is_list = isinstance(marks, list) and all(isinstance(mark, bool) for mark in marks)
    if not is_list or len(marks) != answers or not any(marks):
        what = "there must be a mark for each answer, and one that is true at least"
        refuse(what, key="trained", got=brief(marks), allowed=f"{answers} of true and false")
    return tuple(marks)


def _without_pair(roles: list[str]) -> list[str]:
    """The roles of the conversation itself, without the pair that a judge is asked about."""
    if roles[-2:] != PAIR_ROLES:
        return roles
    return roles[:-3] if roles[-3:-2] == ["principle"] else roles[:-2]


def _messages(row: Mapping[str, Any], keys: set[str]) -> Any:
    """The unchecked messages of a row that has no other keys than ``keys``."""
    if "messages" not in row:
        refuse("a row needs messages", key="messages", got=", ".join(row) or "an empty object")
    if extra := sorted(set(row) - keys):
        refuse("unknown key", key=extra[0], allowed=", ".join(sorted(keys)))
    return row["messages"]


def _check_message(message: object, key: str) -> None:
    if not isinstance(message, Mapping) or set(message) != {"role", "content"}:
        refuse("a message has role and content", key=key, got=brief(message))
    role = message["role"]
    if not isinstance(role, str) or role not in ROLES:
        refuse("unknown role", key=f"{key}.role", got=brief(role), allowed=", ".join(ROLES))
    text = message["content"]
    if not isinstance(text, str) or not (text or role == "system"):
        refuse("content must be a text that is not empty", key=f"{key}.content", got=brief(text))
