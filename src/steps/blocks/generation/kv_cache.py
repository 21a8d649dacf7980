"""Keys and values that are kept while responses grow: those of a prompt once for all its responses.

A response's own tokens stand in its slot, its prompt's tokens in a line that its other responses
use too. A step reads the keys of a prompt once, and meets them with the queries of all its
responses in one product: with 8 responses half as long as their prompt, 32M parameters and
float32, attention takes about 0.6 of the time on one core of an AMD EPYC. Live rows are the first
slots and live prompts the first lines, so a step works on views; what ends is replaced by the
last one.

Shape legend: ``_P`` prompts, ``_S`` responses to a prompt, ``_B`` live rows, ``_V`` vocabulary,
``K`` key-value heads, ``Q`` query heads of each, ``T`` tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Prefix:
    """Prompts of one length, computed once: keys and values ``[layers, P, K, T, head size]``."""

    keys: Tensor
    values: Tensor
    logits_PV: Tensor

    def one(self, number: int) -> Prefix:
        """The prompt ``number`` alone."""
        here = slice(number, number + 1)
        return Prefix(self.keys[:, here], self.values[:, here], self.logits_PV[here])


KeysValues = list[tuple[Tensor, Tensor]]
"""Keys ``[.., head size, T]`` and values ``[.., T, head size]`` of each layer."""


@dataclass(frozen=True)
class Seen:
    """What new tokens see: ``prompts`` (``[P * K, ..]``) and ``responses`` (``[B * K, ..]``).

    ``mask`` ``[B, 1, 1, T]`` is -inf in columns of both that a row does not see, because they are
    beyond a length or before its window. None hides none.
    """

    prompts: KeysValues
    responses: KeysValues
    mask: Tensor | None


class Grid:
    """The live rows as a grid of prompts and responses, in which a prompt's responses are one
    matrix. ``lines_B`` names the prompt of each row.

    Where each prompt has equally many responses, side by side, going there and back is a view or
    one copy; else it takes an index, and cells without a row hold what another row holds.
    """

    def __init__(self, lines: Sequence[int], device: torch.device) -> None:
        members: list[list[int]] = [[] for _ in range(max(lines) + 1)]
        places = []
        for slot, line in enumerate(lines):
            places.append(len(members[line]))
            members[line].append(slot)
        self.shape = len(members), max(map(len, members))
        self.slots: Tensor | None = None  # the row of each cell, where rows and cells differ
        self.cells: tuple[Tensor, Tensor] | None = None  # the prompt of each row, and its place
        flat = [slot for line in members for slot in line]
        if len(lines) != self.shape[0] * self.shape[1] or flat != list(range(len(lines))):
            filled = [line + line[:1] * (self.shape[1] - len(line)) for line in members]
            self.slots = torch.tensor(filled, device=device).flatten()
            self.cells = torch.tensor(lines, device=device), torch.tensor(places, device=device)

    def by_prompt(self, rows: Tensor) -> Tensor:
        """``[B, K, Q, n]`` to ``[P * K, S * Q, n]``."""
        cells = rows if self.slots is None else rows[self.slots]
        return cells.unflatten(0, self.shape).transpose(1, 2).flatten(2, 3).flatten(0, 1)

    def by_row(self, prompts: Tensor, heads: tuple[int, int]) -> Tensor:
        """The way back to ``[B, K, Q, n]`` or, where that is a view, ``[P, S, K, Q, n]``."""
        groups, queries = heads
        cells = prompts.view(self.shape[0], groups, self.shape[1], queries, -1)
        if self.cells is None:
            return cells.transpose(1, 2)
        return cells[self.cells[0], :, self.cells[1]]


class Cache:
    """Prompts ``[layers, lines, K, T, head size]`` and responses ``[layers, slots, K, T, head
    size]``, of which at most ``widths`` tokens are kept; ``prompts`` may be live at once.

    Keys are transposed, ``[.., head size, T]``, as the product with a query reads them.
    ``lines[i]`` is the line of the prompt of live row i, ``counts[i]`` how many tokens of its
    response are kept, ``prompt_widths`` how many each live prompt has.
    """

    def __init__(
        self,
        heads: tuple[int, int, int],
        *,
        prompts: int,
        slots: int,
        widths: tuple[int, int],
        like: Tensor,
    ) -> None:
        layers, self.groups, size = heads
        self.prompt_keys, self.prompt_values = _store(
            (layers, prompts, self.groups, widths[0], size), like
        )
        self.keys, self.values = _store((layers, slots, self.groups, widths[1], size), like)
        by_head = (states.flatten(1, 2).unbind() for states in (self.keys, self.values))
        self.by_layer = list(zip(*by_head, strict=True))
        self.lines: list[int] = []
        self.counts: list[int] = []
        self.prompts: list[int] = []
        self.prompt_widths: list[int] = []
        self._grid: Grid | None = None

    @property
    def grid(self) -> Grid:
        """The live rows by their prompts."""
        if self._grid is None:
            self._grid = Grid(self.lines, self.keys.device)
        return self._grid

    def start(self, prefix: Prefix, prompt: int, rows: int) -> None:
        """Begin ``rows`` responses to the one prompt of ``prefix``, which is called ``prompt``."""
        if prompt not in self.prompts:
            line, width = len(self.prompts), prefix.keys.shape[3]
            self.prompt_keys[:, line, :, :, :width] = prefix.keys[:, 0].transpose(2, 3)
            self.prompt_values[:, line, :, :width] = prefix.values[:, 0]
            self.prompts.append(prompt)
            self.prompt_widths.append(width)
        self.lines += [self.prompts.index(prompt)] * rows
        self.counts += [0] * rows
        self._grid = None

    def end(self, slot: int) -> None:
        """The row of ``slot`` is done: the last row takes its slot, and the last prompt its line
        where no other row has the prompt.
        """
        line, last, count = self.lines[slot], len(self.lines) - 1, self.counts[-1]
        self.keys[:, slot, :, :, :count] = self.keys[:, last, :, :, :count]
        self.values[:, slot, :, :count] = self.values[:, last, :, :count]
        for of_row in (self.lines, self.counts):
            of_row[slot] = of_row[last]
            del of_row[last]
        self._grid = None
        if line not in self.lines:
            self._end_prompt(line)

    def positions(self) -> list[int]:
        """Where the next token of each live row stands."""
        return [
            self.prompt_widths[line] + count
            for line, count in zip(self.lines, self.counts, strict=True)
        ]

    def columns(self) -> tuple[slice | Tensor, int | Tensor]:
        """Where the next tokens go: rows with their heads (``B * K``), and columns."""
        rows = len(self.counts) * self.groups
        if min(self.counts) == max(self.counts):
            return slice(rows), self.counts[0]
        counts = torch.tensor(self.counts, device=self.keys.device)
        return torch.arange(rows, device=counts.device), counts.repeat_interleave(self.groups)

    def append(
        self, layer: int, columns: tuple[slice | Tensor, int | Tensor], key: Tensor, value: Tensor
    ) -> None:
        """Keep the key and value ``[B, K, head size]`` of each row's new token in one layer."""
        rows, column = columns
        self.by_layer[layer][0][rows, :, column] = key.flatten(0, 1)
        self.by_layer[layer][1][rows, column] = value.flatten(0, 1)

    def seen(self, window: int | None) -> Seen:
        """What the next tokens see in layers with this window, the tokens themselves among it."""
        positions = self.positions()
        longest = max(self.prompt_widths)
        first = begin = 0
        if window is not None:
            first = min(longest, max(0, min(positions) + 1 - window))
            begin = max(0, min(self.counts) + 1 - window)
        in_prompt, in_response = range(first, longest), range(begin, max(self.counts) + 1)
        alike = min(positions) == max(positions) and min(self.counts) == max(self.counts)
        return Seen(
            _views(self.prompt_keys, self.prompt_values, len(self.prompts), in_prompt),
            _views(self.keys, self.values, len(self.lines), in_response),
            None if alike else self._mask(in_prompt, in_response, window),
        )

    def _mask(self, in_prompt: range, in_response: range, window: int | None) -> Tensor:
        device = self.keys.device
        widths = [self.prompt_widths[line] for line in self.lines]
        widths_B1 = torch.tensor(widths, device=device)[:, None]
        counts_B1 = torch.tensor(self.counts, device=device)[:, None]
        prompt = torch.arange(in_prompt.start, in_prompt.stop, device=device)
        response = torch.arange(in_response.start, in_response.stop, device=device)
        hidden = torch.cat([prompt >= widths_B1, response > counts_B1], dim=1)
        if window is not None:
            places = torch.cat([prompt.expand(len(widths), -1), widths_B1 + response], dim=1)
            hidden |= places <= widths_B1 + counts_B1 - window
        mask = torch.zeros(hidden.shape, dtype=self.keys.dtype, device=device)
        return mask.masked_fill_(hidden, -torch.inf)[:, None, None]

    def _end_prompt(self, line: int) -> None:
        last = len(self.prompts) - 1
        width = self.prompt_widths[last]
        self.prompt_keys[:, line, :, :, :width] = self.prompt_keys[:, last, :, :, :width]
        self.prompt_values[:, line, :, :width] = self.prompt_values[:, last, :, :width]
        for of_prompt in (self.prompts, self.prompt_widths):
            of_prompt[line] = of_prompt[last]
            del of_prompt[last]
        self.lines = [line if one == last else one for one in self.lines]


def _views(keys: Tensor, values: Tensor, count: int, seen: range) -> KeysValues:
    """The ``seen`` columns of the first ``count`` rows, layer by layer, with rows and heads as one.

    Cut for all layers at once: an index costs as much as a small product.
    """
    columns = slice(seen.start, seen.stop)
    seen_keys = keys[:, :count, :, :, columns].flatten(1, 2).unbind()
    seen_values = values[:, :count, :, columns].flatten(1, 2).unbind()
    return list(zip(seen_keys, seen_values, strict=True))


def _store(shape: tuple[int, ...], like: Tensor) -> tuple[Tensor, Tensor]:
    """Keys (transposed) and values of zeros: a masked column is still multiplied by its weight of
    0, and 0 * nan is nan.
    """
    values = like.new_zeros(shape)
    if like.dtype is torch.bfloat16 and like.device.type == "cpu":
        # oneDNN's products of bfloat16 with rows in the other order take twice as long
        return like.new_zeros((*shape[:3], shape[4], shape[3])), values
    # else token by token like the values: a step reads what is filled and nothing between
    return like.new_zeros(shape).transpose(3, 4), values
