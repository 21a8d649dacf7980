"""Sampling from a model in the training process: prompts in, responses with log-probs out.

Every response is a row of its own: it has a random stream that is named by its prompt's seed and
its number, so it does not depend on what is decoded beside it (to the rounding of the matrix
products). Rows live in slots. A row that ends leaves at once; its slot goes to the next response
that waits, and when none waits, the batch shrinks. A prompt is computed once for all its
responses, whenever they find room.

Shape legend: ``_P`` prompts, ``_B`` live rows, ``_T`` tokens, ``_V`` vocabulary.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Literal

import torch
from torch import Tensor, nn

from nemotron_style.runtime.errors import StepFailed
from nemotron_style.steps.blocks.generation.kv_cache import Prefix
from nemotron_style.steps.blocks.generation.kv_decoder import Decoder
from nemotron_style.steps.blocks.generation.random_stream import sample_keys, uniforms
from nemotron_style.steps.blocks.generation.sampling_params import (
    SamplingParams,
    adjust_logits,
    check_prompts,
    sample_tokens,
)
from nemotron_style.steps.blocks.settings.model_config import ModelConfig

PREFILL_TOKENS = 16384
"""Prompt tokens that are computed side by side, at most (one prompt may have more)."""

BROKEN_LOGITS = "the model gave logits that are not finite: its weights are broken"

Decode = Callable[[list[int]], str]
Finish = Literal["stop", "length"]


@dataclass(frozen=True)
class Sample:
    """One response: ``tokens`` end with the stop token, or with the one that completed an end
    string, where ``finish`` is ``"stop"``.

    ``log_probs`` are those of each token under the distribution that it was sampled from; at
    temperature 0, under that distribution at temperature 1.
    """

    tokens: list[int]
    log_probs: list[float]
    finish: Finish

    @property
    def logprob(self) -> float:
        """The log-prob of the whole response."""
        return math.fsum(self.log_probs)

    @property
    def finished(self) -> bool:
        """It ended by itself, not for want of room."""
        return self.finish == "stop"


@dataclass
class _Row:
    """A response that is being sampled: number ``number`` to prompt ``prompt``."""

    prompt: int
    number: int
    tokens: list[int] = field(default_factory=list)
    log_probs: list[float] = field(default_factory=list)


class Engine:
    """Samples responses from a model that is held for training or scoring.

    ``max_rows`` bounds the responses decoded side by side, and with them the memory of the cache.
    On a CPU large weights are held twice, the second time in the order that products read fastest.
    Where ranks divide the model, each has a copy of all weights while it samples, and all of them
    call :meth:`generate`, be it with prompts of their own or with none.
    ``dtype`` decodes in another type than the weights have, for example bfloat16. ``decode``
    returns the text of tokens; only end strings need it.
    """

    def __init__(
        self,
        model: nn.Module,
        config: ModelConfig,
        *,
        max_rows: int = 512,
        dtype: torch.dtype | None = None,
        decode: Decode | None = None,
    ) -> None:
        self.decoder = Decoder(model, config, dtype=dtype)
        self.max_rows = max_rows
        self.decode = decode

    @torch.inference_mode()
    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        sampling: SamplingParams,
        *,
        samples_per_prompt: int = 1,
        seed: int | Sequence[int],
    ) -> list[list[Sample]]:
        """``samples_per_prompt`` responses to each of ``prompts``, in their order.

        One ``seed`` gives prompt i a random stream by its position, a list names one seed per
        prompt. Raises InputError naming every prompt that is empty or does not fit the model with
        its response, and StepFailed when the logits are not numbers.
        """
        assert self.decode or not sampling.end_strings, "end strings need the tokens' text"
        check_prompts(prompts, sampling, room=self.decoder.config.max_sequence_length)
        rows = min(self.max_rows, len(prompts) * samples_per_prompt)
        width = max(map(len, prompts), default=1) + sampling.max_new_tokens
        self.decoder.read_weights(rows=max(1, rows), width=width)
        keys = sample_keys(seed, len(prompts), samples_per_prompt)
        batch = _Batch(self, prompts, sampling, keys)
        batch.run()
        self.decoder.forget_copies()
        numbers = range(samples_per_prompt)
        return [[batch.done[i, number] for number in numbers] for i in range(len(prompts))]

    def update(self) -> None:
        """Nothing to do: every call of :meth:`generate` reads the model's weights."""

    def close(self) -> None:
        """Nothing to give back."""


class _Batch:
    """The rows of one call of :meth:`Engine.generate`: waiting, live in slots, and done.

    ``live[i]`` is in slot i of the cache, of the random numbers and of the tokens seen.
    """

    def __init__(
        self,
        engine: Engine,
        prompts: Sequence[Sequence[int]],
        sampling: SamplingParams,
        keys: Tensor,
    ) -> None:
        self.decoder, self.decode = engine.decoder, engine.decode
        self.prompts, self.sampling = prompts, sampling
        self.stops = frozenset(sampling.stop_ids)
        self.keys = keys
        # Prompts of one length stand together: they are computed, and then decoded, side by side.
        order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
        self.waiting = deque(_Row(i, number) for i in order for number in range(keys.shape[1]))
        self.live: list[_Row] = []
        self.done: dict[tuple[int, int], Sample] = {}
        self.slots = min(engine.max_rows, len(self.waiting))
        self.cache = self.decoder.cache(
            prompts=min(self.slots, len(prompts)),
            slots=self.slots,
            prompt_width=max(map(len, prompts), default=1),
            # The last token of a row is never fed back, so the cache needs no column for it.
            width=sampling.max_new_tokens - 1,
        )
        self.numbers_BT = torch.empty(self.slots, sampling.max_new_tokens, dtype=torch.float64)
        self.numbers_BT = self.numbers_BT.to(self.decoder.device)
        shape = (self.slots, self.decoder.config.vocab_size)
        self.room_BV = torch.empty(shape, device=self.decoder.device)  # for weights of tokens
        self.seen_BV: Tensor | None = None  # bool, where a penalty needs it
        if sampling.repetition_penalty != 1:
            self.seen_BV = torch.zeros(shape, dtype=torch.bool, device=self.decoder.device)
        self.newest: tuple[int, Prefix] | None = None  # the last prompt that was computed
        # a token holds at least one byte; the 8 more cover a character cut at the window's start
        self.window = max((len(end.encode()) for end in sampling.end_strings), default=0) + 8

    def run(self) -> None:
        """Sample until no row waits and none is live."""
        self._admit()
        while self.live:
            newest = [row.tokens[-1] for row in self.live]
            logits_BV = self.decoder.advance(newest, self.cache)
            self._sample_next(0, logits_BV)
            self._admit()

    def _admit(self) -> None:
        """Give free slots to waiting rows and sample their first tokens, until no slot is free."""
        while self.waiting and len(self.live) < self.slots:
            free = min(self.slots - len(self.live), len(self.waiting))
            taken = [self.waiting.popleft() for _ in range(free)]
            for rows, prefix in self._prefill(taken):
                begin = len(self.live)
                self._start(rows, prefix)
                self._sample_next(begin, prefix.logits_PV.expand(len(rows), -1))

    def _prefill(self, taken: Sequence[_Row]) -> Iterator[tuple[list[_Row], Prefix]]:
        """The rows of each prompt with the prompt's keys, values and logits."""
        groups = {i: list(rows) for i, rows in groupby(taken, key=lambda row: row.prompt)}
        # The responses of a prompt may be admitted in several rounds; its prefix is kept for that.
        if self.newest and self.newest[0] in groups:
            yield groups.pop(self.newest[0]), self.newest[1]
        for members in self._prefill_batches(list(groups)):
            tokens_PT = torch.tensor([list(self.prompts[i]) for i in members])
            prefix = self.decoder.prefill(tokens_PT.to(self.decoder.device))
            for number, i in enumerate(members):
                self.newest = i, prefix.one(number)
                yield groups[i], self.newest[1]

    def _prefill_batches(self, prompts: Sequence[int]) -> Iterator[list[int]]:
        """Split prompts, ordered by length, into batches of one length and a bounded size."""
        for length, same in groupby(prompts, key=lambda i: len(self.prompts[i])):
            members, size = list(same), max(1, PREFILL_TOKENS // length)
            yield from (members[at : at + size] for at in range(0, len(members), size))

    def _start(self, rows: Sequence[_Row], prefix: Prefix) -> None:
        """Make ``rows`` of one prompt live, in the slots behind the live ones."""
        slots = slice(len(self.live), len(self.live) + len(rows))
        self.cache.start(prefix, rows[0].prompt, len(rows))
        keys_B = self.keys[rows[0].prompt, [row.number for row in rows]]
        positions_T = torch.arange(self.sampling.max_new_tokens)
        self.numbers_BT[slots] = uniforms(keys_B[:, None], positions_T).to(self.numbers_BT.device)
        if self.seen_BV is not None:
            self.seen_BV[slots] = False
            self.seen_BV[slots, list(self.prompts[rows[0].prompt])] = True
        self.live += rows

    def _sample_next(self, begin: int, logits_BV: Tensor) -> None:
        """Sample a token for the rows from slot ``begin`` on; retire those that end with it."""
        rows, slots = self.live[begin:], slice(begin, len(self.live))
        seen_BV = None if self.seen_BV is None else self.seen_BV[slots]
        short_B, numbers_B = self._may_not_stop(rows), self._numbers(rows, slots)
        adjusted_BV = adjust_logits(logits_BV, self.sampling, seen_BV=seen_BV, short_B=short_B)
        room_BV = self.room_BV[: len(rows)]
        tokens_B, log_probs_B = sample_tokens(adjusted_BV, self.sampling, numbers_B, room_BV)
        if seen_BV is not None:
            seen_BV.scatter_(1, tokens_B[:, None], True)
        for row, token, log_prob in zip(rows, tokens_B.tolist(), log_probs_B.tolist(), strict=True):
            if not math.isfinite(log_prob):  # logits that are not numbers
                raise StepFailed(BROKEN_LOGITS)
            row.tokens.append(token)
            row.log_probs.append(log_prob)
        if self._all_go_on(rows):
            return
        # From the last slot down: a row that retires is replaced by one that was looked at already.
        for slot in reversed(range(begin, len(self.live))):
            finish = self._finish(self.live[slot])
            if finish:
                self._retire(slot, finish)

    def _all_go_on(self, rows: Sequence[_Row]) -> bool:
        """Whether it is plain that none of ``rows`` ends with its newest token."""
        if self.sampling.end_strings or not self.stops.isdisjoint(row.tokens[-1] for row in rows):
            return False
        return max(len(row.tokens) for row in rows) < self.sampling.max_new_tokens

    def _numbers(self, rows: Sequence[_Row], slots: slice) -> Tensor:
        """The uniform number of each row for its next token."""
        counts = [len(row.tokens) for row in rows]
        if min(counts) == max(counts):
            return self.numbers_BT[slots, counts[0]]
        index_B1 = torch.tensor(counts, device=self.numbers_BT.device)[:, None]
        return self.numbers_BT[slots].gather(1, index_B1)[:, 0]

    def _may_not_stop(self, rows: Sequence[_Row]) -> Tensor | None:
        """Which rows may not stop yet, or None when all may."""
        short = [len(row.tokens) < self.sampling.min_new_tokens for row in rows]
        if not any(short) or not self.stops:
            return None
        return torch.tensor(short, device=self.decoder.device)

    def _finish(self, row: _Row) -> Finish | None:
        """Why ``row`` ends with its newest token, or None when it goes on."""
        tokens, sampling = row.tokens, self.sampling
        if tokens[-1] in self.stops or self._ends_text(tokens):
            return "stop"
        return "length" if len(tokens) == sampling.max_new_tokens else None

    def _ends_text(self, tokens: list[int]) -> bool:
        """Whether an end string is in the text."""
        ends = self.sampling.end_strings
        if not ends or not self.decode or len(tokens) < self.sampling.min_new_tokens:
            return False
        # Only a string that ends in the newest token can be new, so the last tokens are decoded
        # first. A window may begin inside a character, so the whole text confirms the match.
        texts = (self.decode(part) for part in (tokens[-self.window :], tokens))
        return all(any(end in text for end in ends) for text in texts)

    def _retire(self, slot: int, finish: Finish) -> None:
        """Take a row out; the last live one moves into its slot."""
        row, last = self.live[slot], self.live.pop()
        self.cache.end(slot)
        self.done[row.prompt, row.number] = Sample(row.tokens, row.log_probs, finish)
        if last is row:
            return
        self.live[slot] = last
        self.numbers_BT[slot] = self.numbers_BT[len(self.live)]
        if self.seen_BV is not None:
            self.seen_BV[slot] = self.seen_BV[len(self.live)]
