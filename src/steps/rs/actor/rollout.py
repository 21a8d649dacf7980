"""Samples of prompts and their scores, drawn and scored at the same time.

Shape legend: ``_P`` prompts, ``_G`` samples of a group.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

from nemotron_style.runtime.errors import InputError
from nemotron_style.steps.blocks.data.chat_format import ChatFormat
from nemotron_style.steps.blocks.data.seed import seed_of
from nemotron_style.steps.blocks.data.tokenizer import Tokenizer
from nemotron_style.steps.blocks.generation.backend import GenerationEngine
from nemotron_style.steps.blocks.generation.engine import Sample
from nemotron_style.steps.blocks.generation.sampling_params import SamplingParams
from nemotron_style.steps.blocks.model.parallel import data_rank, data_world
from nemotron_style.steps.blocks.model.prefix_packing import Group
from nemotron_style.steps.blocks.reward.types import RewardScore
from nemotron_style.steps.rs.actor.best_of_n import Choice, choose
from nemotron_style.steps.rs.actor.prompt import Prompt
from nemotron_style.steps.rs.actor.reward_pool import Judge


@dataclass(frozen=True)
class Asked:
    """One group to be drawn: a prompt and the name of its randomness."""

    prompt: Prompt
    seed: int


def name_groups(prompts: Sequence[Prompt], places: Sequence[int], *parts: int | str) -> list[Asked]:
    """Groups of the prompts at ``places``. Each is named by its place in the step and ``parts``,
    so that a prompt that comes twice is drawn twice.
    """
    return [Asked(prompts[place], seed_of(*parts, number)) for number, place in enumerate(places)]


@dataclass(frozen=True)
class Response:
    """One sample; ``text`` is None where it cannot be said in a conversation."""

    tokens: list[int]
    text: str | None
    finished: bool


@dataclass(frozen=True)
class Rollout:
    """A group: a prompt, its samples in the order drawn, and what each was given."""

    prompt: Prompt
    responses: list[Response]
    scores: list[RewardScore | None]

    @property
    def rewards(self) -> list[float | None]:
        return [one.score if one else None for one in self.scores]

    def choose(self, top_n: int) -> Choice:
        """The best of the group."""
        return choose(self.rewards, top_n)

    def group(self, places: Sequence[int]) -> Group:
        """Some of the samples with their prompt, to be packed."""
        return Group(self.prompt.ids, [self.responses[place].tokens for place in places])


def distinct_texts(responses: Sequence[Response]) -> list[str]:
    """What was said, each once: the same text has the same score, to the last bit."""
    return list(dict.fromkeys(one.text for one in responses if one.text is not None))


@dataclass(frozen=True)
class Roller:
    """Draws groups and has them scored.

    ``size`` groups are drawn at a time by each rank; the scores of one lot are asked for while the
    next is drawn. Every rank gets everything.
    """

    sampler: GenerationEngine
    judge: Judge
    tokenizer: Tokenizer
    chat: ChatFormat
    sampling: SamplingParams

    def roll(
        self, asked: Sequence[Asked], *, samples: int, size: int
    ) -> tuple[list[Rollout], dict[str, float]]:
        """``samples`` scored responses to each of ``asked``, in their order, and seconds spent.

        Raises what :meth:`Judge.collect` raises.
        """
        begun, drawn = time.monotonic(), []
        for first in range(0, len(asked), size * data_world()):
            lot = asked[first : first + size * data_world()]
            fresh = self._draw(lot, samples)
            drawn += fresh
            self.judge.ask(
                [
                    one.prompt.answered(text)
                    for one, responses in zip(lot, fresh, strict=True)
                    for text in distinct_texts(responses)
                ]
            )
        waited = time.monotonic()
        scores = iter(self.judge.collect())
        rollouts = []
        for one, responses in zip(asked, drawn, strict=True):
            found = {text: next(scores) for text in distinct_texts(responses)}
            given = [found[each.text] if each.text else None for each in responses]
            rollouts.append(Rollout(one.prompt, responses, given))
        seconds = {
            "draw_seconds": waited - begun,
            "score_wait_seconds": time.monotonic() - waited,
        }
        return rollouts, seconds

    def _draw(self, lot: Sequence[Asked], samples: int) -> list[list[Response]]:
        """Responses to a lot on every rank; each rank draws every so many-th group of it."""
        mine = lot[data_rank() :: data_world()]
        found = self.sampler.generate(
            [one.prompt.ids for one in mine],
            self.sampling,
            samples_per_prompt=samples,
            seed=[one.seed for one in mine],
        )
        parts = self.judge.gather([[self._read(sample) for sample in group] for group in found])
        return [parts[place % data_world()][place // data_world()] for place in range(len(lot))]

    def _read(self, sample: Sample) -> Response:
        """A sample with the text that is sent, which is what the response says and no more."""
        return Response(sample.tokens, self._text(sample), sample.finished)

    def _text(self, sample: Sample) -> str | None:
        if max(sample.tokens) >= self.tokenizer.vocab_size:  # rows that only pad the embedding
            return None
        said = self.tokenizer.decode(sample.tokens)
        for end in self.sampling.end_strings:
            said = said.partition(end)[0]
        text = self.chat.read_response(said)
        try:
            self.chat.response(text)
        except InputError:  # a control token in the middle
            return None
        return text or None
