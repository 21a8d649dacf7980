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

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from nemotron_style.runtime.errors import Problem, StepFailed
from nemotron_style.steps.blocks.data.seed import seed_of
from nemotron_style.steps.blocks.http.client import Fault, as_list
from nemotron_style.steps.blocks.http.endpoint import Address
from nemotron_style.steps.blocks.http.error import shorten
from nemotron_style.steps.blocks.http.retry import (
    REFUSALS,
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

UNLISTED = ("http_404", "http_405")
CLOSED = (*REFUSALS, *UNLISTED)
"""Faults that every other question would meet too."""

FINISHED = (None, "stop", "eos", "eos_token", "end_turn")
SEED_BITS = 31
"""Seeds that every engine takes, and that survive a reader of JSON without integers."""

NAMED = 5


class JudgeUnavailable(StepFailed):
    """The judge cannot be used: it refuses everything, or fails more often than is allowed."""


@dataclass(frozen=True)
class JudgeFailure:
    """A question that got no verdict: its name, the kind of each fault, and the last words."""

    name: tuple[int | str, ...]
    kinds: tuple[str, ...]
    message: str

    @property
    def is_unreadable(self) -> bool:
        """The judge did answer, and its last answer held no verdict."""
        return self.kinds[-1:] == ("unparseable",)


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
        self._below = "" if self.address.path.endswith("/v1") else "/v1"

    def wait_ready(self, seconds: float) -> None:
        """Ask for its models until ours is among them; an endpoint without a list is ready.

        Raises ``JudgeUnavailable`` after ``seconds``, or at once when the token is refused.
        """
        try:
            self.wait_until(self._look, seconds)
        except RetriesExhausted as spent:
            what = "refused the token" if spent.is_refused else f"not ready within {seconds:g} s"
            words = last_messages(spent.faults)
            raise self.unavailable(f"{what}{fault_summary(spent.faults)}", got=words) from None

    def _look(self, timeout: float) -> None:
        try:
            told = self._http.request("GET", f"{self._below}/models", timeout=timeout)
        except Fault as fault:
            if fault.kind in UNLISTED:
                return
            raise
        names = [each.get("id") for each in as_list(told, "data") if isinstance(each, dict)]
        if self.model not in names:
            raise Fault("other_model", f"{self.model!r} is not among {shorten(names)}")

    def judge(
        self, questions: Sequence[NamedQuestion], *, most_failures: int
    ) -> list[Verdict | JudgeFailure]:
        """A verdict on each question, in their order, or the failure to get one.

        Raises ``JudgeUnavailable`` as soon as more than ``most_failures`` have failed, or the
        endpoint refuses the token or has no such address.
        """
        stop, failures = threading.Event(), _Failures(most_failures, len(questions))
        jobs = [lambda asked=asked: self._judge_one(asked, stop, failures) for asked in questions]
        return self.gather(jobs, stop)

    def body(self, question: Question, seed: int) -> dict[str, Any]:
        """The request of a chat completion. A judge that draws nothing gets no seed."""
        how = self.sampling
        body = {
            "model": self.model,
            "messages": ask_messages(question, form=self.form, principle_role=self.principle_role),
            "temperature": how.temperature,
            "top_p": how.top_p,
            "max_tokens": how.max_tokens,
        }
        if how.temperature > 0:
            body["seed"] = seed
        if self.response_format is not None:
            body["response_format"] = self.response_format
        return body

    def _judge_one(
        self, asked: NamedQuestion, stop: threading.Event, failures: _Failures
    ) -> Verdict | JudgeFailure:
        key = question_digest(self.identity, self.body(asked.question, seed_for(asked, 0)))
        known = self.cache.get(key)
        if known is not None:
            self._count("cached")
            return known
        attempt = _Attempt(self, asked)
        try:
            verdict = self.retry(attempt, stop)
        except RetriesExhausted as spent:
            self._count("given_up")
            return failures.add(self._fail(asked, spent), self)
        self._count("verdicts")
        self.cache.put(key, verdict)
        return verdict

    def _fail(self, asked: NamedQuestion, spent: RetriesExhausted) -> JudgeFailure:
        kinds = tuple(fault.kind for fault in spent.faults)
        words = last_messages(spent.faults)
        if kinds[-1] in CLOSED:
            raise self.unavailable(f"refused{fault_summary(spent.faults)}", got=words)
        return JudgeFailure(asked.name, kinds, words)

    def unavailable(self, what: str, *, got: str) -> JudgeUnavailable:
        """The error that ends a run because of this judge."""
        fix = "see the judge's log and its answers; the same command resumes the run"
        return JudgeUnavailable(
            Problem(where=f"judge {self.model} at {self.address}", what=what, got=got, fix=fix)
        )


@dataclass
class _Attempt:
    """One question, asked again with another seed once an answer was of no use."""

    client: JudgeClient
    asked: NamedQuestion
    answered: int = 0

    def __call__(self) -> Verdict:
        client = self.client
        body = client.body(self.asked.question, seed_for(self.asked, self.answered))
        client._count("requests")
        path = f"{client._below}/chat/completions"
        told = client._http.request("POST", path, body, timeout=client.retry_policy.timeout)
        self.answered += 1
        client._count("answers")
        text = read_completion(told)
        try:
            return read_verdict(text)
        except ValueError as error:
            raise Fault("unparseable", f"{error}: {shorten(text)}") from None


@dataclass
class _Failures:
    """Counts failures over threads, and ends the run at one too many."""

    most: int
    total: int
    found: list[JudgeFailure] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, failure: JudgeFailure, client: JudgeClient) -> JudgeFailure:
        with self.lock:
            self.found.append(failure)
            if len(self.found) <= self.most:
                return failure
            names = sorted({"/".join(map(str, each.name)) for each in self.found})
            shown = ", ".join(names[:NAMED]) + (" ..." if len(names) > NAMED else "")
            count = len(self.found)
        what = f"{count} of {self.total} judgements failed and {self.most} may: {shown}"
        raise client.unavailable(what, got=f"{', '.join(failure.kinds)}: {failure.message}")


def seed_for(asked: NamedQuestion, answered: int) -> int:
    """The seed of a question after ``answered`` answers of no use."""
    return seed_of(*asked.name, answered) >> (64 - SEED_BITS)


def read_completion(told: Mapping[str, Any]) -> str:
    """The final answer of a chat completion. Raises ``Fault`` when there is none."""
    choices = as_list(told, "choices")
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
    return answer
