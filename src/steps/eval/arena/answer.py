"""The answers of both models, sampled shard by shard and kept, so that a killed run goes on.

Both models answer with the same random streams. Each shard is decoded by itself: which prompts
share a batch is the same for every attempt, and so is every rounded sum.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

from nemotron_style.runtime.errors import Interrupted
from nemotron_style.runtime.step.context import StepContext
from nemotron_style.steps.blocks.data.conversation import Conversation
from nemotron_style.steps.blocks.data.jsonl import write_rows
from nemotron_style.steps.blocks.data.seed import seed_of
from nemotron_style.steps.blocks.generation.chat_sampler import (
    ChatSampler,
    Request,
    load_chat_sampler,
)
from nemotron_style.steps.blocks.judge.prompt import split_reasoning
from nemotron_style.steps.eval.arena.config import Config
from nemotron_style.steps.eval.arena.match import Match
from nemotron_style.steps.eval.arena.prompt import as_messages

FILE = "answers.jsonl"
SAMPLED = ("baseline", "model")
"""The slots in the order in which their models answer, which numbers the checkpoints of a run."""

Shard = tuple[str, Sequence[Request]]
"""A slot, and the prompts that its model answers in one go."""

Answers = list[str | None]
"""The answers to one prompt; None for an unfinished one."""


def plan_shards(config: Config, prompts: Sequence[Conversation]) -> list[Shard]:
    """All prompts for each model, ``shard_prompts`` at a time."""
    requests = [
        Request(prompt, None, seed_of(config.seed, index)) for index, prompt in enumerate(prompts)
    ]
    size = config.shard_prompts
    starts = range(0, len(requests), size)
    return [(slot, requests[start : start + size]) for slot in SAMPLED for start in starts]


def sample_shards(config: Config, ctx: StepContext, shards: Sequence[Shard]) -> Iterator[int]:
    """Sample what earlier attempts left open; yields how many shards are done, after each."""
    done = 0
    while done < len(shards) and ctx.checkpoints.at(done + 1):
        done += 1
    if done:
        ctx.say(f"{done} of {len(shards)} shards of answers are there already")
    ctx.metrics.rewind(done)
    samplers: dict[str, ChatSampler] = {}
    for number, (slot, requests) in enumerate(shards[done:], start=done + 1):
        if ctx.stopping:
            raise Interrupted("stopped between two shards; the same command goes on from here")
        if slot not in samplers:
            samplers.clear()  # memory holds one model at a time
            samplers[slot] = load_chat_sampler(
                ctx.input(slot).path,
                tokens=config.model.data.chat_prompt_tokens,
                half=config.trainer.half,
                max_rows=config.sampling.max_rows,
            )
        rows = sample_answers(config, samplers[slot], requests)
        write_rows(ctx.checkpoints.stage(number) / FILE, ({"answers": answers} for answers in rows))
        # Every shard is kept: the matches are read from all of them.
        ctx.checkpoints.commit(number, keep=number)
        texts = [text for answers in rows for text in answers]
        finished = sum(text is not None for text in texts)
        ctx.metrics.log(number, finished_share=finished / len(texts))
        yield number


def sample_answers(
    config: Config, sampler: ChatSampler, requests: Sequence[Request]
) -> list[Answers]:
    """``num_samples`` answers to each request, in their order."""
    sampling = config.sampling
    groups = sampler.sample(
        requests,
        samples=sampling.num_samples,
        max_new_tokens=sampling.max_new_tokens,
        temperature=sampling.temperature,
    )
    return [[answer.text if answer else None for answer in group] for group in groups]


def read_matches(
    ctx: StepContext, shards: Sequence[Shard], prompts: Sequence[Conversation]
) -> list[Match]:
    """Every match, by prompt and number."""
    answers: dict[str, list[Answers]] = {slot: [] for slot in SAMPLED}
    for number, (slot, _) in enumerate(shards, start=1):
        checkpoint = ctx.checkpoints.at(number)
        assert checkpoint is not None, "a shard that was sampled is gone"
        answers[slot] += read_answers(checkpoint.path / FILE)
    return [
        Match(index, number, as_messages(prompt), final_answer(model), final_answer(baseline))
        for index, prompt in enumerate(prompts)
        for number, (model, baseline) in enumerate(
            zip(answers["model"][index], answers["baseline"][index], strict=True)
        )
    ]


def read_answers(path: Path) -> list[Answers]:
    """A shard's answers, prompt by prompt."""
    # Split on LF only: U+2028 may stand inside an answer.
    lines = path.read_text(encoding="utf-8").split("\n")
    return [json.loads(line)["answers"] for line in lines if line]


def final_answer(text: str | None) -> str | None:
    """What a user gets of an answer: no reasoning, and None where nothing else was said."""
    answer = split_reasoning(text)[1] if text is not None else ""
    return answer if answer.strip() else None
