"""The judge behind its endpoint, asked by the first rank; every rank gets what it says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

from nemotron_style.runtime.step.context import StepContext
from nemotron_style.runtime.store.record import Artifact
from nemotron_style.steps.blocks.http.endpoint import read_address, read_token
from nemotron_style.steps.blocks.http.retry import RetryPolicy
from nemotron_style.steps.blocks.judge.aggregation import Aggregation
from nemotron_style.steps.blocks.judge.cache import VerdictCache
from nemotron_style.steps.blocks.judge.client import JudgeClient
from nemotron_style.steps.blocks.judge.group_judge import AnswerGroup, JudgedGroups, judge_groups
from nemotron_style.steps.blocks.judge.pairing import ComparisonPlan
from nemotron_style.steps.blocks.model.rank_zero import RankZero, is_rank_zero
from nemotron_style.steps.rl.rlhf.config import Config

VERDICTS = "verdicts.jsonl"
"""In the run's folder: a run that is killed does not ask the same things again."""

SERVICE = "judge"
SERVED = "judge"
"""What judge/serve calls its model."""

LONGEST_PAUSE = 30.0


@dataclass
class Referee:
    """Who compares answers. A context manager; ``client`` is None on all but the first rank.

    ``identity`` is the digest of the judge's weights where its artifact is known, or else its
    name.
    """

    client: JudgeClient | None
    rank_zero: RankZero
    plan: ComparisonPlan
    aggregation: Aggregation
    identity: str

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self.client is not None:
            self.client.close()

    def judge(
        self, contests: Sequence[AnswerGroup], *, step: int, both_orders: bool | None = None
    ) -> JudgedGroups:
        """The rewards of groups. Raises what :func:`judge_groups` raises, on every rank."""
        plan = self.plan if both_orders is None else replace(self.plan, both_orders=both_orders)

        def ask() -> JudgedGroups:
            assert self.client is not None
            return judge_groups(
                self.client, contests, step=step, plan=plan, aggregation=self.aggregation
            )

        return self.rank_zero.run(ask)


def find_judge(ctx: StepContext) -> Artifact | None:
    """The artifact that the judge beside the step serves; None where the config names a URL."""
    return ctx.optional_input(f"{SERVICE}.model")


def open_referee(config: Config, ctx: StepContext, rank_zero: RankZero) -> Referee:
    """The judge of the config, once it answers.

    Raises ``JudgeUnavailable`` when it does not within ``judge.ready_seconds``.
    """
    artifact = find_judge(ctx)
    card = read_card(artifact)
    known = str(artifact.facts.get("weights_digest") or artifact.digest) if artifact else ""
    client = None
    if is_rank_zero():
        client = _open_client(config, ctx, form=config.judge.form or card.get("form") or "genrm")

    def meet() -> None:
        assert client is not None
        client.wait_ready(config.judge.ready_seconds)

    try:
        rank_zero.run(meet)
    except BaseException:
        if client is not None:
            client.close()
        raise
    identity = known or name_judge(config)
    if client is not None:
        client.identity = identity
    return Referee(client, rank_zero, config.judge_plan, config.env.compare.aggregation, identity)


def read_card(artifact: Artifact | None) -> Mapping[str, Any]:
    """The card in a judge's record; empty where there is none."""
    card = artifact.facts.get("judge_card") if artifact else None
    return card if isinstance(card, Mapping) else {}


def name_judge(config: Config) -> str:
    """The judge's name at its endpoint. The service beside the step has one for whatever it is."""
    return config.env.judge_name or SERVED if config.judge.url else SERVED


def _open_client(config: Config, ctx: StepContext, *, form: str) -> JudgeClient:
    compare, judge = config.env.compare, config.judge
    url = judge.url or ctx.service(SERVICE)
    assert url is not None
    return JudgeClient(
        read_address(url),
        token=read_token(judge.token_env),
        retry_policy=RetryPolicy(
            tries=compare.genrm_parse_retries + 1,
            timeout=judge.timeout,
            first_pause=compare.genrm_parse_retry_sleep_s,
            longest_pause=LONGEST_PAUSE,
        ),
        at_once=judge.at_once,
        seed=config.seed,
        stopping=lambda: ctx.stopping,
        model=name_judge(config),
        form=form,
        sampling=compare.sampling,
        principle_role=config.env.judge.supports_principle_role,
        response_format=judge.response_format,
        cache=VerdictCache(ctx.run_dir / VERDICTS),
    )
