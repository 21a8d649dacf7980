"""Scores from a reward model that answers over HTTP; no torch, text only, never token ids.

No failure ever becomes a score. An answer counts when it came whole and in time, from the model
that was there at the beginning, with one finite score and the right attributes for each
conversation that was sent, under the id that it was sent with. Everything else is counted, waited
out and asked again, and after a bounded number of tries :class:`RewardUnavailable` stops the run.

Source: NeMo-Aligner's remote reward model, which waits 6.9 days for an answer, never asks twice
and begins with a sleep.
"""

from __future__ import annotations

import functools
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from nemotron_style.runtime.errors import Problem, StepFailed
from nemotron_style.steps.blocks.http.client import Fault, as_list
from nemotron_style.steps.blocks.http.error import shorten
from nemotron_style.steps.blocks.http.retry import (
    RetriesExhausted,
    RetryingClient,
    fault_summary,
    last_messages,
)
from nemotron_style.steps.blocks.reward.types import Message, RewardScore, check_score


class RewardUnavailable(StepFailed):
    """The reward model gave no answer that can be used; says what was tried.

    ``permanent`` when it refused in a way that asking again cannot change.
    """

    def __init__(self, problem: Problem, *, permanent: bool = False) -> None:
        super().__init__(problem)
        self.permanent = permanent


@dataclass(frozen=True)
class Health:
    """A reward model that is ready: its digest, its outputs, how much it takes in one request.

    ``max_tokens`` is the longest conversation it takes. None is for what it does not say.
    """

    model: str
    outputs: tuple[str, ...]
    max_conversations: int | None = None
    max_tokens: int | None = None


@dataclass
class RewardClient(RetryingClient):
    """Asks a reward model. A context manager; :meth:`score` may be called from many threads.

    ``at_once`` requests of ``batch`` conversations are under way at a time.
    """

    batch: int = 32
    health: Health | None = None

    name = "reward model"

    def wait_ready(self, seconds: float) -> Health:
        """Ask for its health until it is ready.

        Raises ``RewardUnavailable`` after ``seconds``, or at once when the token is refused.
        """

        async def look(timeout: float) -> Health:
            answer = await self._http.request("GET", "/health", timeout=timeout)
            return read_health(answer, self.health)

        try:
            self.health = self.wait_until(look, seconds)
        except RetriesExhausted as error:
            refused = error.is_unauthorized
            what = "refused the token" if refused else f"was not ready within {seconds:g} s"
            raise self._unavailable(error, what, permanent=refused) from None
        return self.health

    def score(self, conversations: Sequence[Sequence[Message]]) -> list[RewardScore]:
        """One ``RewardScore`` for each conversation, in their order.

        Raises ``RewardUnavailable`` when any of them got none, whatever the others got.
        """
        if not conversations:
            return []
        health = self.health or self.wait_ready(self.retry_policy.timeout)
        size = min(self.batch, health.max_conversations or self.batch)
        jobs = [
            functools.partial(self._score_part, conversations[at : at + size], health, first=at)
            for at in range(0, len(conversations), size)
        ]
        return [score for scores in self.run_all(jobs) for score in scores]

    async def _score_part(
        self, part: Sequence[Sequence[Message]], health: Health, *, first: int
    ) -> list[RewardScore]:
        """The scores of one request's conversations, of which ``first`` is the first's number."""
        texts = [[dict(message) for message in conversation] for conversation in part]
        try:
            scores = await self.retry(lambda: self._try(texts, health))
        except RetriesExhausted as error:
            what = "gave no usable answer"
            if error.permanent:
                what = f"refused conversations {first} to {first + len(part) - 1}"
            raise self._unavailable(error, what, permanent=error.permanent) from None
        self.count("conversations", len(scores))
        return scores

    async def _try(self, texts: Sequence[Any], health: Health) -> list[RewardScore]:
        self.count("requests")
        # fresh ids for every try: an answer that belongs to another request cannot have them
        name = uuid.uuid4().hex
        ids = [f"{name}-{index}" for index in range(len(texts))]
        body = {"conversations": texts, "ids": ids}
        timeout = self.retry_policy.timeout
        answer = await self._http.request("POST", "/v1/score", body, timeout=timeout)
        return list(read_results(answer, ids, health))

    def _unavailable(
        self, error: RetriesExhausted, what: str, *, permanent: bool
    ) -> RewardUnavailable:
        """The error that ends a run: what was tried, what came of it, and the last messages."""
        self.count("given_up")
        fix = "see the service's log; the same command resumes the run"
        if permanent:
            fix = "mend what it names: asking again would not help"
        problem = Problem(
            where=f"reward model at {self.address}",
            what=f"{what}{fault_summary(error.faults)}",
            got=last_messages(error.faults),
            fix=fix,
        )
        return RewardUnavailable(problem, permanent=permanent)


def read_health(answer: Mapping[str, Any], before: Health | None) -> Health:
    """The health of a service that is ready, and serves the model that it served ``before``.

    Raises ``Fault`` for every other answer.
    """
    if answer.get("status") != "ready":
        raise Fault("not_ready", f"status is {shorten(answer.get('status'))}")
    model = answer.get("model")
    if "model" not in answer:  # ours keeps that from those who bring no token
        raise Fault("http_401", "it does not say its model without a token")
    if not isinstance(model, str) or not model:
        raise Fault("malformed", f"model is no name: {shorten(model)}")
    outputs = as_list(answer, "outputs")
    if not outputs or not all(isinstance(name, str) for name in outputs):
        raise Fault("malformed", f"outputs are no names: {shorten(outputs)}")
    most, longest = (
        limit if type(limit := answer.get(name)) is int and limit > 0 else None
        for name in ("max_conversations", "max_tokens")
    )
    health = Health(model, tuple(outputs), most, longest)
    if before is not None and (before.model, before.outputs) != (model, health.outputs):
        raise Fault("other_model", f"it is {shorten(model)} and was {shorten(before.model)}")
    return health


def read_results(
    answer: Mapping[str, Any], ids: Sequence[str], health: Health
) -> Iterator[RewardScore]:
    """The scores of an answer, in the order of ``ids``. Raises ``Fault`` when it is not that."""
    if answer.get("model") != health.model:
        what = f"it is {shorten(answer.get('model'))} and was {shorten(health.model)}"
        raise Fault("other_model", what)
    results = as_list(answer, "results")
    if len(results) != len(ids):
        raise Fault("wrong_length", f"{len(results)} results for {len(ids)} conversations")
    for index, (result, name) in enumerate(zip(results, ids, strict=True)):
        if not isinstance(result, dict):
            raise Fault("malformed", f"results[{index}] is no object: {shorten(result)}")
        if result.get("id") != name:
            what = f"results[{index}] answers {shorten(result.get('id'))}, not {name!r}"
            raise Fault("wrong_order", what)
        try:
            yield check_score(result.get("score"), result.get("attributes"), health.outputs)
        except ValueError as error:
            raise Fault("not_a_score", f"results[{index}]: {error}") from None
