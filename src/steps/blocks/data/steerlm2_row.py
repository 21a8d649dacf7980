"""Rows of ``steerlm2_jsonl``: a prompt, its label, and responses with their three log-probs.

NeMo-Aligner's format, one object a line::

    {"system": str, "prompt_turns": [{"from", "value"}, ...], "label": str | null,
     "responses": [{"from", "value",
                    "log(P(a|x,y))", "log(P(y|x))", "log(Q(y|a,x))"}, ...]}

The numbers are only worth something when they were computed for exactly the text that is trained
on, so nothing here is mended: a row is used whole or refused with its file and line.  In
particular no response is ever cut to length, because its log-probability covers the whole of it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)

from nemotron_style.runtime.errors import InputError, Problem
from nemotron_style.steps.blocks.data.chat.interface import Chat
from nemotron_style.steps.blocks.data.chat.token_array import token_array
from nemotron_style.steps.blocks.data.conversation import Conversation, Turn
from nemotron_style.steps.blocks.data.jsonl import brief, is_number, refuse
from nemotron_style.steps.blocks.data.layouts.reader import RowReader
from nemotron_style.steps.blocks.settings.json_model import validation_problems

LOG_P_A = "log(P(a|x,y))"
LOG_P_Y = "log(P(y|x))"
LOG_Q = "log(Q(y|a,x))"
LOG_FIELDS = (LOG_P_A, LOG_P_Y, LOG_Q)


@dataclass(frozen=True)
class EncodedGroup:
    """A row as token ids, and the numbers that were computed for them."""

    prompt_ids: Sequence[int]
    responses_ids: tuple[Sequence[int], ...]
    log_p_a: tuple[float, ...]
    log_p_y: tuple[float, ...]
    log_q: tuple[float, ...]


def read_groups(
    path: str | Path, *, chat: Chat, max_tokens: int, reader: RowReader | None = None
) -> list[EncodedGroup]:
    """Every row of a file, checked and tokenised.

    ``max_tokens`` is the longest prompt with a response that the model can hold.

    Raises:
        InputError: with ``file:line`` for every rule that a row breaks (see :func:`parse_row`),
            for a row with another number of responses than the first one, and for a row that is
            too long, as far as the settings of ``reader`` do not leave it out. All bad rows are
            counted, the first ten are shown.
    """
    widths: list[int] = []

    def parse(row: Mapping[str, Any]) -> EncodedGroup:
        group = parse_row(row, chat=chat)
        widths.append(len(group.responses_ids))
        if widths[-1] != widths[0]:
            raise InputError(
                Problem(
                    key="responses",
                    what="all rows of a file must have the same number of responses",
                    got=str(widths[-1]),
                    allowed=f"{widths[0]}, as in the first row",
                )
            )
        _refuse_long(group, max_tokens)
        return group

    return (reader or RowReader(None)).read(path, parse)


def _refuse_long(group: EncodedGroup, max_tokens: int) -> None:
    """Refuse a group of which a response would have to be cut."""
    lengths = [len(group.prompt_ids) + len(ids) for ids in group.responses_ids]
    if (longest := max(lengths)) > max_tokens:
        many = sum(length > max_tokens for length in lengths)
        raise InputError(
            Problem(
                key=f"responses[{lengths.index(longest)}]",
                what="too long for the model, and it is not cut: log Q covers the whole of it",
                got=f"{longest} tokens with its prompt; {many} of {len(lengths)} too long",
                allowed=f"at most {max_tokens} tokens",
                fix="leave the row out, or sample with a smaller limit on new tokens",
            )
        )


def _check_logprob(value: Any) -> Any:
    if not (is_number(value) and value <= 0):
        allowed = "a finite number that is not above 0"
        refuse("wrong type or value", got=brief(value), allowed=allowed)
    return value


def _check_whole(truncated: Any) -> Any:
    if truncated is not False:
        refuse(
            "a truncated response cannot be weighed: its log-probs lack the end",
            got=brief(truncated),
            allowed="false",
            fix="leave the row out, or sample again with a larger limit on new tokens",
        )
    return truncated


LogProb = Annotated[float, BeforeValidator(_check_logprob)]


class _Turn(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    speaker: str = Field(alias="from")
    value: str


class _Response(_Turn):
    log_p_a: LogProb = Field(alias=LOG_P_A)
    log_p_y: LogProb = Field(alias=LOG_P_Y)
    log_q: LogProb = Field(alias=LOG_Q)
    truncated: Annotated[bool, BeforeValidator(_check_whole)] = False


class _Row(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    system: str
    prompt_turns: list[_Turn]
    label: Annotated[str, Field(min_length=1)] | None
    responses: list[_Response]

    @field_validator("prompt_turns", mode="before")
    @classmethod
    def _odd(cls, turns: Any) -> Any:
        if isinstance(turns, list) and len(turns) % 2 == 0:
            refuse(
                "the number of turns must be odd, so that the user speaks last", got=str(len(turns))
            )
        return turns

    @field_validator("responses", mode="before")
    @classmethod
    def _several(cls, responses: Any) -> Any:
        if isinstance(responses, list) and len(responses) < 2:
            refuse(
                "a group needs at least two responses: alone, one has weight 1 and no gradient",
                got=str(len(responses)),
            )
        return responses

    @model_validator(mode="after")
    def _speakers(self) -> Self:
        speakers = sorted({response.speaker for response in self.responses})
        if len(speakers) > 1:
            what = "all responses of a row must have the same `from`"
            refuse(what, key="responses", got=", ".join(speakers))
        if self.prompt_turns[-1].speaker in speakers:
            what = "the last turn is by the one who responds; it must be the user's"
            refuse(what, key="prompt_turns", got=brief(speakers[0]))
        return self


def parse_row(row: Mapping[str, Any], *, chat: Chat) -> EncodedGroup:
    """A row, checked field by field, as tokens in ``chat``'s format.

    Raises:
        InputError: with everything that is wrong: a missing, unknown or mistyped field, an even
            number of turns, fewer than two responses, responses by different speakers or by the
            one who asked, a response that was truncated, a log-probability that is no finite
            number or above 0, a control token inside a value.
    """
    try:
        checked = _Row.model_validate(row)
    except ValidationError as error:
        raise InputError(validation_problems(error)) from None
    responses = checked.responses
    turns = tuple(Turn(turn.speaker, turn.value) for turn in checked.prompt_turns)
    question = Conversation(checked.system or None, turns)
    prompt_ids = chat.prompt_ids(question, checked.label, speaker=responses[0].speaker)
    return EncodedGroup(
        prompt_ids=token_array(prompt_ids),
        responses_ids=tuple(token_array(chat.response_ids(each.value)) for each in responses),
        log_p_a=tuple(response.log_p_a for response in responses),
        log_p_y=tuple(response.log_p_y for response in responses),
        log_q=tuple(response.log_q for response in responses),
    )
