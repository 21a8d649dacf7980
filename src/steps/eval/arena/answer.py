"""The answers of both models, drawn shard by shard and kept, so that a killed run goes on.

Both models answer with the same random streams. A shard is decoded by itself: which prompts stand
beside each other is the same for every attempt, and so is every rounded sum.
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
from nemotron_style.steps.eval.arena.match import Bout
from nemotron_style.steps.eval.arena.prompt import as_messages

SLOTS = ("baseline", "model")
FILE = "answers.jsonl"

Shard = tuple[str, Sequence[Request]]
Texts = list[str | None]
"""The answers to one prompt; None for one that did not finish."""


def plan_shards(config: Config, prompts: Sequence[Conversation]) -> list[Shard]:
    """What each model is asked, ``shard_prompts`` prompts at a time."""
    requests = [
        Request(asked, None, seed_of(config.seed, place)) for place, asked in enumerate(prompts)
    ]
    size = config.shard_prompts
    starts = range(0, len(requests), size)
    return [(slot, requests[start : start + size]) for slot in SLOTS for start in starts]


def draw_shards(config: Config, ctx: StepContext, shards: Sequence[Shard]) -> Iterator[int]:
    """Draw what earlier attempts left open; gives how many shards are done, after each."""
    done = count_finished(ctx, len(shards))
    if done:
        ctx.say(f"{done} of {len(shards)} shards of answers are there already")
    ctx.metrics.rewind(done)
    loaded: dict[str, ChatSampler] = {}
    for number in range(done + 1, len(shards) + 1):
        if ctx.stopping:
            raise Interrupted("stopped between two shards; the same command goes on from here")
        slot, requests = shards[number - 1]
        if slot not in loaded:
            loaded = {slot: load(config, ctx, slot)}
        rows = answer(config, loaded[slot], requests)
        write_rows(ctx.checkpoints.stage(number) / FILE, ({"answers": texts} for texts in rows))
        ctx.checkpoints.commit(number, keep=number)
        said = [text for texts in rows for text in texts]
        ctx.metrics.log(number, finished_share=sum(text is not None for text in said) / len(said))
        yield number


def count_finished(ctx: StepContext, most: int) -> int:
    """How many shards are whole, from the first up to the first that is not."""
    done = 0
    while done < most and ctx.checkpoints.at(done + 1):
        done += 1
    return done


def load(config: Config, ctx: StepContext, slot: str) -> ChatSampler:
    """The model of a slot, ready to answer."""
    tokens, half = config.model.data.chat_prompt_tokens, config.trainer.half
    sampler = load_chat_sampler(ctx.input(slot).path, tokens=tokens, half=half)
    sampler.max_rows = config.sampling.max_rows
    return sampler


def answer(config: Config, sampler: ChatSampler, requests: Sequence[Request]) -> list[Texts]:
    """``num_samples`` answers to each request, in their order."""
    sampling = config.sampling
    groups = sampler.sample(
        requests,
        samples=sampling.num_samples,
        max_new_tokens=sampling.max_new_tokens,
        temperature=sampling.temperature,
    )
    return [[said.text if said else None for said in group] for group in groups]


def read_bouts(
    ctx: StepContext, shards: Sequence[Shard], prompts: Sequence[Conversation]
) -> list[Bout]:
    """Every pair of answers, by prompt and number."""
    told: dict[str, list[Texts]] = {slot: [] for slot in SLOTS}
    for number, (slot, _) in enumerate(shards, start=1):
        kept = ctx.checkpoints.at(number)
        assert kept is not None, "a shard that was drawn is gone"
        told[slot] += read_answers(kept.path / FILE)
    return [
        Bout(place, number, as_messages(asked), final(model), final(baseline))
        for place, asked in enumerate(prompts)
        for number, (model, baseline) in enumerate(
            zip(told["model"][place], told["baseline"][place], strict=True)
        )
    ]


def read_answers(path: Path) -> list[Texts]:
    """A shard's answers, prompt by prompt."""
    # Split on LF only: U+2028 may stand inside an answer.
    lines = path.read_text(encoding="utf-8").split("\n")
    return [json.loads(line)["answers"] for line in lines if line]


def final(text: str | None) -> str | None:
    """What a user gets of an answer: no reasoning, and None where nothing else was said."""
    said = split_reasoning(text)[1] if text is not None else ""
    return said if said.strip() else None
