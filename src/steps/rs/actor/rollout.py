"""Rollouts: groups of responses to prompts, sampled and scored at the same time.

Shape legend: ``_P`` prompts, ``_G`` samples of a group.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain

import torch.distributed as dist

from nemotron_style.runtime.errors import Problem, StepFailed
from nemotron_style.steps.blocks.data.chat.interface import Chat
from nemotron_style.steps.blocks.data.chat.usable import Sampled, require_usable
from nemotron_style.steps.blocks.data.prompt import Prompt
from nemotron_style.steps.blocks.data.seed import seed_of
from nemotron_style.steps.blocks.generation.backend import GenerationEngine, sample_on_all_ranks
from nemotron_style.steps.blocks.generation.engine import Sample
from nemotron_style.steps.blocks.generation.sampling_params import SamplingParams
from nemotron_style.steps.blocks.model.prefix_packing import Group
from nemotron_style.steps.blocks.reward.types import RewardScore
from nemotron_style.steps.rs.actor.config import Config
from nemotron_style.steps.rs.actor.reward_pool import RewardPool


@dataclass(frozen=True)
class SeededPrompt:
    """A prompt, and the seed of the random numbers that its responses are sampled with."""

    prompt: Prompt
    seed: int


def seed_prompts(
    prompts: Sequence[Prompt], indices: Sequence[int], *name: int | str
) -> list[SeededPrompt]:
    """The prompts at ``indices`` with their seeds, which are made of ``name`` and the number in
    ``indices``: a prompt that comes twice gets other responses.
    """
    return [
        SeededPrompt(prompts[index], seed_of(*name, number)) for number, index in enumerate(indices)
    ]


@dataclass(frozen=True)
class Response:
    """One sample; ``text`` is None where it cannot be said in a conversation."""

    tokens: list[int]
    text: str | None
    finished: bool


@dataclass(frozen=True)
class Rollout:
    """A group: a prompt, its responses, and the score of each (None for one without a text)."""

    prompt: Prompt
    responses: list[Response]
    scores: list[RewardScore | None]

    @property
    def rewards(self) -> list[float | None]:
        return [one.score if one else None for one in self.scores]

    def group(self, indices: Sequence[int] | None = None) -> Group:
        """The prompt with the responses at ``indices``, or with all, to be packed."""
        chosen = range(len(self.responses)) if indices is None else indices
        return Group(self.prompt.ids, [self.responses[index].tokens for index in chosen])


def distinct_texts(responses: Sequence[Response]) -> list[str]:
    """The texts of ``responses``, each once: the same text has the same score, to the last bit."""
    return list(dict.fromkeys(one.text for one in responses if one.text is not None))


@dataclass(frozen=True)
class RolloutSampler:
    """Samples groups of responses and has them scored. Every rank samples its share of each lot,
    and gets them all; the scores of one lot are asked for while the next is sampled.
    """

    engine: GenerationEngine
    reward_pool: RewardPool
    chat: Chat
    params: SamplingParams

    def sample(
        self, prompts: Sequence[SeededPrompt], *, samples: int, lot: int
    ) -> list[list[Response]]:
        """``samples`` responses to each of ``prompts``, which are being scored from now on.

        Each rank samples ``lot`` groups at a time. Raises StepFailed when most of the responses
        that ended cannot be used.
        """
        groups: list[list[Response]] = []
        size = lot * dist.get_world_size()
        for first in range(0, len(prompts), size):
            part = prompts[first : first + size]
            sampled = self._sample_lot(part, samples)
            groups += sampled
            self.reward_pool.submit(
                [
                    one.prompt.answered(text)
                    for one, responses in zip(part, sampled, strict=True)
                    for text in distinct_texts(responses)
                ]
            )
        require_usable(
            self.chat,
            [Sampled(one.tokens, one.finished, one.text is not None) for one in chain(*groups)],
        )
        return groups

    def collect_scores(
        self, prompts: Sequence[SeededPrompt], groups: Sequence[list[Response]]
    ) -> list[Rollout]:
        """The groups that :meth:`sample` made, with their scores, once they are there.

        Raises what :meth:`RewardPool.collect` raises.
        """
        scores = iter(self.reward_pool.collect())
        rollouts = []
        for one, responses in zip(prompts, groups, strict=True):
            by_text = {text: next(scores) for text in distinct_texts(responses)}
            own = [by_text[each.text] if each.text else None for each in responses]
            rollouts.append(Rollout(one.prompt, responses, own))
        return rollouts

    def _sample_lot(self, lot: Sequence[SeededPrompt], samples: int) -> list[list[Response]]:
        return sample_on_all_ranks(
            self.engine,
            self.reward_pool.rank_zero,
            [one.prompt.ids for one in lot],
            self.params,
            samples_per_prompt=samples,
            seeds=[one.seed for one in lot],
            read=self._read,
        )

    def _read(self, sample: Sample) -> Response:
        # the text that is sent to be scored; None where there is none, or no valid one
        text = self.chat.read_response(sample.tokens, end_strings=self.params.end_strings)
        return Response(sample.tokens, text, sample.finished)


def split_batches(kept: Sequence[Group], count: int, *, step: int) -> Iterator[list[Group]]:
    """The kept groups of a step as ``count`` global batches, without groups that kept nothing.

    Raises StepFailed for a batch in which no response was kept.
    """
    width = len(kept) // count
    for first in range(0, count * width, width):
        batch = [group for group in kept[first : first + width] if group.responses_ids]
        if not batch:
            raise StepFailed(
                Problem(
                    where=f"step {step}",
                    what="no sample of a global batch can be said in a conversation, so none has "
                    "a score",
                    fix="look at what the model says: empty responses, or control tokens inside "
                    "them",
                )
            )
        yield batch


def plan_sampling(config: Config, limit: int, *, stop_ids: Sequence[int]) -> SamplingParams:
    """How responses are sampled from a model that holds ``limit`` tokens."""
    params, lengths = config.model.rs.sampling_params, config.model.rs.length_params
    longest = config.max_new_tokens(limit)
    return SamplingParams(
        max_new_tokens=longest,
        min_new_tokens=min(lengths.min_length, longest),
        temperature=0.0 if params.use_greedy else params.temperature,
        top_k=params.top_k,
        top_p=params.top_p,
        repetition_penalty=params.repetition_penalty,
        stop_ids=stop_ids,
        end_strings=params.end_strings,
    )
