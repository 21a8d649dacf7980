"""``data/steerlm2``: responses of Q'(y|a,x) with the log-probs that SteerLM 2.0 weighs them by.

A group is a prompt x with a label a and n responses y that the *sampler* Q'(y|a,x) gave to it.
Three models then score each response: the sampler itself, log Q'(y|a,x); a model of plain
responses, log P(y|x); and one that predicts the attributes of a response, log P(a|x,y). They score
the text as a trainer will tokenise it, so that training starts from equal shares (b_i = 1/n).

Kept from the HelpSteer2 paper: the weights, the file format, n responses to a prompt. Added: the
attribute model is measured before it is used, where a truth is given; a response that does not
finish is sampled again and never cut; the digest of the sampler goes with the data. Left out: any
temperature but 1, because the weights hold for samples of Q' itself.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from nemotron_style.runtime.errors import InputError, Interrupted, Problem, StepFailed
from nemotron_style.runtime.step.context import StepContext
from nemotron_style.steps.blocks.checkpoint.model_checkpoint import recorded_weights_digest
from nemotron_style.steps.blocks.data.chat.opening import tokenizer_facts
from nemotron_style.steps.blocks.data.jsonl import write_rows
from nemotron_style.steps.blocks.data.layouts.reader import RowReader
from nemotron_style.steps.blocks.data.seed import seed_of
from nemotron_style.steps.blocks.data.toy_truth import Truth, load_truth
from nemotron_style.steps.blocks.generation.chat_sampler import (
    ChatSampler,
    Request,
    load_chat_sampler,
    without_label,
)
from nemotron_style.steps.blocks.model.parallel import initialize
from nemotron_style.steps.data.steerlm2.config import Config
from nemotron_style.steps.data.steerlm2.group import GroupCounts, count_groups, make_row
from nemotron_style.steps.data.steerlm2.request import (
    Requests,
    plan_requests,
    read_prompts,
)

FILES = ("train", "validation")
COUNTS_FILE = "tally.json"  # a state of an earlier version has it under this name

Shard = tuple[str, Sequence[Request]]
"""The file that some groups go to, and what is asked for each."""


class Models(NamedTuple):
    """Q'(y|a,x), P(y|x) and P(a|x,y); one model may have several of these roles."""

    sampler: ChatSampler
    base: ChatSampler
    attribute: ChatSampler


def run(config: Config, ctx: StepContext) -> None:
    """Sample and score every group, shard by shard, and write them to two files."""
    # -- prompts and labels, the models, and how well attributes are predicted
    initialize(seed=config.seed)
    sampling = config.sampling
    truth_input = ctx.optional_input("truth")
    truth = load_truth(truth_input.path) if truth_input else None
    reader = RowReader("prompts", config.data, "data")
    prompts, own_labels = read_prompts(ctx.input("prompts").path, reader)
    for file in FILES:
        ctx.output(file).note(prompts_rows=reader.report.facts())
    for line in reader.report.lines("prompts"):
        ctx.say(line)
    labels = choose_labels(config, truth, own_labels)
    requests = plan_requests(prompts, labels, data=config.data, seed=config.seed)
    models = load_models(config, ctx)
    accuracy = measure_attributes(config, ctx, models=models, requests=requests, truth=truth)

    # -- groups; a shard that an earlier attempt has finished is a checkpoint
    shards = split_shards(requests, config.shard_groups)
    done = len(finished_shards(ctx, len(shards)))
    if done:
        ctx.say(f"{done} of {len(shards)} shards are done already")
    ctx.metrics.rewind(done)
    for number in range(done + 1, len(shards) + 1):
        if ctx.stopping:
            raise Interrupted("stopped between two shards; the same command goes on from here")
        file, shard = shards[number - 1]

        # y_1 .. y_n ~ Q'(y|a,x). A group that is short of a response is dropped: weights over the
        # others, or over one that was cut to length, would be wrong.
        sampled = models.sampler.sample(
            shard,
            samples=sampling.num_responses,
            max_new_tokens=sampling.max_new_tokens,
            max_attempts=sampling.max_attempts,
        )
        complete = [i for i, group in enumerate(sampled) if None not in group]
        asked, groups = [shard[i] for i in complete], [sampled[i] for i in complete]
        texts = [[response.text for response in group] for group in groups]

        log_p_a = models.attribute.score_labels(asked, texts)  # log P(a|x,y)
        log_p_y = models.base.score_responses(without_label(asked), texts)  # log P(y|x)
        log_q = models.sampler.score_responses(asked, texts)  # log Q'(y|a,x)

        counts = count_groups(groups, log_p_a, log_p_y, log_q)
        counts.dropped_groups = len(shard) - len(complete)
        staged = ctx.checkpoints.stage(number)
        rows = map(make_row, asked, groups, log_p_a, log_p_y, log_q)
        write_rows(staged / f"{file}.jsonl", rows)
        (staged / COUNTS_FILE).write_text(json.dumps(counts.as_dict()))
        ctx.checkpoints.commit(number, keep=number)
        ctx.metrics.log(number, **counts.shares())
        ctx.progress(number, len(shards), **counts.shares())

    # -- the two files
    total = merge_shards(ctx, finished_shards(ctx, len(shards)))
    refuse_dropped(config, total)
    report(config, ctx, total=total, requests=requests, accuracy=accuracy)


def choose_labels(config: Config, truth: Truth | None, own_labels: Sequence[str]) -> Sequence[str]:
    """The labels of the config, else those that the truth can reach, else the prompts' own."""
    if config.data.labels:
        return config.data.labels
    if truth is not None:
        return [truth.format(label) for label in truth.reachable_labels()]
    if own_labels:
        return own_labels
    raise InputError(
        Problem(
            key="data.labels",
            what="there is no label to ask for",
            fix="list labels there, give a truth, or give prompts from a labelled file",
        )
    )


def load_models(config: Config, ctx: StepContext) -> Models:
    """The models of the three roles; one that has several is loaded once."""
    loaded: dict[str, ChatSampler] = {}
    roles = []
    for role in Models._fields:
        artifact = ctx.optional_input(role)
        if artifact is None:
            ctx.say(f"no {role} model was given: the sampler takes its part")
            artifact = ctx.input("sampler")
        if artifact.digest not in loaded:
            model = load_chat_sampler(
                artifact.path,
                tokens=config.model.data.chat_prompt_tokens,
                half=config.trainer.half,
            )
            model.max_rows = config.sampling.max_rows
            model.micro_batch_tokens = config.scoring.micro_batch_tokens
            loaded[artifact.digest] = model
        roles.append(loaded[artifact.digest])
        digest = recorded_weights_digest(artifact)
        for file in FILES:
            ctx.output(file).note(**{f"{role}_digest": digest, f"{role}_ref": artifact.ref})
    models = Models(*roles)
    # log Q'(y|a,x) holds for the tokens that the sampler wrote: whoever trains must read the same.
    chat = models.sampler.chat
    for file in FILES:
        ctx.output(file).note(**tokenizer_facts(chat.tokenizer, chat))
    return models


def measure_attributes(
    config: Config, ctx: StepContext, *, models: Models, requests: Requests, truth: Truth | None
) -> dict[str, float]:
    """The share of sampled responses whose attribute P(a|x,y) predicts rightly, by attribute.

    Empty without a truth. Warns of a share below the floor.
    """
    check = config.attribute_check
    if truth is None or check.num_samples == 0:
        ctx.say("the attribute model is not measured: that needs a truth")
        return {}
    # seeds of their own, so that the groups do not begin with these very responses
    asked = [
        replace(request, seed=seed_of(request.seed, "attribute_check"))
        for request in requests.train[: check.num_samples]
    ]
    max_new_tokens = config.sampling.max_new_tokens
    sampled = models.sampler.sample(asked, samples=1, max_new_tokens=max_new_tokens)
    pairs = [
        (request.conversation, response.text)
        for request, [response] in zip(asked, sampled, strict=True)
        if response is not None
    ]
    if not pairs:
        ctx.say("the attribute model is not measured: no sampled response has finished")
        return {}
    predicted = [truth.parse(label) or {} for label in models.attribute.predict_labels(pairs)]
    true = [truth.score(prompt.turns[-1].value, text) for prompt, text in pairs]
    accuracy = {
        name: sum(p.get(name) == t[name] for p, t in zip(predicted, true, strict=True)) / len(pairs)
        for name in true[0]
    }
    shares = ", ".join(f"{name} {value:.1%}" for name, value in accuracy.items())
    ctx.say(f"attribute model on {len(pairs)} sampled responses: right on {shares}")
    low = [name for name, value in accuracy.items() if value < check.floor]
    if low:
        ctx.say(
            f"WARNING: {', '.join(low)} below {check.floor:.0%}: with an "
            "attribute model that is often wrong, training makes the model follow labels less, "
            "although its distance falls"
        )
    return accuracy


def split_shards(requests: Requests, size: int) -> list[Shard]:
    """Shards of at most ``size`` groups, each of one file."""
    return [
        (file, members[start : start + size])
        for file, members in zip(FILES, (requests.train, requests.validation), strict=True)
        for start in range(0, len(members), size)
    ]


def finished_shards(ctx: StepContext, count: int) -> list[Path]:
    """Directories of the shards that are whole, from the first up to the first that is not."""
    found: list[Path] = []
    while len(found) < count and (shard := ctx.checkpoints.at(len(found) + 1)):
        found.append(shard.path)
    return found


def merge_shards(ctx: StepContext, shards: Sequence[Path]) -> GroupCounts:
    """Join the shards' files in their order; the counts of all."""
    for file in FILES:
        with (ctx.output(file).path / f"{file}.jsonl").open("wb") as joined:
            for part in (shard / f"{file}.jsonl" for shard in shards):
                if part.exists():
                    joined.write(part.read_bytes())
    total = GroupCounts()
    for shard in shards:
        total.add(GroupCounts(**json.loads((shard / COUNTS_FILE).read_text())))
    return total


def refuse_dropped(config: Config, total: GroupCounts) -> None:
    """Fail when more groups than allowed could not be completed."""
    share = total.dropped_groups / (total.groups + total.dropped_groups)
    if share > config.sampling.max_dropped:
        raise StepFailed(
            Problem(
                key="sampling.max_dropped",
                what="too many groups had responses that never finished",
                got=f"{total.dropped_groups} of {total.groups + total.dropped_groups} groups",
                allowed=f"a share of {config.sampling.max_dropped}",
                fix="raise sampling.max_new_tokens or sampling.max_attempts, "
                "or train the sampler to stop",
            )
        )


def report(
    config: Config,
    ctx: StepContext,
    *,
    total: GroupCounts,
    requests: Requests,
    accuracy: dict[str, float],
) -> None:
    """Write facts into the records and figures into the summary."""
    accuracies = {f"attribute_accuracy_{name}": value for name, value in accuracy.items()}
    for file in FILES:
        output = ctx.output(file)
        output.note(
            groups_asked=len(getattr(requests, file)),
            responses_per_group=config.sampling.num_responses,
        )
        output.note(**accuracies, **total.as_dict())
    ctx.summarise(
        **accuracies,
        groups=total.groups,
        dropped_groups=total.dropped_groups,
        responses=total.responses,
        **total.shares(),
    )
