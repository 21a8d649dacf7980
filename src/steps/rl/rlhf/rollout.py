"""Rollouts: groups of answers to prompts, sampled from the current weights.

Shape legend: ``_P`` prompts, ``_G`` samples of a group.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain
from statistics import fmean

from nemotron_style.steps.blocks.data.chat.interface import Chat
from nemotron_style.steps.blocks.data.chat.usable import Sampled, require_usable
from nemotron_style.steps.blocks.data.prompt import Prompt
from nemotron_style.steps.blocks.data.seed import seed_of
from nemotron_style.steps.blocks.generation.backend import GenerationEngine, sample_on_all_ranks
from nemotron_style.steps.blocks.generation.engine import Sample as EngineSample
from nemotron_style.steps.blocks.generation.sampling_params import SamplingParams
from nemotron_style.steps.blocks.judge.aggregation import Answer
from nemotron_style.steps.blocks.judge.group_judge import AnswerGroup
from nemotron_style.steps.blocks.judge.prompt import split_reasoning
from nemotron_style.steps.blocks.model.rank_zero import RankZero


@dataclass(frozen=True)
class Sample:
    """One answer: its tokens, the log-probs they were sampled with, and what the judge reads.

    ``known`` is False where an id is that of no token, such as a row that pads the embedding. The
    judge reads a text without it, so its reward is not for these tokens. Such a sample is left out
    and counted. Its id is not made impossible in the sampler instead: the trainer's softmax runs
    over every row, and each token would have another log-prob there, by the log of what the
    sampler cut.
    """

    tokens: list[int]
    log_probs: list[float]
    answer: Answer
    truncated: bool
    known: bool = True


@dataclass(frozen=True)
class Rollout:
    """A group: a prompt and its samples. ``name`` is unique in the run."""

    name: str
    prompt: Prompt
    samples: list[Sample]

    @property
    def answer_group(self) -> AnswerGroup:
        """The group as the judge compares it."""
        answers = [sample.answer for sample in self.samples]
        return AnswerGroup(self.name, self.prompt.messages, answers, self.prompt.principle)


@dataclass(frozen=True)
class RolloutSampler:
    """Samples groups of answers. Every rank samples its share of them, and gets them all."""

    engine: GenerationEngine
    rank_zero: RankZero
    chat: Chat
    sampling: SamplingParams

    def sample(
        self, prompts: Sequence[Prompt], indices: Sequence[int], *, samples: int, name: str
    ) -> list[Rollout]:
        """``samples`` answers to the prompt at each of ``indices``.

        The name of a group, and with it its random numbers, are ``name`` and its number in
        ``indices``: a prompt that comes twice is answered twice. Raises StepFailed when most
        answers that ended cannot be used.
        """
        names = [f"{name}/{number}" for number in range(len(indices))]
        asked = [prompts[index] for index in indices]
        groups = sample_on_all_ranks(
            self.engine,
            self.rank_zero,
            [prompt.ids for prompt in asked],
            self.sampling,
            samples_per_prompt=samples,
            seeds=[seed_of(name) for name in names],
            read=self._read,
        )
        self._require_usable(chain(*groups))
        return [Rollout(*parts) for parts in zip(names, asked, groups, strict=True)]

    def _require_usable(self, samples: Iterable[Sample]) -> None:
        read = self.chat.read_response
        require_usable(
            self.chat,
            [
                Sampled(one.tokens, not one.truncated, read(one.tokens) is not None)
                for one in samples
            ],
        )

    def _read(self, sample: EngineSample) -> Sample:
        """A sample with its text, without control tokens: servers do not show them either."""
        reasoning, answer = split_reasoning(self.chat.visible_text(sample.tokens))
        return Sample(
            sample.tokens,
            sample.log_probs,
            Answer(answer, reasoning),
            truncated=not sample.finished,
            known=self.chat.tokenizer.knows(sample.tokens),
        )


def mean_tokens(rollouts: Sequence[Rollout]) -> float:
    """Tokens of a sample."""
    return fmean(len(sample.tokens) for rollout in rollouts for sample in rollout.samples)
