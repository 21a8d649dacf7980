"""Turns under the names that data sets use, as messages with a role and a content."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from nemotron_style.steps.blocks.data.conversation import ROLES
from nemotron_style.steps.blocks.data.files.refusal import brief, refuse

Message = dict[str, Any]
"""``{"role": ..., "content": ...}``."""

OPENAI_ROLES = {role: role for role in ROLES} | {"developer": "system"}
SHAREGPT_ROLES = {
    "system": "system",
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "assistant": "assistant",
    "model": "assistant",
}

TOOL_ROLES = {"tool", "function", "function_call", "function_response", "observation", "ipython"}
NEEDS_MORE = {
    "tool_calls": "calls of tools",
    "function_call": "calls of tools",
    "tool_call_id": "calls of tools",
    "audio": "sound",
    "images": "pictures",
    "reasoning_content": "thoughts beside the answer",
    "reasoning": "thoughts beside the answer",
    "thinking": "thoughts beside the answer",
    "refusal": "a refusal beside the answer",
}
"""Keys of a message that say more than its text: a model trained without them learns wrongly."""

TEXT_PARTS = {"text", "input_text", "output_text"}

RENDERED = re.compile(
    r"\s*(<s>|<bos>|<\|begin_of_text\|>|\[gMASK\]<sop>"
    r"|<\uff5cbegin\u2581of\u2581sentence\uff5c>)*\s*"
    r"(<\|im_start\|>|<\|start_header_id\|>|<start_of_turn>|\[INST\]|<\|user\|>|<\|system\|>"
    r"|<\|User\|>|<\uff5cUser\uff5c>|<\|START_OF_TURN_TOKEN\|>"
    r"|### ?(Human|User|Instruction|System):|<extra_id_[01]>|(Human|User|USER): )"
)
"""How a text begins that a chat template was already applied to."""


class Style(NamedTuple):
    """How a list writes its turns: the key of the role, that of the text, and the roles."""

    role: str
    text: str
    roles: Mapping[str, str]


OPENAI = Style("role", "content", OPENAI_ROLES)
SHAREGPT = Style("from", "value", SHAREGPT_ROLES)


def read_turns(turns: Any, key: str, style: Style, unused: set[str]) -> list[Message]:
    """The messages of a list of turns; ``unused`` gets the keys of turns that are not read.

    Raises:
        InputError: no list of turns, an unknown role, one of a tool, a content that is no text,
            or a turn that says more than its text.
    """
    if not isinstance(turns, list) or not turns:
        refuse("must be a list of turns that is not empty", key=key, got=brief(turns))
    return [
        read_turn(turn, f"{key}[{index}]", style, unused, f"{key}[]")
        for index, turn in enumerate(turns)
    ]


def read_turn(turn: Any, key: str, style: Style, unused: set[str], group: str) -> Message:
    """A turn as a message; ``group`` is how its keys are called in ``unused``."""
    if not isinstance(turn, Mapping) or style.role not in turn or style.text not in turn:
        what = f"a turn has {style.role!r} and {style.text!r}"
        refuse(what, key=key, got=brief(turn))
    role = turn[style.role]
    if isinstance(role, str) and role in TOOL_ROLES:
        what = "turns of tools are not trained or continued"
        refuse(what, key=f"{key}.{style.role}", got=brief(role), fix="leave the row out")
    if not isinstance(role, str) or role not in style.roles:
        allowed = ", ".join(style.roles)
        refuse("unknown role", key=f"{key}.{style.role}", got=brief(role), allowed=allowed)
    for name, value in turn.items():
        if name in (style.role, style.text) or value in (None, "", [], {}, False):
            continue
        if name in NEEDS_MORE:
            what = f"the turn holds {NEEDS_MORE[name]}, which would be lost"
            refuse(what, key=f"{key}.{name}", got=brief(value), fix="leave the row out")
        if name == "weight":  # see read_weights
            continue
        unused.add(f"{group}.{name}")
    text = read_text(turn[style.text], f"{key}.{style.text}")
    if not text and style.roles[role] != "system":
        refuse("is empty", key=f"{key}.{style.text}", allowed="a text that is not empty")
    return {"role": style.roles[role], "content": text}


def read_weights(turns: Sequence[Mapping[str, Any]], key: str, style: Style) -> list[bool] | None:
    """OpenAI's ``weight`` of the assistant's turns: whether each is trained; None without any.

    Raises InputError for a weight that is neither 0 nor 1.
    """
    weights = []
    for index, turn in enumerate(turns):
        weight = turn.get("weight")
        if weight not in (None, 0, 1):
            place = f"{key}[{index}].weight"
            refuse("a weight is 0 or 1", key=place, got=brief(weight), allowed="0, 1")
        if style.roles[turn[style.role]] == "assistant":
            weights.append(weight)
    return None if set(weights) <= {None} else [weight != 0 for weight in weights]


def read_text(content: Any, key: str) -> str:
    """A content that is a text, or a list of parts that are all texts, which are joined."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list) or not content:
        refuse("must be a text", key=key, got=brief(content))
    parts = []
    for index, part in enumerate(content):
        kind = part.get("type", "text") if isinstance(part, Mapping) else None
        text = part.get("text") if isinstance(part, Mapping) else None
        if not (isinstance(kind, str) and kind in TEXT_PARTS and isinstance(text, str)):
            refuse("a part is not a text", key=f"{key}[{index}]", got=brief(part))
        parts.append(text)
    return "".join(parts)


def plain_text(row: Mapping[str, Any], key: str) -> str:
    """The text of a column, to which no chat template was applied yet.

    Raises:
        InputError: no text, an empty one, or one that begins as templates begin.
    """
    text = row[key]
    if not isinstance(text, str) or not text.strip():
        refuse("must be a text that is not empty", key=key, got=brief(text))
    if found := RENDERED.match(text):
        refuse(
            "a chat template was already applied to this text, so its turns would be one turn",
            key=key,
            got=brief(found.group().strip()),
            fix="give the turns themselves, as messages",
        )
    return text


def said(role: str, text: str) -> Message:
    """A message."""
    return {"role": role, "content": text}


def with_system(system: Any, messages: Sequence[Message], key: str) -> list[Message]:
    """``messages`` behind the text of a column ``key`` as their system message, if there is one."""
    if system is None or system == "":
        return list(messages)
    if not isinstance(system, str):
        refuse("must be a text", key=key, got=brief(system))
    if messages and messages[0]["role"] == "system" and messages[0]["content"] != system:
        what = "there is another system message among the turns"
        refuse(what, key=key, got=brief(system), allowed=brief(messages[0]["content"]))
    rest = messages[1:] if messages and messages[0]["role"] == "system" else messages
    return [said("system", system), *rest]


_SPEAKER = re.compile(r"(?:^|\n\n)(Human|Assistant):")


def read_transcript(text: Any, key: str) -> list[Message]:
    """The messages of ``"\\n\\nHuman: ...\\n\\nAssistant: ..."``; white space around is layout.

    Raises:
        InputError: a text that does not begin with a speaker, or a turn that is empty.
    """
    if not isinstance(text, str) or not _SPEAKER.match(text):
        allowed = '"\\n\\nHuman: ...\\n\\nAssistant: ..."'
        refuse("is not a dialogue", key=key, got=brief(text), allowed=allowed)
    parts = _SPEAKER.split(text)[1:]
    roles = {"Human": "user", "Assistant": "assistant"}
    messages = [
        said(roles[name], value.strip())
        for name, value in zip(parts[::2], parts[1::2], strict=True)
    ]
    return without_opening(messages, key)


def without_opening(messages: list[Message], key: str) -> list[Message]:
    """``messages`` without a last assistant turn that is empty, where a response would begin.

    Raises InputError for another turn without a text, but for an empty system message.
    """
    if messages and messages[-1]["role"] == "assistant" and not messages[-1]["content"]:
        messages = messages[:-1]
    for index, message in enumerate(messages):
        if not message["content"] and message["role"] != "system":
            refuse("a turn is empty", key=key, got=f"turn {index + 1}, {message['role']}")
    return messages


_NEMO_END = re.compile(r"\n<extra_id_1>\s*\Z")
"""How an answer ends in NeMo's format: with the start of the turn behind it."""

_NEMO_TURN = re.compile(r"(?:^|\n)<extra_id_([01])>(System|User|Assistant)\n")


def read_extra_id(text: str, key: str, *, opens_with: str = "") -> list[Message]:
    """The messages of a text in NeMo's format: ``<extra_id_1>User``, a line end, and the words.

    ``opens_with`` is the role of what stands before the first marker, as in HelpSteer2, whose
    prompts begin with the words of the user. A last turn without a text is where the response
    begins, and is left out.
    """
    parts = _NEMO_TURN.split(text)
    first, rest = parts[0], parts[1:]
    messages = [said(opens_with, first)] if opens_with and first else []
    if first and not opens_with:
        refuse("does not begin with a turn", key=key, got=brief(text), allowed="<extra_id_1>User")
    for marker, name, value in zip(rest[::3], rest[1::3], rest[2::3], strict=True):
        if (marker == "0") != (name == "System"):
            refuse("a marker and its speaker do not go together", key=key, got=brief(name))
        if value or name != "System":  # without a system message it has an empty one
            messages.append(said(name.lower(), value))
    messages = without_opening(messages, key)
    if any("<extra_id_" in message["content"] for message in messages):
        what = "a marker of NeMo's format stands where none can be read"
        refuse(what, key=key, got=brief(text), allowed="<extra_id_1>User or Assistant, on its line")
    return messages


def read_prompt(row: Mapping[str, Any], key: str, unused: set[str]) -> list[Message]:
    """The messages of a prompt: a list of them, a dialogue as text, or the words of the user."""
    prompt = row[key]
    if isinstance(prompt, list):
        return read_turns(prompt, key, OPENAI, unused)
    if isinstance(prompt, str) and _SPEAKER.match(prompt):
        return read_transcript(prompt, key)
    if isinstance(prompt, str) and "<extra_id_1>" in prompt:
        opens_with = "" if prompt.startswith("<extra_id_") else "user"
        return read_extra_id(prompt, key, opens_with=opens_with)
    return [said("user", plain_text(row, key))]


def read_answer(row: Mapping[str, Any], key: str, unused: set[str]) -> list[Message]:
    """The messages of an answer: a text, or a list of messages that begins with the assistant."""
    answer = row[key]
    if isinstance(answer, list):
        messages = read_turns(answer, key, OPENAI, unused)
        if messages[0]["role"] != "assistant":
            refuse("an answer begins with the assistant", key=key, got=messages[0]["role"])
        return messages
    if isinstance(answer, str) and (ends := _NEMO_END.search(answer)):
        answer = answer[: ends.start()]
    return [said("assistant", plain_text({key: answer}, key))]
