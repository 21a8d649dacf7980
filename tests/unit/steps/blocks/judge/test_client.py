"""The judge's client against an endpoint that does everything wrong: no failure is a score.

Every fault is met twice: passing (the endpoint recovers, and the verdict is the right one) and
lasting (the client gives up within its bounds, and the question has no verdict).
"""

from __future__ import annotations

import contextlib
import json
import random
import re
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from held_port import hold_port
from nemotron_style.runtime.errors import Interrupted
from nemotron_style.steps.blocks.http.retry import RetryPolicy
from nemotron_style.steps.blocks.judge.aggregation import Aggregation, Answer
from nemotron_style.steps.blocks.judge.cache import VerdictCache
from nemotron_style.steps.blocks.judge.client import (
    JudgeClient,
    JudgeFailure,
    JudgeUnavailable,
    NamedQuestion,
)
from nemotron_style.steps.blocks.judge.group_judge import AnswerGroup, judge_groups, name_question
from nemotron_style.steps.blocks.judge.pairing import ComparisonPlan, Pair
from nemotron_style.steps.blocks.judge.prompt import JudgeSampling, Question
from nemotron_style.steps.blocks.judge.verdict import Verdict

QUICK = RetryPolicy(tries=3, timeout=120, first_pause=0.001, longest_pause=0.01)
HASTY = RetryPolicy(tries=3, timeout=0.4, first_pause=0.001, longest_pause=0.01)
HISTORY = ({"role": "user", "content": "How long is it?"},)


def right(body: Any) -> Verdict:
    """The verdict on this pair, and on no other: by what the two answers are."""
    told = {message["role"]: message["content"] for message in body["messages"]}
    first, second = (sum(map(ord, told[name])) for name in ("response_1", "response_2"))
    return Verdict(1 + first % 41 / 10, 1 + second % 37 / 10, float(1 + (first + second) % 6))


@dataclass
class Call:
    """One request, and ways to answer it."""

    connection: socket.socket
    body: Any

    @property
    def verdict(self) -> dict[str, float]:
        return dict(vars(right(self.body)))

    def send(self, text: str | bytes | Any, status: str = "200 OK", **headers: Any) -> None:
        data = text if isinstance(text, bytes) else text.encode() if isinstance(text, str) else None
        data = json.dumps(text).encode() if data is None else data
        told = {"Content-Type": "application/json", "Content-Length": len(data)}
        told |= {name.replace("_", "-"): value for name, value in headers.items()}
        lines = [f"HTTP/1.1 {status}", *(f"{k}: {v}" for k, v in told.items() if v is not None)]
        self.connection.sendall("\r\n".join([*lines, "", ""]).encode() + data)

    def say(self, content: Any, **choice: Any) -> None:
        """A whole chat completion with this content."""
        message = {"role": "assistant", "content": content}
        told = {"index": 0, "message": message, "finish_reason": "stop"} | choice
        self.send({"object": "chat.completion", "choices": [told]})

    def judge(self, **changes: Any) -> None:
        """The right verdict with some of its fields changed, or (LEFT_OUT) left out."""
        told = {k: v for k, v in (self.verdict | changes).items() if v is not LEFT_OUT}
        self.say(json.dumps(told))

    def reset(self) -> None:
        """Closed with a reset and not with an end."""
        linger = struct.pack("ii", 1, 0)
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        raise ConnectionResetError  # the server's thread lets go of the socket

    def wait_for_end(self) -> None:
        """Until the client has had enough."""
        self.connection.settimeout(120)
        with contextlib.suppress(OSError):
            while self.connection.recv(65536):
                pass


LEFT_OUT = object()
Fault = Callable[[Call], None]
HALF = '{"score_1": 4, "score_2": 2, "ra'


def drip(call: Call) -> None:
    call.send(b"", Content_Length=100_000)
    gone = threading.Event()
    for _ in range(1000):
        call.connection.sendall(b" ")
        gone.wait(0.02)


def half_an_answer(call: Call) -> None:
    call.send(b'{"choices": [{"message": {"content": "', Content_Length=5000)
    call.reset()


def two(**changes: Any) -> Fault:
    """The right verdict, and then another."""
    return lambda call: call.say(f"{json.dumps(call.verdict)} {json.dumps(call.verdict | changes)}")


def status(line: str, text: Any = "{}", **headers: Any) -> Fault:
    return lambda call: call.send(text, line, **headers)


def say(content: Any, **choice: Any) -> Fault:
    return lambda call: call.say(content, **choice)


def judged(**changes: Any) -> Fault:
    return lambda call: call.judge(**changes)


FAULTS: dict[str, tuple[Fault, str]] = {
    "never": (Call.wait_for_end, "timeout"),
    "slow drip": (drip, "timeout"),
    "reset": (Call.reset, "disconnected"),
    "half an answer": (half_an_answer, "disconnected|cut_short"),
    "no HTTP": (lambda call: call.connection.sendall(b"SSH-2.0\r\n\r\n"), "malformed"),
    "408": (status("408 Timeout"), "http_408"),
    "429": (status("429 Too Many"), "http_429"),
    "429 with a time": (status("429 Too Many", Retry_After="0.002"), "http_429"),
    "429 with an endless time": (status("429 Too Many", Retry_After="9e9"), "http_429"),
    "500": (status("500 Error"), "http_500"),
    "502 in HTML": (status("502 Bad", "<html>Bad Gateway"), "http_502"),
    "503": (status("503 Unavailable"), "http_503"),
    "redirect": (status("302 Found", Location="http://127.0.0.1:9/"), "redirect"),
    "HTML with 200": (lambda call: call.send("<html>Please log in"), "malformed"),
    "nothing with 200": (lambda call: call.send(""), "malformed"),
    "half of a JSON": (lambda call: call.send('{"choices": ['), "malformed"),
    "an error with 200": (lambda call: call.send({"error": {"message": "x"}}), "malformed"),
    "choices of null": (lambda call: call.send({"choices": None}), "malformed"),
    "no choice": (lambda call: call.send({"choices": []}), "malformed"),
    "a choice of null": (lambda call: call.send({"choices": [None]}), "empty"),
    "no message": (lambda call: call.send({"choices": [{"finish_reason": "stop"}]}), "empty"),
    "content of null": (say(None), "empty"),
    "content of parts": (say([{"type": "text", "text": "{}"}]), "malformed"),
    "empty": (say(""), "empty"),
    "blank": (say(" \n"), "empty"),
    "only reasoning": (say('<think>{"score_1": 4, "score_2": 2, "ranking": 1}'), "empty"),
    "a draft in the reasoning": (
        say('<think>{"score_1": 4, "score_2": 2, "ranking": 1}</think>Both are fine.'),
        "unparseable",
    ),
    "truncated": (lambda call: call.say(json.dumps(call.verdict), finish_reason="length"), "unf"),
    "filtered": (
        lambda call: call.say(json.dumps(call.verdict), finish_reason="content_filter"),
        "unfinished",
    ),
    "half a verdict": (say(HALF), "unparseable"),
    "prose": (say("Response 1 is better: 4 against 2."), "unparseable"),
    "single quotes": (say("{'score_1': 4, 'score_2': 2, 'ranking': 1}"), "unparseable"),
    "another schema": (say('{"winner": "response_1"}'), "unparseable"),
    "nested": (say('{"result": {"score_1": 4, "score_2": 2, "ranking": 1}}'), "unparseable"),
    "a list": (say("[4, 2, 1]"), "unparseable"),
    "NaN": (judged(score_1=float("nan")), "unparseable"),
    "infinity": (judged(score_2=float("inf")), "unparseable"),
    "null": (judged(score_1=None), "unparseable"),
    "text": (judged(score_1="4"), "unparseable"),
    "true": (judged(score_1=True), "unparseable"),
    "no first score": (judged(score_1=LEFT_OUT), "unparseable"),
    "no second score": (judged(score_2=LEFT_OUT), "unparseable"),
    "too high": (judged(score_1=9), "unparseable"),
    "too low": (judged(score_2=0), "unparseable"),
    "negative": (judged(score_2=-3), "unparseable"),
    "endless": (judged(score_1=10**400), "unparseable"),
    "a ranking of 42": (judged(ranking=42), "unparseable"),
    "a tie without a ranking": (
        judged(score_1=3, score_2=3, ranking=LEFT_OUT),
        "unparseable",
    ),
    "two verdicts": (two(score_1=1.05), "unparseable"),
    "a second that is none": (two(score_1=11), "unparseable"),
    "a thousand braces": (say("{" * 1000 + '{"score_1": 4, "score_2": 2, "ranking": 1}'), "unp"),
    "deeply nested": (say('{"a":' * 20000 + "1" + "}" * 20000), "unparseable"),
}


@dataclass
class Endpoint:
    """Answers what :attr:`script` says, one entry a request, and then rightly."""

    script: Iterator[Fault | None] = field(default_factory=lambda: iter(()))
    bodies: list[Any] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)
    busy: int = 0
    busiest: int = 0
    hold: float = 0.0
    models: tuple[str, ...] = ("judge",)

    def __enter__(self) -> Endpoint:
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self.listener.getsockname()[1]}"
        threading.Thread(target=self.accept, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError):
            self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()

    def accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self.listener.accept()
                threading.Thread(target=self.serve, args=(connection,), daemon=True).start()

    def serve(self, connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError), connection.makefile("rb") as reader:
            while line := reader.readline():
                length = 0
                while (header := reader.readline()).strip():
                    name, _, value = header.decode().partition(":")
                    length = int(value) if name == "Content-Length" else length
                call = Call(connection, json.loads(reader.read(length)) if length else None)
                self.answer(call, line)

    def answer(self, call: Call, line: bytes) -> None:
        with self.lock:
            self.bodies.append(call.body)
            self.paths.append(line.split()[1].decode())
            self.busy += 1
            self.busiest = max(self.busiest, self.busy)
            fault = next(self.script, None)
        if self.hold:
            threading.Event().wait(self.hold)
        with self.lock:
            self.busy -= 1
        if call.body is None and fault is None:
            call.send({"object": "list", "data": [{"id": name} for name in self.models]})
        else:
            call.judge() if fault is None else fault(call)


@pytest.fixture
def endpoint() -> Iterator[Endpoint]:
    with Endpoint() as one:
        yield one


def client(endpoint: Endpoint, **how: Any) -> JudgeClient:
    usual = {"retry_policy": QUICK, "seed": 1, "form": "genrm", "model": "judge"}
    return JudgeClient(endpoint.url, **{**usual, **how})


def questions(count: int, step: int = 0) -> list[NamedQuestion]:
    answers = [Answer(f"{'word ' * index}{index}") for index in range(count)]
    contest = AnswerGroup("p", HISTORY, answers)
    chosen = [Pair(index, (index + 1) % count) for index in range(count)]
    return [name_question(contest, pair, step=step, principle=None) for pair in chosen]


def expected(asked: NamedQuestion) -> Verdict:
    told = [
        {"role": "response_1", "content": asked.question.response_1},
        {"role": "response_2", "content": asked.question.response_2},
    ]
    return right({"messages": told})


def forever(fault: Fault) -> Iterator[Fault]:
    while True:
        yield fault


def fails(counts: dict[str, int]) -> dict[str, int]:
    return {name[7:]: number for name, number in counts.items() if name.startswith("failed_")}


@pytest.mark.parametrize("name", FAULTS)
def test_after_a_passing_fault_the_verdict_is_right(endpoint: Endpoint, name: str) -> None:
    fault, kind = FAULTS[name]
    (asked, *_) = questions(2)
    with client(endpoint, retry_policy=replace(QUICK, tries=20)) as judge:
        if kind == "timeout":
            judge.retry_policy = replace(HASTY, tries=20)
        endpoint.script = iter([fault])
        (verdict,) = judge.judge([asked], most_failures=0)
        counts = judge.counts
    assert verdict == expected(asked)
    ((told, number),) = fails(counts).items()
    assert any(told.startswith(word) for word in kind.split("|"))
    assert number == counts["retries"]
    assert number == 1 or kind == "timeout"  # where the machine is slow, the rest is late too


@pytest.mark.parametrize("name", FAULTS)
def test_a_lasting_fault_is_a_failure_and_never_a_score(endpoint: Endpoint, name: str) -> None:
    fault, kind = FAULTS[name]
    endpoint.script = forever(fault)
    (asked, *_) = questions(2)
    with client(endpoint, retry_policy=HASTY if kind == "timeout" else QUICK) as judge:
        (failure,) = judge.judge([asked], most_failures=1)
        assert isinstance(failure, JudgeFailure)
        assert failure.name == asked.name
        assert len(failure.kinds) == QUICK.tries
        assert all(any(each.startswith(k) for k in kind.split("|")) for each in failure.kinds)
        assert "verdicts" not in judge.counts
        assert len(judge.cache) == 0


@pytest.mark.parametrize("name", FAULTS)
def test_a_group_with_a_failed_pair_has_no_rewards(endpoint: Endpoint, name: str) -> None:
    """Of two groups the one whose first pair fails is masked; the other is as if alone."""
    fault, kind = FAULTS[name]
    tries = HASTY.tries if kind == "timeout" else QUICK.tries
    contests = [
        AnswerGroup(name, HISTORY, [Answer(f"{name} {word}") for word in ("a", "bb", "ccc")])
        for name in ("p0", "p1")
    ]
    how = {"step": 3, "plan": ComparisonPlan(failure_budget=0.5), "aggregation": Aggregation()}
    with client(endpoint, at_once=1) as judge:
        alone = judge_groups(judge, contests[1:], **how)
    endpoint.script = iter([fault] * tries)
    with client(endpoint, retry_policy=HASTY if kind == "timeout" else QUICK, at_once=1) as judge:
        both = judge_groups(judge, contests, **how)
    assert both.rewards == [None, alone.rewards[0]]
    assert [failure.name for failure in both.failures] == [(3, "p0", 0, 1, 0)]
    assert both.metrics["judge/masked_groups"] == 1
    assert both.metrics["judge/failed_share"] == pytest.approx(1 / 6)


@pytest.mark.parametrize("code", [400, 413, 422])
def test_a_question_that_is_refused_fails_alone_and_at_once(endpoint: Endpoint, code: int) -> None:
    endpoint.script = iter([status(f"{code} No", {"error": {"message": "too long"}})])
    asked = questions(3)
    with client(endpoint, at_once=1) as judge:
        failure, *verdicts = judge.judge(asked, most_failures=1)
    assert isinstance(failure, JudgeFailure)
    assert failure.kinds == (f"http_{code}",)
    assert failure.message == "too long"
    assert verdicts == [expected(each) for each in asked[1:]]
    assert len(endpoint.bodies) == 3


@pytest.mark.parametrize("code", [401, 403, 404])
def test_a_judge_that_refuses_everything_ends_the_run_at_once(
    endpoint: Endpoint, code: int
) -> None:
    endpoint.script = forever(status(f"{code} No"))
    with (
        client(endpoint, at_once=1, token="hush-hush") as judge,
        pytest.raises(JudgeUnavailable, match=f"1 x http_{code}") as caught,
    ):
        judge.judge(questions(8), most_failures=8)
    assert len(endpoint.bodies) == 1
    assert "hush" not in f"{caught.value}{judge!r}"


def test_above_its_budget_of_failures_the_run_stops_and_names_the_prompts(
    endpoint: Endpoint,
) -> None:
    endpoint.script = forever(say("I cannot judge."))
    answers = [Answer("a"), Answer("b"), Answer("c"), Answer("d")]
    contests = [AnswerGroup(f"prompt-{n}", HISTORY, answers) for n in range(5)]
    with (
        client(endpoint, at_once=1) as judge,
        pytest.raises(JudgeUnavailable, match="5 of 20 judgements failed and 4 may") as caught,
    ):
        judge_groups(judge, contests, step=1, plan=ComparisonPlan(), aggregation=Aggregation())
    assert "1/prompt-0/0/1/0" in str(caught.value)
    assert "I cannot judge." in str(caught.value)
    assert "gives no verdict: ask in the judge.form that it knows" in str(caught.value)
    assert len(endpoint.bodies) == 5 * QUICK.tries


def test_a_judge_that_is_gone_ends_the_run() -> None:
    with hold_port() as held:
        gone = Endpoint()
        gone.url = f"http://127.0.0.1:{held.getsockname()[1]}"
        with client(gone) as judge, pytest.raises(JudgeUnavailable, match="unreachable"):
            judge.judge(questions(8), most_failures=1)


def test_a_judge_that_always_ties_is_seen(endpoint: Endpoint) -> None:
    endpoint.script = forever(judged(score_1=3, score_2=3, ranking=3.5))
    contest = AnswerGroup("p", HISTORY, [Answer("a"), Answer("bb"), Answer("ccc")])
    with client(endpoint) as judge:
        done = judge_groups(
            judge, [contest], step=0, plan=ComparisonPlan(), aggregation=Aggregation()
        )
    assert done.rewards == [[3.0, 3.0, 3.0]]
    assert done.metrics["judge/tiebreak_usage_rate"] == 1.0
    assert done.metrics["judge/std_individual_score"] == 0.0


def test_under_every_fault_at_once_every_verdict_is_right(endpoint: Endpoint) -> None:
    """Half of all requests fail, each in a way that is drawn."""
    drawn = random.Random(7)
    quick = [fault for fault, kind in FAULTS.values() if kind != "timeout"]
    endpoint.script = iter(
        [drawn.choice(quick) if drawn.random() < 0.5 else None for _ in range(3000)]
    )
    asked = questions(120)
    patient = RetryPolicy(tries=40, timeout=120, first_pause=0.001, longest_pause=0.002)
    with client(endpoint, retry_policy=patient, at_once=8) as judge:
        found = judge.judge(asked, most_failures=0)
        counts = judge.counts
    assert found == [expected(each) for each in asked]
    assert sum(fails(counts).values()) == counts["retries"] > 50


# --- what is sent --------------------------------------------------------------------------------


def test_seeds_belong_to_questions_and_move_on_with_answers_alone(endpoint: Endpoint) -> None:
    def seeds(script: list[Fault | None], **how: Any) -> list[int]:
        endpoint.bodies.clear()
        endpoint.script = iter(script)
        with client(endpoint, at_once=1, **how) as judge:
            judge.judge(questions(2, step=4)[:1], most_failures=1)
        return [body["seed"] for body in endpoint.bodies]

    first, second, third = seeds([say("?"), say("?"), say("?")])
    assert len({first, second, third}) == 3
    assert seeds([None]) == [first]
    assert seeds([status("503 x"), Call.reset, None]) == [first] * 3
    assert seeds([status("503 x"), say("?"), None]) == [first, first, second]
    assert all(0 <= seed < 2**31 for seed in (first, second, third))


def test_results_do_not_depend_on_how_many_are_asked_at_once(endpoint: Endpoint) -> None:
    """The judge here answers by its seed, as a real one does."""

    def by_seed(call: Call) -> None:
        drawn = random.Random(call.body["seed"])
        threading.Event().wait(drawn.random() / 100)
        call.judge(score_1=drawn.randint(1, 5), score_2=drawn.randint(1, 5), ranking=2)

    found = []
    for at_once in (1, 7):
        endpoint.script = forever(by_seed)
        with client(endpoint, at_once=at_once) as judge:
            found.append(judge.judge(questions(20), most_failures=0))
    assert found[0] == found[1]
    assert len(set(found[0])) > 5


def test_no_more_are_asked_at_once_than_allowed(endpoint: Endpoint) -> None:
    endpoint.hold = 0.02
    with client(endpoint, at_once=3) as judge:
        judge.judge(questions(20), most_failures=0)
    assert 1 < endpoint.busiest <= 3


def test_the_request_is_a_chat_completion_below_the_base(endpoint: Endpoint) -> None:
    (asked, *_) = questions(2)
    shape = {"type": "json_object"}
    with client(endpoint, response_format=shape) as judge:
        judge.judge([asked], most_failures=0)
    with JudgeClient(f"{endpoint.url}/v1/", form="genrm", model="judge") as judge:
        judge.judge([asked], most_failures=0)
    assert endpoint.paths == ["/v1/chat/completions"] * 2
    body, plain = endpoint.bodies
    assert (body["model"], body["temperature"], body["top_p"]) == ("judge", 0.6, 0.95)
    assert body["response_format"] == shape
    assert "response_format" not in plain
    assert [m["role"] for m in body["messages"]] == ["user", "response_1", "response_2"]


def test_a_judge_that_draws_nothing_gets_no_seed(endpoint: Endpoint) -> None:
    (asked, *_) = questions(2)
    with client(endpoint, sampling=JudgeSampling(temperature=0.0)) as judge:
        judge.judge([asked], most_failures=0)
    assert "seed" not in endpoint.bodies[0]


def test_a_run_that_is_stopped_does_not_wait_on(endpoint: Endpoint) -> None:
    endpoint.script = forever(status("503 x", Retry_After="600"))
    patience = RetryPolicy(tries=50, timeout=120, longest_pause=600)
    with client(endpoint, retry_policy=patience) as judge:
        judge.stopping = lambda: bool(endpoint.bodies)
        with pytest.raises(Interrupted, match="judge was waited for"):
            judge.judge(questions(4), most_failures=4)


def test_readiness_is_waited_for(endpoint: Endpoint) -> None:
    endpoint.script = iter([status("503 loading"), lambda call: call.send({"data": []}), None])
    with client(endpoint) as judge:
        judge.wait_ready(120)
        assert fails(judge.counts) == {"http_503": 1, "other_model": 1}
    assert endpoint.paths == ["/v1/models"] * 3


def test_what_holds_it_up_is_said_each_reason_once(endpoint: Endpoint) -> None:
    loading = status("503 loading")
    endpoint.script = iter([loading, loading, lambda call: call.send({"data": []}), None])
    said: list[str] = []
    with client(endpoint, say=said.append) as judge:
        judge.wait_ready(120)
    assert len(said) == 2
    assert re.match(rf"waiting up to 1\d\d s for the judge at {judge.address}: ", said[0])
    assert said[1].endswith("'judge' is not among []")


def test_an_endpoint_without_a_list_of_models_is_ready(endpoint: Endpoint) -> None:
    endpoint.script = forever(status("404 Not Found"))
    with client(endpoint) as judge:
        judge.wait_ready(120)


def test_a_judge_that_is_not_served_is_named(endpoint: Endpoint) -> None:
    endpoint.models = ("other", "another")
    with (
        client(endpoint) as judge,
        pytest.raises(JudgeUnavailable, match=r"not ready within 1 s.*other_model") as caught,
    ):
        judge.wait_ready(1.0)
    assert "'judge' is not among ['other', 'another']" in str(caught.value)


def test_a_token_that_is_refused_is_told_at_once(endpoint: Endpoint) -> None:
    endpoint.script = forever(status("401 No"))
    with client(endpoint) as judge, pytest.raises(JudgeUnavailable, match="refused the token"):
        judge.wait_ready(60)
    assert len(endpoint.bodies) == 1


# --- the cache -----------------------------------------------------------------------------------


def test_what_was_judged_is_not_asked_again(endpoint: Endpoint, tmp_path: Any) -> None:
    path, asked = tmp_path / "verdicts.jsonl", questions(4)
    with client(endpoint, cache=VerdictCache(path)) as judge:
        first = judge.judge(asked[:3], most_failures=0)
    text = path.read_text()
    path.write_text(text + text.splitlines()[0][:40])  # killed while it wrote
    with client(endpoint, cache=VerdictCache(path)) as judge:
        again = judge.judge(asked, most_failures=0)
        assert judge.counts["cached"] == 3
        assert judge.counts["requests"] == 1
    assert again[:3] == first
    assert len(endpoint.bodies) == 4
    assert len(VerdictCache(path)) == 4


@pytest.mark.parametrize(
    "change",
    [
        {"identity": "sha256:b"},
        {"model": "other"},
        {"sampling": JudgeSampling(max_tokens=10)},
        {"form": "instruct"},
    ],
    ids=str,
)
def test_another_question_is_not_in_the_cache(endpoint: Endpoint, change: Any) -> None:
    cache, asked = VerdictCache(), questions(2)[:1]
    endpoint.script = forever(judged_anyway)
    with client(endpoint, cache=cache) as judge:
        judge.judge(asked, most_failures=0)
    with client(endpoint, cache=cache, **change) as judge:
        judge.judge(asked, most_failures=0)
    with client(endpoint, cache=cache) as judge:
        judge.judge(questions(2, step=1)[:1], most_failures=0)
    with client(endpoint, cache=cache) as judge:
        judge.judge(asked, most_failures=0)
    assert len(endpoint.bodies) == 3


def judged_anyway(call: Call) -> None:
    call.say('{"score_1": 4, "score_2": 2, "ranking": 1}')


def test_a_cache_that_was_spoilt_gives_nothing_that_is_no_verdict(tmp_path: Any) -> None:
    path = tmp_path / "verdicts.jsonl"
    lines = ["[]", "{}", '{"digest": "a"}', '{"digest": "b", "score_1": "x"}', "\x00", "null"]
    path.write_text("\n".join(lines))
    cache = VerdictCache(path)
    assert len(cache) == 0
    cache.put("c", Verdict(1.0, 2.0, 3.0))
    assert VerdictCache(path).get("c") == Verdict(1.0, 2.0, 3.0)


def test_the_judges_words_are_kept_beside_its_verdict_but_not_for_ever(
    endpoint: Endpoint, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nemotron_style.steps.blocks.judge.cache.MOST_WORDS", 2)
    path = tmp_path / "verdicts.jsonl"
    endpoint.script = forever(lambda call: call.say('Good. {"score_1": 4, "score_2": 2}'))
    with client(endpoint, cache=VerdictCache(path), at_once=1) as judge:
        found = [judge.judge([each], most_failures=0)[0] for each in questions(3)[:3]]
        assert [each.words[:5] for each in found] == ["Good."] * 3
        again = [judge.judge([each], most_failures=0)[0] for each in questions(3)[:3]]
    assert [each.words[:5] for each in again] == ["", "Good.", "Good."]
    assert again == found  # words decide nothing
    assert "Good" not in path.read_text()


def test_the_instruct_form_says_how_to_answer(endpoint: Endpoint) -> None:
    endpoint.script = forever(judged_anyway)
    question = Question(HISTORY, "A", "", "Be fair.")
    with client(endpoint, form="instruct") as judge:
        judge.judge([NamedQuestion((0,), question)], most_failures=0)
    (message,) = endpoint.bodies[0]["messages"]
    assert message["role"] == "user"
    for part in ("How long is it?", "Be fair.", "None", '"score_1": 1-5'):
        assert part in message["content"]
