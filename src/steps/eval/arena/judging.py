"""The judge of an evaluation: found, checked and asked; no torch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from math import floor
from typing import Any

from nemotron_style.runtime.errors import InputError, Interrupted, Problem, StepFailed, raise_all
from nemotron_style.runtime.step.context import StepContext
from nemotron_style.runtime.store.record import Artifact
from nemotron_style.steps.blocks.http.client import Fault, HttpClient
from nemotron_style.steps.blocks.http.endpoint import Address, read_address, read_token
from nemotron_style.steps.blocks.http.retry import RetryPolicy
from nemotron_style.steps.blocks.judge.cache import VerdictCache
from nemotron_style.steps.blocks.judge.client import JudgeClient, JudgeFailure, NamedQuestion
from nemotron_style.steps.blocks.judge.prompt import JudgeSampling
from nemotron_style.steps.blocks.judge.verdict import Verdict
from nemotron_style.steps.eval.arena.config import Config
from nemotron_style.steps.eval.arena.match import Ruling

CACHE = "verdicts.jsonl"
LOTS = 4
"""Times ``at_once`` questions between two looks at whether the run shall stop."""

ROUNDING = 1e-9

Found = Verdict | JudgeFailure
Digests = frozenset[str]


@dataclass(frozen=True)
class Card:
    """What is known of a judge beforehand; all empty for an endpoint that was there already."""

    form: str | None = None
    digests: Digests = frozenset()
    figures: dict[str, Any] | None = None


def read_card(judge: Artifact | None) -> Card:
    """What the record of a judge that is started beside says of it."""
    if judge is None:
        return Card()
    told = judge.facts.get("judge_card")
    card = told if isinstance(told, dict) else {}
    return Card(card.get("form"), known_digests(judge) | known_digests_of(card), card or None)


def known_digests(artifact: Artifact) -> Digests:
    """Every digest that an artifact, or its weights before a conversion, goes by."""
    return known_digests_of(artifact.facts) | {artifact.digest}


def known_digests_of(facts: Any) -> Digests:
    """Those that a record or a card names."""
    names = ("weights_digest", "source_weights_digest")
    return frozenset(facts[name] for name in names if facts.get(name))


def connect(config: Config, ctx: StepContext) -> JudgeClient:
    """A client of the judge that is started beside, or of ``judge.url``.

    Raises InputError where there is none.
    """
    how, waiting = config.judge, config.judge.waiting
    url = ctx.service("judge") or how.url
    if url is None:
        fix = "set judge.url to an OpenAI-compatible endpoint"
        raise InputError(Problem(key="judge.url", what="there is no judge", fix=fix))
    card = read_card(ctx.optional_input("judge.model"))
    return JudgeClient(
        read_address(url, key="judge.url"),
        token=read_token(how.token_env),
        retry_policy=RetryPolicy(**waiting.model_dump(exclude={"ready_seconds"})),
        at_once=how.at_once,
        seed=config.seed,
        stopping=lambda: ctx.stopping,
        model=how.model,
        form=how.form or card.form or "instruct",
        sampling=JudgeSampling(how.temperature, how.top_p, how.max_tokens),
        cache=VerdictCache(ctx.run_dir / CACHE),
    )


def meet(
    client: JudgeClient, config: Config, ctx: StepContext, *, models: Mapping[str, Digests]
) -> None:
    """Wait until the judge is ready and learn who it is; ``models`` are those it is to compare.

    Raises JudgeUnavailable when it does not become ready, and InputError when it is one of them.
    """
    client.wait_ready(config.judge.waiting.ready_seconds)
    card = read_card(ctx.optional_input("judge.model"))
    served = ask_digest(client)
    refuse_itself(models, card.digests | ({served} if served else set()))
    client.identity = served or min(card.digests, default="")
    told = {"judge_digest": client.identity, "judge_card": card.figures}
    known = {name: value for name, value in told.items() if value}
    ctx.output("results").note(judge=client.model, judge_form=client.form, **known)


def ask_digest(client: JudgeClient) -> str | None:
    """The digest that ``/health`` names, as this project's services do; None elsewhere."""
    assert isinstance(client.address, Address)
    root = replace(client.address, path=client.address.path.removesuffix("/v1"))
    exchange = HttpClient(root, client.token)
    told: Any = None
    with suppress(Fault):
        told = exchange.request("GET", "/health", timeout=client.retry_policy.timeout).get("model")
    exchange.close()
    return told if isinstance(told, str) else None


def refuse_itself(models: Mapping[str, Digests], judge: Digests) -> None:
    """Refuse a judge that is one of the models: it would praise its own words."""
    problems = [
        Problem(
            key=f"judge, {slot}",
            what=f"the judge is the {slot} itself, and would praise its own words",
            got=", ".join(sorted(digests & judge)),
            fix="judge by another model",
        )
        for slot, digests in models.items()
        if digests & judge
    ]
    raise_all(InputError, problems)


def judge_all(
    client: JudgeClient,
    asked: Sequence[NamedQuestion],
    *,
    budget: float,
    stopping: Callable[[], bool],
) -> Iterator[list[Found]]:
    """What the judge says to ``asked``, some at a time, in their order.

    Raises JudgeUnavailable as soon as more than the share ``budget`` of all has failed.
    """
    left, size = floor(budget * len(asked) + ROUNDING), LOTS * client.at_once
    for start in range(0, len(asked), size):
        if stopping():
            raise Interrupted("stopped while judging; the same command goes on from here")
        found = client.judge(asked[start : start + size], most_failures=left)
        left -= sum(isinstance(one, JudgeFailure) for one in found)
        yield found


def refuse_undecided(rulings: Sequence[Ruling], failures: Sequence[JudgeFailure]) -> None:
    """Fail when the judge decided nothing: a win rate would then be nobody's opinion."""
    judged = [ruling for ruling in rulings if ruling.how == "judged"]
    if any(ruling.score != 0.5 for ruling in judged) or not (judged or failures):
        return
    torn = sum(ruling.is_contradictory for ruling in judged)
    raise StepFailed(
        Problem(
            where="judge",
            what=f"it preferred one answer in none of {len(judged)} pairs, and decides nothing",
            got=f"{len(judged) - torn} ties, {torn} times a place whoever stood there, "
            f"{len(failures)} failed judgements",
            fix=f"look at {CACHE} in the run's folder, raise judge.max_tokens where its answers "
            "end early, or judge by another model",
        )
    )
