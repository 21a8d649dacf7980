"""Rows of ratings as tokens, and what their attributes are called and how they are scaled."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from nemotron_style.runtime.errors import InputError, Problem, suggest
from nemotron_style.steps.blocks.data.chat.interface import Chat
from nemotron_style.steps.blocks.data.chat.token_array import token_array
from nemotron_style.steps.blocks.data.conversation import Conversation
from nemotron_style.steps.blocks.data.jsonl import refuse
from nemotron_style.steps.blocks.data.layouts.reader import RowReader
from nemotron_style.steps.blocks.data.rated_row import PairRow, RatedRow, parse_rated
from nemotron_style.steps.blocks.reward.config import Scale
from nemotron_style.steps.reward.regression.config import Config, Regression

PAIRS_ALONE = ("reward",)


@dataclass(frozen=True)
class EncodedRow:
    """Token ids of one rated conversation, or of the better and the worse of a pair.

    ``ratings`` are in the units of the data; a pair has none.
    """

    texts: tuple[Sequence[int], ...]
    ratings: Mapping[str, float]
    margin: float = 0.0

    def __len__(self) -> int:
        return sum(map(len, self.texts))

    @property
    def is_pair(self) -> bool:
        return len(self.texts) == 2


@dataclass(frozen=True)
class RatedReader:
    """Reads and encodes files of ``rated_jsonl``, or in layouts that ``rows`` knows."""

    config: Config
    chat: Chat
    max_tokens: int
    rows: RowReader

    def read(self, path: Path, names: Sequence[str] | None) -> list[EncodedRow]:
        """The rows of a file; ``names`` are the attributes that they may rate, None for any.

        Raises:
            InputError: naming file and line of every row that is malformed, too long, of a sort
                that ``model.reward_model_type`` does not take, or rates something else.
        """

        def parse(row: Mapping[str, Any]) -> EncodedRow:
            rated = parse_rated(row, missing=self.config.model.regression.loss_mask_val)
            _check_sort(rated, self.config.model.reward_model_type)
            if isinstance(rated, PairRow):
                return EncodedRow(self._encode(rated.chosen, rated.rejected), {}, rated.margin)
            if names is not None:
                _check_names(rated, names)
            return EncodedRow(self._encode(rated.conversation), rated.attributes)

        return self.rows.read(path, parse)

    def _encode(self, *conversations: Conversation) -> tuple[Sequence[int], ...]:
        too_long = Problem(
            what="the conversation is longer than the model may read",
            key="messages",
            allowed=f"{self.max_tokens} (model.data.seq_length, or the model's own limit)",
            fix="shorten or remove it, or raise model.data.seq_length",
        )
        return tuple(
            self.rows.shorten(
                conversations,
                lambda one: token_array(self.chat.conversation_ids(one)),
                limit=self.max_tokens,
                problem=too_long,
            )
        )


def name_outputs(rows: Sequence[EncodedRow], settings: Regression) -> tuple[str, ...]:
    """The attributes in the order of the head's outputs.

    Raises InputError when they are not as many as ``num_attributes`` says.
    """
    rated = sorted({name for row in rows for name in row.ratings})
    names = tuple(settings.attributes or rated or PAIRS_ALONE)
    if settings.num_attributes not in (None, len(names)):
        raise InputError(
            Problem(
                key="model.regression.num_attributes",
                what="the data rate another number of attributes",
                got=str(settings.num_attributes),
                allowed=f"{len(names)}: {', '.join(names)}",
                fix="name those that are meant in model.regression.attributes",
            )
        )
    return names


def weigh_outputs(names: Sequence[str], settings: Regression) -> dict[str, float]:
    """The weight of each attribute in the score.

    Raises InputError for a list of another length, or a table with other names.
    """
    weights = settings.attribute_weights
    if weights is None:
        return dict.fromkeys(names, 1 / len(names))
    fits = set(weights) == set(names) if isinstance(weights, dict) else len(weights) == len(names)
    if not fits:
        raise InputError(
            Problem(
                key="model.regression.attribute_weights",
                what="there must be one weight for each attribute",
                got=str(weights),
                allowed=", ".join(names),
            )
        )
    if isinstance(weights, dict):
        return {name: float(weights[name]) for name in names}
    return dict(zip(names, map(float, weights), strict=True))


def scale_outputs(
    rows: Sequence[EncodedRow], names: Sequence[str], *, where: Path
) -> dict[str, Scale]:
    """Mean and standard deviation of each attribute over the rows that rate it.

    Raises InputError for an attribute that is never rated while others are, or always alike.
    """
    if not any(row.ratings for row in rows):
        return {name: Scale() for name in names}
    ratings = {name: [row.ratings[name] for row in rows if name in row.ratings] for name in names}
    problems = []
    for name, values in ratings.items():
        if len(set(values)) < 2:
            what = "the attribute is rated alike in every row, so nothing tells them apart"
            got = f"{values[0]:g}" if values else "no rating"
            fix = "leave it out of the data and of model.regression.attributes"
            problems.append(Problem(where=str(where), key=name, what=what, got=got, fix=fix))
    if problems:
        raise InputError(problems)
    return {name: _scale(values) for name, values in ratings.items()}


def _scale(values: Sequence[float]) -> Scale:
    mean = fmean(values)
    return Scale(mean=mean, std=math.sqrt(fmean((value - mean) ** 2 for value in values)))


def _check_sort(row: RatedRow | PairRow, wanted: str | None) -> None:
    sort = "binary_ranking" if isinstance(row, PairRow) else "regression"
    if wanted not in (None, sort):
        refuse("the row is of the other sort", got=sort, allowed=f"{wanted} (reward_model_type)")


def _check_names(row: RatedRow, names: Sequence[str]) -> None:
    for name in row.attributes:
        if name not in names:
            refuse(
                "the model has no output of this name",
                key=name,
                allowed=", ".join(names),
                fix=suggest(name, names) or "remove it, or name it in model.regression.attributes",
            )
