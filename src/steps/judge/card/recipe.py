"""``judge/card``: measure a judge on pairs whose truth is known; the figures go with the judge.

The judge compares every pair in both orders, in the request form, through the chat template, by
the engine and with the parser of a training run. Nothing is asked twice: an unreadable answer is
counted as that. The output is the judge itself, byte for byte, with ``card.json`` beside it. The
figures stand in the record too, where ``rl/rlhf`` looks for them.

Source: RewardBench (Lambert et al., 2024) and JudgeBench count accuracy over pairs, the latter in
both orders. Left out: subsets, and a tie that counts as half a hit; of two responses of different
worth a judge has to prefer one.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from nemotron_style.runtime.errors import InputError, Interrupted, Problem
from nemotron_style.runtime.step.context import StepContext
from nemotron_style.steps.blocks.data.jsonl import read_rows, refuse, write_rows
from nemotron_style.steps.blocks.data.layouts.reader import RowReader
from nemotron_style.steps.blocks.data.sample_order import permutation
from nemotron_style.steps.blocks.data.seed import seed_of
from nemotron_style.steps.blocks.judge.prompt import ask_messages
from nemotron_style.steps.blocks.model.parallel import initialize
from nemotron_style.steps.blocks.serving.completion import CompletionTask
from nemotron_style.steps.blocks.serving.local_chat_model import LocalChatModel, load_chat_model
from nemotron_style.steps.judge.card.config import Config
from nemotron_style.steps.judge.card.metrics import Pair, count_card, read_judgement
from nemotron_style.steps.judge.card.row import Comparison, parse_comparison
from nemotron_style.steps.judge.card.samples import sample_rows, sample_table

CARD_FILE, SAMPLES, TABLE = "card.json", "samples.jsonl", "samples.md"
RECORD, ANSWERS = "artifact.json", "answers.jsonl"


@dataclass(frozen=True)
class PairPrompts:
    """A comparison as given and swapped, and the tokens of both prompts."""

    orders: tuple[Comparison, Comparison]
    prompts: tuple[list[int], list[int]]


def run(config: Config, ctx: StepContext) -> None:
    """Sample judgements, count them, and produce ``judge``: the checkpoint with its card."""
    # -- the judge, and every question to it: all of them are checked before one is asked
    initialize(seed=config.seed)
    artifact, output = ctx.input("model"), ctx.output("judge")
    dtype = getattr(torch, config.dtype)
    judge = load_chat_model(
        artifact.path, dtype=dtype, batch_tokens=config.batch_tokens, work=ctx.run_dir / "model"
    )
    reader = RowReader("comparisons", config.data, "data")
    prompts = read_prompts(ctx.input("comparisons").path, judge, config, reader)
    reader.report.tell(ctx, "comparisons", output="judge")
    order = permutation(len(prompts), config.seed, 0)[: config.data.max_pairs]
    prompts = [prompts[index] for index in sorted(order)]
    size = config.pairs_per_checkpoint
    parts = [prompts[start : start + size] for start in range(0, len(prompts), size)]
    ctx.say(f"{len(prompts)} pairs, each in both orders, in the form {config.form}")

    # -- its answers, part by part; those of an earlier attempt are read from its checkpoint
    pairs: list[Pair] = []
    for number, part in enumerate(parts, 1):
        kept = ctx.checkpoints.at(number)
        path = kept.path if kept else sample_part(config, ctx, judge, part=part, number=number)
        pairs += read_part(path, part)
        card = count_card(pairs)
        ctx.progress(len(pairs), len(prompts), parse_rate=card["parse_rate"])
        if ctx.stopping and number < len(parts):
            raise Interrupted(f"stopped after {len(pairs)} pairs; the same command continues")

    # -- the output: the judge as it came, its card, and its answers
    card |= {"form": config.form, "sampling": config.sampling.model_dump(), "seed": config.seed}
    card["weights_digest"] = digest = artifact.facts.get("weights_digest") or artifact.digest
    copy_judge(artifact.path, output.path)
    write_json(output.path / CARD_FILE, card)
    write_rows(output.path / SAMPLES, sample_rows(pairs))
    table = sample_table(pairs, shown=config.shown_samples)
    (output.path / TABLE).write_text(table, encoding="utf-8")
    kept_facts = {name: artifact.facts[name] for name in CARRIED if name in artifact.facts}
    output.note(**kept_facts | {"judge_card": card, "weights_digest": digest})
    report(ctx, card)


CARRIED = ("parameters", "dtype", "tokenizer_digest", "template_digest", "canary")
"""Facts about the checkpoint that are true of its copy."""


def read_prompts(
    path: Path, judge: LocalChatModel, config: Config, reader: RowReader
) -> list[PairPrompts]:
    """Every comparison of the file with its prompts.

    Raises:
        InputError: naming file and line of every row that is none, that the judge's chat template
            cannot write, or that leaves no room for ``sampling.max_tokens``.
    """
    room = judge.max_model_len - config.sampling.max_tokens

    def parse(row: dict[str, Any]) -> PairPrompts:
        as_given = parse_comparison(row)
        orders = (as_given, as_given.swapped)
        first, second = (
            judge.encode(ask_messages(one.question, form=config.form)) for one in orders
        )
        longest = max(len(first), len(second))
        if longest > room:
            refuse(
                "the question leaves no room for the judge's answer",
                key="messages",
                got=f"{longest} tokens",
                allowed=f"{room}: the judge's {judge.max_model_len} less sampling.max_tokens",
                fix="lower sampling.max_tokens, or remove the row",
            )
        return PairPrompts(orders, (first, second))

    prompts = reader.read(path, parse)
    if not any(one.orders[0].lead for one in prompts):
        what = (
            "in no pair is one response truly better, so nothing tells a good judge from a bad one"
        )
        raise InputError(Problem(where=str(path), key="truth", what=what))
    return prompts


def sample_part(
    config: Config,
    ctx: StepContext,
    judge: LocalChatModel,
    *,
    part: Sequence[PairPrompts],
    number: int,
) -> Path:
    """Sample the answers to a part's questions into a checkpoint, whose path is returned."""
    sampling = config.sampling
    tasks = [
        CompletionTask(
            prompt,
            max_tokens=sampling.max_tokens,
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            seed=seed_of(config.seed, number, index, order),
        )
        for index, pair in enumerate(part)
        for order, prompt in enumerate(pair.prompts)
    ]
    choices = [group[0] for group in judge.complete(tasks)]
    staged = ctx.checkpoints.stage(number)
    answers = ({"text": choice.text, "finish": choice.finish} for choice in choices)
    write_rows(staged / ANSWERS, answers)
    ctx.checkpoints.commit(number, keep=number)
    kept = ctx.checkpoints.at(number)
    assert kept
    return kept.path


def read_part(path: Path, part: Sequence[PairPrompts]) -> list[Pair]:
    """The judgements of a part, from the answers in its checkpoint."""
    answers = iter(read_rows(path / ANSWERS, lambda row: (row["text"], row["finish"] == "stop")))
    pairs = []
    for prompts in part:
        first, second = (
            read_judgement(comparison, text, finished=finished)
            for comparison, (text, finished) in zip(prompts.orders, answers, strict=False)
        )
        pairs.append((first, second))
    return pairs


def report(ctx: StepContext, card: dict[str, Any]) -> None:
    """Write the main figures into a line of the log and into the summary."""
    low, high = card["accuracy_interval"]
    names = ("accuracy", "swap_agreement", "parse_rate", "first_preference", "ties")
    shown = {name: card[name] for name in names}
    line = ", ".join(f"{name} {_show(value)}" for name, value in shown.items())
    ctx.say(f"{line}; accuracy from {low:.3f} to {high:.3f} (95%)")
    ctx.summarise(**shown, accuracy_low=low, accuracy_high=high, pairs=card["pairs"])


def copy_judge(source: Path, target: Path) -> None:
    """Copy the checkpoint's files; a card of an earlier measurement stays behind."""
    ours = (RECORD, CARD_FILE, SAMPLES, TABLE)
    for file in sorted(source.iterdir()):
        if file.is_file() and file.name not in ours:
            shutil.copyfile(file, target / file.name)


def write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _show(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.3f}"
