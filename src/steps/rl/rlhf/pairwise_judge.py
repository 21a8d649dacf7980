"""The judge behind its endpoint: rank zero asks it to compare answers, every rank gets rewards."""

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
"""In the run's folder: a run that is killed does not pay for the same verdicts again."""

SERVICE = "judge"
SERVED_NAME = "judge"
"""What judge/serve calls its model."""

LONGEST_PAUSE = 30.0


@dataclass
class PairwiseJudge:
    """Compares the answers of a group in pairs. A context manager.

    ``client`` is None on all ranks but zero. ``identity`` is the digest of the judge's weights
    where its artifact is known, else its name at the endpoint.
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

    def compare(
        self, groups: Sequence[AnswerGroup], *, step: int, both_orders: bool | None = None
    ) -> JudgedGroups:
        """The rewards of groups. Raises what :func:`judge_groups` raises, on every rank."""
        plan = self.plan if both_orders is None else replace(self.plan, both_orders=both_orders)

        def judge() -> JudgedGroups:
            assert self.client is not None
            return judge_groups(
                self.client, groups, step=step, plan=plan, aggregation=self.aggregation
            )

        return self.rank_zero.run(judge)


def find_judge(ctx: StepContext) -> Artifact | None:
    """The artifact of the judge that is served beside the step; None for ``judge.url``."""
    return ctx.optional_input(f"{SERVICE}.model")


def open_judge(config: Config, ctx: StepContext, rank_zero: RankZero) -> PairwiseJudge:
    """The judge of the config, once it answers.

    Raises ``JudgeUnavailable`` when it does not within ``judge.ready_seconds``.
    """
    artifact = find_judge(ctx)
    identity = served_name(config)
    if artifact:
        identity = str(artifact.facts.get("weights_digest") or artifact.digest)
    client = _open_client(config, ctx, artifact, identity=identity) if is_rank_zero() else None
    judge = PairwiseJudge(
        client, rank_zero, config.judge_plan, config.env.compare.aggregation, identity
    )

    def wait() -> None:
        assert client is not None
        client.wait_ready(config.judge.ready_seconds)

    try:
        rank_zero.run(wait)
    except BaseException:
        if client is not None:
            client.close()
        raise
    return judge


def read_card(artifact: Artifact | None) -> Mapping[str, Any]:
    """The card in a judge's record; empty where there is none."""
    card = artifact.facts.get("judge_card") if artifact else None
    return card if isinstance(card, Mapping) else {}


def served_name(config: Config) -> str:
    """The judge's name at its endpoint; judge/serve has one name for whatever it serves."""
    return config.env.judge_name or SERVED_NAME if config.judge.url else SERVED_NAME


def _open_client(
    config: Config, ctx: StepContext, artifact: Artifact | None, *, identity: str
) -> JudgeClient:
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
        say=ctx.say,
        model=served_name(config),
        identity=identity,
        form=judge.form or read_card(artifact).get("form") or "genrm",
        sampling=compare.sampling,
        principle_role=config.env.judge.supports_principle_role,
        response_format=judge.response_format,
        cache=VerdictCache(ctx.run_dir / VERDICTS),
    )
