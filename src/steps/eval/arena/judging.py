"""The judge of an evaluation: connected, checked and asked; no torch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import aclosing, suppress
from dataclasses import dataclass, replace
from math import floor
from typing import Any

from nemotron_style.runtime.errors import InputError, Interrupted, Problem, StepFailed, raise_all
from nemotron_style.runtime.step.context import StepContext
from nemotron_style.runtime.store.record import Artifact
from nemotron_style.steps.blocks.http.client import Fault, HttpClient, run
from nemotron_style.steps.blocks.http.endpoint import Address, read_address, read_token
from nemotron_style.steps.blocks.http.retry import RetryPolicy
from nemotron_style.steps.blocks.judge.cache import VerdictCache
from nemotron_style.steps.blocks.judge.client import JudgeClient, JudgeFailure, NamedQuestion
from nemotron_style.steps.blocks.judge.prompt import JudgeSampling
from nemotron_style.steps.eval.arena.config import Config
from nemotron_style.steps.eval.arena.match import Decision, Judgement

CACHE = "verdicts.jsonl"
ROUNDS = 4
"""Times ``at_once`` questions between two looks at whether the run shall stop."""

ROUNDING = 1e-9
"""So that 5% of 20 judgements is one: the product may lie just below it."""

Digests = frozenset[str]


@dataclass(frozen=True)
class JudgeCard:
    """What the record of a judge says; all empty for an endpoint that was there already."""

    form: str | None = None
    digests: Digests = frozenset()
    figures: dict[str, Any] | None = None

    @classmethod
    def of(cls, judge: Artifact | None) -> JudgeCard:
        """The card in the record of a judge that is started beside the step."""
        if judge is None:
            return cls()
        facts = judge.facts.get("judge_card")
        card = facts if isinstance(facts, dict) else {}
        return cls(card.get("form"), artifact_digests(judge) | weights_digests(card), card or None)


def artifact_digests(artifact: Artifact) -> Digests:
    """Every digest that an artifact, or its weights before a conversion, goes by."""
    return weights_digests(artifact.facts) | {artifact.digest}


def weights_digests(facts: Mapping[str, Any]) -> Digests:
    """The digests of weights that a record or a card names."""
    names = ("weights_digest", "source_weights_digest")
    return frozenset(facts[name] for name in names if facts.get(name))


def connect(config: Config, ctx: StepContext) -> JudgeClient:
    """A client of the judge that is started beside the step, or of ``judge.url``.

    Raises InputError where there is none.
    """
    judge = config.judge
    url = ctx.service("judge") or judge.url
    if url is None:
        fix = "set judge.url to an OpenAI-compatible endpoint"
        raise InputError(Problem(key="judge.url", what="there is no judge", fix=fix))
    card = JudgeCard.of(ctx.optional_input("judge.model"))
    return JudgeClient(
        read_address(url, key="judge.url"),
        token=read_token(judge.token_env),
        retry_policy=RetryPolicy(**judge.waiting.model_dump(exclude={"ready_seconds"})),
        at_once=judge.at_once,
        seed=config.seed,
        stopping=lambda: ctx.stopping,
        say=ctx.say,
        model=judge.model,
        form=judge.form or card.form or "instruct",
        sampling=JudgeSampling(judge.temperature, judge.top_p, judge.max_tokens),
        cache=VerdictCache(ctx.run_dir / CACHE),
    )


def check_judge(
    client: JudgeClient, config: Config, ctx: StepContext, *, models: Mapping[str, Digests]
) -> None:
    """Wait until the judge is ready, refuse it if it is one of ``models``, note who it is.

    Raises JudgeUnavailable when it does not become ready, and InputError when it is one of them.
    """
    client.wait_ready(config.judge.waiting.ready_seconds)
    card = JudgeCard.of(ctx.optional_input("judge.model"))
    served = ask_digest(client)
    known = card.digests | ({served} if served else set())
    problems = [
        Problem(
            key=f"judge, {slot}",
            what=f"the judge is the {slot} itself, and would praise its own words",
            got=", ".join(sorted(digests & known)),
            fix="judge by another model",
        )
        for slot, digests in models.items()
        if digests & known
    ]
    raise_all(InputError, problems)
    client.identity = served or min(card.digests, default="")
    facts = {"judge_digest": client.identity, "judge_card": card.figures}
    facts = {name: value for name, value in facts.items() if value}
    ctx.output("results").note(judge=client.model, judge_form=client.form, **facts)


def ask_digest(client: JudgeClient) -> str | None:
    """The digest that ``/health`` names, as this project's services do; None elsewhere."""
    assert isinstance(client.address, Address)
    root = replace(client.address, path=client.address.path.removesuffix("/v1"))

    async def ask_health() -> dict[str, Any]:
        async with aclosing(HttpClient(root, client.token)) as http:
            return await http.request("GET", "/health", timeout=client.retry_policy.timeout)

    digest: Any = None
    with suppress(Fault):
        digest = run(ask_health()).get("model")
    return digest if isinstance(digest, str) else None


def judge_all(
    client: JudgeClient,
    questions: Sequence[NamedQuestion],
    *,
    budget: float,
    stopping: Callable[[], bool],
) -> Iterator[list[Judgement]]:
    """The judgements of ``questions``, some at a time, in their order.

    Raises JudgeUnavailable as soon as more than the share ``budget`` of all has failed.
    """
    left, size = floor(budget * len(questions) + ROUNDING), ROUNDS * client.at_once
    for start in range(0, len(questions), size):
        if stopping():
            raise Interrupted("stopped while judging; the same command goes on from here")
        judgements = client.judge(questions[start : start + size], most_failures=left)
        left -= sum(isinstance(each, JudgeFailure) for each in judgements)
        yield judgements


def refuse_undecided(decisions: Sequence[Decision], failures: Sequence[JudgeFailure]) -> None:
    """Fail when the judge decided nothing: a win rate would then be nobody's opinion."""
    judged = [decision for decision in decisions if decision.how == "judged"]
    if any(decision.score != 0.5 for decision in judged) or not (judged or failures):
        return
    torn = sum(decision.is_contradictory for decision in judged)
    raise StepFailed(
        Problem(
            where="judge",
            what=f"it preferred one answer in none of {len(judged)} pairs, and decides nothing",
            got=f"{len(judged) - torn} ties, {torn} times the same position whichever answer "
            f"stood there, {len(failures)} failed judgements",
            fix=f"look at {CACHE} in the run's folder, raise judge.max_tokens where its answers "
            "end early, or judge by another model",
        )
    )
