"""``data/steerlm2``: responses of Q'(y|a,x) with the log-probs that SteerLM 2.0 weighs them by.

Every group is a prompt with a label and n responses that the *sampler* gave to it. Three models
then say how likely each response is: the sampler itself, log Q'(y|a,x); a model of plain answers,
log P(y|x); and one that names the attributes of an answer, log P(a|x,y). The numbers are those of
the text as a trainer will tokenise it, so that training starts from equal shares (b_i = 1/n).

Kept from the HelpSteer2 paper: the weights, the file format, n responses to a prompt. Added: the
attribute model is measured before it is used, where a truth is at hand; a response that does not
finish is drawn again and never cut; the digest of the sampler goes with the data. Left out: any
temperature but 1, because the weights hold for samples of Q' itself.

Shape legend: ``_P`` prompts (groups), ``_G`` samples of a group, ``_T`` tokens.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

from nemotron_style.runtime.errors import InputError, Interrupted, Problem, StepFailed
from nemotron_style.runtime.step.context import StepContext
from nemotron_style.steps.blocks.checkpoint.model_checkpoint import weights_digest
from nemotron_style.steps.blocks.data.jsonl import write_rows
from nemotron_style.steps.blocks.data.seed import seed_of
from nemotron_style.steps.blocks.data.toy_truth import Truth, load_truth
from nemotron_style.steps.blocks.generation.chat_sampler import (
    ChatSampler,
    Request,
    load_chat_sampler,
)
from nemotron_style.steps.blocks.model.parallel import initialize
from nemotron_style.steps.data.steerlm2.config import Config
from nemotron_style.steps.data.steerlm2.group import GroupCounts, Models, make_rows
from nemotron_style.steps.data.steerlm2.request import (
    Labels,
    Requests,
    plan_requests,
    read_prompts,
)

FILES = ("train", "validation")


def run(config: Config, ctx: StepContext) -> None:
    """Sample and score every group, shard by shard, and write them to two files."""
    initialize(seed=config.seed)
    truth_input = ctx.optional_input("truth")
    truth = load_truth(truth_input.path) if truth_input else None
    prompts, own_labels = read_prompts(ctx.input("prompts").path)
    labels = choose_labels(config, truth, own_labels)
    requests = plan_requests(prompts, labels, data=config.data, seed=config.seed)
    cast = load_cast(config, ctx)
    accuracy = measure_attributes(config, ctx, cast=cast, requests=requests, truth=truth)

    shards = list(cut(requests, config.shard_groups))
    finished = finished_shards(ctx, len(shards))
    if finished:
        ctx.say(f"{len(finished)} of {len(shards)} shards are done already")
    ctx.metrics.rewind(len(finished))
    for number in range(len(finished) + 1, len(shards) + 1):
        if ctx.stopping:
            raise Interrupted("stopped between two shards; the same command goes on from here")
        tally = make_shard(config, ctx, cast=cast, number=number, shard=shards[number - 1])
        ctx.metrics.log(number, **tally.shares())
        ctx.progress(number, len(shards), **tally.shares())

    total = gather(ctx, finished_shards(ctx, len(shards)))
    refuse_dropped(config, total)
    report(config, ctx, total=total, requests=requests, accuracy=accuracy)


def choose_labels(config: Config, truth: Truth | None, own_labels: Sequence[str]) -> Labels:
    """Where labels come from: the config, else what the truth can reach, else the prompts' rows."""
    if config.data.labels:
        return lambda _: config.data.labels
    if truth is not None:
        reachable = [truth.format(label) for label in truth.reachable_labels()]
        return lambda _: reachable
    if own_labels:
        return lambda _: own_labels
    raise InputError(
        Problem(
            key="data.labels",
            what="there is no label to ask for",
            fix="list labels there, give a truth, or give prompts from a labelled file",
        )
    )


def load_cast(config: Config, ctx: StepContext) -> Models:
    """The three models; one that plays several parts is loaded once."""
    sampler = ctx.input("sampler")
    loaded: dict[str, ChatSampler] = {}
    parts = {}
    for slot in ("sampler", "base", "attribute"):
        artifact = ctx.optional_input(slot)
        if artifact is None:
            ctx.say(f"no {slot} model was given: the sampler takes its part")
            artifact = sampler
        if artifact.digest not in loaded:
            loaded[artifact.digest] = load_chat_sampler(
                artifact.path,
                tokens=config.model.data.chat_prompt_tokens,
                half=config.trainer.half,
            )
            loaded[artifact.digest].max_rows = config.sampling.max_rows
            loaded[artifact.digest].micro_batch_tokens = config.scoring.micro_batch_tokens
        parts[slot] = loaded[artifact.digest]
        digest = artifact.facts.get("weights_digest") or weights_digest(artifact.path)
        for file in FILES:
            ctx.output(file).note(**{f"{slot}_digest": digest, f"{slot}_ref": artifact.ref})
    return Models(**parts)


def measure_attributes(
    config: Config, ctx: StepContext, *, cast: Models, requests: Requests, truth: Truth | None
) -> dict[str, float]:
    """How often P(a|x,y) names each attribute of sampled responses rightly; empty without truth."""
    wanted = config.attribute_check.num_samples
    if truth is None or wanted == 0:
        ctx.say("the attribute model is not measured: that needs a truth")
        return {}
    asked = requests.train[:wanted]
    seeded = [
        Request(one.conversation, one.label, seed_of(one.seed, "attribute_check")) for one in asked
    ]
    max_new_tokens = config.sampling.max_new_tokens
    answers = cast.sampler.sample(seeded, samples=1, max_new_tokens=max_new_tokens)
    pairs = [
        (request.conversation, group[0].text)
        for request, group in zip(asked, answers, strict=True)
        if group[0] is not None
    ]
    named = [truth.parse(text) or {} for text in cast.attribute.predict_labels(pairs)]
    true = [truth.score(asked.turns[-1].value, text) for asked, text in pairs]
    accuracy = {
        name: sum(n.get(name) == t[name] for n, t in zip(named, true, strict=True)) / len(pairs)
        for name in true[0]
    }
    told = ", ".join(f"{name} {value:.1%}" for name, value in accuracy.items())
    ctx.say(f"attribute model on {len(pairs)} sampled responses: right on {told}")
    low = [name for name, value in accuracy.items() if value < config.attribute_check.floor]
    if low:
        ctx.say(
            f"WARNING: {', '.join(low)} below {config.attribute_check.floor:.0%}: with an "
            "attribute model that is often wrong, training makes the model follow labels less, "
            "although its distance falls"
        )
    return accuracy


def cut(requests: Requests, size: int) -> Iterator[dict[str, list[Request]]]:
    """Shards of ``size`` groups, each of one file."""
    for name in FILES:
        members = getattr(requests, name)
        for start in range(0, len(members), size):
            yield {name: members[start : start + size]}


def make_shard(
    config: Config, ctx: StepContext, *, cast: Models, number: int, shard: dict[str, list[Request]]
) -> GroupCounts:
    """Sample and score one shard and make it last; its tally."""
    tally = GroupCounts()
    path = ctx.checkpoints.stage(number)
    for name, requests in shard.items():
        rows, counted = make_rows(requests, cast, sampling=config.sampling)
        write_rows(path / f"{name}.jsonl", [row for row in rows if row is not None])
        tally.add(counted)
    (path / "tally.json").write_text(json.dumps(tally.as_dict()))
    ctx.checkpoints.commit(number, keep=number)
    return tally


def finished_shards(ctx: StepContext, count: int) -> list[Path]:
    """Directories of the shards that are whole, from the first up to the first that is not."""
    found: list[Path] = []
    while len(found) < count and (shard := ctx.checkpoints.at(len(found) + 1)):
        found.append(shard.path)
    return found


def gather(ctx: StepContext, shards: Sequence[Path]) -> GroupCounts:
    """Join the shards' files in their order; the tally of all."""
    total = GroupCounts()
    for name in FILES:
        with (ctx.output(name).path / f"{name}.jsonl").open("wb") as joined:
            for part in (shard / f"{name}.jsonl" for shard in shards):
                if part.exists():
                    with part.open("rb") as source:
                        shutil.copyfileobj(source, joined)
    for shard in shards:
        total.add(GroupCounts(**json.loads((shard / "tally.json").read_text())))
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
    """Facts into the records, figures into the summary."""
    samples = config.sampling.num_responses
    told = {f"attribute_accuracy_{name}": value for name, value in accuracy.items()}
    for name in FILES:
        output = ctx.output(name)
        output.note(groups_asked=len(getattr(requests, name)), responses_per_group=samples)
        output.note(**told, **total.as_dict())
    ctx.summarise(
        **told,
        groups=total.groups,
        dropped_groups=total.dropped_groups,
        responses=total.responses,
        **total.shares(),
    )
