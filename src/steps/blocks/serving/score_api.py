"""A reward model as an HTTP service: ``POST /v1/score``."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from nemotron_style.runtime.errors import InputError
from nemotron_style.steps.blocks.http.error import HttpError
from nemotron_style.steps.blocks.reward.types import Message, RewardScore, Scorer, check_score
from nemotron_style.steps.blocks.serving.connection import Connection
from nemotron_style.steps.blocks.serving.dynamic_batcher import Batching, Naming
from nemotron_style.steps.blocks.serving.metrics_page import Count, Metric
from nemotron_style.steps.blocks.serving.score_schema import parse_score_request, write_answer
from nemotron_style.steps.blocks.serving.server import Limits, Route, Service

SCORE = "/v1/score"
NAMING = Naming("reward", "conversations", "scored", "score")


@dataclass(frozen=True)
class ScoreLimits(Limits):
    """And how many conversations may come in one request."""

    conversations: int = 256


@dataclass(frozen=True)
class Scoring:
    """A scorer at work: what it gives is checked one by one."""

    scorer: Scorer

    def work(self, items: Sequence[Sequence[Message]]) -> Sequence[Any]:
        return self.scorer.score(items)

    def check(self, item: Sequence[Message], result: Any) -> RewardScore:
        """Raises ``ValueError`` for what is no score of this model."""
        score, attributes = getattr(result, "score", None), getattr(result, "attributes", None)
        return check_score(score, attributes, self.scorer.outputs)


class ScoreService(Service):
    """``listen``, then ``serve`` a scorer, and in the end ``drain``."""

    def __init__(
        self,
        model: str,
        *,
        limits: ScoreLimits | None = None,
        token: str | None = None,
        say: Callable[[str], None] = print,
    ) -> None:
        """``model`` is the digest that goes with every score."""
        routes = {SCORE: Route("POST", self.score)}
        self.limits: ScoreLimits
        super().__init__(NAMING, routes, limits=limits or ScoreLimits(), token=token, say=say)
        self.model = model
        self.scorer: Scorer | None = None
        self.conversations = Count("reward_conversations_total", "Conversations scored.")

    def serve(self, scorer: Scorer, *, most: int, seconds: float, queued: int) -> None:
        """Answer from now on: batches of up to ``most`` conversations, collected for ``seconds``,
        with at most ``queued`` conversations waiting."""
        self.scorer = scorer
        self.start(Scoring(scorer), Batching(most, seconds, queued))

    def score(self, connection: Connection) -> Mapping[str, Any]:
        """Scores in the order of the request. Raises ``HttpError`` when there are none."""
        request = parse_score_request(connection.read_body(), most=self.limits.conversations)
        try:
            scores = self.ask(request.conversations, size=len(request.conversations))
        except InputError as error:
            raise HttpError(422, "cannot_score", str(error)) from None
        self.conversations.add(len(scores))
        return write_answer(self.model, scores, request.ids)

    def facts(self) -> Mapping[str, Any]:
        told = {"model": self.model, "max_conversations": self.limits.conversations}
        return told | ({"outputs": list(self.scorer.outputs)} if self.scorer else {})

    def metrics(self) -> list[Metric]:
        return [self.conversations]
