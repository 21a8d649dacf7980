"""A reward model as an HTTP service: ``POST /v1/score``."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from prometheus_client import Counter
from starlette.requests import Request

from nemotron_style.runtime.errors import InputError
from nemotron_style.steps.blocks.http.error import HttpError
from nemotron_style.steps.blocks.reward.types import Message, RewardScore, check_score
from nemotron_style.steps.blocks.serving.config import ScoreLimits
from nemotron_style.steps.blocks.serving.dynamic_batcher import Batching, Naming
from nemotron_style.steps.blocks.serving.score_schema import parse_score_request, write_answer
from nemotron_style.steps.blocks.serving.server import Route, Service

SCORE = "/v1/score"
Score = Callable[[Sequence[Sequence[Message]]], Sequence[Any]]
"""One ``RewardScore`` for each conversation; ``InputError`` for one that it cannot take."""

NAMING = Naming("reward", "conversations", "scored", "score")


class ScoreService(Service):
    """``listen``, then ``serve`` a scorer, and in the end ``drain``."""

    limits: ScoreLimits

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
        super().__init__(NAMING, routes, limits or ScoreLimits(), token=token, say=say)
        self.model = model
        self.outputs: tuple[str, ...] = ()
        self.max_tokens: int | None = None
        self.conversations = Counter(
            "reward_conversations_total", "Conversations scored.", registry=self.registry
        )

    def serve(
        self,
        score: Score,
        outputs: Sequence[str],
        batching: Batching,
        *,
        max_tokens: int | None = None,
    ) -> None:
        """Answer from now on by ``score``, whose results have the attributes ``outputs``.

        ``max_tokens`` is the longest conversation that it takes, which clients are told.
        """
        self.outputs, self.max_tokens = tuple(outputs), max_tokens
        self.start(batching, work=score, check=self.check_result)

    def check_result(self, conversation: Sequence[Message], result: Any) -> RewardScore:
        """The result as it is given out. Raises ``ValueError`` for what is no score."""
        score, attributes = getattr(result, "score", None), getattr(result, "attributes", None)
        return check_score(score, attributes, self.outputs)

    async def score(self, request: Request) -> Mapping[str, Any]:
        """Scores in the order of the request. Raises ``HttpError`` when there are none."""
        body = await self.read_body(request)
        asked = parse_score_request(body, most=self.limits.conversations)
        try:
            scores = await self.ask(request, asked.conversations, size=len(asked.conversations))
        except InputError as error:
            raise HttpError(422, "cannot_score", str(error)) from None
        self.conversations.inc(len(scores))
        return write_answer(self.model, scores, asked.ids)

    def facts(self) -> Mapping[str, Any]:
        facts: dict[str, Any] = {"model": self.model}
        facts["max_conversations"] = self.limits.conversations
        if self.outputs:
            facts["outputs"] = list(self.outputs)
        if self.max_tokens:
            facts["max_tokens"] = self.max_tokens
        return facts
