"""Verdicts from a generative judge behind any OpenAI-compatible endpoint; no torch.

No failure ever becomes a score. A verdict counts when the answer came whole and in time, the judge
finished it by itself, and it holds two scores in range. Everything else is counted and asked again
within bounds; a question that stays without a verdict is a :class:`JudgeFailure`, and more of these
than a budget allows stop the run (:class:`JudgeUnavailable`).

What a judge says does not depend on the order in which requests arrive: each question has a seed
of its own, which moves on only when the judge has answered and the answer was of no use.

Source: NeMo-Gym's ``genrm_compare``, which after its retries gives (3.0, 3.0, 3.5) instead.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from nemotron_style.runtime.errors import Problem, StepFailed
from nemotron_style.steps.blocks.data.seed import seed_of
from nemotron_style.steps.blocks.http.client import Fault, as_list
from nemotron_style.steps.blocks.http.endpoint import Address
from nemotron_style.steps.blocks.http.error import shorten
from nemotron_style.steps.blocks.http.retry import (
    UNAUTHORIZED,
    RetriesExhausted,
    RetryingClient,
    fault_summary,
    last_messages,
)
from nemotron_style.steps.blocks.judge.cache import VerdictCache, question_digest
from nemotron_style.steps.blocks.judge.prompt import (
    JudgeSampling,
    Question,
    ask_messages,
    split_reasoning,
)
from nemotron_style.steps.blocks.judge.verdict import Verdict, read_verdict

NO_SUCH_PATH = ("http_404", "http_405")
CLOSED = (*UNAUTHORIZED, *NO_SUCH_PATH)
"""Faults that every other question would meet too."""

FINISHED = (None, "stop", "eos", "eos_token", "end_turn")
SEED_BITS = 31
"""Seeds that every engine takes, and that survive a reader of JSON without integers."""

SHOWN_NAMES = 5
SEE_LOG = "see the judge's log and its answers"

MOST_WORDS = 2000
"""Characters of an answer that are kept beside its verdict."""


class JudgeUnavailable(StepFailed):
    """The judge cannot be used: it refuses everything, or fails more often than is allowed."""


@dataclass(frozen=True)
class JudgeFailure:
    """A question that got no verdict: its name, the kind of each fault, and the last messages."""

    name: tuple[int | str, ...]
    kinds: tuple[str, ...]
    message: str


@dataclass(frozen=True)
class NamedQuestion:
    """A question and its name, of which its seed is made: step, prompt, pair, judge."""

    name: tuple[int | str, ...]
    question: Question


@dataclass
class JudgeClient(RetryingClient):
    """Asks a judge. A context manager; ``at_once`` questions are under way at a time.

    ``model`` is the endpoint's name for the judge, ``identity`` what is known of it beyond that
    (the digest of its weights) and a part of the cache's key. ``response_format`` is passed on to
    endpoints that constrain answers to JSON.
    """

    model: str = ""
    form: str = "instruct"
    sampling: JudgeSampling = field(default_factory=JudgeSampling)
    principle_role: bool = True
    response_format: Mapping[str, Any] | None = None
    identity: str = ""
    cache: VerdictCache = field(default_factory=VerdictCache, repr=False)

    name = "judge"

    def __post_init__(self) -> None:
        super().__post_init__()
        assert isinstance(self.address, Address)
        self._root = "" if self.address.path.endswith("/v1") else "/v1"

    def wait_ready(self, seconds: float) -> None:
        """Ask for its models until ours is among them; an endpoint without a list is ready.

        Raises ``JudgeUnavailable`` after ``seconds``, or at once when the token is refused.
        """
        try:
            self.wait_until(self._find_model, seconds)
        except RetriesExhausted as error:
            refused = error.is_unauthorized
            what = "refused the token" if refused else f"not ready within {seconds:g} s"
            raise self._unavailable(error.faults, what) from None

    async def _find_model(self, timeout: float) -> None:
        try:
            answer = await self._http.request("GET", f"{self._root}/models", timeout=timeout)
        except Fault as fault:
            if fault.kind in NO_SUCH_PATH:
                return
            raise
        names = [each.get("id") for each in as_list(answer, "data") if isinstance(each, dict)]
        if self.model not in names:
            raise Fault("other_model", f"{self.model!r} is not among {shorten(names)}")

    def judge(
        self, questions: Sequence[NamedQuestion], *, most_failures: int
    ) -> list[Verdict | JudgeFailure]:
        """A verdict on each question, in their order, or the failure to get one.

        Raises ``JudgeUnavailable`` as soon as more than ``most_failures`` have failed, or the
        endpoint refuses the token or has no such address.
        """
        failures: list[JudgeFailure] = []

        async def judge_one(question: NamedQuestion) -> Verdict | JudgeFailure:
            judgement = await self._judge_one(question)
            if isinstance(judgement, JudgeFailure):
                failures.append(judgement)
                if len(failures) > most_failures:
                    raise self._too_many(failures, of=len(questions), allowed=most_failures)
            return judgement

        return self.run_all([functools.partial(judge_one, each) for each in questions])

    def body(self, question: Question, seed: int) -> dict[str, Any]:
        """The request of a chat completion. A judge that samples nothing gets no seed."""
        sampling = self.sampling
        body = {
            "model": self.model,
            "messages": ask_messages(question, form=self.form, principle_role=self.principle_role),
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "max_tokens": sampling.max_tokens,
        }
        if sampling.temperature > 0:
            body["seed"] = seed
        if self.response_format is not None:
            body["response_format"] = self.response_format
        return body

    async def _judge_one(self, question: NamedQuestion) -> Verdict | JudgeFailure:
        key = question_digest(self.identity, self.body(question.question, seed_for(question, 0)))
        known = self.cache.get(key)
        if known is not None:
            self.count("cached")
            return known
        unusable = 0  # answers that came whole: after each, another seed may do better

        async def ask() -> Verdict:
            nonlocal unusable
            body = self.body(question.question, seed_for(question, unusable))
            path, timeout = f"{self._root}/chat/completions", self.retry_policy.timeout
            self.count("requests")
            answer = await self._http.request("POST", path, body, timeout=timeout)
            self.count("answers")
            unusable += 1
            return read_answer(answer)

        try:
            verdict = await self.retry(ask)
        except RetriesExhausted as error:
            self.count("given_up")
            kinds = tuple(fault.kind for fault in error.faults)
            if kinds[-1] in CLOSED:
                raise self._unavailable(error.faults, "refused") from None
            return JudgeFailure(question.name, kinds, last_messages(error.faults))
        self.count("verdicts")
        self.cache.put(key, verdict)
        return verdict

    def _too_many(
        self, failures: Sequence[JudgeFailure], *, of: int, allowed: int
    ) -> JudgeUnavailable:
        names = sorted({"/".join(map(str, each.name)) for each in failures})
        shown = ", ".join(names[:SHOWN_NAMES]) + (" ..." if len(names) > SHOWN_NAMES else "")
        what = f"{len(failures)} of {of} judgements failed and {allowed} may: {shown}"
        last = failures[-1]
        fix = SEE_LOG
        if set(last.kinds) == {"unparseable"}:
            fix = "it answers, but gives no verdict: ask in the judge.form that it knows, give it "
            fix += "more tokens, or take a judge that judge/card can read"
        return self._problem(what, got=f"{', '.join(last.kinds)}: {last.message}", fix=fix)

    def _unavailable(self, faults: Sequence[Fault], what: str) -> JudgeUnavailable:
        return self._problem(f"{what}{fault_summary(faults)}", got=last_messages(faults))

    def _problem(self, what: str, *, got: str, fix: str = SEE_LOG) -> JudgeUnavailable:
        """The error that ends a run because of this judge."""
        fix += "; the same command resumes the run"
        return JudgeUnavailable(
            Problem(where=f"judge {self.model} at {self.address}", what=what, got=got, fix=fix)
        )


def seed_for(question: NamedQuestion, unusable: int) -> int:
    """The seed of a question after ``unusable`` answers of no use."""
    return seed_of(*question.name, unusable) >> (64 - SEED_BITS)


def read_answer(completion: Mapping[str, Any]) -> Verdict:
    """The verdict in a chat completion. Raises ``Fault`` when there is none."""
    choices = as_list(completion, "choices")
    if len(choices) != 1:
        raise Fault("malformed", f"{len(choices)} choices and one was asked for")
    choice = choices[0] if isinstance(choices[0], dict) else {}
    message = choice.get("message")
    content = message.get("content") if isinstance(message, dict) else None
    reason = choice.get("finish_reason")
    if reason not in FINISHED:
        raise Fault("unfinished", f"finish_reason is {shorten(reason)}")
    if content is not None and not isinstance(content, str):
        raise Fault("malformed", f"content is no text: {shorten(content)}")
    answer = split_reasoning(content or "")[1]
    if not answer.strip():
        raise Fault("empty", "there is no final answer")
    try:
        return replace(read_verdict(answer), words=answer.strip()[:MOST_WORDS])
    except ValueError as error:
        raise Fault("unparseable", f"{error}: {shorten(answer)}") from None
