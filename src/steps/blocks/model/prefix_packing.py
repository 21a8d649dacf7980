"""Token lists to the tensors of one batch.

A :class:`Group` is one prompt with its N responses; :func:`pack` lays every group out as one row
``[prompt, r_1 .. r_N]`` in which the prompt stands once. With N = 1 there is nothing to share and
rows are plain causal ones. A :class:`Row` is one sequence with a mark on the tokens that count,
for training on conversations; :func:`pack_rows` lays these out as causal rows, and
:func:`pack_sequence` as one row without padding.

Only real tokens cost work in the output head, but padding costs work in the layers: put prompts
(and responses) of similar lengths into one batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, chain

import torch
from torch import Tensor

from nemotron_style.steps.blocks.model.attention import Layout

PAD = 0  # never read: padding is neither attended to nor scored


@dataclass(frozen=True)
class Group:
    """One prompt and the responses to it, as token ids; a prompt has at least one token."""

    prompt_ids: Sequence[int]
    responses_ids: Sequence[Sequence[int]]


@dataclass(frozen=True)
class Row:
    """One sequence; ``counts[i]`` says whether token i is to be predicted (never the first)."""

    ids: Sequence[int]
    counts: Sequence[bool]

    @property
    def prompt_ids(self) -> Sequence[int]:
        """The tokens before the first that counts."""
        return self.ids[: self._first]

    @property
    def responses_ids(self) -> Sequence[Sequence[int]]:
        """The other tokens: those of one response, of which some may not count."""
        return [self.ids[self._first :]]

    @property
    def _first(self) -> int:
        return next((i for i, counted in enumerate(self.counts) if counted), len(self.ids))


@dataclass(frozen=True)
class PackedBatch:
    """A batch of B rows of S tokens, with N responses of at most R tokens each.

    ``tokens_BS``, ``positions_BS`` int64; ``labels_BNR`` int64 and ``mask_BNR`` bool are the
    response tokens and which of them are real. Of the T real ones, in the order of the mask,
    ``labels_T`` are the tokens, ``spots_T`` their places in ``[B * N * R]``, and ``predictors_T``
    those of the states that predict them in ``[S * B]``. A mask alone would say as much, but a
    GPU has to be waited for to learn how much it holds.
    A packed sequence is one row of tokens, and has labels and mask of B samples nevertheless.
    """

    tokens_BS: Tensor
    positions_BS: Tensor
    layout: Layout
    labels_BNR: Tensor
    mask_BNR: Tensor
    labels_T: Tensor
    spots_T: Tensor
    predictors_T: Tensor

    @property
    def count(self) -> int:
        """Responses per row, N."""
        return self.labels_BNR.shape[1]

    @property
    def label_tokens(self) -> int:
        """Number of response tokens in the batch."""
        return self.predictors_T.numel()

    def to(self, device: torch.device) -> PackedBatch:
        """The same batch on ``device``."""
        if self.tokens_BS.device == device:
            return self
        lengths = self.layout.prompt_lengths_P
        return PackedBatch(
            tokens_BS=self.tokens_BS.to(device),
            positions_BS=self.positions_BS.to(device),
            layout=replace(
                self.layout, prompt_lengths_P=None if lengths is None else lengths.to(device)
            ),
            labels_BNR=self.labels_BNR.to(device),
            mask_BNR=self.mask_BNR.to(device),
            labels_T=self.labels_T.to(device),
            spots_T=self.spots_T.to(device),
            predictors_T=self.predictors_T.to(device),
        )


def pack(groups: Sequence[Group]) -> PackedBatch:
    """Rows ``[prompt, r_1 .. r_N]`` of groups with the same N.

    Raises ValueError for no group, differing or zero N, or an empty prompt.
    """
    counts = {len(group.responses_ids) for group in groups}
    if len(counts) != 1 or 0 in counts:
        raise ValueError(f"groups need the same number of responses, at least one; got {counts}")
    if not all(len(group.prompt_ids) for group in groups):
        raise ValueError("a prompt needs at least one token: nothing would predict the response")
    if counts == {1}:
        return _pack_single(groups)
    return _pack_shared(groups)


def pack_rows(rows: Sequence[Row]) -> PackedBatch:
    """Causal rows, padded on the right; N is 1 and R the most counted tokens of a row.

    Raises ValueError for no row or a counted first token, which nothing predicts.
    """
    spots = _spots(rows)
    predictors = [[[i - 1 for i in at]] for at in spots]
    ids = [row.ids for row in rows]
    return _causal_batch(ids, labels=_labels(rows, spots), predictors=predictors)


def pack_sequence(rows: Sequence[Row]) -> PackedBatch:
    """One row that holds all samples without padding; labels and mask as of :func:`pack_rows`.

    Samples of one length should stand side by side: they are a batch in the attention. Raises
    ValueError as :func:`pack_rows` does.
    """
    spots = _spots(rows)
    inputs = [row.ids[: _input_width(len(row.ids))] for row in rows]
    lengths = tuple(map(len, inputs))
    starts = [0, *accumulate(lengths)]
    return _packed(
        torch.tensor([list(chain(*inputs))], dtype=torch.long),
        torch.cat([torch.arange(length) for length in lengths])[None],
        Layout(lengths=lengths),
        labels=_labels(rows, spots),
        predictors=[start + i - 1 for start, at in zip(starts, spots, strict=False) for i in at],
    )


def _spots(rows: Sequence[Row]) -> list[list[int]]:
    """Where the tokens that count stand in each row."""
    if not rows:
        raise ValueError("a batch needs at least one row")
    if any(row.counts and row.counts[0] for row in rows):
        raise ValueError("the first token of a row cannot be predicted")
    return [[i for i, counted in enumerate(row.counts) if counted] for row in rows]


def _labels(rows: Sequence[Row], spots: Sequence[Sequence[int]]) -> list[list[list[int]]]:
    return [[[row.ids[i] for i in at]] for row, at in zip(rows, spots, strict=True)]


def _pack_single(groups: Sequence[Group]) -> PackedBatch:
    prompts = [group.prompt_ids for group in groups]
    responses = [group.responses_ids[0] for group in groups]
    pairs = list(zip(prompts, responses, strict=True))
    return _causal_batch(
        [[*prompt, *response] for prompt, response in pairs],
        labels=[[response] for response in responses],
        predictors=[
            [range(len(prompt) - 1, len(prompt) + len(response) - 1)] for prompt, response in pairs
        ],
    )


def _causal_batch(
    ids: Sequence[Sequence[int]],
    *,
    labels: Sequence[Sequence[Sequence[int]]],
    predictors: Sequence[Sequence[Sequence[int]]],
) -> PackedBatch:
    width = _input_width(max(len(row) for row in ids))
    tokens = _padded([row[:width] for row in ids], width)
    positions = torch.arange(width).expand(len(ids), -1)
    flat = _flat(predictors)
    return _packed(tokens, positions, Layout(), labels=labels, predictors=flat)


def _input_width(length: int) -> int:
    """How many tokens of a row of ``length`` tokens the model reads.

    The last one predicts nothing and is left out, but where it makes a multiple of 16: torch's
    attention for CPUs vectorises over keys, and takes a quarter less for 128 of them than for 127.
    """
    return length if length and length % 16 == 0 else max(1, length - 1)


def _pack_shared(groups: Sequence[Group]) -> PackedBatch:
    lengths = [len(group.prompt_ids) for group in groups]
    widths = [len(response) for group in groups for response in group.responses_ids]
    prompt_width, response_width = max(lengths), max(1, *widths)
    count = len(groups[0].responses_ids)
    lengths_P = torch.tensor(lengths)
    prompts = _padded([group.prompt_ids for group in groups], prompt_width)
    responses = _padded([ids for group in groups for ids in group.responses_ids], response_width)
    tokens = torch.cat([prompts, responses.view(len(groups), -1)], dim=1)
    # All responses of a row begin at the same position, the one behind their prompt's real tokens.
    after = (lengths_P[:, None] + torch.arange(response_width)).repeat(1, count)
    positions = torch.cat([torch.arange(prompt_width).expand(len(groups), -1), after], dim=1)
    layout = Layout(
        prompt_width=prompt_width,
        count=count,
        response_width=response_width,
        prompt_lengths_P=lengths_P if len(set(lengths)) > 1 else None,
    )
    predictors = [
        [
            _predictors_of(len(ids), after=length - 1, start=prompt_width + response_width * n)
            for n, ids in enumerate(group.responses_ids)
        ]
        for length, group in zip(lengths, groups, strict=True)
    ]
    labels = [group.responses_ids for group in groups]
    flat = _flat(predictors)
    return _packed(tokens, positions, layout, labels=labels, predictors=flat)


def _predictors_of(length: int, *, after: int, start: int) -> list[int]:
    """Columns whose states predict a response that begins at column ``start``.

    The first token is predicted by the last real token of the prompt, at column ``after``.
    """
    return [after, *range(start, start + length - 1)] if length else []


def _packed(
    tokens: Tensor,
    positions: Tensor,
    layout: Layout,
    *,
    labels: Sequence[Sequence[Sequence[int]]],
    predictors: Sequence[int],
) -> PackedBatch:
    rows, count = len(labels), len(labels[0])
    lengths = torch.tensor([[len(ids) for ids in row] for row in labels])
    width = max(1, int(lengths.max()))
    labels_BNR = _padded([ids for row in labels for ids in row], width).view(rows, count, width)
    mask_BNR = torch.arange(width) < lengths[..., None]
    return PackedBatch(
        tokens_BS=tokens,
        positions_BS=positions,
        layout=layout,
        labels_BNR=labels_BNR,
        mask_BNR=mask_BNR,
        labels_T=labels_BNR[mask_BNR],
        spots_T=mask_BNR.flatten().nonzero()[:, 0],
        predictors_T=torch.tensor(predictors, dtype=torch.long),
    )


def _flat(predictors: Sequence[Sequence[Sequence[int]]]) -> list[int]:
    """Where columns ``[B, N, ..]`` stand in hidden states ``[S, B]`` that are flattened."""
    rows = len(predictors)
    return [column * rows + row for row, at in enumerate(predictors) for column in chain(*at)]


def _padded(rows: Sequence[Sequence[int]], width: int) -> Tensor:
    """int64 ``[rows, width]``, padded on the right."""
    return torch.tensor([[*row, *[PAD] * (width - len(row))] for row in rows], dtype=torch.long)
