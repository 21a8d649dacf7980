"""Groups of answers to prompts, drawn in this process with the weights of now.

Shape legend: ``_P`` prompts, ``_G`` samples of a group.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Protocol

from nemotron_style.steps.blocks.data.chat_format import ChatFormat
from nemotron_style.steps.blocks.data.seed import seed_of
from nemotron_style.steps.blocks.data.tokenizer import Tokenizer
from nemotron_style.steps.blocks.generation.engine import Sample as Drawn
from nemotron_style.steps.blocks.generation.sampling_params import SamplingParams
from nemotron_style.steps.blocks.judge.aggregation import Answer
from nemotron_style.steps.blocks.judge.group_judge import AnswerGroup
from nemotron_style.steps.blocks.judge.prompt import split_reasoning
from nemotron_style.steps.blocks.model.parallel import data_rank, data_world
from nemotron_style.steps.blocks.model.rank_zero import RankZero
from nemotron_style.steps.rl.rlhf.prompt import Prompt


class Sampler(Protocol):
    """Whatever draws answers with the policy's weights."""

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        sampling: SamplingParams,
        *,
        samples_per_prompt: int,
        seed: Sequence[int],
    ) -> list[list[Drawn]]:
        """``samples_per_prompt`` answers to each prompt, one seed for each."""


@dataclass(frozen=True)
class Sample:
    """One answer: its tokens, their log-probs as they were drawn, and what the judge reads."""

    tokens: list[int]
    log_probs: list[float]
    answer: Answer
    truncated: bool


@dataclass(frozen=True)
class Rollout:
    """A group: a prompt and its samples, in the order drawn. ``name`` tells it from all others."""

    name: str
    prompt: Prompt
    samples: list[Sample]

    @property
    def contest(self) -> AnswerGroup:
        """The group as the judge is asked about it."""
        answers = [sample.answer for sample in self.samples]
        return AnswerGroup(self.name, self.prompt.messages, answers, self.prompt.principle)


@dataclass(frozen=True)
class Roller:
    """Draws groups. Every rank draws a part of them, and gets all."""

    sampler: Sampler
    rank_zero: RankZero
    tokenizer: Tokenizer
    chat: ChatFormat
    sampling: SamplingParams

    def roll(
        self, prompts: Sequence[Prompt], places: Sequence[int], *, samples: int, name: str
    ) -> list[Rollout]:
        """``samples`` answers to the prompt at each of ``places``.

        A group is named by ``name`` and its place in the step, and its randomness by that, so
        that a prompt that comes twice is drawn twice.
        """
        names = [f"{name}/{number}" for number in range(len(places))]
        mine = range(data_rank(), len(places), data_world())
        drawn = self.sampler.generate(
            [prompts[places[number]].ids for number in mine],
            self.sampling,
            samples_per_prompt=samples,
            seed=[seed_of(names[number]) for number in mine],
        )
        own = [[self._read(each) for each in group] for group in drawn]
        parts = self.rank_zero.gather(own)
        return [
            Rollout(names[number], prompts[place], parts[number % len(parts)][number // len(parts)])
            for number, place in enumerate(places)
        ]

    def _read(self, drawn: Drawn) -> Sample:
        """A sample with what it says, less control tokens: servers do not show them either."""
        said = self.chat.read_response(self.tokenizer.decode(drawn.tokens))
        for token in self.tokenizer.control_ids:
            said = said.replace(token, "") if token.strip() else said
        reasoning, answer = split_reasoning(said)
        return Sample(
            drawn.tokens, drawn.log_probs, Answer(answer, reasoning), truncated=not drawn.finished
        )


def mean_tokens(rollouts: Sequence[Rollout]) -> float:
    """Tokens of a sample."""
    return fmean(len(sample.tokens) for rollout in rollouts for sample in rollout.samples)
